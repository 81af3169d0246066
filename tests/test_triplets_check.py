"""The one list of what a triplet must be: every kind of fault is told and mended, and good sets stay free of errors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import call
from PIL import Image
from triplet_sets import lines, write_lines

from rbctl.menagerie.triplets import draw_triplets
from rbctl.relations import load_relation, shipped
from rbctl.triplets import geometry, load
from rbctl.triplets.check import check
from rbctl.triplets.masks import read_mask

HUG = Path(__file__).parents[2] / "shared" / "data" / "dreamrelation" / "hug"
Row = dict[str, Any]


@pytest.fixture(scope="module")
def ride(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four good triplets; copy them before you change them."""
    folder = tmp_path_factory.mktemp("check") / "ride"
    draw_triplets(load_relation("ride"), 4, 3, folder, size=64)
    return folder


@pytest.fixture
def copied(ride: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(ride, tmp_path / "ride"))


def errors(folder: Path, **options: Any) -> list[str]:
    return [str(problem) for problem in check(folder, **options) if problem.level == "error"]


def warnings(folder: Path) -> list[str]:
    return [str(problem) for problem in check(folder) if problem.level == "warning"]


def swapped(row: Row) -> None:
    for entry in row["objects"]:
        entry["target_keypoints"] = [[y, x, v] for x, y, v in entry["target_keypoints"]]


def of_the_crop(row: Row) -> None:
    for entry in row["objects"]:
        x0, y0, x1, y1 = entry["box"]
        points = [((x - x0) / (x1 - x0), (y - y0) / (y1 - y0), v) for x, y, v in entry["target_keypoints"]]
        entry["target_keypoints"] = [[min(max(x, 0), 1), min(max(y, 0), 1), v] for x, y, v in points]


def exchanged(row: Row) -> None:
    first, second = row["objects"]
    points = first["target_keypoints"]
    first["target_keypoints"], second["target_keypoints"] = second["target_keypoints"], points


def larger_box(row: Row) -> None:
    row["objects"][0]["box"] = [0.0, 0.0, 1.0, 1.0]


def spoil(folder: Path, change: Callable[[Row], None]) -> None:
    rows = lines(folder / "metadata.jsonl")
    for row in rows:
        change(row)
    write_lines(folder / "metadata.jsonl", rows)


def invert_masks(folder: Path) -> None:
    for path in sorted((folder / "masks").iterdir()):
        Image.fromarray(~read_mask(path)).convert("L").save(path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (swapped, "look like (y, x)"),
        (of_the_crop, "look relative to the object's box"),
        (exchanged, "look exchanged"),
        (larger_box, "is not the mask's"),
        (None, "the mask is white where the object is not"),
    ],
)
def test_a_fault_is_named_and_data_fix_mends_it(copied: Path, change: Callable[[Row], None] | None, told: str) -> None:
    good = [(triplet, [read_mask(Path(str(entry.mask))) for entry in triplet.objects]) for triplet in load(copied)]
    if change:
        spoil(copied, change)
    else:
        invert_masks(copied)
    assert any(told in line and "rbctl data fix" in line for line in errors(copied))
    refused = call("data", "import", copied, copied.with_name("imported"))
    assert refused.exit_code == 2
    assert "rbctl data fix" in refused.stderr
    fixed = call("data", "fix", copied)
    assert (fixed.exit_code, fixed.stdout) == (0, f"{copied}-fixed\n"), fixed.output
    assert "mended: triplet 0-ride" in fixed.stderr
    assert check(Path(f"{copied}-fixed")) == []
    for (before, masks), after in zip(good, load(Path(f"{copied}-fixed")), strict=True):
        for one, other, mask in zip(before.objects, after.objects, masks, strict=True):
            assert np.abs(one.target_keypoints - other.target_keypoints).max() < 1e-4
            assert one.box == pytest.approx(other.box)
            assert other.mask is not None
            assert np.array_equal(mask, read_mask(other.mask))


def test_masks_without_keypoints_are_inverted_when_two_fill_one_border(copied: Path) -> None:
    invert_masks(copied)

    def unknown(row: Row) -> None:
        for entry in row["objects"]:
            entry |= {"target_keypoints": [[0, 0, 0]] * 17, "box": [0, 0, 1, 1]}

    spoil(copied, unknown)
    assert len([line for line in errors(copied) if "the mask is white where" in line]) == 8


def test_a_mask_may_lie_in_the_alpha_channel(copied: Path) -> None:
    for path in sorted((copied / "masks").iterdir()):
        mask = Image.fromarray(read_mask(path)).convert("L")
        Image.merge("RGBA", (*[Image.new("L", mask.size)] * 3, mask)).save(path)
    assert check(copied) == []


def test_keypoints_outside_of_the_own_mask_are_told(copied: Path) -> None:
    def away(row: Row) -> None:
        if row["file_name"] == "0-ride.png":
            row["objects"][0]["target_keypoints"] = [[0.01, 0.99, 2]] * 17

    spoil(copied, away)
    (line,) = errors(copied)
    assert "only 0 of 17 target keypoints lie in its mask" in line


def test_words_that_come_too_late_are_errors_and_a_lost_end_is_a_warning(copied: Path) -> None:
    spoil(copied, lambda row: row.update(text=row["text"] + " in a green and quiet meadow" * 20))
    assert errors(copied) == []
    assert len([line for line in warnings(copied) if "its end is not read" in line]) == 4
    spoil(copied, lambda row: row.update(text="In a green and quiet meadow, " * 20 + row["text"]))
    assert len([line for line in errors(copied) if "which do not read: " in line]) == 4


def test_roles_of_another_relation_are_told(copied: Path) -> None:
    def spoil_roles(row: Row) -> None:
        row["objects"][0]["role"], row["objects"][1]["role"] = "carrier", "load"

    spoil(copied, spoil_roles)
    assert "role: 'ride' has no carrier, load; its roles: mount, rider" in warnings(copied)[0]


def test_what_the_words_say_is_held_against_predicate_and_roles(copied: Path) -> None:
    spoil(copied, lambda row: row.update(predicate="is hugging"))
    assert sum("does not stand in the prompt" in line for line in warnings(copied)) == 4

    def turned(row: Row) -> None:
        rider, mount = row["objects"]
        row |= {"predicate": "", "text": f"A {rider['name']} is being ridden by a {mount['name']}."}

    spoil(copied, turned)
    told = warnings(copied)
    assert len(told) == 4
    assert all("role: the prompt" in line and "is the mount" in line for line in told)


def test_the_same_picture_twice_is_told(copied: Path) -> None:
    rows = lines(copied / "metadata.jsonl")
    shutil.copy(copied / rows[0]["file_name"], copied / "again.png")
    rows.append({**rows[0], "file_name": "again.png"})
    rows[1]["objects"][0]["image"] = rows[1]["objects"][1]["image"]
    write_lines(copied / "metadata.jsonl", rows)
    told = warnings(copied)
    assert any("triplet again: the target is the same picture as that of triplet 0-ride" in line for line in told)
    assert any("triplet 1-ride: the image prompt of" in line and "is the same picture as" in line for line in told)


def test_who_is_cut_off_in_training_is_told(copied: Path) -> None:
    """A picture of 16:9 with somebody at each end: whole in a bucket, cut off in the square."""

    def widen(row: Row) -> None:
        target = Image.open(copied / row["file_name"])
        wide = Image.new("RGB", (target.width * 3, target.height), "white")
        wide.paste(target, (0, 0))
        wide.save(copied / row["file_name"])
        for entry in row["objects"]:
            mask = Image.new("L", wide.size)
            mask.paste(Image.open(copied / entry["mask"]), (0, 0))
            mask.save(copied / entry["mask"])
            x0, y0, x1, y1 = entry["box"]
            entry["box"] = [x0 / 3, y0, x1 / 3, y1]
            entry["target_keypoints"] = [[x / 3, y, v] for x, y, v in entry["target_keypoints"]]

    spoil(copied, widen)
    assert check(copied) == []
    cut = errors(copied, buckets=False, resolution=64)
    assert len(cut) == 8
    assert all("is cut off when the target is cut to 64 x 64" in line for line in cut)


@pytest.mark.parametrize(
    ("size", "resolution", "expected"),
    [
        ((1024, 1024), 1024, (1024, 1024)),
        ((900, 870), 1024, (1024, 1024)),
        ((1920, 1080), 1024, (1344, 768)),
        ((1080, 1920), 1024, (768, 1344)),
        ((1600, 1200), 1024, (1152, 896)),
        ((9000, 100), 1024, (2048, 512)),
        ((384, 128), 128, (216, 72)),
        ((64, 64), 64, (64, 64)),
    ],
)
def test_buckets(size: tuple[int, int], resolution: int, expected: tuple[int, int]) -> None:
    assert geometry.bucket(size, resolution) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in shipped() if load_relation(name).scene])
def test_drawn_sets_are_free_of_errors(name: str, tmp_path: Path) -> None:
    draw_triplets(load_relation(name), 6, 11, tmp_path / name, size=64)
    assert check(tmp_path / name) == []


@pytest.mark.slow
@pytest.mark.skipif(not HUG.exists(), reason="needs the authors' hug in ../shared/data")
def test_the_exchanged_pair_of_the_authors_hug_is_named_and_mended(tmp_path: Path) -> None:
    (problem,) = check(HUG)
    assert (problem.triplet, problem.level) == ("2", "warning")
    assert "the target keypoints of bear and tiger look exchanged" in problem.what
    assert call("data", "import", HUG, tmp_path / "imported").exit_code == 0
    assert call("data", "fix", HUG, tmp_path / "fixed").exit_code == 0
    assert check(tmp_path / "fixed") == []
    before, after = load(HUG)[2], load(tmp_path / "fixed")[2]
    assert np.array_equal(before.objects[0].target_keypoints, after.objects[1].target_keypoints)


def test_check_as_json(copied: Path) -> None:
    spoil(copied, swapped)
    told = json.loads(call("data", "check", copied, "--json").stdout)
    assert {problem["level"] for problem in told} == {"error"}
