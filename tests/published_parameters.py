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


def small_xpose() -> dict[str, torch.Tensor]:
    """Random weights of an X-Pose with fewer layers and queries, else as published."""
    layers = {
        r"transformer\.encoder\.\w*layers\.(\d+)": 1,
        r"transformer\.decoder\.layers\.(\d+)": 3,
        r"clip_model\.transformer\.resblocks\.(\d+)": 1,
        r"backbone\.0\.layers\.\d\.blocks\.(\d+)": 2,
        r"(?:transformer\.decoder\.)?(?:bbox|pose|pose_hw)_embed\.(\d+)": 1,  # the others are the same ones
    }
    shapes = published_shapes("xpose-swint") | {"transformer.tgt_embed.weight": (60, 256)}
    for pattern, count in layers.items():
        numbered = {name: re.match(pattern, name) for name in shapes}
        shapes = {name: shape for name, shape in shapes.items() if not (m := numbered[name]) or int(m[1]) < count}
    shapes = {name: shape for name, shape in shapes.items() if not name.startswith("clip_model.visual.")}
    torch.manual_seed(0)
    weights = random_weights(shapes)
    weights["transformer.encoder.text_layers.0.norm2.weight"] *= 0.1  # else all scores are near 0 or 1
    for name in list(weights):
        if name.endswith("relative_position_index"):  # of what is beside what in a window of 7 x 7
            y, x = torch.arange(49) // 7, torch.arange(49) % 7
            weights[name] = (y[:, None] - y + 6) * 13 + x[:, None] - x + 6
        elif name.startswith("transformer.decoder."):
            shared = weights.get(name.removeprefix("transformer.decoder."))
            weights[name] = weights[name] if shared is None else shared
    return weights
