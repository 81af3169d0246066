"""Part ``clipself``: what ``rbctl distill --output WORK/distill`` made becomes the bundle's local encoder."""

from __future__ import annotations

import torch

from rbctl.files import read_safetensors, write_bytes, write_safetensors
from rbctl.plugins.pretrain.config import PretrainConfig
from rbctl.plugins.pretrain.loop import rank
from rbctl.plugins.pretrain.weights import halved


def run(config: PretrainConfig, device: torch.device) -> str:
    """Copy it into WORK/bundle, halved; without one the bundle keeps the CLIP's own tower."""
    source, dest = config.work / "distill" / "clipself", config.work / "bundle" / "clipself"
    if not source.is_dir():
        return (
            f"{source} is not there: the CLIP's own tower stays; 'rbctl distill --recipe mini "
            f"--model {config.work / 'bundle'} --data {config.work / 'pictures'} --output {source.parent}' makes it"
        )
    if rank() == 0:
        write_bytes(dest / "open_clip_config.json", (source / "open_clip_config.json").read_bytes())
        weights, _ = read_safetensors(source / "model.safetensors")
        write_safetensors(dest / "model.safetensors", halved(weights), {"format": "pt"})
    return str(dest)
