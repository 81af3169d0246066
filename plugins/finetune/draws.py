"""All randomness of training as a function of (seed, sample number): batch size, ranks and resuming change nothing."""

from __future__ import annotations

import math

import torch

from rbctl.draws import generator


def triplet_of(seed: int, number: int, count: int, kind: str = "order") -> int:
    """Which of ``count`` triplets sample ``number`` of a kind is: every epoch a new permutation."""
    epoch, position = divmod(number, count)
    return int(torch.randperm(count, generator=generator(seed, kind, epoch))[position])


def prior_number(number: int, share: float) -> tuple[bool, int]:
    """Whether sample ``number`` of the run is a prior one, and which of its kind; exactly ``share`` of them are.

    They are spread evenly: with a share of a quarter every fourth sample, so two in each batch of eight.
    """
    before = math.floor(number * share)
    is_prior = math.floor((number + 1) * share) > before
    return is_prior, before if is_prior else number - before
