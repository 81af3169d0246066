"""What a bundle says about sampling with it, in its own ``recipe.yaml``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Interval

from rbctl import formats
from rbctl.defaults import GUIDANCE_SCALE, NEGATIVE_PROMPT, STEPS
from rbctl.errors import InputError
from rbctl.files import read_yaml
from rbctl.options import BUNDLE_RECIPE
from rbctl.prompts.fields import Settings
from rbctl.shortcuts import QUALITY, Shortcuts, options_of

_SAMPLING = ("steps", "guidance_scale", "negative_prompt", "scale")


@dataclass(frozen=True, kw_only=True)
class _Sampling(Settings):
    """What a bundle's recipe may say, and Python takes: see :class:`rbctl.shortcuts.Shortcuts` for the further ones."""

    guidance_start: Annotated[float, Interval(ge=0, le=1)] = 0.0
    guidance_stop: Annotated[float, Interval(ge=0, le=1)] = 1.0
    cache_start: Annotated[float, Interval(ge=0, le=1)] = 0.0
    cache_span: Annotated[float, Interval(ge=0, le=1)] = 0.0


def sampling_defaults(folder: Path, quality: str = QUALITY) -> tuple[dict[str, Any], Shortcuts]:
    """What ``rbctl sample`` takes for a quality: steps, guidance_scale, negative_prompt, perhaps scale; and shortcuts.

    Raises:
        InputError: the recipe is damaged; file and key are named.
    """
    path = folder / BUNDLE_RECIPE
    recipe = read_yaml(path) if path.is_file() else {}
    own = recipe.get("sample", {})
    if not isinstance(own, dict):
        raise InputError(f"{path}: section 'sample' must be a mapping of options to values")
    own = own | options_of(quality, recipe, str(path))
    shortcuts = [field.name for field in dataclasses.fields(Shortcuts)]
    settings = formats.read(_Sampling, {key: own[key] for key in (*_SAMPLING, *shortcuts) if key in own}, str(path))
    defaults = {"steps": STEPS, "guidance_scale": GUIDANCE_SCALE, "negative_prompt": NEGATIVE_PROMPT}
    defaults |= {key: value for key in _SAMPLING if (value := getattr(settings, key)) is not None}
    return defaults, Shortcuts(**{name: getattr(settings, name) for name in shortcuts})
