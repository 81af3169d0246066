"""What the JSON files of a bundle say of its networks, typed; the defaults are those of the official SDXL adapter."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from annotated_types import MinLen

from rbctl import formats
from rbctl.bases import Summary
from rbctl.errors import InputError, abridged
from rbctl.files import read_object
from rbctl.formats import Positive
from rbctl.resampler import ResamplerConfig

PREDICTION_TYPES = ("epsilon", "v_prediction")  # of the bases that the method can do


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """ms_adapter_config.json.

    Attributes:
        scale: weight of the image branch (gamma) that the adapter was trained for.
        clip_image_size, local_image_size: pixels at which image prompts are shown to the two encoders.
    """

    resampler: ResamplerConfig = field(default_factory=ResamplerConfig)
    num_patches: Positive = 4
    scale: float = 0.6
    clip_image_size: Positive = 224
    local_image_size: Positive = 896


@dataclass(frozen=True)
class _UNet:
    sample_size: Positive
    in_channels: Positive = 4


@dataclass(frozen=True)
class _VAE:
    block_out_channels: Annotated[tuple[Positive, ...], MinLen(1)]
    latent_channels: Positive = 4


@dataclass(frozen=True)
class _Scheduler:
    prediction_type: str = "epsilon"
    use_flow_sigmas: bool | None = False


@dataclass(frozen=True)
class _TextEncoder:
    max_position_embeddings: Positive = 77


def adapter_config(folder: Path) -> AdapterConfig:
    """Sizes of a bundle's adapter.

    Raises:
        InputError: the file is damaged.
    """
    path = folder / "ms_adapter_config.json"
    return _read(AdapterConfig, path) if path.is_file() else AdapterConfig()


def summary(folder: Path) -> Summary:
    """Read a bundle's defaults from its JSON files.

    Raises:
        InputError: one of them is damaged, UNet and VAE do not fit together, or the objective is none of the method's.
    """
    check_objective(folder / "scheduler" / "scheduler_config.json")
    unet, vae = _read(_UNet, folder / "unet" / "config.json"), _read(_VAE, folder / "vae" / "config.json")
    if unet.in_channels != vae.latent_channels:
        raise InputError(
            f"{folder}: the UNet takes {unet.in_channels} channels, the VAE's latents have {vae.latent_channels}; "
            "inpainting bases and VAEs of other models do not fit"
        )
    return Summary(
        resolution=unet.sample_size * 2 ** (len(vae.block_out_channels) - 1), gamma=adapter_config(folder).scale
    )


def check_objective(scheduler: Path) -> None:
    """The base must be trained for one of the method's objectives, noise (epsilon) or v-prediction.

    Args:
        scheduler: its scheduler_config.json.

    Raises:
        InputError: it is trained for another, such as flow matching; or the file is damaged.
    """
    config = read_object(scheduler)
    name, settings = str(config.get("_class_name", "")), _read(_Scheduler, scheduler)
    if name.startswith("Flow") or settings.use_flow_sigmas or settings.prediction_type.startswith("flow"):
        other = "flow matching"
    elif name.startswith(("EDM", "CosineDPM")):
        other = "EDM"
    elif settings.prediction_type not in PREDICTION_TYPES:
        other = f"prediction_type {abridged(settings.prediction_type)}"
    else:
        return
    raise InputError(f"{scheduler}: the base's objective is {other}; the method takes {' or '.join(PREDICTION_TYPES)}")


def text_positions(folder: Path) -> int:
    """Tokens that the text encoder of ``folder`` reads, both ends included."""
    return _read(_TextEncoder, folder / "config.json").max_position_embeddings


def _read(kind: type[Any], path: Path) -> Any:
    return formats.read(kind, read_object(path), str(path), ignore_others=True)
