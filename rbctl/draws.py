"""Randomness as a function of a key: batch size, processes and resuming change nothing."""

from __future__ import annotations

import hashlib
import math

import torch


def generator(*key: object) -> torch.Generator:
    """A CPU generator seeded by the key."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def is_due(number: int, share: float) -> bool:
    """Whether ``number`` is one of a share of all numbers from 0 on: exactly so many, spread evenly."""
    return math.floor((number + 1) * share) > math.floor(number * share)
