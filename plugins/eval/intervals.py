"""What a mean over cases is worth: bootstrap intervals, paired tests, rank correlation. Pure functions of numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Values = NDArray[np.float64]

_RESAMPLES = 2000
_FLIPS = 10_000
_EXACT = 13  # differences up to which all 2^n flips are tried: fewer than _FLIPS


def interval(values: ArrayLike, seed: int = 0) -> dict[str, Any]:
    """Mean over cases and its 95 % percentile bootstrap interval.

    Args:
        values: (n,), one a case; NaNs do not count.
        seed: of the resampling; the same values and seed give the same interval.

    Returns:
        ``mean``, ``low``, ``high`` (None without values; of a single one there is no interval) and ``cases``.
    """
    known = _known(values)
    if not len(known):
        return {"mean": None, "low": None, "high": None, "cases": 0}
    low, high = bootstrap([known], np.mean, seed) if len(known) > 1 else (None, None)
    return {"mean": float(known.mean()), "low": low, "high": high, "cases": len(known)}


def bootstrap(samples: Sequence[NDArray[Any]], statistic: Callable[..., Any], seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of a statistic; each sample is drawn again by itself.

    Args:
        samples: (n,) each, n at least 1.
        statistic: of as many arrays (..., n), along ``axis``.

    Returns:
        Low and high; nan where the statistic is.
    """
    # Of one value there is one way to draw it again, which scipy refuses.
    drawn = [np.repeat(sample, 2) if len(sample) == 1 else sample for sample in samples]
    rng = np.random.default_rng(seed)
    resampled = stats.bootstrap(drawn, statistic, n_resamples=_RESAMPLES, vectorized=True, method="percentile", rng=rng)
    low, high = np.nanpercentile(resampled.bootstrap_distribution, (2.5, 97.5))
    return float(low), float(high)


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
    mean = interval(differences, seed)
    return {
        "difference": mean["mean"],
        "low": mean["low"],
        "high": mean["high"],
        "p": _sign_flips(differences, seed) if len(differences) else None,
        "cases": len(differences),
    }


def _sign_flips(differences: Values, seed: int) -> float:
    """Share of the ways to sign the differences whose mean is as far from 0, or further."""

    def distance(values: Values, axis: int) -> Values:
        return np.abs(np.round(np.mean(values, axis=axis), 12))  # sums of other orders are the same distance

    if len(differences) == 1:
        return 1.0
    if len(differences) <= _EXACT:
        exact = stats.permutation_test(
            [differences],
            distance,
            permutation_type="samples",
            vectorized=True,
            n_resamples=_FLIPS,
            alternative="greater",
        )
        return float(exact.pvalue)
    rng = np.random.default_rng(seed)
    drawn = stats.monte_carlo_test(
        differences,
        lambda size: differences * (1 - 2 * rng.integers(0, 2, size)),
        distance,
        vectorized=True,
        n_resamples=_FLIPS,
        alternative="greater",
    )
    return float(drawn.pvalue)


def rank_correlation(x: ArrayLike, y: ArrayLike) -> float | None:
    """Spearman's rho, ties by their mean rank; None where either does not vary or there are under three pairs."""
    pairs = np.stack([np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)])
    pairs = pairs[:, np.isfinite(pairs).all(axis=0)]
    if pairs.shape[1] < 3:
        return None
    rho = _spearman(*pairs)
    return None if np.isnan(rho) else float(rho)


def _spearman(x: Values, y: Values) -> Values:
    """Spearman's rho along the last axis, nan where either does not vary; scipy's works out a p for each as well."""
    a, b = (ranks - ranks.mean(-1, keepdims=True) for ranks in (stats.rankdata(v, axis=-1) for v in (x, y)))
    with np.errstate(invalid="ignore"):
        return np.asarray((a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1)))


def rank_interval(x: Sequence[float], y: Sequence[float], cases: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """Spearman's rho with a 95 % interval; cases are drawn again with all their pictures, so their bond is kept."""
    value, names = rank_correlation(x, y), sorted(set(cases))
    counts = {"n": len(x), "cases": len(names)}
    if value is None:
        return {"rho": None, "low": None, "high": None, **counts}
    members = [np.flatnonzero(np.asarray(cases) == name) for name in names]
    rng = np.random.default_rng(seed)
    resamples: dict[int, list[NDArray[np.intp]]] = {}  # by length: cases may have more pictures or fewer
    for _ in range(_RESAMPLES // 4):
        rows = np.concatenate([members[k] for k in rng.integers(len(names), size=len(names))])
        resamples.setdefault(len(rows), []).append(rows)
    columns = [np.asarray(v, dtype=np.float64) for v in (x, y)]
    rhos = np.concatenate([_spearman(*(column[np.stack(alike)] for column in columns)) for alike in resamples.values()])
    low, high = (float(v) for v in np.nanpercentile(rhos, (2.5, 97.5)))
    return {"rho": value, "low": low, "high": high, **counts}


def _known(values: ArrayLike) -> Values:
    array = np.asarray(values, dtype=np.float64)
    return array[np.isfinite(array)]
