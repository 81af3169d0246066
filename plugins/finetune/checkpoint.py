"""A checkpoint is one file of tensors: LoRA, optimizer state, step. Data order and noise are functions of the step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import click
import torch

from rbctl import kept
from rbctl.errors import InputError


def save(
    path: Path,
    step: int,
    parameters: Mapping[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    scaler: Mapping[str, float],
    facts: kept.Facts,
    metadata: Mapping[str, str],
) -> None:
    """Write a checkpoint, atomically.

    Args:
        scaler: the gradient scaler's state, empty where there is none.
        facts: what the run depends on besides its options.
        metadata: what it says of what is learned, with which :func:`rbctl.lora.read` takes the LoRA out of it.
    """
    tensors = {"step": torch.tensor(step)} | {f"scaler.{name}": torch.tensor(value) for name, value in scaler.items()}
    for name, parameter in parameters.items():
        tensors[f"lora.{name}"] = parameter
        for part, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{part}.{name}"] = value
    kept.save(path, tensors, facts, metadata)


def restore(
    paths: Sequence[Path],
    parameters: Mapping[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    facts: kept.Facts,
) -> tuple[int, dict[str, float]]:
    """Load the newest whole checkpoint into the parameters and the optimizer.

    Args:
        paths: all checkpoints, the oldest first.

    Returns:
        Its step (0 without a checkpoint) and the gradient scaler's state.

    Raises:
        InputError: there are checkpoints, but none that is whole and of this run.
    """
    for path in reversed(paths):
        try:
            tensors = kept.read(path, facts)
            _check(path, tensors, parameters)
        except InputError as error:
            click.echo(f"{error}; trying the one before", err=True)
            continue
        for name, parameter in parameters.items():
            parameter.data.copy_(tensors[f"lora.{name}"])
            state = {part: tensors[key] for part in _MOMENTS if (key := f"optimizer.{part}.{name}") in tensors}
            # AdamW keeps its step count on the CPU.
            state = {part: value if part == "step" else value.to(parameter.device) for part, value in state.items()}
            optimizer.state[parameter] |= state
        scaler = {key.removeprefix("scaler."): t.item() for key, t in tensors.items() if key.startswith("scaler.")}
        return int(tensors["step"]), scaler
    if paths:
        raise InputError(f"{paths[0].parent}: no complete checkpoint of this run; start again with --no-resume")
    return 0, {}


_MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what AdamW keeps of a parameter


def _check(path: Path, tensors: Mapping[str, torch.Tensor], parameters: Mapping[str, torch.nn.Parameter]) -> None:
    """Raises InputError where tensors are not the parameters, and what AdamW keeps of each that has had a gradient."""
    if not _fits(tensors, parameters):
        raise InputError(f"{path}: is a checkpoint of something else")


def _fits(tensors: Mapping[str, torch.Tensor], parameters: Mapping[str, torch.nn.Parameter]) -> bool:
    needed = {f"lora.{name}": p.shape for name, p in parameters.items()} | {"step": torch.Size()}
    moments = {
        f"optimizer.{part}.{name}": torch.Size() if part == "step" else p.shape
        for name, p in parameters.items()
        for part in _MOMENTS
    }
    shapes = {key: tensor.shape for key, tensor in tensors.items() if not key.startswith("scaler.")}
    if needed.keys() - shapes.keys() or any((needed | moments).get(key) != shape for key, shape in shapes.items()):
        return False
    for name, parameter in parameters.items():
        own = [tensors.get(f"optimizer.{part}.{name}") for part in _MOMENTS]
        steps, means, squares = own
        if any(part is None for part in own) and any(part is not None for part in own):
            return False
        if steps is None or means is None or squares is None:
            continue
        if not (steps >= 1 and steps.is_floating_point() and bool((squares >= 0).all())):
            return False
        if not means.dtype == squares.dtype == parameter.dtype:
            return False
    scales = [tensor for key, tensor in tensors.items() if key.startswith("scaler.")]
    return int(tensors["step"]) >= 0 and all(scale.numel() == 1 and scale >= 0 for scale in scales)
