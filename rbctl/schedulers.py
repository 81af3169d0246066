"""Schedulers by the names that the field gives its samplers: "Euler a", "DPM++ 2M Karras", "LCM".

A name is a sampler, and perhaps a schedule behind it. Capitals, spaces, hyphens and underscores are free, so kohya's
"k_euler_a" and ComfyUI's "dpmpp_2m" are names too, and so is the class in diffusers.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

from rbctl.errors import InputError, abridged, nearest, reason

# Sampler -> its class in diffusers, and what the class is told.
_SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "Euler": ("EulerDiscreteScheduler", {}),
    "Euler a": ("EulerAncestralDiscreteScheduler", {}),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "DPM++ 2M SDE": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}),
    "DPM++ SDE": (
        "DPMSolverSinglestepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "solver_order": 2, "lower_order_final": True},
    ),
    "UniPC": ("UniPCMultistepScheduler", {}),
    "DDIM": ("DDIMScheduler", {"clip_sample": False}),
    "Heun": ("HeunDiscreteScheduler", {"clip_sample": False}),
    "DPM2": ("KDPM2DiscreteScheduler", {}),
    "DPM2 a": ("KDPM2AncestralDiscreteScheduler", {}),
    "DEIS": ("DEISMultistepScheduler", {"algorithm_type": "deis"}),
    "LMS": ("LMSDiscreteScheduler", {}),
    "LCM": ("LCMScheduler", {"clip_sample": False}),
    "TCD": ("TCDScheduler", {"clip_sample": False}),
}
_SCHEDULES: dict[str, dict[str, Any]] = {
    "Karras": {"use_karras_sigmas": True},
    "Exponential": {"use_exponential_sigmas": True},
    "SGM Uniform": {"timestep_spacing": "trailing"},
}
_SIGMAS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")  # at most one may be on
SCHEDULERS = tuple(_SAMPLERS)
SCHEDULES = tuple(_SCHEDULES)


def _plain(name: str) -> str:
    plain = re.sub(r"[\s_-]", "", name.lower())
    for other, own in (("dpmpp", "dpm++"), ("dpmsolver++", "dpm++2m"), ("ancestral", "a"), ("trailing", "sgmuniform")):
        plain = plain.replace(other, own)
    return plain


_NAMES = {
    _plain(f"{sampler} {schedule}"): (sampler, schedule) for sampler in SCHEDULERS for schedule in ("", *SCHEDULES)
}


def check_scheduler(name: str) -> str:
    """The name as this module writes it, "DPM++ 2M Karras" for "dpmpp_2m_karras".

    Raises:
        ValueError: there is no such scheduler; the nearest is named.
    """
    classes = {kind: sampler for sampler, (kind, _) in reversed(_SAMPLERS.items())}
    plain = _plain(classes.get(name, name))
    key = plain if plain in _NAMES else plain.removeprefix("k")
    if key not in _NAMES:
        every = [f"{sampler} {schedule}".strip() for sampler, schedule in _NAMES.values()]
        mend = nearest(name, every) or f"; schedulers: {', '.join(SCHEDULERS)}; schedules: {', '.join(SCHEDULES)}"
        raise ValueError(f"no scheduler {abridged(name)}{mend}")
    return " ".join(_NAMES[key]).strip()


def sampler_and_schedule(scheduler: str) -> tuple[str, str]:
    """What galleries call a scheduler, a name of this module or a class of diffusers: "DPM++ 2M" and "Karras"."""
    try:
        return _NAMES[_plain(check_scheduler(scheduler))]
    except ValueError:
        return scheduler.removesuffix("Scheduler"), ""


def make_scheduler(config: Mapping[str, Any], name: str | None, steps: int | None = None) -> Any:
    """A fresh scheduler of diffusers.

    Args:
        config: of the bundle's own scheduler; noise schedule and prediction type come from it.
        name: of this module, in any of its forms; None for the bundle's own.
        steps: where given, whether it takes so many is tried.

    Raises:
        InputError: there is no such scheduler, it has no such schedule, or takes no such number of steps.
    """
    from diffusers import schedulers

    if name is None:
        scheduler = getattr(schedulers, config.get("_class_name", "EulerDiscreteScheduler")).from_config(config)
    else:
        sampler, schedule = sampler_and_schedule(name)
        class_name, options = _SAMPLERS[sampler]
        kind = getattr(schedulers, class_name)
        takes = inspect.signature(kind).parameters
        own_schedule = _SCHEDULES.get(schedule, {})
        if not takes.keys() >= own_schedule.keys():
            raise InputError(f"--scheduler {name}: {sampler} has no schedule {schedule}; leave {schedule!r} out")
        options = {key: False for key in _SIGMAS if key in takes} | options | own_schedule
        if config.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in takes:
            options["trained_betas"] = _zero_snr_betas(config)
        known = {key: value for key, value in config.items() if key in takes}
        scheduler = kind(**known | options)
    if steps is not None:
        try:
            scheduler.set_timesteps(steps)
        except ValueError as error:
            raise InputError(f"--steps {steps}: not with this scheduler ({reason(error)})") from error
    return scheduler


def _zero_snr_betas(config: Mapping[str, Any]) -> Any:
    """The noise schedule in numbers, for classes that cannot rescale it; like diffusers', it ends just above zero."""
    import numpy as np
    from diffusers import EulerDiscreteScheduler

    takes = inspect.signature(EulerDiscreteScheduler).parameters
    alphas = EulerDiscreteScheduler(**{k: v for k, v in config.items() if k in takes}).alphas_cumprod.double().numpy()
    return 1 - alphas / np.concatenate(([1.0], alphas[:-1]))
