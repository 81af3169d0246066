"""What the JSON files of a bundle say of its networks, typed; the defaults are those of the official SDXL adapter."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from annotated_types import MinLen

from rbctl import formats
from rbctl.files import read_object
from rbctl.formats import Positive
from rbctl.resampler import ResamplerConfig


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


@dataclass(frozen=True)
class _VAE:
    block_out_channels: Annotated[tuple[Positive, ...], MinLen(1)]


@dataclass(frozen=True)
class _TextEncoder:
    max_position_embeddings: Positive = 77


@dataclass(frozen=True)
class Summary:
    """What a bundle says of itself without loading a network: side in pixels, default weight of the image branch."""

    resolution: int
    gamma: float


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
        InputError: one of them is damaged.
    """
    side = _read(_UNet, folder / "unet" / "config.json").sample_size
    widths = _read(_VAE, folder / "vae" / "config.json").block_out_channels
    return Summary(resolution=side * 2 ** (len(widths) - 1), gamma=adapter_config(folder).scale)


def text_positions(folder: Path) -> int:
    """Tokens that the text encoder of ``folder`` reads, both ends included."""
    return _read(_TextEncoder, folder / "config.json").max_position_embeddings


def _read(kind: type[Any], path: Path) -> Any:
    return formats.read(kind, read_object(path), str(path), ignore_others=True)
