"""What is asked for and what came of it: cases of a benchmark, and pictures of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rbctl.menagerie.cases import DrawnCase
from rbctl.relations import Box

Number = Literal["single", "multi"]  # individuals of a case
Part = Box | Path  # of a picture: inside a box, or where another picture, a mask of its size, is white


@dataclass(frozen=True)
class CaseObject:
    """One subject of a case.

    Attributes:
        name: the words for it in the prompt.
        image: the image prompt.
        references: its real pictures, the image prompt among them.
        subject: who it is, across cases; another subject is another individual.
        box: where it is asked for, where the benchmark says.
    """

    name: str
    image: Path
    references: tuple[Path, ...] = ()
    subject: str = ""
    role: str = ""
    box: Box | None = None


@dataclass(frozen=True)
class Case:
    """A prompt with image prompts.

    Attributes:
        text: the prompt as it is scored, without any rare token.
        predicate: explicit words of the relation; "" where they are to be found in the text.
        relation: name, "" where there is none.
        spoken_to: the relation as other stages are told of it, a name or a YAML's path; "" where they know none.
        group: what breakdowns go by, a relation or a prompt list.
        truth: what the embedded world knows of it, where it drew it.
    """

    id: str
    text: str
    objects: tuple[CaseObject, ...] = ()
    predicate: str = ""
    relation: str = ""
    spoken_to: str = ""
    group: str = ""
    seed: int = 0
    truth: DrawnCase | None = None

    @property
    def number(self) -> Number | None:
        """Whether it asks for one individual or several; None for none."""
        return ("single", "multi")[len(self.objects) > 1] if self.objects else None


@dataclass(frozen=True)
class Picture:
    """A result.

    Attributes:
        run: whose.
        boxes: per object of the case, where it is, a box or a mask; None for one that was looked for and not found.
            None for all: nobody says.
        detected: whether the boxes tell where objects are, rather than where they were asked for.
        seed: of the sampling, where it is known.
    """

    run: str
    path: Path
    case: Case
    boxes: tuple[Part | None, ...] | None = None
    detected: bool = False
    seed: int | None = None


@dataclass(frozen=True)
class Wanted:
    """What of a benchmark is wanted.

    Attributes:
        data: folder of the pictures, instead of the YAML's.
        relations: only these (names, or for drawn benchmarks paths of YAML files too); empty for all.
        cases: a relation, where the benchmark draws them.
        partial: leave cases without pictures out.
        drawn: where drawn pictures go.
        follow_outside: pictures may lie outside of their folder.
    """

    data: Path | None = None
    relations: tuple[str, ...] = ()
    cases: int | None = None
    partial: bool = False
    drawn: Path = field(default_factory=lambda: Path("drawn"))
    follow_outside: bool = False
