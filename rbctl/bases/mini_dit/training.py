"""Triplets -> what ``mini-dit`` is trained on, as FLUX.2 Klein."""

from rbctl.bases.flux2.training import Training

__all__ = ["Training"]
