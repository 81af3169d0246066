"""What a bundle says about sampling with it, in its own ``recipe.yaml``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rbctl import formats
from rbctl.defaults import GUIDANCE_SCALE, NEGATIVE_PROMPT, STEPS
from rbctl.errors import InputError
from rbctl.files import read_yaml
from rbctl.options import BUNDLE_RECIPE
from rbctl.prompts.fields import Settings

_SAMPLING = ("steps", "guidance_scale", "negative_prompt", "scale")


def sampling_defaults(folder: Path) -> dict[str, Any]:
    """Steps, guidance_scale, negative_prompt and, where the bundle names it, scale: what ``rbctl sample`` takes too.

    Raises:
        InputError: the recipe is damaged; file and key are named.
    """
    path = folder / BUNDLE_RECIPE
    own = read_yaml(path).get("sample", {}) if path.is_file() else {}
    if not isinstance(own, dict):
        raise InputError(f"{path}: section 'sample' must be a mapping of options to values")
    settings = formats.read(Settings, {key: own[key] for key in _SAMPLING if key in own}, str(path))
    defaults = {"steps": STEPS, "guidance_scale": GUIDANCE_SCALE, "negative_prompt": NEGATIVE_PROMPT}
    return defaults | {key: value for key in _SAMPLING if (value := getattr(settings, key)) is not None}
