"""Every answer of a paid engine, kept beside the pictures: ``responses/NNNNN-PICTURE.json``, without picture data.

What a set has cost is the sum over them, so a resumed run counts what went before.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from rbctl.errors import InputError
from rbctl.files import read_json, write_text

FOLDER = "responses"


@dataclass
class Account:
    """What a set has cost, and what it may.

    Attributes:
        budget: US dollars in all.
        most: pictures in all; None: any number.
        spent: US dollars so far, as far as prices are known.
        pictures: answers so far that were to hold one.
    """

    folder: Path
    budget: float
    most: int | None
    spent: float = field(init=False, default=0.0)
    pictures: int = field(init=False, default=0)
    _next: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        for path in sorted((self.folder / FOLDER).glob("[0-9][0-9][0-9][0-9][0-9]-*.json")):
            row = read_json(path)
            cost = row.get("cost") if isinstance(row, dict) else None
            self.spent += cost if isinstance(cost, int | float) else 0.0
            self.pictures += 1
            self._next = int(path.name.split("-")[0]) + 1

    def check(self, ahead: float | None) -> None:
        """Make sure that one more picture may be asked for.

        Args:
            ahead: about what it will cost; None where nobody knows.

        Raises:
            InputError: it would go beyond the budget; what exists is kept.
        """
        kept = "what exists is kept; raise it to go on where this stopped"
        if self.most is not None and self.pictures >= self.most:
            raise InputError(f"--max-pictures {self.most}: so many were asked for; {kept}")
        if ahead is not None and self.spent + ahead > self.budget:
            raise InputError(
                f"--budget {self.budget:g}: ${self.spent:.2f} spent, the next picture costs about ${ahead:.2f}; {kept}"
            )

    def keep(self, picture: str, text: str, cost: float | None) -> None:
        """Write an answer down, before anything is made of it.

        Args:
            picture: stem of the picture it is for.
            text: JSON, with a field ``cost`` of the same number.
        """
        write_text(self.folder / FOLDER / f"{self._next:05}-{picture}.json", text)
        self._next += 1
        self.spent += cost or 0.0
        self.pictures += 1
