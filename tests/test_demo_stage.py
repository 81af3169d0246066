"""``rbctl demo``: the drawn triplets are right, and everything that reads them takes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from rbctl.bundle.catalogue import resolve
from rbctl.cli import main
from rbctl.plugins.demo.drawing import SIDE, Creature, draw_alone, draw_hug, hugging_pose, neutral_pose
from rbctl.plugins.demo.run import write_prompts, write_triplets
from rbctl.triplets import KEYPOINTS, load
from rbctl.triplets.check import check


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "demo"
    result = CliRunner().invoke(main, ["demo", "--output", str(folder)])
    assert result.exit_code == 0, result.output
    assert "noise" in result.stdout
    return folder


def test_every_part_is_readable(demo: Path) -> None:
    assert resolve(demo / "tiny-sdxl")
    triplets = load(demo / "hug")
    assert len(triplets) == 5
    assert triplets[0].prompt == "A red cat is hugging a blue bear."
    assert [thing.role for thing in triplets[1].objects] == ["subject", "object"]
    assert check(demo / "hug") == []


def test_prompts_are_readable(demo: Path) -> None:
    from rbctl.prompts import check_pictures, read_prompts

    prompts = read_prompts(demo / "prompts.txt")
    assert [len(prompt.objects) for prompt in prompts] == [2, 2]
    check_pictures(prompts)
    assert prompts[0].text == "A grey cat is hugging a brown bear"


def test_the_same_command_again_writes_the_same(demo: Path, tmp_path: Path) -> None:
    write_triplets(tmp_path / "hug")
    write_prompts(tmp_path)
    for path in sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file()):
        assert (tmp_path / path).read_bytes() == (demo / path).read_bytes()


def test_masks_boxes_and_keypoints_are_exact() -> None:
    drawing = draw_hug(Creature("red", "cat"), Creature("blue", "bear"), 0)
    pixels = np.asarray(drawing.picture).astype(int)
    red, blue = drawing.masks
    assert not (red & blue).any()
    assert (pixels[red][:, 0] > pixels[red][:, 2]).mean() > 0.9
    assert (pixels[blue][:, 2] > pixels[blue][:, 0]).mean() > 0.9
    for mask, box, keypoints in zip(drawing.masks, drawing.boxes, drawing.keypoints, strict=True):
        x0, y0, x1, y1 = (round(v * SIDE) for v in box)
        assert mask[y0:y1, x0:x1].sum() == mask.sum()
        assert mask[y0].any()
        assert mask[:, x1 - 1].any()
        for x, y, visibility in keypoints:
            inside = mask[int(y * SIDE), int(x * SIDE)]
            assert inside or visibility == 1
        eye = keypoints[KEYPOINTS.index("left eye")]
        assert pixels[int(eye[1] * SIDE), int(eye[0] * SIDE)].max() < 80  # the eye is where it is said to be


def test_left_is_the_creatures_own() -> None:
    left, right = (KEYPOINTS.index(f"{side} eye") for side in ("left", "right"))
    for pose in (neutral_pose(), hugging_pose(False, 0, 0.05), hugging_pose(True, 0, 0.05)):
        assert pose[left, 0] > pose[right, 0]  # it faces the viewer


def test_arms_reach_the_other_one() -> None:
    drawing = draw_hug(Creature("green", "rabbit"), Creature("orange", "dog"), 1)
    a, b = drawing.keypoints
    paw_of_left, paw_of_right = KEYPOINTS.index("left front paw"), KEYPOINTS.index("right front paw")
    assert a[paw_of_left, 0] > b[KEYPOINTS.index("right shoulder"), 0]
    assert b[paw_of_right, 0] < a[KEYPOINTS.index("left shoulder"), 0]


def test_whole_creatures_are_in_the_picture() -> None:
    for species in ("cat", "dog", "rabbit", "bear"):
        drawing = draw_alone(Creature("blue", species), 0)
        x0, y0, x1, y1 = drawing.boxes[0]
        assert min(x0, y0, 1 - x1, 1 - y1) > 0.02
        assert drawing.picture.size == (SIDE, SIDE)
        assert isinstance(drawing.picture, Image.Image)
