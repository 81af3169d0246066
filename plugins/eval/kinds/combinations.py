"""Every combination of the pictures of some categories."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from annotated_types import MinLen

from rbctl.errors import InputError, abridged, shortlist
from rbctl.plugins.eval.case import Case, CaseObject
from rbctl.plugins.eval.kinds.kind import MOST_CASES, Pictured, pictures_in
from rbctl.relations import Box
from rbctl.templates import fill


@dataclass(frozen=True, kw_only=True)
class Combination:
    """A prompt for every way to take a picture of each category.

    Attributes:
        of: the categories; one that is named twice gives two of its pictures.
        prompt: with {0}, {1} ... for the subjects' words, and perhaps {place}.
        boxes: where each is asked for.
    """

    of: tuple[str, ...]
    prompt: str
    boxes: tuple[Box, ...]

    def __post_init__(self) -> None:
        if len(self.of) != len(self.boxes):
            raise ValueError(f"boxes: one for each of {shortlist(self.of)} was expected, not {len(self.boxes)}")
        try:
            fill(self.prompt, *self.of, place="")
        except ValueError as error:
            raise ValueError(f"prompt: {abridged(self.prompt)}: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Combinations(Pictured):
    """Each picture of DATA/CATEGORY is a subject, named by its file: "dog2.jpg" is a dog.

    Attributes:
        classes: words for files whose names do not say what they show.
        places: where {place} may be.
    """

    combinations: Annotated[tuple[Combination, ...], MinLen(1)]
    classes: dict[str, str] = field(default_factory=dict)
    places: tuple[str, ...] = ()

    def cases_in(self, path: Path, data: Path, follow_outside: bool) -> tuple[Case, ...]:
        cases: list[Case] = []
        for number, entry in enumerate(self.combinations, 1):
            for cast in _casts(entry.of, data):
                words = [self.classes.get(p.stem, p.stem.rstrip("0123456789")) for p in cast]
                individuals = tuple(
                    CaseObject(name=word, image=p, references=(p,), subject=f"{p.parent.name}/{p.stem}", box=box)
                    for word, p, box in zip(words, cast, entry.boxes, strict=True)
                )
                names, group = "+".join(p.stem for p in cast), "+".join(entry.of)
                for k, place in enumerate(self.places if "{place}" in entry.prompt else ("",)):
                    if len(cases) == MOST_CASES:
                        raise InputError(
                            f"{path}: combination {number}: more than {MOST_CASES:,} cases; put fewer pictures in the "
                            "folders"
                        )
                    text = fill(entry.prompt, *words, place=place)
                    cases.append(Case(id=f"{number:02}-{names}-{k}", text=text, objects=individuals, group=group))
        return tuple(cases)


def _casts(of: Sequence[str], data: Path) -> Iterator[list[Path]]:
    """Every way to take a picture of each category, in the order of ``of``."""
    choices: dict[str, Iterable[tuple[Path, ...]]] = {}
    for category, count in Counter(of).items():
        pictures = pictures_in(data / category)
        # Places of pictures that are not there, so that these are told or left out as all missing ones are.
        lacking = [data / category / f"(picture {k + 1})" for k in range(len(pictures), count)]
        choices[category] = itertools.combinations((*pictures, *lacking), count)
    for chosen in itertools.product(*choices.values()):
        left = {category: iter(own) for category, own in zip(choices, chosen, strict=True)}
        yield [next(left[category]) for category in of]
