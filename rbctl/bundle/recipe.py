"""What a bundle says about sampling with it, in its own ``recipe.yaml``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from rbctl import formats
from rbctl.bases import recipe_of
from rbctl.defaults import GUIDANCE_SCALE, NEGATIVE_PROMPT, STEPS
from rbctl.errors import InputError
from rbctl.prompts.fields import Settings
from rbctl.shortcuts import QUALITY, Shortcuts, options_of

_SAMPLING = ("steps", "guidance_scale", "negative_prompt", "scale", "width", "height")


def sampling_defaults(folder: Path, quality: str = QUALITY) -> tuple[dict[str, Any], Shortcuts]:
    """What ``rbctl sample`` takes for a quality: steps, guidance_scale, negative_prompt, perhaps scale; and shortcuts.

    Raises:
        InputError: the recipe is damaged; file and key are named.
    """
    path, recipe = recipe_of(folder)
    own = recipe.get("sample", {})
    if not isinstance(own, dict):
        raise InputError(f"{path}: section 'sample' must be a mapping of options to values")
    own = own | options_of(quality, recipe, str(path))

    def of(*keys: str) -> dict[str, Any]:
        return {key: own[key] for key in keys if key in own}

    settings = formats.read(Settings, of(*_SAMPLING), str(path))
    shortcuts = formats.read(Shortcuts, of(*(field.name for field in dataclasses.fields(Shortcuts))), str(path))
    defaults = {"steps": STEPS, "guidance_scale": GUIDANCE_SCALE, "negative_prompt": NEGATIVE_PROMPT}
    defaults |= {key: value for key in _SAMPLING if (value := getattr(settings, key)) is not None}
    return defaults, shortcuts
