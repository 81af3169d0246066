"""The work of ``rbctl pretrain``: one part after another."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

import torch

from rbctl.device import pick_device
from rbctl.plugins.pretrain.bundle import put_dit_together, put_together, take_local_encoder
from rbctl.plugins.pretrain.clip_part import ClipPart
from rbctl.plugins.pretrain.config import PARTS, PretrainConfig
from rbctl.plugins.pretrain.decoder_part import DecoderPart
from rbctl.plugins.pretrain.dino_part import DinoPart
from rbctl.plugins.pretrain.dit_part import DiTPart
from rbctl.plugins.pretrain.loop import Part, train
from rbctl.plugins.pretrain.oracle_part import OraclePart
from rbctl.plugins.pretrain.rendering import write_pngs, write_renders
from rbctl.plugins.pretrain.unet_part import UNetPart
from rbctl.plugins.pretrain.vae_part import VaePart
from rbctl.processes import together
from rbctl.runs import claim

TRAINED: Mapping[str, Callable[[PretrainConfig, torch.device], Part]] = {
    part.name: part for part in (VaePart, ClipPart, OraclePart, DinoPart, DecoderPart, UNetPart, DiTPart)
}
# What the first process does alone.
WRITTEN: Mapping[str, Callable[[PretrainConfig], str]] = {
    "pictures": write_pngs,
    "clipself": take_local_encoder,
    "bundle": put_together,
    "dit-bundle": put_dit_together,
}

# Where a part writes that has no folder of its name.
_CLAIMED = {"clipself": "bundle", "dit-bundle": "bundle-dit"}


def run(config: PretrainConfig) -> Iterator[str]:
    """Do the parts that are asked for, in their order; yields a line on each once it is done."""
    device = pick_device(config.device)
    if device.type == "cpu":
        torch.set_num_threads(config.threads)
    torch.set_float32_matmul_precision("high")
    with together() as world:
        for name in PARTS:
            if config.parts and name not in config.parts:
                continue
            # One run at a time writes a part; shards alone may be shared out by hand, with --render-rank.
            shared = not world.first or (name == "renders" and config.render_rank is not None)
            folder = config.work / _CLAIMED.get(name, name)
            line = ""
            with contextlib.nullcontext() if shared else claim(folder):
                if name == "renders":
                    line = write_renders(config, device)
                elif name in TRAINED:
                    torch.manual_seed(config.seed)  # the first weights; later draws have generators of their own
                    part = TRAINED[name](config, device)
                    train(part, config)
                    line = str(part.bundle)
                elif world.first:
                    line = WRITTEN[name](config)
            world.wait()
            if world.first:
                yield f"{name}: {line}"
