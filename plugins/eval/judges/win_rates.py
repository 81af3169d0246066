"""Which method wins: paired comparisons -> win rates and Bradley-Terry strengths. Pure functions of counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

Wins = NDArray[np.float64]

_PRIOR = 0.5  # wins that each of two compared methods has in advance: one that always wins has a finite strength
_RESAMPLES = 500


@dataclass(frozen=True)
class Strength:
    """How strong a method is, in logits: 0 is the mean of all, and a beats b with the logistic of a - b.

    Attributes:
        low, high: 95 % bootstrap interval over cases.
    """

    mean: float
    low: float
    high: float


def win_rates(wins: Wins) -> Wins:
    """(n, n) share of the comparisons of row and column that the row won; nan where there was none.

    Args:
        wins: (n, n) comparisons that the row won against the column, halves for ties.
    """
    with np.errstate(invalid="ignore"):
        return np.asarray(wins / (wins + wins.T))


def bradley_terry(wins: Wins) -> NDArray[np.float64]:
    """(n,) strengths of the largest likelihood, mean 0 (Bradley & Terry 1952), each pair with half a win in advance.

    Args:
        wins: see :func:`win_rates`.
    """
    compared = (wins + wins.T) > 0
    counts = np.where(compared, wins + _PRIOR, 0.0)

    def loss(strengths: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        ahead = strengths[:, None] - strengths[None, :]
        # A method that was never compared stays where it is, at the mean.
        pull = counts * expit(-ahead)
        value = (counts * np.logaddexp(0, -ahead)).sum() + 1e-9 * (strengths**2).sum()
        return float(value), pull.sum(0) - pull.sum(1) + 2e-9 * strengths

    strengths = minimize(loss, np.zeros(len(wins)), jac=True, method="L-BFGS-B", options={"gtol": 1e-8}).x
    return np.asarray(strengths - strengths.mean())


def strengths(wins: Wins, seed: int = 0) -> list[Strength]:
    """Strength of every method, with intervals.

    Args:
        wins: (cases, n, n), see :func:`win_rates`; cases are drawn again with all their comparisons.
    """
    rng = np.random.default_rng(seed)
    means = bradley_terry(wins.sum(0))
    drawn = [bradley_terry(wins[rng.integers(len(wins), size=len(wins))].sum(0)) for _ in range(_RESAMPLES)]
    low, high = np.percentile(drawn, (2.5, 97.5), axis=0)
    return [Strength(*map(float, row)) for row in zip(means, low, high, strict=True)]
