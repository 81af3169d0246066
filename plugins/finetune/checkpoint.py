"""A checkpoint is one file of tensors: LoRA, optimizer state, step. Data order and noise are functions of the step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click
import torch

from rbctl import kept
from rbctl.errors import InputError


def save(
    folder: Path,
    step: int,
    parameters: Mapping[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    scaler: Mapping[str, float],
    keep: int,
    facts: kept.Facts,
) -> Path:
    """Write ``step-XXXXXX.safetensors`` atomically, then drop all but the last ``keep``.

    Args:
        scaler: the gradient scaler's state, empty where there is none.
        facts: what the run depends on besides its options.
    """
    tensors = {"step": torch.tensor(step)} | {f"scaler.{name}": torch.tensor(value) for name, value in scaler.items()}
    for name, parameter in parameters.items():
        tensors[f"lora.{name}"] = parameter
        for part, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{part}.{name}"] = value
    path = folder / f"step-{step:06d}.safetensors"
    kept.save(path, tensors, facts)
    for old in found(folder)[:-keep]:
        old.unlink()
    return path


def found(folder: Path) -> list[Path]:
    """All checkpoints, the oldest first."""
    return sorted(folder.glob("step-*.safetensors"))


def restore(
    folder: Path,
    parameters: Mapping[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    facts: kept.Facts,
) -> tuple[int, dict[str, float]]:
    """Load the newest whole checkpoint into the parameters and the optimizer.

    Returns:
        Its step (0 without a checkpoint) and the gradient scaler's state.

    Raises:
        InputError: there are checkpoints, but none that is whole and of this run.
    """
    for path in reversed(found(folder)):
        try:
            tensors = kept.read(path, facts)
            _check(path, tensors, parameters)
        except InputError as error:
            click.echo(f"{error}; trying the one before", err=True)
            continue
        parts = [(key.split(".", 2), value) for key, value in tensors.items()]
        for name, parameter in parameters.items():
            parameter.data.copy_(tensors[f"lora.{name}"])
            # AdamW keeps its step count on the CPU.
            optimizer.state[parameter] |= {
                key[1]: value if key[1] == "step" else value.to(parameter.device)
                for key, value in parts
                if key[0] == "optimizer" and key[2] == name
            }
        return int(tensors["step"]), {key[1]: value.item() for key, value in parts if key[0] == "scaler"}
    if found(folder):
        raise InputError(f"{folder}: no checkpoint of this run that is whole; begin anew with --no-resume")
    return 0, {}


def _check(path: Path, tensors: Mapping[str, torch.Tensor], parameters: Mapping[str, torch.nn.Parameter]) -> None:
    """Raises InputError where tensors are not the parameters, and what AdamW keeps of each."""
    shapes = {f"lora.{name}": p.shape for name, p in parameters.items()} | {"step": torch.Size()}
    lacking = shapes.keys() - tensors.keys()
    for part, sizes in (("exp_avg", None), ("exp_avg_sq", None), ("step", torch.Size())):
        shapes |= {f"optimizer.{part}.{name}": p.shape if sizes is None else sizes for name, p in parameters.items()}
    wrong = [key for key, tensor in tensors.items() if shapes.get(key) != tensor.shape and key[:7] != "scaler."]
    if lacking or wrong:
        raise InputError(f"{path}: is a checkpoint of something else")
