"""How much of the base model the LoRA costs: the error on the prior set, without it and with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import torch

from rbctl import lora, losses
from rbctl.files import write_json
from rbctl.plugins.finetune.config import FinetuneConfig
from rbctl.plugins.finetune.objective import Schedule, draw_fixed, predict
from rbctl.progress import progress

_LEVELS = 4  # timesteps of each scene, evenly spread
_MOST = 64  # scenes


@torch.no_grad()
def measure(
    unet: Any,
    prior: Mapping[str, torch.Tensor],
    schedule: Schedule,
    config: FinetuneConfig,
    gamma: float,
    levels: int,
) -> dict[str, Any]:
    """Mean denoising loss over prior scenes and timesteps, the same noise in both: ``without`` and ``with`` the LoRA.

    Args:
        prior: frozen results of the prior set.
    """
    count, steps = min(_MOST, prior["boxes"].shape[0]), len(schedule.alphas_cumprod)
    timesteps = [round(steps * (k + 0.5) / _LEVELS) for k in range(_LEVELS)]
    pairs = [(scene, timestep) for scene in range(count) for timestep in timesteps]
    device = schedule.alphas_cumprod.device
    found: dict[str, Any] = {"scenes": count, "timesteps": timesteps}
    training = unet.training
    unet.eval()
    with progress(2 * len(pairs), "measuring what is forgotten", unit="sample") as bar:
        for name, adapter in (("without", None), ("with", lora.ADAPTER)):
            lora.use(unet, adapter)
            total = 0.0
            for first in range(0, len(pairs), config.batch_size):
                batch = draw_fixed(prior, pairs[first : first + config.batch_size], device)
                made = predict(unet, batch, schedule, config, gamma, levels)
                total += float(losses.denoising(made.output, made.target).sum())
                bar.update(len(batch.timesteps))
            found[name] = total / len(pairs)
    unet.train(training)
    return found


def report(path: Path, found: Mapping[str, Any]) -> None:
    """Write what was measured, and say it in a line."""
    change = 100 * (found["with"] / found["without"] - 1)
    write_json(path, {**found, "change_percent": round(change, 3)})
    click.echo(
        f"prior scenes ({found['scenes']}): denoising loss {found['without']:.4f} without the LoRA, "
        f"{found['with']:.4f} with it ({change:+.1f} %)",
        err=True,
    )
