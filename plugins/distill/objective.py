"""What is minimised: the distance between the student's regions and the teacher's crops."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cosine_similarity, interpolate, normalize

from rbctl.local_encoder import LocalEncoder, pool_regions


def region_cosines(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Cosine of every pair, (K, C) and (K, C) -> (K,) in float32."""
    return cosine_similarity(student.float(), teacher.float(), dim=-1)


def clipself_loss(student: torch.Tensor, teacher: torch.Tensor, total: int) -> torch.Tensor:
    """Part that these regions have in 1 - mean cosine over the ``total`` regions of the batch; (K, C) each.

    The parts of all micro-batches and processes add up to the loss of the batch, however it is divided.
    """
    return (1 - region_cosines(student, teacher)).sum() / total


@torch.no_grad()
def crop_embeddings(teacher: Any, crops: torch.Tensor) -> torch.Tensor:
    """What the frozen CLIP says of crops (K, 3, c, c), all in one batch: (K, C) of unit length."""
    return normalize(teacher(crops), dim=-1)


@dataclass(frozen=True)
class Teacher:
    """The frozen networks that the student learns from.

    Attributes:
        clip: the image tower that it began as.
        replaced: the local encoder of a bundle, whose tokens the student's linear map learns; None without a map.
        image_size: at which that sees pictures, in pixels.
    """

    clip: Any
    replaced: LocalEncoder | None = None
    image_size: int = 0

    @property
    def dtype(self) -> torch.dtype:
        """In which all of them compute."""
        return next(self.clip.parameters()).dtype

    def of_crops(self, crops: torch.Tensor) -> torch.Tensor:
        """See :func:`crop_embeddings`."""
        return crop_embeddings(self.clip, crops)

    @torch.no_grad()
    def of_regions(self, pixels: torch.Tensor, boxes: list[torch.Tensor]) -> torch.Tensor | None:
        """Local features of the regions of whole pictures (B, 3, S, S): (sum of K_b, C of the adapter)."""
        if self.replaced is None:
            return None
        return pool_regions(self.replaced(resized(pixels, self.image_size)), boxes)


def resized(pixels: torch.Tensor, size: int) -> torch.Tensor:
    """The student's pictures (B, 3, S, S) at another side."""
    if pixels.shape[-1] == size:
        return pixels
    return interpolate(pixels, size=(size, size), mode="bilinear", align_corners=False)


def learning_rate(step: int, steps: int, peak: float, warmup: int, schedule: str) -> float:
    """Rate of step ``step`` (from 0) of ``steps``: a linear warm-up, then a half cosine down to zero, or constant."""
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule == "constant":
        return peak
    progress = (step - warmup) / max(steps - warmup, 1)
    return 0.5 * peak * (1 + math.cos(math.pi * progress))
