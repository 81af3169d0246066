"""What a column can say at most and at least: real pictures of one subject, and another subject or other words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rbctl.plugins.eval.case import Case
from rbctl.plugins.eval.features import FeatureStore
from rbctl.plugins.eval.intervals import interval
from rbctl.plugins.eval.metrics import Metric, cosine
from rbctl.plugins.eval.rows import TRUTH, Column, Row, rounded


def bounds(store: FeatureStore, rows: Sequence[Row], column: Column, metric: Metric, seed: int) -> dict[str, Any]:
    """What a column can say at most and at least: see docs/eval.md."""
    cases = [row.picture.case for row in rows]
    if metric.kind in ("image", "crop"):
        same = [float(np.mean(values)) for values in between(store, cases).values() if values]
        other = _across(store, cases)
        return {
            "ceiling": _scaled(interval(same, seed), metric.factor),
            "floor": _scaled(interval(other, seed), metric.factor),
        }
    words = {r.picture.case.text if metric.kind == "prompt" else r.predicate for r in rows} - {""}
    listed = sorted(words)
    if len(listed) < 2:
        return {"ceiling": None, "floor": None}
    texts = np.stack(store.texts(listed))
    used = [row for row in rows if row.picture.run != TRUTH and row.scores[column.id] is not None]
    if not used:
        return {"ceiling": None, "floor": None}
    table = cosine(np.stack(store.images((row.picture.path, None) for row in used)), texts)
    own = [listed.index(r.picture.case.text if metric.kind == "prompt" else r.predicate) for r in used]
    if metric.clamped:
        table = np.maximum(table, 0)
    others = (table.sum(axis=1) - table[np.arange(len(own)), own]) / (len(listed) - 1)
    return {"ceiling": None, "floor": _scaled(interval(others, seed), metric.factor)}


def _subjects(cases: Iterable[Case]) -> dict[str, tuple[Path, ...]]:
    return {
        individual.subject: individual.references or (individual.image,)
        for case in cases
        for individual in case.objects
    }


def between(store: FeatureStore, cases: Iterable[Case]) -> dict[str, list[float]]:
    """Cosines between different real pictures of one subject, by subject."""
    cosines = {}
    for name, paths in _subjects(cases).items():
        table = cosine(*[np.stack(store.images((p, None) for p in paths))] * 2)
        cosines[name] = [float(v) for v in table[np.triu_indices(len(paths), 1)]]
    return cosines


def _across(store: FeatureStore, cases: Iterable[Case]) -> list[float]:
    """Per subject, the mean cosine of its image prompt with those of all others."""
    firsts = [paths[0] for paths in _subjects(cases).values()]
    if len(firsts) < 2:
        return []
    features = np.stack(store.images((path, None) for path in firsts))
    table = cosine(features, features)
    return [float(v) for v in (table.sum(axis=1) - table.diagonal()) / (len(firsts) - 1)]


def _scaled(mean: dict[str, Any], factor: float) -> dict[str, Any] | None:
    if mean["mean"] is None:
        return None
    return {key: rounded(value if key == "cases" or value is None else value * factor) for key, value in mean.items()}
