"""Agreement of judges, win rates and strengths of methods."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from rbctl.plugins.eval.judges.agreement import agreement
from rbctl.plugins.eval.judges.win_rates import bradley_terry, strengths, win_rates


def test_kappa_counts_no_chance() -> None:
    assert agreement([True, False, True, False], [True, False, True, False]) == (1, 1)
    assert agreement([True, True, False, False], [True, False, True, False]) == (0.5, 0)
    alike, kappa = agreement([True] * 9 + [False], [True] * 10)
    assert (alike, kappa) == (pytest.approx(0.9), pytest.approx(0))
    assert agreement([True, True], [True, True]) == (1, None)
    assert agreement([], []) == (None, None)


def test_two_methods_have_the_logit_of_their_win_rate() -> None:
    wins = np.array([[0, 300], [100, 0]], dtype=float)
    assert win_rates(wins)[0, 1] == 0.75
    a, b = bradley_terry(wins)
    assert (a - b, a + b) == (pytest.approx(np.log(300.5 / 100.5), abs=1e-4), pytest.approx(0))


def test_strengths_come_back_from_drawn_comparisons() -> None:
    rng, true = np.random.default_rng(0), np.array([1.0, 0.2, -1.2])
    cases = np.zeros((400, 3, 3))
    for a, b in ((0, 1), (0, 2), (1, 2)):
        first = rng.random(400) < expit(true[a] - true[b])
        cases[:, a, b], cases[:, b, a] = first, ~first
    for strength, truth in zip(strengths(cases), true, strict=True):
        assert strength.low < truth < strength.high
        assert strength.mean == pytest.approx(truth, abs=0.25)


def test_one_that_always_wins_has_a_finite_strength_and_one_never_compared_none() -> None:
    wins = np.zeros((3, 3))
    wins[0, 1] = 20
    a, b, alone = bradley_terry(wins)
    assert a - b == pytest.approx(np.log(20.5 / 0.5), abs=1e-3)
    assert alone == pytest.approx(0, abs=1e-3)
    assert np.isnan(win_rates(wins)[0, 2])
