"""Triplets drawn by the embedded world: whole, exact, the same for the same seed, and never drawn twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rbctl.errors import InputError
from rbctl.files import read_image
from rbctl.menagerie import SPECIES
from rbctl.menagerie import triplets as stage
from rbctl.menagerie.individuals import unlike
from rbctl.menagerie.triplets import draw_group, draw_scenes, draw_triplets, spoken
from rbctl.relations import load_relation, shipped
from rbctl.triplets import data_hash, load
from rbctl.triplets.check import check
from rbctl.triplets.geometry import target
from rbctl.triplets.keypoints import KEYPOINTS, VISIBLE

DRAWABLE = [name for name in shipped() if load_relation(name).scene is not None]


@pytest.fixture(scope="module")
def ride(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "ride"
    draw_triplets(load_relation("ride"), 4, 0, folder)
    return folder


@pytest.mark.slow
def test_every_relation_gives_whole_triplets(tmp_path: Path) -> None:
    """What ``rbctl data check`` looks for: boxes are the masks', names and predicate stand in the prompt."""
    draw_scenes([load_relation(name) for name in DRAWABLE], len(DRAWABLE), 3, tmp_path)
    assert check(tmp_path) == []
    for triplet, name in zip(load(tmp_path), DRAWABLE, strict=True):
        relation = load_relation(name)
        assert triplet.predicate in triplet.prompt
        assert [thing.role for thing in triplet.objects] == [role.name for role in relation.roles]
        assert len({thing.name for thing in triplet.objects}) == len(triplet.objects)


def test_pictures_masks_and_keypoints(ride: Path) -> None:
    for triplet in load(ride):
        parts = target(triplet)
        assert parts.image.size == (128, 128)
        assert not (parts.masks[0] & parts.masks[1]).any()  # who is seen where
        for mask, keypoints in zip(parts.masks, parts.keypoints, strict=True):
            x, y = (keypoints[keypoints[:, 2] == 2, :2] * 128).astype(int).clip(0, 127).T
            assert mask[y, x].mean() > 0.9  # visible keypoints lie on the animal
        for thing in triplet.objects:
            assert read_image(thing.image).size == (128, 128)
            assert (thing.image_keypoints[:, 2] > 0).all()
    riders, mounts = zip(*(t.objects for t in load(ride)), strict=True)
    assert all(a.box[3] < b.box[3] for a, b in zip(riders, mounts, strict=True))


@pytest.mark.slow
def test_one_seed_gives_the_same_triplets(ride: Path, tmp_path: Path) -> None:
    draw_triplets(load_relation("ride"), 4, 0, tmp_path / "same")
    draw_triplets(load_relation("ride"), 2, 0, tmp_path / "fewer")
    draw_triplets(load_relation("ride"), 4, 1, tmp_path / "other")
    assert data_hash(load(tmp_path / "same")) == data_hash(load(ride))
    assert data_hash(load(tmp_path / "fewer")) == data_hash(load(ride)[:2])
    assert data_hash(load(tmp_path / "other")) != data_hash(load(ride))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_a_small_set_shows_every_species(seed: int, tmp_path: Path) -> None:
    draw_triplets(load_relation("hug"), 6, seed, tmp_path)
    assert {thing.name for triplet in load(tmp_path) for thing in triplet.objects} == set(SPECIES)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_six_individuals_alone_have_the_bodies_that_are_least_alike(seed: int, tmp_path: Path) -> None:
    """Else a LoRA draws a giraffe or an elephant worst: six of a shuffled deck of ten often leave both out."""
    draw_triplets(load_relation("dance"), 6, seed, tmp_path)
    names = {individual.name for triplet in load(tmp_path) for individual in triplet.objects}
    assert len(names) == 6
    assert names > {"elephant", "giraffe", "rabbit"}


@pytest.mark.parametrize("first", SPECIES)
def test_species_go_from_the_least_alike_to_the_most(first: str) -> None:
    order = unlike(first)
    assert order[0] == first
    assert sorted(order) == sorted(SPECIES)
    assert {"cat", "bear", "dog", "fox"} - {first} <= set(order[4:])  # of a middle build


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_load_does_not_hide_its_carriers_eyes(seed: int, tmp_path: Path) -> None:
    """One draw in five does."""
    draw_triplets(load_relation("carry"), 6, seed, tmp_path)
    eyes = [KEYPOINTS.index("left eye"), KEYPOINTS.index("right eye")]
    seen = [thing.target_keypoints[eyes, 2] for triplet in load(tmp_path) for thing in triplet.objects]
    assert (np.stack(seen) == VISIBLE).all()


def test_they_are_drawn_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    relation = load_relation("ride")
    draw_triplets(relation, 2, 0, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(stage, "render", None)
        draw_triplets(relation, 2, 0, tmp_path)
    (tmp_path / "mine.png").write_bytes(b"mine")
    draw_triplets(load_relation("hug"), 1, 0, tmp_path)  # of other facts: they take the place of the ones before
    (triplet,) = load(tmp_path)
    assert "ride" not in triplet.id
    assert {path.name for path in tmp_path.glob("*.png")} == {triplet.target.name, "mine.png"}
    (tmp_path / "drawn.json").unlink()
    with pytest.raises(InputError, match="other triplets lie here"):
        draw_triplets(relation, 2, 0, tmp_path)


def test_a_drawing_that_was_interrupted_is_made_whole(tmp_path: Path) -> None:
    relation = load_relation("ride")
    draw_triplets(relation, 2, 0, tmp_path)
    whole = data_hash(load(tmp_path))
    (tmp_path / "metadata.jsonl").unlink()  # written last
    next(tmp_path.glob("*.png")).unlink()
    draw_triplets(relation, 2, 0, tmp_path)
    assert data_hash(load(tmp_path)) == whole


def test_no_rules_no_picture(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'kiss': cannot be drawn; give triplets with --data"):
        draw_triplets(load_relation("kiss"), 1, 0, tmp_path)
    assert not any(tmp_path.iterdir())


def test_held_out_individuals_are_others() -> None:
    relation, rng = load_relation("ride"), np.random.default_rng(0)
    for held_out in (False, True):
        groups = [draw_group(relation, rng, held_out) for _ in range(20)]
        assert all(one.held_out is held_out for group in groups for one in group)
        assert all(a.species != b.species for a, b in groups)


def test_the_words_that_say_the_relation() -> None:
    ride = load_relation("ride")
    assert spoken(ride, "A cat is riding a dog.") == "is riding"
    assert spoken(ride, "A cat rides on the back of a dog at night.") == "rides"
    assert spoken(ride, "A cat and a dog.") == "is riding"
