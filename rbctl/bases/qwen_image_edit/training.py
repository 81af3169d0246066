"""Triplets -> what Qwen-Image-Edit-Plus is trained on."""

from __future__ import annotations

from rbctl.bases.qwen_image_edit.sampling import Sampler
from rbctl.bases.reference_training import ReferenceTraining


class Training(ReferenceTraining):
    """Its text encoder sees the references, so that each version of a triplet has words of its own."""

    guide = staticmethod(Sampler.guide)
