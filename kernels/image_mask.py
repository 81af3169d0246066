"""Which image tokens each query may attend to."""

from __future__ import annotations

from dataclasses import dataclass, field

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
    _biases: dict[torch.dtype, torch.Tensor] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def build(cls, attend: torch.Tensor) -> ImageMask:
        """From ``attend``: (B, Q, M) bool."""
        if attend.dtype != torch.bool or attend.ndim != 3:
            raise ValueError(f"attend must be a bool tensor (B, Q, M), got {attend.dtype} {tuple(attend.shape)}")
        attend = attend[:, None]
        covered = attend.any(-1, keepdim=True)
        return cls(attend=attend, covered=covered, safe=attend | ~covered)

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
        return ImageMask(self.attend.to(device), self.covered.to(device), self.safe.to(device))
