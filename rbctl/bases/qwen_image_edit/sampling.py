"""Requests -> latents, by Qwen-Image-Edit-Plus."""

from __future__ import annotations

import torch

from rbctl.bases.reference_sampling import ReferenceSampler
from rbctl.bases.reference_transformer import ReferenceTransformer


class Sampler(ReferenceSampler):
    """With classifier-free guidance that keeps the length of each token's velocity."""

    @staticmethod
    def guide(
        base: ReferenceTransformer, velocity: torch.Tensor, without: torch.Tensor, scales: torch.Tensor
    ) -> torch.Tensor:
        size = velocity.shape[-2], velocity.shape[-1]
        combined = base.pack(without + scales * (velocity - without))
        kept = base.pack(velocity).norm(dim=-1, keepdim=True) / combined.norm(dim=-1, keepdim=True)
        return base.unpack(combined * kept, size)
