"""Figures of the gates: what verdicts on the same scenes come to, with 95 % intervals. Pure functions of numbers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rbctl.menagerie.judge import Verdict
from rbctl.plugins.eval.gates.recipe import METRICS, Gate
from rbctl.plugins.eval.intervals import Values, bootstrap
from rbctl.relations import Box

Scores = dict[str, Values]  # metric -> (n,) or (n, seeds); NaN where it means nothing
Pixels = NDArray[np.uint8]  # (n, H, W, 3)
# From columns per group, each (R, n, ...) for R resamples at once, to (R,).
Statistic = Callable[[Sequence[Values]], Values]


def mean_of_means(groups: Sequence[Values]) -> Values:
    """Mean over groups of the mean within each; NaNs do not count."""
    return _over_groups(np.nanmean, groups)


def mean_of_medians(groups: Sequence[Values]) -> Values:
    """Mean over groups of the median within each; NaNs do not count."""
    return _over_groups(np.nanmedian, groups)


def ratio(of: Statistic) -> Statistic:
    """A statistic of the first entries of the last axis over that of the second: [with, without]."""
    return lambda groups: of([g[..., 0] for g in groups]) / of([g[..., 1] for g in groups])


def _over_groups(within: Any, groups: Sequence[Values]) -> Values:
    rows = [within(g.reshape(g.shape[0], -1), axis=1) for g in groups]
    return np.asarray(np.nanmean(np.stack(rows), axis=0))


def figure(groups: Sequence[Any], statistic: Statistic = mean_of_means, pairs: bool = False) -> dict[str, Any]:
    """A statistic and its 95 % percentile interval over scenes.

    Scenes are drawn again within each group (a relation). What else was measured on the same scene, as by LoRAs of
    other seeds, stays with it. So the interval says how far other scenes would move the figure, not other trainings.

    Args:
        groups: per group (n, ...) values, booleans as 0 and 1; NaN where nothing could be measured.
        pairs: the last axis holds pairs, which count once.

    Returns:
        ``mean`` (the statistic), ``low``, ``high`` (None where there is nothing to say), ``n`` (how many values count).
    """
    arrays = [np.asarray(g, dtype=np.float64) for g in groups]
    arrays = [a for a in arrays if a.size and np.isfinite(a).any()]
    count = sum(int(np.isfinite(a).sum()) for a in arrays) // (2 if pairs else 1)

    def of_scenes(*scenes: NDArray[np.intp], axis: int = -1) -> Values:
        return statistic([a[rows] for a, rows in zip(arrays, scenes, strict=True)])

    value = low = high = math.nan
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # a resample may hold nothing but NaN; it is left out
        if arrays:
            value = float(statistic([a[None] for a in arrays])[0])
            low, high = bootstrap([np.arange(len(a)) for a in arrays], of_scenes)
    if not np.isfinite([value, low, high]).all():
        return {"mean": None, "low": None, "high": None, "n": count}
    return {"mean": round(value, 4), "low": round(low, 4), "high": round(high, 4), "n": count}


def scores(verdicts: Sequence[Verdict]) -> Scores:
    """Every metric of ``METRICS`` by picture, (n,)."""
    rows = {metric: [getattr(verdict, metric) for verdict in verdicts] for metric in METRICS}
    rows["direction"] = [verdict.direction if verdict.relation else None for verdict in verdicts]
    return {metric: np.array([np.nan if v is None else v for v in row], float) for metric, row in rows.items()}


def stacked(rows: Sequence[Scores]) -> Scores:
    """Scores of the same scenes under several seeds: (n,) each -> (n, seeds)."""
    return {metric: np.stack([row[metric] for row in rows], axis=-1) for metric in rows[0]}


def summary(groups: Mapping[str, Scores]) -> dict[str, Any]:
    """Every metric with its interval, over all groups (relations) and in each."""

    def all_of(parts: Sequence[Scores]) -> dict[str, Any]:
        means = {metric: figure([part[metric] for part in parts]) for metric in METRICS}
        return {**means, "contact_median": figure([part["contact"] for part in parts], mean_of_medians)}

    each = {name: all_of([part]) for name, part in groups.items()}
    for name, part in groups.items():
        if part["relation"].ndim == 2:
            each[name]["relation_by_seed"] = [round(float(v), 4) for v in part["relation"].mean(0)]
    return {"mean": all_of(list(groups.values())), "each": each}


def difference(a: Mapping[str, Scores], b: Mapping[str, Scores], metric: str) -> dict[str, Any]:
    """Mean of a - b on the same scenes, with its interval."""
    return figure([_columns(a[name][metric]) - _columns(b[name][metric]) for name in a])


def contact_ratio(a: Mapping[str, Scores], b: Mapping[str, Scores], of: Statistic) -> dict[str, Any]:
    """Contact distances of a over those of b, scenes drawn again together."""
    columns = [np.broadcast_arrays(_columns(a[name]["contact"]), _columns(b[name]["contact"])) for name in a]
    return figure([np.stack(pair, axis=-1) for pair in columns], ratio(of), pairs=True)


def _columns(values: Values) -> Values:
    return values if values.ndim == 2 else values[:, None]


def psnr(pictures: Pixels, back: Pixels, boxes: Sequence[Sequence[Box]]) -> tuple[Values, Values]:
    """PSNR in dB of each whole picture (n,), and inside its boxes (n,)."""
    errors = ((pictures.astype(np.float64) - back) / 255) ** 2
    side = errors.shape[1]
    inside = []
    for error, own in zip(errors, boxes, strict=True):
        mask = np.zeros((side, side), dtype=bool)
        for x0, y0, x1, y1 in own:
            mask[math.floor(y0 * side) : math.ceil(y1 * side), math.floor(x0 * side) : math.ceil(x1 * side)] = True
        inside.append(error[mask].mean())
    whole, boxed = -10 * np.log10(np.maximum([errors.mean((1, 2, 3)), inside], 1e-10))
    return whole, boxed


def against(gate: Gate, value: Mapping[str, Any] | float | None) -> dict[str, Any]:
    """A figure against its limit; ``passed`` is None where there is nothing to compare."""
    measured = dict(value) if isinstance(value, Mapping) else {"mean": value}
    limits = {"at_least": gate.at_least, "at_most": gate.at_most}
    passed = None
    if (mean := measured["mean"]) is not None:
        low, high = (math.inf * sign if v is None else v for v, sign in ((gate.at_least, -1), (gate.at_most, 1)))
        passed = bool(low <= mean <= high)
    return {**measured, **{name: limit for name, limit in limits.items() if limit is not None}, "passed": passed}
