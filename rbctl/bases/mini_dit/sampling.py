"""Requests -> latents, by ``mini-dit``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from rbctl.bases.flux2 import sampling
from rbctl.bases.reference_sampling import Encoded

if TYPE_CHECKING:
    from rbctl.request import Request


class Sampler(sampling.Sampler):
    """Guidance goes from no words and no individuals, as it was trained, to both."""

    def encode(self, requests: Sequence[Request]) -> Encoded:
        encoded = super().encode(requests)
        if encoded.negative is None:
            return encoded
        nobody = torch.zeros_like(encoded.negative.present)
        return Encoded(encoded.prompt, dataclasses.replace(encoded.negative, present=nobody))
