"""The embedded world's oracle as a judge, of pictures of cases that the world drew."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from rbctl.bundle.fingerprints import fingerprint
from rbctl.files import read_image
from rbctl.menagerie.judge import Judge, Verdict
from rbctl.menagerie.oracle import load_oracle
from rbctl.plugins.eval.judges.judge import Answer, Item
from rbctl.plugins.eval.judges.questions import Question


class OracleJudge:
    """Answers from the oracle's verdict on the whole picture; of cases without truth it knows nothing.

    Args:
        folder: the oracle's.
    """

    name, paid = "oracle", False

    def __init__(self, folder: Path, device: torch.device) -> None:
        self._judge = Judge(load_oracle(folder, device))
        self.hash = fingerprint(folder)

    def __call__(self, items: Sequence[Item]) -> Iterator[Answer]:
        """One answer an item."""
        drawn = {(picture.path, picture.case.id): truth for picture, _ in items if (truth := picture.case.truth)}
        images = [read_image(path) for path, _ in drawn]
        verdicts = dict(zip(drawn, self._judge(images, list(drawn.values())), strict=True))
        for picture, question in items:
            verdict = verdicts.get((picture.path, picture.case.id))
            yield Answer(None if verdict is None else answer(question, verdict))


def answer(question: Question, verdict: Verdict) -> float | None:
    """Probability of yes; None where the oracle does not tell. It is sure of all but the relation."""
    who, turned = question.individuals, verdict.direction is False
    here, apart = not any(verdict.missing[k] for k in who), verdict.touching is False
    match question.kind:
        case "present":
            return float(here)
        case "once":
            return float(here and not (verdict.duplicate or verdict.extra))
        case "relation":  # which holds only where those touch that must
            return verdict.probability if here and not turned and not apart else 0.0
        case "exchanged":
            return verdict.probability if here and turned and not apart else 0.0
        case "contact":
            # One distance for all that must touch: where it is too far and there are several, nobody knows which.
            if verdict.touching is None or (apart and len(verdict.missing) > 2):
                return None
            return float(here and verdict.touching)
        case "bodies":
            return float(not verdict.merged)
        case "same":
            return float(verdict.identified[who[0]])
    return None
