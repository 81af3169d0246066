"""Trained networks as files of a bundle: half precision, the same bytes for the same weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rbctl.files import write_json, write_safetensors

_STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}


def write_network(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], dtype: torch.dtype = torch.float16
) -> None:
    """Write config.json and the weights of one network, a folder named as in the bundle (``WORK/bundle/vae``)."""
    write_json(folder / "config.json", dict(config))
    stem = _STEMS.get(folder.name, "model")
    write_safetensors(folder / f"{stem}.safetensors", halved(tensors, dtype), {"format": "pt"})


def halved(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype = torch.float16) -> dict[str, torch.Tensor]:
    """Floating-point tensors as ``dtype``, dense and in C order; others as they are."""
    return {
        name: (tensor.detach().to(dtype) if tensor.is_floating_point() else tensor.detach()).cpu().contiguous()
        for name, tensor in tensors.items()
    }
