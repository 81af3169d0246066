"""Scenes that the embedded world draws."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Interval, MinLen

from rbctl.errors import InputError
from rbctl.menagerie.cases import DrawnCase, Stream, draw_cases, true_boxes
from rbctl.menagerie.oracle import look
from rbctl.plugins.eval.case import Case, CaseObject, Wanted
from rbctl.plugins.eval.kinds.kind import MOST_CASES, Kind
from rbctl.relations import Box, load_relation

_STREAM = 0xE7A1  # of the embedded world's cases


@dataclass(frozen=True, kw_only=True)
class Menagerie(Kind):
    """Scenes that the embedded world draws, ``cases`` of every relation.

    Attributes:
        same_boxes: groups of relations. Their cases are asked for in the boxes of the first one's scenes, so that boxes
            do not tell which of them is meant. Others have none: ``rbctl sample`` places them.
    """

    relations: tuple[str, ...] = ()
    cases: Annotated[int, Interval(ge=1, le=MOST_CASES)] = 24
    seed: Annotated[int, Interval(ge=0, le=2**63 - 1)] = 0
    same_boxes: tuple[Annotated[tuple[str, ...], MinLen(2)], ...] = ()

    def load(self, path: Path, wanted: Wanted) -> tuple[Case, ...]:
        if wanted.data:
            raise InputError(f"--data {wanted.data}: the embedded world draws the pictures; leave it out")
        names = wanted.relations or self.relations
        relations = [load_relation(name) for name in names]
        stream = Stream(_STREAM, (self.seed,), portraits=2)  # two for the ceiling of CLIP-I and DINO
        drawn = draw_cases(relations, wanted.cases or self.cases, wanted.drawn, stream)
        spoken_to = dict(zip((relation.name for relation in relations), names, strict=True))
        cases = [of_world(case, spoken_to[case.relation.name]) for case in drawn]
        first_of = {name: group[0] for group in self.same_boxes for name in group}
        count = wanted.cases or self.cases
        boxes: dict[str, list[tuple[Box, ...]]] = {}
        for number, case in enumerate(cases):
            if (first := first_of.get(case.relation)) is not None:
                if first not in boxes:
                    boxes[first] = true_boxes(draw_cases([load_relation(first)], count, wanted.drawn, stream))
                own = boxes[first][number % count]
                objects = [dataclasses.replace(who, box=box) for who, box in zip(case.objects, own, strict=True)]
                cases[number] = dataclasses.replace(case, objects=tuple(objects))
        return tuple(cases)


def of_world(drawn: DrawnCase, spoken_to: str) -> Case:
    """A case that the embedded world drew.

    Args:
        spoken_to: its relation as other stages are told of it, a name or a YAML's path.
    """
    relation = drawn.relation
    objects = tuple(
        CaseObject(
            name=individual.species,
            image=portraits[0],
            references=portraits,
            subject="|".join(map(str, (*look(individual), individual.proportions))),
            role=role.name,
        )
        for individual, portraits, role in zip(drawn.individuals, drawn.portraits, relation.roles, strict=True)
    )
    return Case(
        id=drawn.id,
        text=drawn.scene.caption,
        objects=objects,
        relation=relation.name,
        spoken_to=spoken_to,
        group=relation.name,
        seed=drawn.seed,
        truth=drawn,
    )
