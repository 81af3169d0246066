"""Every two runs on the cases that both have: which shows the case better, by a judge."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from rbctl.plugins.eval.case import Picture
from rbctl.plugins.eval.judges.judge import AnswerStore, Item
from rbctl.plugins.eval.judges.questions import preferred
from rbctl.plugins.eval.judges.summary import score
from rbctl.plugins.eval.judges.win_rates import Wins, strengths, win_rates
from rbctl.plugins.eval.rows import TRUTH, Row

Comparison = tuple[str, int, int, float]  # a case, two runs, and what of the win is the first one's: 1, 0, or half


def wins(rows: Sequence[Row], store: AnswerStore, pairwise: bool, seed: int = 0) -> dict[str, Any]:
    """Win rates and strengths of runs by one judge.

    Args:
        pairwise: the judge sees both pictures and is asked in both orders; a judge that cannot do that says nothing.
            Else the picture wins whose own questions it answers better.

    Returns:
        ``runs`` in order, ``rates`` of row against column, ``strengths`` with intervals, ``cases``; empty where
        nothing could be compared. The world's own drawings do not take part.
    """
    shown = list(dict.fromkeys(row.picture.run for row in rows if row.picture.run != TRUTH))
    by_case: dict[str, list[list[Row]]] = {}
    for row in rows:
        if row.picture.run in shown:
            of_runs = by_case.setdefault(row.picture.case.id, [[] for _ in shown])
            of_runs[shown.index(row.picture.run)].append(row)
    pairs = [
        (case, a, b, first, second)
        for case, of_runs in by_case.items()
        for a, b in itertools.combinations(range(len(shown)), 2)
        for first, second in zip(of_runs[a], of_runs[b], strict=False)
    ]
    if pairwise:
        shares = _preferences(store, [(first.picture, second.picture) for *_, first, second in pairs])
    else:
        name = store.judge.name
        shares = [compare(score(first.answers[name]), score(second.answers[name])) for *_, first, second in pairs]
    done = [(case, a, b, share) for (case, a, b, *_), share in zip(pairs, shares, strict=True) if share is not None]
    return standing(shown, done, seed) if done else {}


def compare(first: float | None, second: float | None) -> float | None:
    """What of a win is the first one's; None where either is not known."""
    if first is None or second is None:
        return None
    return 0.5 if abs(first - second) < 1e-6 else float(first > second)


def _preferences(store: AnswerStore, pairs: Sequence[tuple[Picture, Picture]]) -> list[float | None]:
    """What of a win is the first picture's. A judge that always prefers the one shown first makes halves."""
    items: list[Item] = []
    for first, second in pairs:
        items += [(first, preferred(first.case, second.path)), (second, preferred(second.case, first.path))]
    answers = [answer.yes for answer in store(items)]
    return [compare(first, second) for first, second in zip(answers[::2], answers[1::2], strict=True)]


def standing(runs: Sequence[str], comparisons: Sequence[Comparison], seed: int = 0) -> dict[str, Any]:
    """Win rates and strengths of runs from single comparisons, as :func:`wins` returns them."""
    cases = sorted({case for case, *_ in comparisons})
    table: Wins = np.zeros((len(cases), len(runs), len(runs)))
    for case, a, b, share in comparisons:
        table[cases.index(case), a, b] += share
        table[cases.index(case), b, a] += 1 - share
    rates = win_rates(table.sum(0))
    return {
        "runs": list(runs),
        "cases": len(cases),
        "rates": [[None if np.isnan(rate) else round(float(rate), 5) for rate in row] for row in rates],
        "strengths": {run: dataclasses.asdict(own) for run, own in zip(runs, strengths(table, seed), strict=True)},
    }
