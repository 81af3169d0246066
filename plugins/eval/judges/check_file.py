"""``check.json``: what ``rbctl eval judge-check`` measured, as ``rbctl eval --judge`` reads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rbctl import formats
from rbctl.files import read_object
from rbctl.plugins.eval.judges.error import KindError
from rbctl.runs import RUNS

OUTPUT, CHECK = RUNS / "eval" / "judge-check", "check.json"


@dataclass(frozen=True)
class Checked:
    """One judge: its hash, and its error by kind of question."""

    hash: str
    kinds: dict[str, KindError]


@dataclass(frozen=True)
class Check:
    """Judges on the same questions.

    Attributes:
        source: whose pictures these are.
        pictures: how many.
        judges: by name.
    """

    source: str
    pictures: int
    judges: dict[str, Checked]

    def of(self, hash: str) -> dict[str, KindError]:
        """What is known of the judge of a hash, by kind; nothing where it was not checked."""
        return next((checked.kinds for checked in self.judges.values() if checked.hash == hash), {})


def read_check(path: Path) -> Check:
    """Read a check.

    Raises:
        InputError: the file is not there, or is none.
    """
    return formats.read(Check, read_object(path), str(path))
