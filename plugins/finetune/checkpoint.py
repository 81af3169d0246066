"""A checkpoint is one safetensors file: LoRA, optimizer state, step. Data order and noise are functions of the step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import torch

from rbctl.errors import InputError
from rbctl.files import read_safetensors, write_safetensors


def save(
    folder: Path,
    step: int,
    parameters: Mapping[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    scaler: dict[str, Any] | None,
    keep: int,
) -> Path:
    """Write ``step-XXXXXX.safetensors`` atomically, then drop all but the last ``keep``."""
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in parameters.items():
        tensors[f"lora.{name}"] = parameter
        for part, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{part}.{name}"] = value
    path = folder / f"step-{step:06d}.safetensors"
    write_safetensors(path, tensors, {"step": str(step), "scaler": json.dumps(scaler)})
    for old in found(folder)[:-keep]:
        old.unlink()
    return path


def found(folder: Path) -> list[Path]:
    """All checkpoints, the oldest first."""
    return sorted(folder.glob("step-*.safetensors"))


def restore(
    folder: Path, parameters: Mapping[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer
) -> tuple[int, dict[str, Any] | None]:
    """Load the newest whole checkpoint into the parameters and the optimizer.

    Returns:
        Its step (0 without a checkpoint) and the gradient scaler's state.

    Raises:
        InputError: there are checkpoints, but none that is whole and of this LoRA.
    """
    wanted = {f"lora.{name}" for name in parameters}
    for path in reversed(found(folder)):
        try:
            tensors, metadata = read_safetensors(path)
        except InputError as error:
            click.echo(f"{error}; trying the one before", err=True)
            continue
        if {k for k in tensors if k.startswith("lora.")} != wanted or "step" not in metadata:
            break
        for name, parameter in parameters.items():
            parameter.data.copy_(tensors[f"lora.{name}"])
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, part, name = key.split(".", 2)
                parameter = parameters[name]
                # AdamW keeps its step count on the CPU.
                optimizer.state[parameter][part] = value if part == "step" else value.to(parameter.device)
        return int(metadata["step"]), json.loads(metadata.get("scaler", "null"))
    if found(folder):
        raise InputError(f"{folder}: no checkpoint of this LoRA that is whole; begin anew with --no-resume")
    return 0, None
