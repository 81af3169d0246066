"""What is wrong with a triplet, and who is told.

The readers of both layouts tell each problem to a sink and go on. With ``refuse`` as the sink the first one ends the
reading (``load``); with a list's ``append`` they all come together (``check``), and a hole stands where a part could
not be read: ``NOWHERE``, ``NO_BOX``, absent keypoints or an empty string. Who meets a hole need not tell again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rbctl.errors import InputError
from rbctl.relations import Box

NOWHERE = Path()
NO_BOX: Box = (0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        triplet: the triplet's id; empty where the whole set is meant.
        file: the file, with ``:line`` where that helps.
        what: what is wrong, with the field's name.
        mend: what to do about it.
        level: a warning keeps nothing from working.
    """

    triplet: str
    file: str
    what: str
    mend: str = ""
    level: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        parts = [self.file, f"triplet {self.triplet}" if self.triplet else "", self.what]
        return ": ".join(p for p in parts if p) + (f"; {self.mend}" if self.mend else "")


Sink = Callable[[Problem], None]


def refuse(problem: Problem) -> None:
    """The strict sink.

    Raises:
        InputError: the problem is more than a warning.
    """
    if problem.level == "error":
        raise InputError(str(problem))


@dataclass(frozen=True)
class Reporter:
    """Tells a sink the problems of one triplet; ``file`` is where its words stand."""

    triplet: str
    file: str
    sink: Sink

    def error(
        self, what: str, mend: str = "", file: Path | None = None, level: Literal["error", "warning"] = "error"
    ) -> None:
        """Tell what must be mended, in ``file`` where it is another one."""
        self.sink(Problem(triplet=self.triplet, file=str(file or self.file), what=what, mend=mend, level=level))

    def warning(self, what: str, mend: str = "") -> None:
        """Tell what may well be meant so."""
        self.error(what, mend, level="warning")

    def failed(self, error: InputError, file: Path) -> None:
        """Tell that ``file`` could not be read."""
        self.error(str(error).removeprefix(f"{file}: "), file=file)
