"""What is found of pictures: a column a number, a row a picture."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rbctl.menagerie.judge import Verdict
from rbctl.paths import relative
from rbctl.plugins.eval import failures
from rbctl.plugins.eval.case import Picture
from rbctl.plugins.eval.judges.judge import Answer
from rbctl.plugins.eval.judges.questions import Question
from rbctl.plugins.eval.metrics import Metric

TRUTH = "truth"  # the run of the world's own drawings: a ceiling, not a method


@dataclass(frozen=True)
class Column:
    """One number a picture.

    Attributes:
        metric: None for what the oracle or a judge says.
        hash: of the encoder, oracle or judge.
        judge: whose answers it counts; "" for none.
    """

    id: str
    profile: str
    name: str
    definition: str
    hash: str
    metric: Metric | None = None
    judge: str = ""

    def facts(self) -> dict[str, str]:
        """What a report says of it."""
        return {name: getattr(self, name) for name in ("profile", "name", "definition", "hash", "judge")}


@dataclass
class Row:
    """What was found of one picture."""

    picture: Picture
    scores: dict[str, float | None] = field(default_factory=dict)
    verdict: Verdict | None = None
    failures: failures.Found = field(default_factory=dict)
    predicate: str = ""
    source: str = "none"
    answers: dict[str, list[tuple[Question, Answer]]] = field(default_factory=dict)  # by judge

    def facts(self, folder: Path) -> dict[str, Any]:
        """As a line of pictures.jsonl, which lies in ``folder``."""
        case = self.picture.case
        return {
            "run": self.picture.run,
            "file": relative(self.picture.path, folder),
            "case": case.id,
            "text": case.text,
            "predicate": self.predicate,
            "predicate_from": self.source,
            "prompt_hash": prompt_hash([self]),
            "relation": case.relation,
            "seed": self.picture.seed,
            "scores": {name: rounded(value) for name, value in self.scores.items()},
            "oracle": None if self.verdict is None else dataclasses.asdict(self.verdict),
            "answers": {
                judge: {question.id: dataclasses.asdict(answer) for question, answer in own}
                for judge, own in self.answers.items()
            },
            "failures": self.failures,
        }


def prompt_hash(rows: Iterable[Row]) -> str:
    """SHA-256 over the prompts and predicates that were scored, whatever their order."""
    lines = sorted({f"{row.picture.case.text}\0{row.predicate}" for row in rows})
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def mean_by_case(pairs: Iterable[tuple[str, float | None]]) -> dict[str, float]:
    """Mean of the values that are known, by case."""
    values: dict[str, list[float]] = {}
    for case, value in pairs:
        if value is not None:
            values.setdefault(case, []).append(value)
    return {case: float(np.mean(own)) for case, own in sorted(values.items())}


def by_case(rows: Iterable[Row], column: str) -> dict[str, float]:
    """Mean over a case's pictures, by case."""
    return mean_by_case((row.picture.case.id, row.scores[column]) for row in rows)


def rounded(value: Any) -> Any:
    """A number, or those of a mapping, as files hold them."""
    if isinstance(value, dict):
        return {key: rounded(own) for key, own in value.items()}
    return round(value, 5) if isinstance(value, float) else value
