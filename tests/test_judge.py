"""The judge: who is there and who is not, on readings made by hand and on renders with planted faults."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rbctl.bundle.catalogue import resolve
from rbctl.menagerie import COATS, PATTERNS, SPECIES, Individual, compose
from rbctl.menagerie.cases import DrawnCase
from rbctl.menagerie.faults import merged
from rbctl.menagerie.judge import Judge, Verdict
from rbctl.menagerie.oracle import ATTRIBUTES, Reading, load_oracle, look
from rbctl.menagerie.triplets import draw_group, pictures
from rbctl.plugins.eval import failures
from rbctl.relations import load_relation
from tests.planted_faults import left_out, with_second_head

CAT = Individual("cat", "orange", "blue", "stripes")
FOX = Individual("fox", "red", "red", "plain")
PIG = Individual("pig", "green", "green", "plain")
SIZES = {"species": len(SPECIES), "coat": len(COATS), "second": len(COATS), "pattern": len(PATTERNS)}
RELATIONS = {1: "wave", 2: "chase", 3: "walk_in_line"}


def reading(relation: str, bodies: dict[int, Individual], places: dict[int, float], faces: int) -> Reading:
    """What an oracle of three roles says of one picture: ``bodies`` at ``places`` from left to right."""
    maps, points = torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 17, 3)
    looks = {name: torch.full((1, 3, size), -np.log(size)) for name, size in SIZES.items()}
    for role, individual in bodies.items():
        column = round(places[role] * 32)
        maps[0, role, 10:20, max(column - 5, 0) : column + 5] = 1
        points[0, role, :, :2] = torch.tensor([places[role], 0.5])
        for at, name in enumerate(ATTRIBUTES):
            looks[name][0, role] = -8
            looks[name][0, role, look(individual)[at]] = 0
    hills = torch.zeros(1, 32, 32)
    hills[0, 5, 3 : 3 + 6 * faces : 6] = 0.9
    return Reading((relation,), (), torch.zeros(1, 1), maps, **looks, keypoints=points, faces=hills)


def verdict(group: tuple[Individual, ...], bodies: dict[int, Individual], faces: int, **places: float) -> Verdict:
    """The judge's word on a picture that should show a group."""
    relation = load_relation(RELATIONS[len(group)])
    where = {role: places.get(f"at{role}", 0.2 + 0.3 * role) for role in bodies}

    class Oracle:
        relations = (relation.name,)

        def read(self, _images: Any) -> Reading:
            return reading(relation.name, bodies, where, faces)

    scene = compose(relation, group, np.random.default_rng(0))
    case = DrawnCase("case", relation, scene, Path("none"), (), 0, (0,))
    judge = Judge(Oracle(), {relation.name: 1.0}, {relation.name: Oracle()})  # type: ignore[arg-type, dict-item]
    return judge([None], [case])[0]  # type: ignore[list-item]


@pytest.mark.parametrize("group", [(CAT,), (CAT, FOX), (CAT, FOX, PIG)])
def test_everybody_is_there_once(group: tuple[Individual, ...]) -> None:
    told = verdict(group, dict(enumerate(group)), len(group))
    assert (told.complete, told.missing, told.extra_head) == (True, (False,) * len(group), False)
    assert (told.identity, told.species, told.relation) == (1, 1, True)
    assert told.direction is (None if len(group) == 1 else True)
    assert all(told.boxes)


def test_a_second_animal_where_one_was_asked_for_is_extra() -> None:
    told = verdict((CAT,), {0: CAT, 1: FOX}, 2)
    assert (told.extra, told.duplicate, told.complete, told.missing) == (True, False, False, (False,))


def test_the_same_one_twice_is_a_duplicate_and_the_other_is_missing() -> None:
    told = verdict((CAT, FOX, PIG), {0: CAT, 1: CAT, 2: PIG}, 3)
    assert (told.missing, told.duplicate) == ((False, True, False), True)
    assert told.boxes[1] is None


def test_who_is_nowhere_is_missing() -> None:
    told = verdict((CAT, FOX, PIG), {0: CAT, 1: FOX}, 2)
    assert (told.missing, told.duplicate, told.merged) == ((False, False, True), False, False)


def test_two_looks_on_one_body_and_two_faces_on_one_body_are_merged() -> None:
    assert verdict((CAT, FOX), {0: CAT, 1: FOX}, 1, at0=0.5, at1=0.52).merged
    assert verdict((CAT, FOX), {0: CAT}, 2).merged
    assert not verdict((CAT, FOX), {0: CAT}, 1).merged  # one is simply not there
    assert not verdict((CAT,), {0: CAT}, 1).merged


def test_two_bodies_apart_are_not_merged_whoever_they_look_like() -> None:
    told = verdict((CAT, FOX), {0: CAT, 1: CAT}, 2)
    assert (told.missing, told.duplicate, told.merged) == ((False, True), True, False)
    assert not verdict((CAT, FOX, PIG), {0: CAT, 1: CAT, 2: PIG}, 3).merged
    assert verdict((CAT, FOX, PIG), {0: CAT, 2: PIG}, 3).merged


def test_more_faces_than_bodies_are_an_extra_head() -> None:
    told = verdict((CAT, FOX), {0: CAT, 1: FOX}, 3)
    assert (told.extra_head, told.complete) == (True, True)
    found = failures.of_verdict(told)
    assert found["extra head"] is True
    assert (found["merged bodies"], found["extra individual"], found["missing object"]) == (False, False, False)
    assert set(found) == set(failures.TYPES)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wave", "stand_next_to", "chase", "stand_in_a_row"])
def test_planted_faults_are_found_on_renders(name: str) -> None:
    oracle = load_oracle(resolve("mini") / "oracle")
    if not oracle.config.faces:
        pytest.skip("the oracle of this bundle tells of no faces")
    relation, judge = load_relation(name), Judge(oracle)
    scenes, cases = [], []
    for number in range(24):
        rng = np.random.default_rng(1000 + number)
        scenes.append(compose(relation, draw_group(relation, rng, held_out=True), rng))
        cases.append(DrawnCase(f"{number}", relation, scenes[-1], Path("none"), (), 0, (1, number)))

    def share(of: str, images: list[Any]) -> float:
        return float(np.mean([bool(getattr(told, of)) for told in judge(images, cases)]))

    true = pictures(scenes, 128)
    assert share("complete", true) >= (0.9 if len(relation.roles) < 3 else 0.7)
    assert share("extra_head", true) <= 0.1
    if len(relation.roles) < 3:  # among three it lies too often on another one's face
        assert share("extra_head", [with_second_head(scene) for scene in scenes]) >= 0.4
    if len(relation.roles) > 1:
        assert share("complete", [left_out(scene) for scene in scenes]) <= 0.1
        assert share("complete", pictures([merged(scene) for scene in scenes], 128)) <= 0.4


def test_a_verdict_is_plain_data() -> None:
    assert {"extra", "merged", "extra_head"} <= set(dataclasses.asdict(verdict((CAT,), {0: CAT}, 1)))
