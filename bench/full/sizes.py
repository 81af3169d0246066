"""Full size and small: SDXL's architecture, and how large everything is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rbctl.bundle.random_weights import TINY, Architecture, full_size
from rbctl.relations import Box


@dataclass(frozen=True, eq=False)
class Scale:
    """How large everything is measured.

    Attributes:
        resolution: pixels a side of pictures, sampled and trained on. steps: of the denoising loop.
        grids: name -> side of the grid of an attn2 layer, and its heads of 64 channels.
        rows: batches of the attention alone. pictures: batches of sampling; each is two rows in the UNet.
        micro_batches: ways to come to TOTAL_BATCH samples an optimizer step.
        matrix: side of the matrices multiplied, copied: bytes, for the two rates.
        rounds: of what takes milliseconds.
    """

    architecture: Architecture
    resolution: int
    steps: int
    grids: Mapping[str, tuple[int, int]]
    rows: tuple[int, ...]
    pictures: tuple[int, ...]
    micro_batches: tuple[int, ...]
    matrix: int
    copied: int
    rounds: int

    @property
    def latent_size(self) -> tuple[int, int]:
        side = self.resolution // 2 ** (len(self.architecture.vae["block_out_channels"]) - 1)
        return side, side


FULL = Scale(
    architecture=full_size(),
    resolution=1024,
    steps=30,
    grids={"outer": (64, 10), "inner": (32, 20)},
    rows=(2, 8),
    pictures=(1, 4),
    micro_batches=(1, 2, 4, 8),
    matrix=8192,
    copied=2**32,
    rounds=20,
)
SMALL = Scale(
    architecture=TINY,
    resolution=128,
    steps=2,
    grids={"outer": (16, 2), "inner": (8, 4)},
    rows=(2,),
    pictures=(2,),
    micro_batches=(4, 8),
    matrix=512,
    copied=2**24,
    rounds=1,
)

NOMINAL = {"device": "H100 SXM", "bandwidth": 3.35e12, "flops": 989e12}  # NVIDIA's data sheet, bf16 without sparsity
HEAD, TEXT, PER_OBJECT, GAMMA, GUIDANCE, TOTAL_BATCH = 64, 77, 16, 0.6, 5.0, 8
BOXES: dict[int, list[Box]] = {
    2: [(0.0, 0.2, 0.55, 0.85), (0.45, 0.26, 0.95, 0.9)],
    4: [(0.0, 0.2, 0.3, 0.85), (0.25, 0.26, 0.55, 0.9), (0.5, 0.1, 0.75, 0.9), (0.7, 0.3, 1.0, 0.95)],
}
