"""From rows to what a report says of them: means with intervals, tests, failures, rank correlation. Plain data."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np

from rbctl.plugins.eval import failures
from rbctl.plugins.eval.bounds import bounds
from rbctl.plugins.eval.case import Number
from rbctl.plugins.eval.features import FeatureStore
from rbctl.plugins.eval.intervals import interval, paired, rank_interval
from rbctl.plugins.eval.rows import TRUTH, Column, Row, by_case, prompt_hash, rounded

SIGNIFICANT = 0.05


def summary(
    rows: Sequence[Row],
    runs: Sequence[str],
    columns: Sequence[Column],
    stores: Mapping[str, FeatureStore],
    seed: int = 0,
    apart: bool = False,
) -> dict[str, Any]:
    """Everything that a report says of the scores.

    Args:
        runs: their names in the order of the table.
        stores: by encoder, for floors and ceilings.
        seed: of the bootstrap.
        apart: cases of one individual and of several have their tables even where all are alike.
    """
    shown = [c for c in columns if any(row.scores[c.id] is not None for row in rows)]
    left_out = [f"{c.id}: no picture has what it needs" for c in columns if c not in shown and not c.judge]
    if any(c.metric and c.metric.kind == "crop" for c in shown):
        asked = [r.picture for r in rows if r.verdict is None and r.picture.boxes and not r.picture.detected]
        named = dict.fromkeys(picture.run for picture in asked)
        left_out += [f"{run}: the 0 of crops for a missing object; boxes were only asked for" for run in named]
    of_run = {run: [row for row in rows if row.picture.run == run] for run in runs}
    groups = sorted({row.picture.case.group for row in rows} - {""})
    numbers = {row.picture.case.number for row in rows} - {None}

    def cells(own: Sequence[Row]) -> dict[str, Any]:
        return {c.id: cell(own, c.id, seed) for c in shown}

    return {
        "columns": {c.id: c.facts() for c in shown},
        "table": {run: cells(own) for run, own in of_run.items()},
        "groups": {
            group: {run: cells([r for r in own if r.picture.case.group == group]) for run, own in of_run.items()}
            for group in (groups if len(groups) > 1 else [])
        },
        "numbers": {
            name: {run: cells([r for r in own if r.picture.case.number == name]) for run, own in of_run.items()}
            for name in (get_args(Number) if len(numbers) > 1 or apart else ())
            if name in numbers
        },
        "tests": {c.id: paired_tests(rows, runs, c.id, seed) for c in shown},
        "winners": {c.id: winner(rows, runs, c.id, seed) for c in shown},
        "bounds": {
            c.id: bounds(stores[c.metric.encoder], rows, c, c.metric, seed) for c in shown if c.metric is not None
        },
        "failures": {run: failure_counts(own) for run, own in of_run.items()},
        "rank_correlation": rank(rows, shown, seed),
        "predicates": dict(Counter(source for _, source in {(r.picture.case.id, r.source) for r in rows})),
        "left_out": left_out,
    }


def cell(rows: Sequence[Row], column: str, seed: int = 0) -> dict[str, Any]:
    """Mean over cases of the mean over a case's pictures, with all that the number belongs to."""
    used = [row for row in rows if row.scores[column] is not None]
    mean = interval(list(by_case(used, column).values()), seed)
    return {**rounded(mean), "n": len(used), "prompt_hash": prompt_hash(used)}


def paired_tests(rows: Sequence[Row], runs: Sequence[str], column: str, seed: int = 0) -> list[dict[str, Any]]:
    """Every two runs against each other, on the cases that both have."""
    tests = []
    for a, b in itertools.combinations([run for run in runs if run != TRUTH], 2):
        first, second = (by_case([r for r in rows if r.picture.run == run], column) for run in (a, b))
        both = [case for case in first if case in second]
        test = paired([first[c] for c in both], [second[c] for c in both], seed)
        tests.append({"a": a, "b": b, **rounded(test)})
    return tests


def winner(rows: Sequence[Row], runs: Sequence[str], column: str, seed: int = 0) -> dict[str, Any] | None:
    """The runs of the highest mean, and whether it is one that differs from all others (p < 0.05, uncorrected).

    Only cases that all compared runs share count: an easier part of the benchmark is no merit. None without any.
    """
    scored = [row for row in rows if row.scores[column] is not None and row.picture.run != TRUTH]
    cases = [{row.picture.case.id for row in scored if row.picture.run == run} for run in runs]
    shared = set.intersection(*filter(None, cases)) if scored else set()
    compared = [row for row in scored if row.picture.case.id in shared]
    means = {run: cell([r for r in compared if r.picture.run == run], column, seed)["mean"] for run in runs}
    known = {run: mean for run, mean in means.items() if mean is not None}
    if len(known) < 2:
        return None
    best = [run for run in known if known[run] == max(known.values())]
    against = [
        t for t in paired_tests(compared, runs, column, seed) if best[0] in (t["a"], t["b"]) and t["p"] is not None
    ]
    alone = len(best) == 1 and bool(against)
    return {"runs": best, "significant": alone and all(t["p"] < SIGNIFICANT for t in against)}


def failure_counts(rows: Sequence[Row]) -> dict[str, dict[str, int]]:
    """By type, in how many pictures it is there, of how many where that is known."""
    counts = {}
    for name in failures.TYPES:
        known = [row.failures[name] for row in rows if row.failures.get(name) is not None]
        counts[name] = {"count": sum(map(bool, known)), "known": len(known)}
    return counts


def rank(rows: Sequence[Row], columns: Sequence[Column], seed: int = 0) -> dict[str, Any]:
    """How CLIP-R ranks pictures of one relation beside how the oracle does, by relation and over all."""
    clip_r = next((c.id for c in columns if c.metric and c.metric.kind == "predicate"), "")
    used = [
        (row.picture.case, score, row.verdict.probability)
        for row in rows
        if row.verdict is not None and (score := row.scores.get(clip_r)) is not None and row.picture.run != TRUTH
    ]
    if not used:
        return {}
    groups: dict[str, list[float]] = {}
    for case, score, _ in used:
        groups.setdefault(case.group, []).append(score)

    def rho(own: Sequence[tuple[Any, float, float]], scores: Sequence[float]) -> dict[str, Any]:
        probabilities, cases = [probability for *_, probability in own], [case.id for case, *_ in own]
        correlation: dict[str, Any] = rounded(rank_interval(scores, probabilities, cases, seed))
        return correlation

    # Words of different relations lie at different levels, which says nothing of the pictures.
    means = {group: float(np.mean(scores)) for group, scores in groups.items()}
    return {
        "all": rho(used, [score - means[case.group] for case, score, _ in used]),
        "by_group": {g: rho([u for u in used if u[0].group == g], scores) for g, scores in groups.items()},
    }
