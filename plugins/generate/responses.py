"""Every answer of a paid engine, kept beside the pictures: ``responses/NNNNN-PICTURE.json``, without picture data.

What a set has cost is the sum over them, so a resumed run counts what went before. They are data as a set's
pictures are: a cost that is none ends the run before anything is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from rbctl.errors import InputError, abridged
from rbctl.files import read_json, write_text
from rbctl.plugins.generate.config import MOST_DOLLARS

FOLDER = "responses"


def is_cost(value: Any) -> TypeGuard[float]:
    """Whether a value can be what an answer cost in US dollars: no NaN, nothing negative, no truth value, no text."""
    return type(value) in (int, float) and 0 <= value <= MOST_DOLLARS


@dataclass
class Account:
    """What a set has cost, and what it may.

    Attributes:
        budget: US dollars in all.
        most: pictures in all; None: any number.
        spent: US dollars so far.
        pictures: answers so far that were to hold one.
    """

    folder: Path
    budget: float
    most: int | None
    spent: float = field(init=False, default=0.0)
    pictures: int = field(init=False, default=0)
    _next: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        for path in (self.folder / FOLDER).glob("*-*.json"):
            row, number = read_json(path), path.name.split("-")[0]
            cost = row.get("cost") if isinstance(row, dict) else None
            if not is_cost(cost):
                raise InputError(f"{path}: cost: {abridged(cost)}; write how many US dollars the answer cost")
            self.spent += cost
            self.pictures += 1
            if number.isdecimal():
                self._next = max(self._next, int(number) + 1)

    def check(self, ahead: float) -> None:
        """Make sure that one more picture may be asked for.

        Args:
            ahead: about what it will cost, in US dollars.

        Raises:
            InputError: it would go beyond the budget; what exists is kept.
        """
        kept = "what exists is kept; raise it to go on where this stopped"
        if self.most is not None and self.pictures >= self.most:
            raise InputError(f"--max-pictures {self.most}: so many were asked for; {kept}")
        if self.spent + ahead > self.budget:
            raise InputError(
                f"--budget {self.budget:g}: ${self.spent:.2f} spent, the next picture costs about ${ahead:.2f}; {kept}"
            )

    def keep(self, picture: str, text: str, cost: float) -> None:
        """Write an answer down, before anything is made of it.

        Args:
            picture: stem of the picture it is for.
            text: JSON, with a field ``cost`` of the same number.

        Raises:
            ValueError: ``cost`` is none; a budget could not be kept.
        """
        if not is_cost(cost):
            raise ValueError(f"{cost} is no number of US dollars")
        write_text(self.folder / FOLDER / f"{self._next:05}-{picture}.json", text)
        self._next += 1
        self.spent += cost
        self.pictures += 1
