"""The memory that each process needs, from the real shapes on the meta device: nothing is loaded or run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks

from rbctl.bundle.convert import local_encoder_config
from rbctl.bundle.towers import build_visual
from rbctl.device import DTYPES
from rbctl.plugins.distill.config import DistillConfig
from rbctl.plugins.distill.grid import grids
from rbctl.plugins.distill.tower import Student, Tower, find_tower, trained_names


@dataclass(frozen=True)
class Sizes:
    """What the memory depends on: numbers of parameters, bytes of each, and bytes that a micro-step keeps.

    Attributes:
        replaced: parameters of the bundle's local encoder, whose tokens a linear map learns.
    """

    parameters: int
    trained: int
    bytes_each: int
    activations: int
    replaced: int = 0


def memory(sizes: Sizes, stage: int, processes: int) -> dict[str, float]:
    """Bytes of one process at a ZeRO stage, by what they hold; the optimizer's wherever it is kept.

    The optimizer has AdamW's two moments and a float32 copy of what trains, 12 bytes each. Stage 1 divides these,
    stage 2 the gradients too, stage 3 the student's parameters too. The teacher is whole everywhere. Communication
    buffers (up to 2 GB by default) and the allocator's waste come on top.
    """
    return {
        "student": sizes.parameters * sizes.bytes_each / (processes if stage == 3 else 1),
        "teacher": (sizes.parameters + sizes.replaced) * sizes.bytes_each,
        "gradients": sizes.trained * sizes.bytes_each / (processes if stage >= 2 else 1),
        "optimizer": sizes.trained * 12 / (processes if stage >= 1 else 1),
        "activations": sizes.activations,
    }


def measure(config: DistillConfig, tower: Tower, precision: str) -> Sizes:
    """The sizes of a recipe."""
    shapes, trained = tower.shapes(), trained_names(tower, config.train_blocks)
    counts = {name: math.prod(shape) for name, shape in shapes.items()}
    dtype = DTYPES[precision]
    of_map = replaced = 0
    if tower.adapter:
        of_map = tower.width * tower.adapter.width
        folder = tower.adapter.bundle / "clipself"
        with torch.device("meta"):
            encoder = build_visual(local_encoder_config(folder), folder)
        replaced = sum(parameter.numel() for parameter in encoder.parameters())
    return Sizes(
        parameters=sum(counts.values()) + of_map,
        trained=sum(counts[name] for name in trained) + of_map,
        bytes_each=dtype.itemsize,
        activations=_activations(config, tower, trained, dtype),
        replaced=replaced,
    )


def _activations(config: DistillConfig, tower: Tower, trained: frozenset[str], dtype: torch.dtype) -> int:
    """Bytes that a micro-step's forward pass of the student saves for its backward pass, pixels included."""
    with torch.device("meta"):
        visual = tower.build().to(dtype)
    for name, parameter in visual.named_parameters():
        parameter.requires_grad_(name in trained)
    student = Student(visual, gradient_checkpointing=config.gradient_checkpointing).train()
    weights = {id(p) for p in visual.parameters()}
    saved: dict[int, int] = {}
    alive: list[Any] = []  # so that no id is given twice
    side = config.image_size // tower.patch_size
    tokens = side * side + 1

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        # The meta device multiplies attention out; flash and memory-efficient attention keep no (tokens x tokens) map.
        attention_map = tensor.ndim >= 2 and tensor.shape[-1] == tensor.shape[-2] == tokens
        base = tensor if tensor._base is None else tensor._base
        if id(base) not in weights and not attention_map:
            alive.append(base)
            saved[id(base)] = base.numel() * base.element_size()
        return tensor

    pixels = torch.empty(config.micro_batch_size, 3, config.image_size, config.image_size, dtype=dtype, device="meta")
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        student(pixels)
    return sum(saved.values()) + pixels.numel() * pixels.element_size()


def table(config: DistillConfig) -> str:
    """The estimate as text: a row for every number of processes and ZeRO stage, in GB per process."""
    tower = find_tower(config)
    # Most estimate for another machine than this one, and there bf16 is the rule.
    precision = "bf16" if config.precision == "auto" else config.precision
    sizes = measure(config, tower, precision)
    mean_cells = sum(min(m * n, config.max_cells) for m, n in grids(config.max_split)) / len(grids(config.max_split))
    lines = [
        f"{tower.name}: {sizes.parameters:,} parameters, {sizes.trained:,} of them train; {precision}",
        f"{config.micro_batch_size} pictures of {config.image_size} px per process and micro-step, each with "
        f"{mean_cells:.1f} crops of {tower.crop_size} px on average",
        f"GB per process{'; optimizer in ' + config.offload + ' memory' if config.offload != 'none' else ''}:",
    ]
    for processes in config.estimate_gpus:
        for stage in range(4):
            parts = memory(sizes, stage, processes)
            elsewhere = parts["optimizer"] if config.offload != "none" and stage else 0
            parts["total"] = sum(parts.values()) - elsewhere
            widths = {name: 7 if name == "total" else max(8, len(name)) for name in parts}
            if len(lines) == 3:
                lines.append(f"{'processes':>9} {'ZeRO':>4} " + " ".join(f"{n:>{w}}" for n, w in widths.items()))
            numbers = " ".join(f"{parts[name] / 1e9:>{width}.2f}" for name, width in widths.items())
            lines.append(f"{processes:>9} {stage:>4} {numbers}")
    return "\n".join(lines)
