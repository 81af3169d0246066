"""The oracle: roles, directions and contacts on readings made by hand; keypoints of both sides; new relations."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rbctl.bundle.catalogue import resolve
from rbctl.errors import InputError
from rbctl.files import read_safetensors, write_json
from rbctl.menagerie import COATS, PATTERNS, SPECIES, Individual, compose, draw_individual, render
from rbctl.menagerie.examples import draw_examples
from rbctl.menagerie.oracle import (
    ATTRIBUTES,
    POINTS,
    Oracle,
    OracleConfig,
    Reading,
    as_pixels,
    by_side,
    grown,
    load_oracle,
    look,
    peaks,
    save_oracle,
)
from rbctl.menagerie.oracle_extension import extend
from rbctl.menagerie.oracle_scores import (
    contact_distance,
    contact_limit,
    find_slots,
    identify,
    place,
    relation_score,
)
from rbctl.menagerie.oracle_training import Truth, faces, ordered
from rbctl.relations import load_relation, shipped

RELATIONS, SYMMETRIC = ("ride", "hug", "chase"), ("hug",)
CAT = Individual(species="cat", coat="orange", second="blue", pattern="stripes")
FOX = Individual(species="fox", coat="red", second="red", pattern="plain")
PIG = Individual(species="pig", coat="red", second="red", pattern="plain")
VALUES = {"species": SPECIES, "coat": tuple(COATS), "second": tuple(COATS), "pattern": PATTERNS}
DRAWN = [name for name in shipped() if load_relation(name).scene is not None]


def log_one_hot(index: Sequence[Sequence[int]] | Sequence[int], count: int, sure: float = 0.8) -> torch.Tensor:
    """Log-probabilities that are ``sure`` of an index."""
    chosen = torch.nn.functional.one_hot(torch.tensor(index), count).float()
    return (chosen * sure + (1 - chosen) * (1 - sure) / (count - 1)).log()


def reading(
    relation: str,
    roles: Sequence[Individual],
    keypoints: torch.Tensor | None = None,
    relations: tuple[str, ...] = RELATIONS,
) -> Reading:
    """What an oracle would say of one picture."""
    looks = torch.tensor([look(one) for one in roles])
    return Reading(
        relations=relations,
        symmetric=SYMMETRIC,
        relation=log_one_hot([relations.index(relation)], len(relations)),
        maps=torch.zeros(1, len(roles), 32, 32),
        keypoints=torch.zeros(1, len(roles), 17, 3) if keypoints is None else keypoints,
        **{name: log_one_hot([looks[:, k].tolist()], len(VALUES[name])) for k, name in enumerate(ATTRIBUTES)},
    )


def small(names: tuple[str, ...] = RELATIONS) -> Oracle:
    torch.manual_seed(0)
    return Oracle(OracleConfig(names, SYMMETRIC, stem=8, width=16, depth=24, layers=1, heads=2)).eval()


def test_roles_that_are_exchanged_are_the_wrong_direction() -> None:
    told = relation_score(reading("ride", (CAT, FOX)), "ride", (CAT, FOX))
    assert told.right.tolist() == [True]
    turned = relation_score(reading("ride", (FOX, CAT)), "ride", (CAT, FOX))
    assert (turned.relation.item(), turned.direction.item(), turned.right.item()) == (True, False, False)
    assert turned.slots.tolist() == [[1, 0]]
    assert all(getattr(turned, name).all() for name in ATTRIBUTES)  # attributes follow the individuals


def test_direction_does_not_matter_where_the_relation_is_symmetric() -> None:
    turned = relation_score(reading("hug", (FOX, CAT)), "hug", (CAT, FOX))
    assert turned.right.item()
    other = relation_score(reading("chase", (CAT, FOX)), "hug", (CAT, FOX))
    assert (other.relation.item(), other.direction.item(), other.right.item()) == (False, True, False)


def test_individuals_of_one_look_have_no_wrong_direction() -> None:
    assert relation_score(reading("ride", (FOX, FOX)), "ride", (FOX, FOX)).right.item()


def test_a_wrong_coat_is_wrong_for_that_individual_alone() -> None:
    green = dataclasses.replace(CAT, coat="green")
    score = relation_score(reading("ride", (CAT, FOX)), "ride", (green, FOX))
    assert score.coat.tolist() == [[False, True]]
    assert score.species.all()
    assert score.pattern.all()
    assert score.right.item()


def test_every_picture_may_have_a_pair_of_its_own() -> None:
    both = Reading.cat([reading("ride", (CAT, FOX)), reading("ride", (PIG, CAT))])
    score = relation_score(both, "ride", [(CAT, FOX), (CAT, PIG)])
    assert score.direction.tolist() == [True, False]
    with pytest.raises(ValueError, match="for each of 2 pictures"):
        relation_score(both, "ride", [(CAT, FOX)])


def test_an_unknown_relation_is_told() -> None:
    with pytest.raises(InputError, match="'kick': the oracle does not know it; extend it first"):
        relation_score(reading("ride", (CAT, FOX)), "kick", (CAT, FOX))


def test_one_of_sixteen_candidates_is_told_by_its_look() -> None:
    rng = np.random.default_rng(0)
    others = [draw_individual(rng) for _ in range(14)]
    nearly = dataclasses.replace(CAT, second="pink")  # differs in one thing
    candidates = [*others[:7], CAT, *others[7:], nearly]
    one = reading("ride", (FOX, CAT))
    assert identify(one, 1, candidates).item() == 7
    assert identify(one, 0, candidates).item() != 7
    assert identify(one, torch.tensor([1]), [candidates[::-1]]).item() == 8
    doubtful = dataclasses.replace(one, second=one.second.flip(-1))  # the second coat is read wrongly, the rest decides
    assert identify(doubtful, 1, candidates).item() in (7, 15)


def test_slots_follow_the_sum_over_attributes() -> None:
    one = reading("hug", (PIG, FOX))  # alike but for the species
    assert find_slots(one, (FOX, PIG)).tolist() == [[1, 0]]
    assert find_slots(one, (PIG, FOX)).tolist() == [[0, 1]]


@pytest.mark.parametrize("name", sorted({*DRAWN} - {"lie_on_back"}))  # there the nose lies behind the neck
def test_near_limbs_are_found_whichever_way_an_animal_faces(name: str) -> None:
    rng, relation = np.random.default_rng(1), load_relation(name)
    for _ in range(6):
        scene = compose(relation, [draw_individual(rng) for _ in relation.roles], rng)
        points = torch.tensor(scene.keypoints(), dtype=torch.float32)
        sided = by_side(points)
        assert torch.equal(by_side(sided), points)
        for k, figure in enumerate(scene.figures):
            wanted = figure.point("near_hind_paw") * (1, -1) + (0, 1)
            assert np.allclose(sided[k, POINTS.index("near_hind_paw")], wanted, atol=1e-6)
            wanted = figure.point("far_eye") * (1, -1) + (0, 1)
            assert np.allclose(sided[k, POINTS.index("far_eye")], wanted, atol=1e-6)


def test_a_mirrored_picture_keeps_the_names_of_its_points() -> None:
    rng = np.random.default_rng(2)
    scene = compose(load_relation("ride"), [CAT, FOX], rng)
    points = torch.tensor(scene.keypoints(), dtype=torch.float32)
    for figure in scene.figures:
        figure.mirror()
        figure.move((1.0, 0.0))
    mirrored = torch.tensor(scene.keypoints(), dtype=torch.float32)
    flipped = by_side(points) * torch.tensor([-1.0, 1.0]) + torch.tensor([1.0, 0.0])
    assert torch.allclose(by_side(mirrored), flipped, atol=1e-6)
    assert not torch.allclose(mirrored, points * torch.tensor([-1.0, 1.0]) + torch.tensor([1.0, 0.0]), atol=1e-3)


@pytest.mark.parametrize("point", ["hips", "shoulders", "back", "belly", "rump", "withers", "near_front_paw"])
def test_places_of_a_body_are_told_from_keypoints(point: str) -> None:
    rng = np.random.default_rng(3)
    far = []
    for name in ("ride", "hug", "lean_on", "kick", "chase"):
        for _ in range(5):
            scene = compose(load_relation(name), [draw_individual(rng) for _ in range(2)], rng)
            points = by_side(torch.tensor(scene.keypoints(), dtype=torch.float32)).numpy()
            for k, figure in enumerate(scene.figures):
                wanted = figure.point(point) * (1, -1) + (0, 1)
                far.append(np.linalg.norm(place(points[k], figure.individual.species, point) - wanted))
    assert max(far) < 0.025  # proportions of one individual are not known


def test_what_cannot_be_told_from_keypoints_is_refused() -> None:
    with pytest.raises(InputError, match="'tail_tip' cannot be told"):
        place(np.zeros((17, 2)), "cat", "tail_tip")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ride", "shake_hands", "hug", "dance_with", "carry"])
def test_true_scenes_touch_and_parted_ones_do_not(name: str) -> None:
    relation, rng = load_relation(name), np.random.default_rng(4)
    limit = contact_limit(relation, load_oracle(resolve("mini") / "oracle"))
    near, parted = [], []
    for _ in range(12):
        scene = compose(relation, [draw_individual(rng) for _ in range(2)], rng)
        points = torch.tensor(scene.keypoints(), dtype=torch.float32)
        points = torch.cat((points, torch.ones(2, 17, 1)), dim=-1)[None]
        if relation.symmetric and points[0, 0, :, 0].mean() > points[0, 1, :, 0].mean():
            points = points.flip(1)  # as the oracle orders them
            scene = dataclasses.replace(scene, individuals=scene.individuals[::-1])
        one = reading(name, scene.individuals, points, (name,))
        near.append(contact_distance(one, relation, scene.individuals).item())
        assert near[-1] == pytest.approx(contact_distance(one, relation, scene.individuals[::-1]).item())
        points = points.clone()
        points[:, 0, :, 1] -= 0.25
        parted.append(contact_distance(dataclasses.replace(one, keypoints=points), relation).item())
    assert np.median(near) < limit + 0.01 < min(parted)


@pytest.mark.slow
def test_a_limit_holds_the_error_of_who_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    relation, oracle = load_relation("shake_hands"), small()
    read = oracle.read

    def far_off(pictures: torch.Tensor) -> Reading:
        told = read(pictures)
        points = torch.rand(told.keypoints.shape, generator=torch.Generator().manual_seed(0))
        return dataclasses.replace(told, keypoints=points)

    monkeypatch.setattr(oracle, "read", far_off)
    limit = contact_limit(relation, oracle, count=4)
    assert limit > contact_limit(relation, load_oracle(resolve("mini") / "oracle"), count=20) + 0.1
    assert limit == contact_limit(relation, oracle, count=4)


def test_a_relation_without_contacts_has_no_distance() -> None:
    assert contact_distance(reading("chase", (CAT, FOX)), load_relation("chase")).isnan().all()
    assert np.isnan(contact_limit(load_relation("chase"), small()))


def test_peaks_are_finer_than_a_cell_and_keep_to_the_map() -> None:
    heat = torch.full((1, 2, 64), -50.0)
    heat[0, 0, 8 * 3 + 4] = heat[0, 0, 8 * 3 + 5] = 0.0  # row 3, between columns 4 and 5
    heat[0, 0, 8 * 3] = -1.0  # a second hot place far away does not pull
    heat[0, 1, 0] = 0.0  # a corner
    x, y = peaks(heat)[0].unbind(-1)
    assert x.tolist() == pytest.approx([5 / 8, 0.5 / 8], abs=1e-4)
    assert y.tolist() == pytest.approx([3.5 / 8, 0.5 / 8], abs=1e-4)


def test_an_oracle_reads_pictures_of_any_kind_and_size() -> None:
    oracle = small()
    pixels = torch.randint(0, 256, (3, 3, 128, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    told = oracle.read(pixels, batch=2)
    assert told.relation.shape == (3, 3)
    assert told.maps.shape == (3, 2, 32, 32)
    assert told.keypoints.shape == (3, 2, 17, 3)
    assert told.keypoints.min() >= 0
    assert told.keypoints.max() <= 1
    for name in ATTRIBUTES:
        assert torch.allclose(getattr(told, name).exp().sum(-1), torch.ones(3, 2))
    images = [Image.fromarray(one.permute(1, 2, 0).numpy()) for one in pixels]
    assert torch.allclose(oracle.read(images).relation, told.relation, atol=1e-5)
    assert torch.allclose(oracle.read(pixels.float() / 127.5 - 1).relation, told.relation, atol=1e-5)
    doubled = pixels.repeat_interleave(2, -1).repeat_interleave(2, -2)
    assert (as_pixels(doubled) - as_pixels(pixels)).abs().mean() < 0.3
    assert as_pixels(doubled).shape[-1] == 128


def test_an_oracle_is_the_same_from_its_files(tmp_path: Path) -> None:
    oracle = small()
    save_oracle(tmp_path, oracle)
    again = load_oracle(tmp_path)
    assert again.config == oracle.config
    pixels = torch.rand(2, 3, 128, 128) * 2 - 1
    assert torch.allclose(again(pixels).relation, oracle(pixels).relation, atol=5e-3)
    assert read_safetensors(tmp_path / "model.safetensors")[0]["stem.weight"].dtype == torch.float16
    write_json(tmp_path / "config.json", {"relations": ["ride"], "symmetric": []})
    with pytest.raises(InputError, match="does not fit its weights"):
        load_oracle(tmp_path)
    write_json(tmp_path / "config.json", {"relations": ["ride"], "symmetric": [], "added": ["x"] * 100_000})
    with pytest.raises(InputError, match="100000 added relations, weights of 0"):
        load_oracle(tmp_path)
    write_json(tmp_path / "config.json", {})
    with pytest.raises(InputError, match="not the configuration of an oracle"):
        load_oracle(tmp_path)


def test_the_oracle_is_small_enough_for_a_busy_core() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    oracle = Oracle(OracleConfig(tuple(f"r{k}" for k in range(17)), ()))
    assert sum(p.numel() for p in oracle.parameters()) <= 2.5e6
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        oracle.raw(torch.zeros(1, 3, 128, 128))
    assert counter.get_total_flops() / 2 <= 170e6


def test_a_taught_relation_is_told_and_read_by_what_was_taught_it_alone() -> None:
    names = (*RELATIONS, "kick")
    known = Reading.cat([reading("ride", (CAT, FOX)), reading("chase", (CAT, FOX))])
    taught = Reading.cat([reading("kick", (FOX, PIG), relations=names), reading("hug", (FOX, PIG), relations=names)])
    both = known.extended(taught)
    assert both.relations == names
    assert [names[k] for k in both.relation.argmax(1)] == ["kick", "chase"]
    assert torch.allclose(both.relation.exp().sum(1), torch.ones(2), atol=1e-4)
    assert torch.equal(both.relation[:, :3].argsort(1), known.relation.argsort(1))
    assert both.species.argmax(-1).tolist() == [[look(one)[0] for one in pair] for pair in ((FOX, PIG), (CAT, FOX))]


def test_a_grown_oracle_says_what_it_said() -> None:
    oracle, pixels = small(), torch.rand(2, 3, 128, 128) * 2 - 1
    plan = dataclasses.replace(oracle.config, relations=("kick", *RELATIONS), roles=3, faces=True)
    more = grown(oracle, plan).eval()(pixels)
    told = oracle(pixels)
    assert torch.allclose(told.maps, more.maps[:, :2], atol=1e-6)
    assert torch.allclose(told.keypoints, more.keypoints[:, :2], atol=1e-5)
    assert torch.allclose(told.relation.diff(dim=1), more.relation[:, 1:].diff(dim=1), atol=1e-4)
    assert more.faces is not None
    assert (more.maps.shape, more.faces.shape) == ((2, 3, 32, 32), (2, 32, 32))


def test_three_are_found_where_they_are_and_roles_that_are_alike_may_change_places() -> None:
    carry = load_relation("carry_together")
    seen = reading("carry_together", (CAT, FOX, PIG), relations=("carry_together",))
    assert relation_score(seen, carry, (CAT, FOX, PIG)).right.item()
    turned = relation_score(seen, carry, (FOX, CAT, PIG))  # the two that carry
    assert (turned.right.item(), turned.slots.tolist()) == (True, [[1, 0, 2]])
    wrong = relation_score(seen, carry, (PIG, FOX, CAT))  # who is carried
    assert (wrong.relation.item(), wrong.direction.item(), wrong.slots.tolist()) == (True, False, [[2, 1, 0]])


def test_one_individual_is_found_in_the_role_that_is_to_be_seen() -> None:
    seen = reading("wave", (FOX, CAT), relations=("wave",))
    maps = torch.zeros(1, 2, 32, 32)
    maps[:, 0, 8:24, 8:24] = 1  # only the first role is anywhere, and what it looks like is uncertain
    unsure = {name: getattr(seen, name) * 0.01 for name in ATTRIBUTES}
    score = relation_score(dataclasses.replace(seen, maps=maps, **unsure), "wave", (CAT,))
    assert (score.slots.tolist(), score.right.item()) == ([[0]], True)


def test_a_relation_is_judged_as_the_one_that_says_the_same_turned_round() -> None:
    seen = reading("chase", (CAT, FOX))
    assert relation_score(seen, "flee_from", (FOX, CAT)).right.item()
    wrong = relation_score(seen, "flee_from", (CAT, FOX))
    assert (wrong.relation.item(), wrong.direction.item()) == (True, False)


def test_faces_are_where_eyes_are_seen() -> None:
    points = torch.zeros(1, 2, len(POINTS), 3)
    for k, name in ((0, "near_eye"), (0, "far_eye"), (1, "near_eye")):
        points[0, k, POINTS.index(name)] = torch.tensor(
            [0.25 + 0.5 * k, 0.5, 2.0 - k]
        )  # those of the second are hidden
    where = faces(points)
    assert where.shape == (1, 32, 32)
    assert where[0, 15:17, 7:9].min() > 0.5
    assert where[0, :, 16:].max() < 0.1


@pytest.mark.slow
def test_an_extended_oracle_is_a_new_one_and_the_same_from_its_files(tmp_path: Path) -> None:
    oracle, pixels = small(), torch.rand(2, 3, 128, 128) * 2 - 1
    extended = extend(oracle, load_relation("kick"), steps=2, each=1)
    twice = extend(extended, load_relation("carry"), steps=1, each=1)
    assert (oracle.relations, extended.relations) == (RELATIONS, (*RELATIONS, "kick"))
    assert twice.relations == (*RELATIONS, "kick", "carry")
    assert torch.equal(extended(pixels).relation[:, :3].argsort(1), oracle(pixels).relation.argsort(1))
    save_oracle(tmp_path, twice)
    again = load_oracle(tmp_path)
    assert again.config == twice.config
    assert torch.allclose(again(pixels).relation, twice(pixels).relation, atol=2e-2)
    with pytest.raises(InputError, match="knows it already"):
        extend(extended, load_relation("kick"))


PERCH_ON = """\
name: perch_on
predicate: perches on the head of
prompts: ["A {subject} perches on the head of a {object}."]
roles:
  - {name: top, box: [0.2, 0.05, 0.7, 0.5], description: "sits on the other's head"}
  - {name: bottom, box: [0.2, 0.4, 0.9, 0.95], description: "stands on all fours"}
scene:
  figures:
    - {pose: sit, size: 0.6, facing: either, pin: rump, to: 1.crown, offset: [0.0, 0.1]}
    - {pose: stand, facing: either}
  contacts: [[0.rump, 1.withers]]
"""


@pytest.mark.slow
def test_the_shipped_oracle_learns_relation_roles_and_looks_from_renders(tmp_path: Path) -> None:
    """No stand-ins: 150 steps on renders, judged on individuals that no training shows."""
    (tmp_path / "perch_on.yaml").write_text(PERCH_ON)
    relation, oracle = load_relation(str(tmp_path / "perch_on.yaml")), load_oracle(resolve("mini") / "oracle")
    extended = extend(oracle, relation)
    unseen = draw_examples([relation], 64, seed=9, held_out=True)
    score = relation_score(extended.read(unseen.pictures), relation, unseen.individuals)
    found = {name: getattr(score, name).float().mean().item() for name in ("right", "species", "coat", "pattern")}
    assert found["right"] >= 0.95, found
    assert found["coat"] >= 0.97, found
    assert min(found.values()) >= 0.85, found
    others = draw_examples([load_relation(name) for name in oracle.relations], 4, seed=9, held_out=True)
    before, after = oracle.read(others.pictures), extended.read(others.pictures)
    same = before.relation.argmax(1) == after.relation.argmax(1)
    assert same.float().mean() >= 0.95
    assert torch.equal(before.keypoints[same], after.keypoints[same])


def test_examples_are_of_every_relation_and_drawn_anew() -> None:
    relations = [load_relation("ride"), load_relation("hug")]
    drawn = draw_examples(relations, 2, seed=5, held_out=True)
    assert drawn.pictures.shape == (4, 3, 128, 128)
    assert drawn.relations == ("ride", "ride", "hug", "hug")
    assert all(one.held_out for pair in drawn.individuals for one in pair)
    again, other = draw_examples(relations, 2, seed=5, held_out=True), draw_examples(relations, 2, seed=6)
    assert torch.equal(again.pictures, drawn.pictures)
    assert not torch.equal(other.pictures, drawn.pictures)


def test_the_left_one_is_role_0_of_a_picture_that_was_drawn() -> None:
    """The convention of symmetric relations, from the renderer's own boxes."""
    rng = np.random.default_rng(6)
    scenes = [compose(load_relation("hug"), [CAT, FOX], rng) for _ in range(4)]
    drawn = render(scenes, 64)
    left = drawn.boxes[..., 0] + drawn.boxes[..., 2]
    looks = torch.tensor([[look(CAT), look(FOX)]] * 4)
    truth = Truth(torch.zeros(4), drawn.visible.float(), by_side(drawn.keypoints), looks)
    turned = (ordered(truth, torch.ones(4, 2, dtype=torch.bool)).looks != looks).any(-1).any(-1)
    clear = (left[:, 0] - left[:, 1]).abs() > 0.2
    assert torch.equal(turned[clear], (left[:, 1] < left[:, 0])[clear])
    assert set(turned.tolist()) == {False, True}
    assert torch.equal(ordered(truth, torch.zeros(4, 2, dtype=torch.bool)).looks, looks)
