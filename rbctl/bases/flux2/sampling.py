"""Requests -> latents, by FLUX.2 Klein."""

from __future__ import annotations

import torch

from rbctl.bases.reference_sampling import ReferenceSampler
from rbctl.bases.reference_transformer import ReferenceTransformer


class Sampler(ReferenceSampler):
    """With classifier-free guidance, where the base was not distilled."""

    @staticmethod
    def guide(
        base: ReferenceTransformer, velocity: torch.Tensor, without: torch.Tensor, scales: torch.Tensor
    ) -> torch.Tensor:
        return without + scales * (velocity - without)
