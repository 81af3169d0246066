"""What is wrong with a picture, by name: from the oracle in the embedded world, from features in boxes, from judges."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from rbctl.menagerie.judge import Verdict
from rbctl.plugins.eval.judges.judge import Answer
from rbctl.plugins.eval.judges.questions import Kind, Question
from rbctl.plugins.eval.metrics import Features, cosine

MISSING, DUPLICATE, SWAP = "missing object", "duplicate", "identity swap"
EXTRA, MERGED, HEAD = "extra individual", "merged bodies", "extra head"
RELATION, DIRECTION, CONTACT, COPY = "wrong relation", "wrong direction", "no contact", "copy-paste"
TYPES = (MISSING, DUPLICATE, EXTRA, MERGED, HEAD, SWAP, RELATION, DIRECTION, CONTACT, COPY)

Found = dict[str, bool | None]  # by type; None: not known


def of_verdict(verdict: Verdict) -> Found:
    """Failures that the oracle sees. Who plays which part is known only where the relation is right and nobody is
    missing or wears the other's coat."""
    right = verdict.relation and verdict.direction is not None and not any(verdict.missing) and not verdict.swapped
    return {
        MISSING: any(verdict.missing),
        DUPLICATE: verdict.duplicate,
        EXTRA: verdict.extra,
        MERGED: verdict.merged,
        HEAD: verdict.extra_head,
        SWAP: verdict.swapped,
        RELATION: not verdict.relation,
        DIRECTION: not verdict.direction if right else None,
        CONTACT: None if verdict.touching is None else not verdict.touching,
        COPY: None,
    }


def of_crops(crops: Sequence[Features | None], prompts: Sequence[Features], detected: bool) -> Found:
    """Failures by what the boxes hold.

    Args:
        crops: (D,) per object, of what its box holds; None where it was not found.
        prompts: (D,) per object, of its image prompt.
        detected: the boxes tell where objects are. Boxes that were asked for, which may overlap and hold a part of
            another object or nothing, say only whether each object is in its own place rather than another's.
    """
    failures: Found = dict.fromkeys(TYPES)
    if detected:
        failures[MISSING] = any(crop is None for crop in crops)
    seen = [crop for crop in crops if crop is not None]
    if len(seen) < 2 or len(seen) < len(crops):
        return failures
    table = cosine(np.stack(seen), np.stack(list(prompts)))
    nearest = table.argmax(axis=1)
    if detected:
        failures[DUPLICATE] = len(set(nearest.tolist())) < len(nearest)
    failures[SWAP] = best_match(table) != tuple(range(len(table)))
    return failures


def of_answers(answers: Sequence[tuple[Question, Answer]]) -> Found:
    """Failures by what a judge answers; a type is known where all that was asked of it is."""
    failures: Found = dict.fromkeys(TYPES)
    kinds: dict[str, Kind] = {
        MISSING: "present",
        DUPLICATE: "once",
        MERGED: "bodies",
        RELATION: "relation",
        DIRECTION: "exchanged",
        CONTACT: "contact",
        COPY: "copied",
    }
    for name, kind in kinds.items():
        wrong = [None if answer.yes is None else answer.says != q.wanted for q, answer in answers if q.kind == kind]
        if wrong and None not in wrong:
            failures[name] = any(wrong)
    if failures[MISSING] and failures[DUPLICATE]:  # "not exactly one" is no second one where there is none
        failures[DUPLICATE] = None
    return failures


def best_match(table: NDArray[np.float64]) -> tuple[int, ...]:
    """Which image prompt each object is taken for when every prompt is taken once and the sum is largest.

    Args:
        table: (N, N) likeness of object and image prompt.
    """
    _, prompts = linear_sum_assignment(table, maximize=True)
    return tuple(int(k) for k in prompts)


def likeness(parts: Sequence[Features | None], prompts: Sequence[Features]) -> float | None:
    """How alike the part of a result that is most so is to its image prompt; None where nothing was found."""
    cosines = [
        float(cosine(part[None], own[None])[0, 0]) for part, own in zip(parts, prompts, strict=True) if part is not None
    ]
    return max(cosines, default=None)
