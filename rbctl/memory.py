"""Memory and time asked for before they are taken: low bounds from shapes, so that nothing possible is refused."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rbctl.bundle.convert import attention_layers
from rbctl.errors import InputError

if TYPE_CHECKING:
    import torch

# Multiplications and additions of self-attention in one step, for one picture: more than an hour on most CPUs.
_ENDLESS = 5e14


def forward_bytes(unet: Mapping[str, Any], rows: int, latent_size: tuple[int, int], itemsize: int) -> int:
    """What a UNet's last up block holds at once, about: six maps of its first residual block's input.

    On `mini` the peak is 6.7 of them, at 1024 and at 1536 pixels.

    Args:
        unet: ``unet/config.json``.
        rows: latents at once; twice the pictures where there is guidance.
        latent_size: (h, w).
        itemsize: bytes of a number.
    """
    widths = unet["block_out_channels"]
    return 6 * (widths[0] + widths[min(1, len(widths) - 1)]) * rows * latent_size[0] * latent_size[1] * itemsize


def picture_bytes(vae: Mapping[str, Any], height: int, width: int) -> int:
    """What a VAE in float32 holds at once of one picture, at its finest level, on the way in or out.

    Args:
        vae: ``vae/config.json``.
        height, width: of the picture, pixels.
    """
    widths = vae["block_out_channels"]
    if vae.get("_class_name") == "UnshuffleVAE":  # all convolutions are at the coarsest level
        return 2 * widths[-1] * (height * width >> 2 * (len(widths) - 1)) * 4
    return 3 * widths[0] * height * width * 4


def attention_operations(unet: Mapping[str, Any], latent_size: tuple[int, int]) -> float:
    """Multiplications and additions of all self-attentions for one row: 4 C N^2 each, N queries of width C."""
    last = len(unet["block_out_channels"]) - 1
    total = 0.0
    for name, width in attention_layers(unet):
        if name.endswith("attn1.processor"):
            place, number, *_ = name.split(".")
            level = int(number) if place == "down_blocks" else last - int(number) if place == "up_blocks" else last
            total += 4.0 * width * ((latent_size[0] >> level) * (latent_size[1] >> level)) ** 2
    return total


def available(device: torch.device) -> int | None:
    """Bytes that can still be taken: of a GPU, or of this machine with its swap; None where nobody tells."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = [line.split() for line in Path("/proc/meminfo").read_text().splitlines()]
        sizes = {words[0]: int(words[1]) * 1024 for words in lines}
        if "MemAvailable:" in sizes:
            return sizes["MemAvailable:"] + sizes.get("SwapFree:", 0)
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def require(needed: int, device: torch.device, what: str, mend: str) -> None:
    """Raises InputError where more bytes are needed than can be taken.

    Args:
        what: needs them, as the user named it.
    """
    there = available(device)
    if there is not None and needed > there:
        raise InputError(f"{what}: needs more than {needed / 1e9:.1f} GB of memory, {there / 1e9:.1f} are free; {mend}")


def require_time(unet: Mapping[str, Any], latent_size: tuple[int, int], device: torch.device, what: str) -> None:
    """Raises InputError where one step of one picture would take a CPU hours."""
    if device.type == "cpu" and attention_operations(unet, latent_size) > _ENDLESS:
        raise InputError(f"{what}: a CPU would need hours for each step; make smaller pictures, or take a GPU")
