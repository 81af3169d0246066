"""What judges said of all pictures of a run: figures, their agreement, and who wins. Plain data for the report."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rbctl.plugins.eval.judges.agreement import agreement
from rbctl.plugins.eval.judges.error import KindError, corrected
from rbctl.plugins.eval.judges.judge import Answer
from rbctl.plugins.eval.judges.questions import KINDS, Question

Answers = Sequence[tuple[Question, Answer]]  # of one picture


def share_right(answers: Answers, kind: str) -> float | None:
    """Share of a kind's answers that a picture without fault would have; None where none is known."""
    right = [
        answer.says == question.wanted
        for question, answer in answers
        if question.kind == kind and answer.yes is not None
    ]
    return float(np.mean(right)) if right else None


def score(answers: Answers) -> float | None:
    """Mean probability of the answers that a picture without fault would have; None where none is known."""
    known = [
        answer.yes if question.wanted else 1 - answer.yes for question, answer in answers if answer.yes is not None
    ]
    return float(np.mean(known)) if known else None


def counts(pictures: Sequence[Answers], errors: Mapping[str, KindError]) -> dict[str, dict[str, Any]]:
    """By kind how many questions were asked, how many answers are not known, and how many of the others are yes.

    Args:
        errors: of the judge by kind; where one is known, ``corrected`` is the share of yes behind the answers.
    """
    counted: dict[str, dict[str, Any]] = {}
    for kind in KINDS:
        own = [answer for answers in pictures for question, answer in answers if question.kind == kind]
        if own:
            yes, unknown = sum(answer.says is True for answer in own), sum(answer.yes is None for answer in own)
            counted[kind] = {"asked": len(own), "not_known": unknown, "yes": yes}
            if kind in errors:
                share = corrected(yes, len(own) - unknown, errors[kind])
                counted[kind]["corrected"] = share and dataclasses.asdict(share)
    return counted


def agreements(judges: Mapping[str, Sequence[Answers]]) -> list[dict[str, Any]]:
    """Every two judges by kind: on how many questions both know, the share alike, and kappa.

    Args:
        judges: by name the answers of the same pictures.
    """
    rows = []
    for a, b in itertools.combinations(judges, 2):
        for kind in KINDS:
            pairs = [
                (first.says, second.says)
                for of_a, of_b in zip(judges[a], judges[b], strict=True)
                for (question, first), (_, second) in zip(of_a, of_b, strict=True)
                if question.kind == kind and first.yes is not None and second.yes is not None
            ]
            if pairs:
                alike, kappa = agreement(*zip(*pairs, strict=True))
                rows.append({"a": a, "b": b, "kind": kind, "n": len(pairs), "alike": alike, "kappa": kappa})
    return rows
