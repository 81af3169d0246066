"""Which image tokens each query may attend to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

Branch = tuple[torch.Tensor, torch.Tensor]  # what one branch attends to: K and V, both (B, H, tokens, d)


@dataclass(frozen=True)
class BoxCells:
    """A mask that boxes decide, in numbers: queries are the cells of a grid, row-major.

    The image tokens are ``dummies`` that only cells of no box see, then ``tokens_per_object`` per object, object-major,
    which the cells of its box see.

    Attributes:
        ranges: (B, N, 4) int32: first column, first row, end column, end row; ends are exclusive, an empty range holds
            no cell.
        width: columns of the grid.
    """

    ranges: torch.Tensor
    width: int
    tokens_per_object: int
    dummies: int = 0

    def to(self, device: torch.device) -> BoxCells:
        """The same boxes on another device."""
        return BoxCells(self.ranges.to(device), self.width, self.tokens_per_object, self.dummies)


class Group(NamedTuple):
    """Queries (n,) of some rows of the batch, and all tokens (m,) they may attend to; both int64."""

    rows: slice
    queries: torch.Tensor
    tokens: torch.Tensor


@dataclass(frozen=True)
class ImageMask:
    """Built once per prompt and grid, shared by all heads, layers and steps of that grid.

    Attributes:
        attend: (B, 1, Q, M) bool, true where query q may attend to image token m.
        covered: (B, 1, Q, 1) bool, true where a query may attend to anything at all.
        safe: (B, 1, Q, M) bool, ``attend`` with the rows of uncovered queries opened, so that no softmax is empty.
        boxes: what ``attend`` was made from, where boxes decide it; None for regions of any shape.
    """

    attend: torch.Tensor
    covered: torch.Tensor
    safe: torch.Tensor
    boxes: BoxCells | None = None
    _biases: dict[torch.dtype, torch.Tensor] = field(default_factory=dict, repr=False, compare=False)
    _groups: dict[int, list[Group]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def build(cls, attend: torch.Tensor, boxes: BoxCells | None = None) -> ImageMask:
        """From ``attend``: (B, Q, M) bool; ``boxes``, if given, must say the same."""
        if attend.dtype != torch.bool or attend.ndim != 3:
            raise ValueError(f"attend must be a bool tensor (B, Q, M), got {attend.dtype} {tuple(attend.shape)}")
        attend = attend[:, None]
        covered = attend.any(-1, keepdim=True)
        return cls(attend=attend, covered=covered, safe=attend | ~covered, boxes=boxes)

    def bias(self, dtype: torch.dtype) -> torch.Tensor:
        """Additive form of ``safe``, (B, 1, Q, M): 0 or the lowest number; made once per dtype.

        Its rows start at multiples of 8 elements, as xformers wants.
        """
        if dtype not in self._biases:
            tokens = self.safe.shape[-1]
            padded = torch.zeros(*self.safe.shape[:-1], -(-tokens // 8) * 8, dtype=dtype, device=self.safe.device)
            padded[..., :tokens].masked_fill_(~self.safe, torch.finfo(dtype).min)
            self._biases[dtype] = padded[..., :tokens]
        return self._biases[dtype]

    def groups(self, batch: int) -> list[Group]:
        """Queries that may attend to the same tokens, for consecutive rows of the same mask; found once per batch size.

        Uncovered queries are in none.
        """
        if batch not in self._groups:
            attend = self.attend[:, 0].expand(batch, -1, -1)
            self._groups[batch] = [
                Group(slice(start, stop), *group)
                for start, stop in _runs(attend)
                for group in _same_tokens(attend[start])
            ]
        return self._groups[batch]

    def to(self, device: torch.device) -> ImageMask:
        """The same mask on another device."""
        boxes = None if self.boxes is None else self.boxes.to(device)
        return ImageMask(self.attend.to(device), self.covered.to(device), self.safe.to(device), boxes)


def _runs(attend: torch.Tensor) -> Iterator[tuple[int, int]]:
    """First row of each run of equal masks, and the row behind it; ``attend`` (B, Q, M)."""
    start = 0
    for row in range(1, len(attend) + 1):
        if row == len(attend) or not torch.equal(attend[row], attend[start]):
            yield start, row
            start = row


def _same_tokens(attend: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Queries and tokens of each pattern but the empty one; ``attend`` (Q, M)."""
    if not attend.any():
        return  # of no tokens at all there are no patterns to find
    patterns, which = torch.unique(attend, dim=0, return_inverse=True)
    for number, pattern in enumerate(patterns):
        if pattern.any():
            yield (which == number).nonzero()[:, 0], pattern.nonzero()[:, 0]
