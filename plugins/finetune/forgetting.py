"""How much of the base model the LoRA costs: the error on the prior set, without it and with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import torch

from rbctl import lora, losses
from rbctl.files import write_json
from rbctl.plugins.finetune.objective import Objective
from rbctl.plugins.finetune.samples import fixed_micro_batches
from rbctl.progress import progress

_LEVELS = 4  # timesteps of each scene, evenly spread
_MOST = 16  # scenes


@torch.no_grad()
def measure(unet: Any, prior: Mapping[str, torch.Tensor], objective: Objective) -> dict[str, Any]:
    """Mean denoising loss over prior scenes and timesteps, the same noise in both: ``without`` and ``with`` the LoRA.

    Args:
        prior: encodings of the prior set.
    """
    count, steps = min(_MOST, prior["boxes"].shape[0]), objective.timesteps
    timesteps = [round(steps * (k + 0.5) / _LEVELS) for k in range(_LEVELS)]
    pairs = [(scene, timestep) for scene in range(count) for timestep in timesteps]
    size = objective.config.micro_batch_size
    means: dict[str, float] = {}
    training = unet.training
    unet.eval()
    with progress(2 * len(pairs), "measuring what is forgotten", unit="sample") as bar:
        for name, adapter in (("without", None), ("with", lora.ADAPTER)):
            lora.use(unet, adapter)
            total = 0.0
            for first in range(0, len(pairs), size):
                for batch in fixed_micro_batches(prior, pairs[first : first + size], objective.device):
                    prediction = objective.predict(unet, batch)
                    total += float(losses.denoising(prediction.output, prediction.target).sum())
                    bar.update(len(batch.timesteps))
            means[name] = total / len(pairs)
    unet.train(training)
    return {"scenes": count, "timesteps": timesteps, **means}


def report(path: Path, measured: Mapping[str, Any]) -> None:
    """Write what was measured, and say it in a line."""
    change = 100 * (measured["with"] / measured["without"] - 1)
    write_json(path, {**measured, "change_percent": round(change, 3)})
    click.echo(
        f"prior scenes ({measured['scenes']}): denoising loss {measured['without']:.4f} without the LoRA, "
        f"{measured['with']:.4f} with it ({change:+.1f} %)",
        err=True,
    )
