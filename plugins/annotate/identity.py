"""Which individual of a target is which image prompt."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment


@dataclass(frozen=True, eq=False)
class Match:
    """An assignment of N image prompts to K >= N individuals.

    Attributes:
        found: (N,) which individual each image prompt is.
        similarity: (N,) cosine of each with it.
        margin: how much higher the mean similarity is than that of the best other assignment; 1 without any other.
    """

    found: np.ndarray
    similarity: np.ndarray
    margin: float


def match(similarity: np.ndarray) -> Match:
    """Assign so that the sum of similarities (N, K) is largest."""
    rows, columns = linear_sum_assignment(similarity, maximize=True)
    best = similarity[rows, columns]
    others = []
    for row, column in zip(rows, columns, strict=True):  # the best other one lacks at least one of its pairs
        barred = similarity.copy()
        barred[row, column] = -np.inf
        try:
            others.append(barred[linear_sum_assignment(barred, maximize=True)].sum())
        except ValueError:  # no assignment is left
            continue
    margin = float(best.sum() - max(others)) / len(best) if others else 1.0
    return Match(columns, best, margin)
