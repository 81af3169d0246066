"""How often a judge is wrong, and what of its figures is left when that is counted. Pure functions of counts.

Truth and answers are yes or no. Sensitivity is the share of true yes that a judge calls yes; specificity, of true no
that it calls no.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from rbctl.plugins.eval.intervals import rank_interval

_Z = float(stats.norm.ppf(0.975))
_BINS = 10


@dataclass(frozen=True)
class Share:
    """A share with its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Bin:
    """Answers of like probability: how many, their mean probability of yes, and the share whose truth is yes."""

    count: int
    probability: float
    truth: float


@dataclass(frozen=True)
class KindError:
    """What is measured of one judge on one kind of question.

    Attributes:
        asked: questions with a known truth.
        not_known: of them, those that it did not answer; they count for nothing below.
        yes, yes_right: questions whose truth is yes, and those of them that it answered so.
        no, no_right: likewise.
        calibration: its probabilities in ten parts of [0, 1], those that are not empty.
        rank_correlation: Spearman's, of its probabilities with the truth; None where either does not vary.
    """

    asked: int
    not_known: int
    yes: int
    yes_right: int
    no: int
    no_right: int
    calibration: tuple[Bin, ...] = ()
    rank_correlation: Share | None = None

    def __post_init__(self) -> None:
        counts = (self.asked, self.not_known, self.yes, self.yes_right, self.no, self.no_right)
        if min(counts) < 0 or self.yes_right > self.yes or self.no_right > self.no:
            raise ValueError("counts: more are right than there are, or one is negative")

    @property
    def sensitivity(self) -> Share | None:
        """None without a true yes."""
        return wilson(self.yes_right, self.yes)

    @property
    def specificity(self) -> Share | None:
        """None without a true no."""
        return wilson(self.no_right, self.no)

    @property
    def balanced_accuracy(self) -> Share | None:
        """Mean of sensitivity and specificity, 0.5 for a judge that knows nothing; its interval is made of theirs.

        By Newcombe's square-and-add, of two shares that were measured apart.
        """
        yes, no = self.sensitivity, self.specificity
        if yes is None or no is None:
            return None
        below = math.hypot(yes.mean - yes.low, no.mean - no.low) / 2
        above = math.hypot(yes.high - yes.mean, no.high - no.mean) / 2
        mean = (yes.mean + no.mean) / 2
        return Share(mean, max(mean - below, 0.0), min(mean + above, 1.0))

    def shares(self) -> dict[str, Any]:
        """Sensitivity, specificity and balanced accuracy, as files have them."""
        named = {name: getattr(self, name) for name in ("sensitivity", "specificity", "balanced_accuracy")}
        return {name: share and dataclasses.asdict(share) for name, share in named.items()}

    @property
    def worthless(self) -> bool:
        """Whether it may know nothing: 0.5 lies in the interval of its balanced accuracy, or nobody can tell."""
        accuracy = self.balanced_accuracy
        return accuracy is None or accuracy.low <= 0.5

    @property
    def calibration_error(self) -> float | None:
        """Mean distance of probability and truth over the bins, each by its count; None without answers."""
        count = sum(part.count for part in self.calibration)
        gaps = sum(part.count * abs(part.probability - part.truth) for part in self.calibration)
        return gaps / count if count else None


def measure(
    probabilities: Sequence[float | None], truth: Sequence[bool], pictures: Sequence[str] | None = None
) -> KindError:
    """The error of a judge.

    Args:
        probabilities: (n,) of yes; None: not known. From a half on it is a yes.
        truth: (n,).
        pictures: (n,) whose questions these are; the interval of the rank correlation draws pictures again. [default:
            each is of another picture]
    """
    names = pictures or [str(k) for k in range(len(truth))]
    known = [(p, true, name) for p, true, name in zip(probabilities, truth, names, strict=True) if p is not None]
    yes = [p >= 0.5 for p, true, _ in known if true]
    no = [p < 0.5 for p, true, _ in known if not true]
    parts: dict[int, list[tuple[float, bool]]] = {}
    for p, true, _ in known:
        parts.setdefault(min(int(p * _BINS), _BINS - 1), []).append((p, true))
    bins = [np.array(parts[k], dtype=float) for k in sorted(parts)]
    return KindError(
        asked=len(truth),
        not_known=len(truth) - len(known),
        yes=len(yes),
        yes_right=sum(yes),
        no=len(no),
        no_right=sum(no),
        calibration=tuple(Bin(len(part), *(round(float(v), 5) for v in part.mean(0))) for part in bins),
        rank_correlation=_rank([p for p, *_ in known], [true for _, true, _ in known], [name for *_, name in known]),
    )


def _rank(probabilities: Sequence[float], truth: Sequence[bool], pictures: Sequence[str]) -> Share | None:
    rho = rank_interval(probabilities, [float(true) for true in truth], pictures)
    values = [rho[name] for name in ("rho", "low", "high")]
    return None if None in values or not np.isfinite(values).all() else Share(*(round(float(v), 5) for v in values))


def wilson(count: int, of: int) -> Share | None:
    """A share with Wilson's interval; None of none."""
    if not of:
        return None
    interval = stats.binomtest(count, of).proportion_ci(method="wilson")
    return Share(count / of, float(interval.low), float(interval.high))


def corrected(yes: int, of: int, error: KindError) -> Share | None:
    """The true share of yes behind a judge's answers, with an interval that counts all three samplings.

    The estimate is Rogan & Gladen's (1978), the interval Lang & Reiczigel's (2014).

    Args:
        yes, of: the judge's yes among the answers that are known.
        error: as it was measured.

    Returns:
        None without answers, or where the judge is worthless.
    """
    if not of or error.worthless:
        return None
    observed, many = (yes + _Z**2 / 2) / (of + _Z**2), of + _Z**2
    hits, hits_of = (error.yes_right + 1) / (error.yes + 2), error.yes + 2
    rejections, rejections_of = (error.no_right + 1) / (error.no + 2), error.no + 2
    youden = hits + rejections - 1
    if youden <= 0:
        return None
    true = (observed + rejections - 1) / youden
    of_hits = hits * (1 - hits) / hits_of
    of_rejections = rejections * (1 - rejections) / rejections_of
    shift = 2 * _Z**2 * (true * of_hits - (1 - true) * of_rejections)
    variance = observed * (1 - observed) / many + true**2 * of_hits + (1 - true) ** 2 * of_rejections
    reach = _Z * math.sqrt(variance) / youden
    plain = (yes / of + error.no_right / error.no - 1) / (error.yes_right / error.yes + error.no_right / error.no - 1)
    mean, low, high = (min(max(value, 0.0), 1.0) for value in (plain, true + shift - reach, true + shift + reach))
    return Share(mean, min(low, mean), max(high, mean))
