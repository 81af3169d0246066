"""Names and shapes of published checkpoints, as ``parameters/`` lists them, and random weights of that form."""

from __future__ import annotations

import re
from pathlib import Path

import torch

_FOLDER = Path(__file__).parent / "parameters"


def published_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """The parameters in ``parameters/NAME.txt``; ``[0-11]`` in a name stands for each of these numbers."""
    shapes = {}
    for line in (_FOLDER / f"{name}.txt").read_text().splitlines():
        if not line.startswith("#"):
            parameter, shape = line.split()
            sizes = () if shape == "scalar" else tuple(int(size) for size in shape.split("x"))
            shapes |= dict.fromkeys(_expanded(parameter), sizes)
    return shapes


def _expanded(name: str) -> list[str]:
    numbers = re.search(r"\[(\d+)-(\d+)\]", name)
    if numbers is None:
        return [name]
    first, last = int(numbers[1]), int(numbers[2])
    return [full for k in range(first, last + 1) for full in _expanded(name.replace(numbers[0], str(k), 1))]


def random_weights(shapes: dict[str, tuple[int, ...]], scale: float = 0.05) -> dict[str, torch.Tensor]:
    """Weights of these shapes; of norms near 1, and variances positive."""
    weights = {}
    for name, shape in shapes.items():
        tensor = torch.randn(shape) * scale
        is_norm = name.endswith("weight") and len(shape) == 1
        weights[name] = tensor.abs() + 0.5 if name.endswith("running_var") else tensor + is_norm
    return weights
