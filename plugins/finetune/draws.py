"""All randomness of training as a function of (seed, sample number): batch size, ranks and resuming change nothing."""

from __future__ import annotations

import hashlib

import torch


def generator(*key: object) -> torch.Generator:
    """A CPU generator seeded by the key."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def triplet_of(seed: int, number: int, count: int) -> int:
    """Which of ``count`` triplets sample ``number`` of the run is: every epoch a new permutation."""
    epoch, position = divmod(number, count)
    return int(torch.randperm(count, generator=generator(seed, "order", epoch))[position])
