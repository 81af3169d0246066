"""Which image tokens each query may attend to."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ImageMask:
    """Built once per prompt and grid, shared by all heads, layers and steps of that grid.

    Attributes:
        attend: (B, 1, Q, M) bool, true where query q may attend to image token m.
        covered: (B, 1, Q, 1) bool, true where a query may attend to anything at all.
        safe: (B, 1, Q, M) bool, ``attend`` with the rows of uncovered queries opened, so that no softmax is empty.
    """

    attend: torch.Tensor
    covered: torch.Tensor
    safe: torch.Tensor

    @classmethod
    def build(cls, attend: torch.Tensor) -> ImageMask:
        """From ``attend``: (B, Q, M) bool."""
        if attend.dtype != torch.bool or attend.ndim != 3:
            raise ValueError(f"attend must be a bool tensor (B, Q, M), got {attend.dtype} {tuple(attend.shape)}")
        attend = attend[:, None]
        covered = attend.any(-1, keepdim=True)
        return cls(attend=attend, covered=covered, safe=attend | ~covered)

    def to(self, device: torch.device) -> ImageMask:
        """The same mask on another device."""
        return ImageMask(*(t.to(device) for t in (self.attend, self.covered, self.safe)))
