"""``rbctl eval plant``: cut-outs in photographs with faults, and geometry held against their truth."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from rbctl.files import read_image, write_png
from rbctl.plugins.eval.plant.pasting import Pasted, in_boxes, moved, off_plain_ground
from rbctl.triplets.masks import box_of, read_mask
from tests.commands import call, refused

PHOTOS = Path(__file__).parents[2] / "shared/data/dreambench/dataset"


def disc(colour: str, ground: str | None = None) -> Image.Image:
    image = Image.new("RGB" if ground else "RGBA", (96, 96), ground or (0, 0, 0, 0))
    ImageDraw.Draw(image).ellipse((20, 10, 75, 85), fill=colour)
    return image


@pytest.fixture
def material(tmp_path: Path) -> Path:
    write_png(tmp_path / "cat.png", disc("red"))
    write_png(tmp_path / "dog.png", disc("brown", "lightblue"))
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8).astype(np.uint8))
    write_png(tmp_path / "scene.png", noise.resize((160, 120)))
    return tmp_path


def planted(folder: Path, *flags: str) -> Path:
    names = [f"{name}={folder / f'{name}.png'}" for name in ("cat", "dog")]
    scene = folder / "scene.png"
    result = call("eval", "plant", *names, "--scene", scene, "--size", "96", "--output", folder / "out", *flags)
    assert result.exit_code == 0, result.output
    return folder / "out"


def test_geometry_finds_every_planted_fault_by_the_masks(material: Path) -> None:
    out = planted(material)
    answers: dict[str, dict[str, str]] = defaultdict(dict)
    with (out / "answers.csv").open() as file:
        for row in csv.DictReader(file):
            answers[row["file_name"]][row["question"]] = row["answer"]
    assert len(answers) == 12  # two orders of six
    assert answers["0000-none.png"]["relation 0 1"] == "yes"
    assert answers["0000-exchanged.png"]["exchanged 0 1"] == "yes"
    assert answers["0000-no_contact.png"]["contact 0 1"] == "no"
    assert answers["0000-merged.png"]["bodies 0 1"] == "no"
    assert "present 1" not in answers["0000-merged.png"]  # the first one hides it
    assert sum(answer == "no" for name, answer in answers["0000-missing.png"].items() if "present" in name) == 1
    assert sum(answer == "no" for name, answer in answers["0000-twice.png"].items() if "once" in name) == 1
    result = call(
        "eval", "judge-check", out, "--judge", "boxes", "--output", material / "check", "--answers",
        material / "answers", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    kinds = json.loads(result.stdout)["judges"]["boxes"]["kinds"]
    for kind in ("present", "relation", "exchanged", "contact", "bodies"):
        measured = kinds[kind]
        right = measured["yes_right"] + measured["no_right"]
        assert (measured["not_known"], right) == (0, measured["asked"]), kind
        assert measured["no"] > 0 < measured["yes"], kind
    assert kinds["once"]["not_known"] == kinds["once"]["asked"]


def test_pictures_are_the_same_again_and_show_what_the_masks_say(material: Path) -> None:
    out = planted(material)
    before = (out / "0000-none.png").read_bytes()
    planted(material)
    assert (out / "0000-none.png").read_bytes() == before
    pixels = np.asarray(read_image(out / "0000-none.png")).astype(int)
    cat = read_mask(out / "masks" / "0000-none-0.png")
    assert np.abs(pixels[cat] - (255, 0, 0)).mean() < 5  # it is in front: the edge alone is mixed
    assert box_of(cat)[3] < box_of(read_mask(out / "masks" / "0000-none-1.png"))[3]


def test_symmetric_relations_have_no_exchanged_roles(material: Path) -> None:
    out = planted(material, "--relation", "hug")
    assert not list(out.glob("*-exchanged.png"))
    assert len(list(out.glob("*.png"))) == 10


def test_two_are_moved_until_they_touch_or_are_apart() -> None:
    cutouts = [disc("red").crop((20, 10, 76, 86)), disc("blue").crop((20, 10, 76, 86))]
    pair = in_boxes(cutouts, [(0.3, 0.1, 0.7, 0.5), (0.3, 0.45, 0.7, 0.95)], 200)
    near, far = moved(pair, 200, apart=False), moved(pair, 200, apart=True)

    def shared(pair: list[Pasted]) -> int:
        first, second = (own.mask(200) for own in pair)
        return int((first & second).sum())

    assert 0 < shared(near) <= 0.02 * near[0].mask(200).sum()
    assert shared(far) == 0
    assert near[0].top > far[0].top


def test_what_stands_on_plain_ground_is_cut_out() -> None:
    mask = off_plain_ground(disc("brown", "lightblue"))
    assert mask is not None
    assert np.abs(np.subtract(box_of(mask), (20 / 96, 10 / 96, 76 / 96, 86 / 96))).max() < 0.03


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("cat={0}/cat.png", "cat={0}/dog.png"), "two of different names"),
        (("cat={0}/cat.png", "dog={0}/scene.png"), "neither transparent nor on plain ground"),
        (("cat", "dog={0}/dog.png"), "write NAME=PICTURE"),
        (("cat={0}/cat.png", "dog={0}/dog.png", "--relation", "pyramid"), "another number of roles"),
    ],
)
def test_what_cannot_be_pasted_is_refused(material: Path, flags: tuple[str, ...], says: str) -> None:
    filled = [flag.format(material) for flag in flags]
    message = refused(call("eval", "plant", *filled, "--scene", material / "scene.png", "--output", material / "out"))
    assert says in message


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="no DreamBench pictures in ../shared")
def test_photographs_on_plain_ground_are_cut_out() -> None:
    for name, share in (("dog6/01", 0.40), ("duck_toy/02", 0.15)):
        mask = off_plain_ground(read_image(PHOTOS / f"{name}.jpg"))
        assert mask is not None, name
        assert mask.mean() == pytest.approx(share, abs=0.07)
