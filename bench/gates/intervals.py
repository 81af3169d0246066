"""Means over scenes with 95 % bootstrap intervals."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
# From columns per group, each (R, n, ...) for R resamples at once, to (R,).
Statistic = Callable[[Sequence[Values]], Values]

_RESAMPLES = 2000


def mean_of_means(groups: Sequence[Values]) -> Values:
    """Mean over groups of the mean within each; NaNs do not count."""
    return _over_groups(np.nanmean, groups)


def mean_of_medians(groups: Sequence[Values]) -> Values:
    """Mean over groups of the median within each; NaNs do not count."""
    return _over_groups(np.nanmedian, groups)


def ratio_of_medians(groups: Sequence[Values]) -> Values:
    """Mean of medians of the last axis's first entries over that of its second: [with, without]."""
    return mean_of_medians([g[..., 0] for g in groups]) / mean_of_medians([g[..., 1] for g in groups])


def ratio_of_means(groups: Sequence[Values]) -> Values:
    """As ``ratio_of_medians``, of means."""
    return mean_of_means([g[..., 0] for g in groups]) / mean_of_means([g[..., 1] for g in groups])


def _over_groups(within: Any, groups: Sequence[Values]) -> Values:
    rows = [within(g.reshape(g.shape[0], -1), axis=1) for g in groups]
    return np.nanmean(np.stack(rows), axis=0)


def interval(groups: Sequence[Any], statistic: Statistic = mean_of_means) -> dict[str, Any]:
    """A statistic and its 95 % percentile interval over scenes.

    Scenes are drawn again within each group (a verb, a relation); what else was measured on the same scene, as by LoRAs
    of other seeds, stays with it. So the interval says how far other scenes would move the figure, not other groups or
    other trainings.

    Args:
        groups: per group (n, ...) values, booleans as 0 and 1; NaN where nothing could be measured.

    Returns:
        ``mean`` (the statistic), ``low``, ``high`` (None where there is nothing to say), ``n`` (how many values count).
    """
    arrays = [np.asarray(g, dtype=np.float64) for g in groups]
    arrays = [a for a in arrays if a.size and np.isfinite(a).any()]
    count = int(sum(np.isfinite(a).sum() for a in arrays))
    if statistic in (ratio_of_means, ratio_of_medians):
        count //= 2
    if not count:
        return {"mean": None, "low": None, "high": None, "n": 0}
    rng = np.random.default_rng(0)
    drawn = [a[rng.integers(len(a), size=(_RESAMPLES, len(a)))] for a in arrays]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a resample may hold nothing but NaN; it is left out
        with np.errstate(all="ignore"):
            found = statistic(drawn)
            value = float(statistic([a[None] for a in arrays])[0])
    found = found[np.isfinite(found)]
    if not (np.isfinite(value) and len(found)):
        return {"mean": None, "low": None, "high": None, "n": count}
    low, high = np.percentile(found, (2.5, 97.5))
    return {"mean": round(value, 4), "low": round(float(low), 4), "high": round(float(high), 4), "n": count}
