"""The work of ``rbctl pretrain``: one part after another."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import torch

from rbctl.device import pick_device
from rbctl.plugins.pretrain.config import PARTS, PretrainConfig
from rbctl.plugins.pretrain.loop import rank, train
from rbctl.runs import claim


def run(config: PretrainConfig) -> Iterator[str]:
    """Do the parts that are asked for, in their order; yields a line on each once it is done.

    A part's module has either ``run(config, device) -> str``, or ``build(config, device) -> Part`` for
    :func:`rbctl.plugins.pretrain.loop.train` with ``<part>_steps`` and so on of the configuration.
    """
    device = pick_device(config.device)
    if device.type == "cpu":
        torch.set_num_threads(config.threads)
    torch.set_float32_matmul_precision("high")
    for name in PARTS:
        if config.parts and name not in config.parts:
            continue
        with _held(config, name):
            module: Any = import_module(f"rbctl.plugins.pretrain.{name}")
            if hasattr(module, "run"):
                line = module.run(config, device)
            else:
                torch.manual_seed(config.seed)  # the first weights; later draws have generators of their own
                part = module.build(config, device)
                if config.optimizer == "adamw":
                    part.plain = tuple(p for m in part.modules().values() for p in m.parameters())
                train(
                    part,
                    config.work / name,
                    minutes=config.minutes,
                    steps=getattr(config, f"{name}_steps"),
                    checkpoint_every=config.checkpoint_every,
                    preview_every=config.preview_every,
                    seed=config.seed,
                )
                line = str(config.work / "bundle")
        if rank() == 0:
            yield f"{name}: {line}"


def _held(config: PretrainConfig, name: str) -> contextlib.AbstractContextManager[None]:
    """One run at a time writes a part; shards alone may be shared out by hand, with --render-rank."""
    if rank() or (name == "renders" and config.render_rank is not None):
        return contextlib.nullcontext()
    return claim(config.work / ("bundle" if name == "clipself" else name))
