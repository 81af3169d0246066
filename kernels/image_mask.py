"""Which image tokens each query may attend to."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


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

    def to(self, device: torch.device) -> ImageMask:
        """The same mask on another device."""
        boxes = None if self.boxes is None else self.boxes.to(device)
        return ImageMask(self.attend.to(device), self.covered.to(device), self.safe.to(device), boxes)
