"""What a mean over cases is worth: bootstrap intervals, paired tests, rank correlation. Pure functions of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Values = NDArray[np.float64]

_RESAMPLES = 2000
_FLIPS = 10_000
_EXACT = 13  # differences up to which all 2^n flips are tried


def interval(values: ArrayLike, seed: int = 0) -> dict[str, Any]:
    """Mean over cases and its 95 % percentile bootstrap interval.

    Args:
        values: (n,), one a case; NaNs do not count.
        seed: of the resampling; the same values and seed give the same interval.

    Returns:
        ``mean``, ``low``, ``high`` (None without values) and ``cases``.
    """
    known = _known(values)
    if not len(known):
        return {"mean": None, "low": None, "high": None, "cases": 0}
    low, high = np.percentile(_means(known, seed), (2.5, 97.5))
    return {"mean": float(known.mean()), "low": float(low), "high": float(high), "cases": len(known)}


def paired(a: ArrayLike, b: ArrayLike, seed: int = 0) -> dict[str, Any]:
    """Whether method a differs from method b on the same cases.

    The test flips the signs of the differences: all 2^n ways up to 13 cases, 10,000 drawn ones beyond. It is two-sided,
    exact in that it supposes nothing of their distribution but symmetry, and not corrected for the number of tests.

    Args:
        a, b: (n,) scores of the same cases; cases where either is NaN do not count.

    Returns:
        ``difference`` (mean of a - b) with ``low``, ``high`` (paired bootstrap), ``p``, ``cases``.
    """
    differences = _known(np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64))
    n = len(differences)
    if not n:
        return {"difference": None, "low": None, "high": None, "p": None, "cases": 0}
    observed = abs(differences.mean()) - 1e-12
    if n <= _EXACT:
        signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        p = float(np.mean(np.abs(signs @ differences / n) >= observed))
    else:
        signs = 1 - 2 * np.random.default_rng(seed).integers(0, 2, (_FLIPS, n))
        hits = int(np.sum(np.abs(signs @ differences / n) >= observed))
        p = (hits + 1) / (_FLIPS + 1)
    low, high = np.percentile(_means(differences, seed), (2.5, 97.5))
    return {
        "difference": float(differences.mean()),
        "low": float(low),
        "high": float(high),
        "p": p,
        "cases": n,
    }


def rank_correlation(x: ArrayLike, y: ArrayLike) -> float | None:
    """Spearman's rho, ties by their mean rank; None where either does not vary or there are under three pairs."""
    pairs = np.stack([np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)])
    pairs = pairs[:, np.isfinite(pairs).all(axis=0)]
    if pairs.shape[1] < 3 or (pairs.std(axis=1) == 0).any():
        return None
    return float(np.corrcoef(_ranks(pairs[0]), _ranks(pairs[1]))[0, 1])


def rank_interval(x: Sequence[float], y: Sequence[float], cases: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """Spearman's rho with a 95 % interval; cases are drawn again with all their pictures, so their bond is kept."""
    value = rank_correlation(x, y)
    names = sorted(set(cases))
    if value is None:
        return {"rho": None, "low": None, "high": None, "n": len(x), "cases": len(names)}
    members = [np.flatnonzero(np.asarray(cases) == name) for name in names]
    rng = np.random.default_rng(seed)
    xs, ys = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    found = []
    for _ in range(_RESAMPLES // 4):
        rows = np.concatenate([members[k] for k in rng.integers(len(names), size=len(names))])
        if (rho := rank_correlation(xs[rows], ys[rows])) is not None:
            found.append(rho)
    low, high = np.percentile(found, (2.5, 97.5)) if found else (None, None)
    return {
        "rho": value,
        "low": None if low is None else float(low),
        "high": None if high is None else float(high),
        "n": len(x),
        "cases": len(names),
    }


def _known(values: ArrayLike) -> Values:
    array = np.asarray(values, dtype=np.float64)
    return array[np.isfinite(array)]


def _means(values: Values, seed: int) -> Values:
    rng = np.random.default_rng(seed)
    return np.asarray(values[rng.integers(len(values), size=(_RESAMPLES, len(values)))].mean(axis=1))


def _ranks(values: Values) -> Values:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse])
