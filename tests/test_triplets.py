"""Triplet folders in both layouts: read, write, hash, check. Sets are made here; the published one is optional."""

import json
import os
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from rbctl.errors import InputError
from rbctl.files import read_image
from rbctl.triplets import KEYPOINTS, SKELETON, data_hash, load
from rbctl.triplets.check import check
from rbctl.triplets.folder import METADATA, with_pictures, write

HUG = Path(__file__).parents[2] / "shared" / "data" / "dreamrelation" / "hug"
needs_hug = pytest.mark.skipif(not HUG.is_dir(), reason=f"the published set is not at {HUG}")

NAMES = ("red fox", "owl", "hare")
WIDTH, HEIGHT = 48, 40


def official_set(folder: Path, objects: int = 2, triplets: int = 4) -> Path:
    """Make a set in the official layout: object k fills columns 12 k to 12 k + 10, its keypoints are a line in it."""
    prompts = {}
    for number in range(triplets):
        video, masks = folder / "videos" / str(number), folder / "masks" / str(number)
        video.mkdir(parents=True)
        masks.mkdir(parents=True)
        Image.new("RGB", (WIDTH, HEIGHT), (number, 90, 90)).save(video / "motion.png", format="WEBP", lossless=True)
        xs = np.stack([np.linspace(12 * k + 1, 12 * k + 9, 17) / WIDTH for k in range(objects)])
        keypoints = torch.tensor(np.stack([xs, np.full_like(xs, 0.5)], axis=2), dtype=torch.float32)
        torch.save(keypoints, video / "motion_keyposes.pth")
        for k in range(objects):
            tag, word = (str(k), f"_{('one', 'two', 'three')[k]}") if objects > 1 else ("", "")
            Image.new("RGB", (30, 30), (k, number, 200)).save(video / f"concept{tag}.png")
            torch.save(torch.full((1, 17, 2), 0.25 + 0.1 * k), video / f"concept_keyposes{word}.pth")
            mask = np.zeros((HEIGHT, WIDTH), np.uint8)
            mask[5:35, 12 * k : 12 * k + 10] = 255
            Image.fromarray(mask).save(masks / f"motion{tag}.png")
        prompts[str(number)] = {
            "prompt": "A Red Fox, an owl and a hare dance together.",
            "predicate": ["dance", "together"],
        }
        prompts[str(number)].update({"entities": list(NAMES[:objects])} if objects > 1 else {"entity": NAMES[0]})
    (folder / "prompts.json").write_text(json.dumps(prompts))
    return folder


def native_set(folder: Path) -> Path:
    """Make a set in the native form; its lines are ``rows(folder)``."""
    write(load(official_set(folder.parent / f"{folder.name}-official")), folder)
    return folder


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def save_rows(folder: Path, content: list[dict]) -> None:
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))


def told(folder: Path) -> list[str]:
    return [str(problem) for problem in check(folder)]


def test_keypoints_are_those_of_ap10k():
    assert len(KEYPOINTS) == 17
    assert len(SKELETON) == 17
    named = {(KEYPOINTS[a], KEYPOINTS[b]) for a, b in SKELETON}
    assert {("nose", "neck"), ("neck", "root of tail"), ("right knee", "right back paw")} <= named


def test_importing_triplets_does_not_import_torch():
    program = "import sys, rbctl.triplets, rbctl.triplets.geometry, rbctl.triplets.check; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "False\n"


@pytest.mark.parametrize("objects", [1, 2, 3])
def test_official_layout_with_any_number_of_objects(tmp_path, objects):
    source = official_set(tmp_path / "dance", objects)
    assert check(source) == []
    triplet = load(source)[1]
    assert (triplet.id, triplet.predicate) == ("1", "dance together")
    assert [thing.name for thing in triplet.objects] == list(NAMES[:objects])
    assert [thing.role for thing in triplet.objects] == ["subject", "object", "object2"][:objects]
    last = triplet.objects[-1]
    left = 12 * (objects - 1)
    assert last.box == (left / WIDTH, 5 / HEIGHT, (left + 10) / WIDTH, 35 / HEIGHT)
    assert last.target_keypoints.dtype == np.float32
    np.testing.assert_allclose(last.target_keypoints[0], [(left + 1) / WIDTH, 0.5, 2], rtol=1e-6)
    np.testing.assert_allclose(last.image_keypoints[:, :2], 0.25 + 0.1 * (objects - 1), rtol=1e-6)


def test_single_object_may_be_numbered_too(tmp_path):
    source = official_set(tmp_path / "dance", objects=1)
    for path in [*source.glob("masks/*/motion.png"), *source.glob("videos/*/concept.png")]:
        path.rename(path.with_stem(f"{path.stem}0"))
    assert check(source) == []


def test_keypoints_saved_as_a_view_of_a_larger_tensor(tmp_path):
    source = official_set(tmp_path / "dance")
    together = torch.rand(5, 17, 2)
    torch.save(together[2:4], source / "videos" / "0" / "motion_keyposes.pth")
    found = np.stack([thing.target_keypoints[:, :2] for thing in load(source)[0].objects])
    np.testing.assert_array_equal(found, together[2:4].numpy())


@pytest.mark.parametrize("objects", [1, 2, 3])
def test_writing_and_reading_keeps_everything(tmp_path, objects):
    before = load(official_set(tmp_path / "dance", objects))
    write(before, tmp_path / "native")
    shutil.move(tmp_path / "native", tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "dance" / "masks")  # the copy needs nothing of its source
    after = load(tmp_path / "elsewhere")
    assert [t.id for t in after] == ["0", "1", "2", "3"]
    assert after[0].target.suffix == ".webp"  # told by its content, not its old name
    assert check(tmp_path / "elsewhere") == []
    np.testing.assert_array_equal(after[0].objects[0].target_keypoints, before[0].objects[0].target_keypoints)
    assert not any(Path(row["file_name"]).is_absolute() for row in rows(tmp_path / "elsewhere"))


def test_hash_depends_on_content_not_on_place(tmp_path):
    source = official_set(tmp_path / "dance")
    first = data_hash(load(source))
    write(load(source), tmp_path / "native")
    assert data_hash(load(tmp_path / "native")) == first
    content = rows(tmp_path / "native")
    content[2]["objects"][1]["target_keypoints"][16][2] = 1
    save_rows(tmp_path / "native", content)
    assert data_hash(load(tmp_path / "native")) != first
    Image.new("RGB", (30, 30), "teal").save(source / "videos" / "3" / "concept1.png")
    assert data_hash(load(source)) != first
    assert data_hash(load(source, predicate="unused, all state one")) == data_hash(load(source))


def test_pictures_of_rare_formats_are_kept_losslessly_as_png(tmp_path):
    source = official_set(tmp_path / "dance")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 30, 3), np.uint8))
    noise.save(source / "videos" / "0" / "concept0.png", format="BMP")
    write(load(source), tmp_path / "native")
    copied = load(tmp_path / "native")[0].objects[0].image
    with Image.open(copied) as image:
        assert image.format == "PNG"
        np.testing.assert_array_equal(np.asarray(image), np.asarray(noise))


def test_writing_again_is_harmless_but_never_over_other_triplets(tmp_path):
    triplets = load(official_set(tmp_path / "dance"))
    (tmp_path / "native").mkdir()
    (tmp_path / "native" / "0.webp").write_bytes(b"half a picture")  # left by an interrupted run
    write(triplets, tmp_path / "native")
    stamp = (tmp_path / "native" / "metadata.jsonl").stat().st_mtime_ns
    write(triplets, tmp_path / "native")
    assert (tmp_path / "native" / "metadata.jsonl").stat().st_mtime_ns == stamp
    with pytest.raises(InputError, match="other triplets lie here already; choose"):
        write(triplets[:3], tmp_path / "native")


def test_objects_need_no_mask_and_prompts_may_hold_any_character(tmp_path):
    folder = native_set(tmp_path / "set")
    content = rows(folder)
    content[0]["objects"][0]["mask"] = None
    content[0] |= {"text": "A red fox\u2028and an owl, «dancing»", "predicate": "dancing"}
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in content) + "\n\n")
    triplet = load(folder)[0]
    assert triplet.objects[0].mask is None
    assert triplet.prompt == content[0]["text"]
    assert check(folder) == []


def _change(path: str, value: object):
    """A change of row 2; ``path`` is "objects.0.box" or "text"; the value ... removes it."""

    def change(row: dict) -> None:
        *way, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        for part in way:
            row = row[part]
        if value is ...:
            del row[last]
        else:
            row[last] = value

    return change


def _misspelt(path, name):
    """The field at ``path`` has another name."""

    def change(row):
        *steps, last = path.split(".")
        for step in steps:
            row = row[int(step) if step.isdigit() else step]
        row[name] = row.pop(last)

    return change


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (_change("text", ...), "text: is missing"),
        (_misspelt("text", "txet"), "txet: no such key; did you mean 'text'?"),
        (_change("predicate", ["hug"]), "predicate: words were expected"),
        (_change("file_name", "none.png"), "file_name: no such file"),
        (_change("file_name", "../1.webp"), "leaves the folder"),
        (_change("file_name", "0.webp"), "file_name: a line above has the same one"),
        (_change("objects", []), "objects: 1 or more entries were expected"),
        (_change("objects.1", "owl"), "objects[1]: a mapping was expected"),
        (_misspelt("objects.1.mask", "msak"), "objects[1].msak: no such key; did you mean 'mask'?"),
        (_change("objects.0.role", 3), "objects[0].role: words were expected, not 3"),
        (_change("objects.0.box", [0.1, 0.2, 0.1, 0.4]), "objects[0].box: 0.1,0.2,0.1,0.4 has no area"),
        (_change("objects.0.box", [0.1, 0.2, 1.1, 0.4]), "lies outside [0, 1]"),
        (
            _change("objects.0.box", [0.1, 0.2, 0.4]),
            "objects[0].box: four numbers x0, y0, x1, y1 were expected, not [0.1, 0.2, 0.4]",
        ),
        (_change("objects.0.box", ...), "objects[0].box: is missing"),
        (_change("objects.1.image_keypoints.16", [0.1]), "objects[1].image_keypoints[16][1]: is missing"),
        (_change("objects.1.image_keypoints", [[0.5, 0.5, 2]] * 16), "objects[1].image_keypoints: 17 or more entries"),
        (
            _change("objects.1.image_keypoints.2.0", float("nan")),
            "image_keypoints[2][0]: a finite number was expected, not nan",
        ),
        (_change("objects.1.image_keypoints.2.0", 1.5), "outside the picture: nose (1.5, 0.35)"),
        (_change("objects.1.image_keypoints.2.2", 7), "the visibility must be 0 (absent), 1 (occluded) or 2 (visible)"),
    ],
)
def test_a_broken_line_is_refused_by_place_and_field(tmp_path, change, expected):
    folder = native_set(tmp_path / "set")
    content = rows(folder)
    change(content[1])
    save_rows(folder, content)
    with pytest.raises(InputError) as caught:
        load(folder)
    assert "metadata.jsonl:2" in str(caught.value)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert any(expected in line for line in told(folder))


def test_a_line_that_is_not_json_hides_no_other(tmp_path):
    folder = native_set(tmp_path / "set")
    lines = (folder / "metadata.jsonl").read_text().splitlines()
    lines[0], lines[2] = lines[0][:-5], lines[2].replace("webp", "jpg")
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    found = told(folder)
    assert "metadata.jsonl:1" in found[0]
    assert "not valid JSON" in found[0]
    assert "metadata.jsonl:3" in found[1]
    assert "file_name: no such file" in found[1]
    assert "2 triplets" not in found[2]
    assert len(found) == 3


def test_one_mistake_in_a_field_is_told_once(small_hug: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(small_hug, tmp_path / "hug"))
    rows = [json.loads(line) for line in (folder / METADATA).read_text().splitlines()]
    points = rows[0]["objects"][0]["target_keypoints"]
    rows[0]["objects"][0]["target_keypoints"] = [number for point in points for number in point]  # as COCO has them
    rows[0]["objects"][1]["target_keypoints"] = [point[:2] for point in points]
    (folder / METADATA).write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = (problem.what for problem in check(folder) if "target_keypoints" in problem.what)
    assert first.startswith("objects[0].target_keypoints[0]: a list was expected")
    assert first.endswith("(and 50 more there)")
    assert second == "objects[1].target_keypoints[0][2]: is missing (and 16 more there)"


@pytest.mark.parametrize("stored", ["NFC", "NFD"])
def test_names_are_found_however_a_system_writes_accents(small_hug: Path, tmp_path: Path, stored: Any) -> None:
    folder = Path(shutil.copytree(small_hug, tmp_path / "hug"))
    rows = [json.loads(line) for line in (folder / METADATA).read_text().splitlines()]
    named = {"NFC": "NFD", "NFD": "NFC"}[stored]
    (folder / rows[0]["file_name"]).rename(folder / unicodedata.normalize(stored, "é.png"))
    rows[0]["file_name"] = unicodedata.normalize(named, "é.png")
    (folder / METADATA).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(load(folder)) == len(rows)


def test_a_table_of_another_encoding_and_a_file_for_a_folder_are_told(small_hug: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(small_hug, tmp_path / "hug"))
    with pytest.raises(InputError, match="is a file; give the folder of the triplets"):
        load(folder / METADATA)
    (folder / METADATA).write_text((folder / METADATA).read_text(), encoding="utf-16")
    with pytest.raises(InputError, match="save it as UTF-8"):
        load(folder)


def test_unknown_folders_tell_the_known_layouts(tmp_path):
    with pytest.raises(InputError, match=r"two layouts are known: metadata\.jsonl .* prompts\.json with videos/"):
        load(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        load(tmp_path / "none")
    (tmp_path / "metadata.jsonl").write_text("\n")
    with pytest.raises(InputError, match="holds no triplet"):
        load(tmp_path)


class _Bomb:
    """Pickled, it makes a folder when it is loaded as code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_in_a_keypoint_file_is_refused_and_never_run(tmp_path):
    source = official_set(tmp_path / "dance")
    bomb = source / "videos" / "1" / "concept_keyposes_two.pth"
    torch.save(_Bomb(tmp_path / "ran"), bomb)
    with pytest.raises(InputError, match=r"concept_keyposes_two\.pth.*refused"):
        load(source)
    (problem,) = check(source)
    assert (problem.triplet, problem.file) == ("1", str(bomb))
    assert not (tmp_path / "ran").exists()


def test_check_finds_everything_in_one_pass(tmp_path):
    source = official_set(tmp_path / "dance", triplets=8)
    videos, masks = source / "videos", source / "masks"
    (videos / "0" / "motion.png").unlink()
    (videos / "0" / "concept1.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nonsense")
    (videos / "1" / "motion.png").write_bytes((videos / "1" / "motion.png").read_bytes()[:30])
    keypoints = torch.load(videos / "1" / "motion_keyposes.pth")
    keypoints[0, 2] = float("nan")
    keypoints[1, :, 0] = 700.0  # pixels
    torch.save(keypoints, videos / "1" / "motion_keyposes.pth")
    torch.save(keypoints[:1], videos / "2" / "motion_keyposes.pth")
    torch.save({"keypoints": keypoints}, videos / "2" / "concept_keyposes_one.pth")
    (videos / "2" / "concept_keyposes_two.pth").write_bytes(b"PK\x03\x04 cut off")
    Image.new("L", (WIDTH, HEIGHT)).save(masks / "3" / "motion0.png")
    Image.open(masks / "3" / "motion1.png").resize((20, 20)).save(masks / "3" / "motion1.png")
    shutil.copy(masks / "4" / "motion0.png", masks / "4" / "motion2.png")
    shutil.copy(videos / "4" / "concept0.png", videos / "4" / "concept2.png")
    prompts = json.loads((source / "prompts.json").read_text())
    prompts["4"]["prompt"] = ""
    del prompts["5"]["predicate"], prompts["5"]["prompt"]
    prompts["6"]["entities"] = ["red fox", "badger"]
    prompts["6"]["prompt"] = "A red foxtrot and an owl dance together."
    del prompts["7"]
    (source / "prompts.json").write_text(json.dumps(prompts))
    expected = [
        ("0", "motion.png", "no such file"),
        ("0", "concept1.png", "not a readable picture"),
        ("1", "motion.png", "not a readable picture"),
        ("1", "motion_keyposes.pth", "red fox: outside the picture or not a number: nose (nan, nan)"),
        ("1", "motion_keyposes.pth", "owl: outside the picture: left eye (700, 0.5), right eye (700, 0.5), "),
        ("2", "motion_keyposes.pth", "shape (1, 17, 2), but (2, 17, 2) was expected"),
        ("2", "concept_keyposes_one.pth", "a tensor was expected, not dict"),
        ("2", "concept_keyposes_two.pth", "not a readable PyTorch file"),
        ("3", "motion0.png", "the mask is empty"),
        ("3", "motion1.png", "the mask is 20 x 20, the target 48 x 40"),
        ("4", "motion2.png", "belongs to none of the 2 entities"),
        ("4", "concept2.png", "belongs to none of the 2 entities"),
        ("4", "prompts.json", "prompt: words were expected, not ''"),
        ("5", "prompts.json", "prompt: is missing"),
        ("5", "prompts.json", "predicate: is missing"),
        ("6", "prompts.json", "'red fox' does not stand in the prompt"),
        ("6", "prompts.json", "'badger' does not stand in the prompt"),
        ("7", "7", "prompts.json does not name this folder"),
    ]
    found = check(source)
    for triplet, file, what in expected:
        hits = [p for p in found if p.triplet == triplet and Path(p.file).name == file and what in p.what]
        assert len(hits) == 1, (triplet, file, what, [str(p) for p in found if p.triplet == triplet])
    assert len(found) == len(expected), [str(p) for p in found]
    assert [p.triplet for p in found if p.level == "warning"] == ["5", "7"]


def test_more_pictures_than_file_names_can_number_are_told(tmp_path):
    source = official_set(tmp_path / "dance")
    for k in range(2, 12):
        shutil.copy(source / "videos" / "0" / "concept0.png", source / "videos" / "0" / f"concept{k}.png")
    prompts = json.loads((source / "prompts.json").read_text())
    del prompts["0"]["entities"]
    (source / "prompts.json").write_text(json.dumps(prompts))
    lines = told(source)
    assert any("triplet 0: entities: is missing" in line for line in lines)
    assert any("concept11.png: triplet 0: belongs to none of the 10 entities" in line for line in lines)


def test_check_compares_boxes_roles_and_masks_of_native_sets(tmp_path):
    folder = native_set(tmp_path / "set")
    content = rows(folder)[:3]
    content[0]["objects"][0]["box"][2] += 3 / WIDTH
    content[1]["objects"][1]["role"] = "subject"
    content[2]["objects"][0]["image_keypoints"] = [[0.5, 0.5, 2]] + [[0, 0, 0]] * 16
    content[2]["objects"][0]["target_keypoints"][0][2] = 0
    save_rows(folder, content)
    Image.new("L", (WIDTH, HEIGHT), 1).save(folder / content[1]["objects"][0]["mask"])  # 0 and 1, not 0 and 255
    found = told(folder)
    assert "red fox: box [0.0, 0.125, 0.2708, 0.875] is not the mask's [0.0, 0.125, 0.2083, 0.875]" in found[0]
    assert "two objects have the same role: subject, subject" in found[1]
    assert "the mask is empty: no pixel is 128 or brighter" in found[2]
    assert "red fox: no keypoint is present both" in found[3]
    assert "3 triplets; 4 to 6 teach a relation well" in found[4]
    assert [p.level for p in check(folder)] == ["error"] * 3 + ["warning"] * 2


def test_check_suspects_exchanged_keypoints(tmp_path):
    source = official_set(tmp_path / "dance")
    path = source / "videos" / "2" / "motion_keyposes.pth"
    torch.save(torch.load(path).flip(0), path)
    (problem,) = check(source)
    assert (problem.triplet, problem.level) == ("2", "error")  # none of them lies in its own mask
    assert "red fox and owl look exchanged" in problem.what


def test_predicate_is_never_made_up(tmp_path):
    source = official_set(tmp_path / "dance")
    prompts = json.loads((source / "prompts.json").read_text())
    del prompts["0"]["predicate"]
    (source / "prompts.json").write_text(json.dumps(prompts))
    assert load(source)[0].predicate == ""
    assert [t.predicate for t in load(source, predicate="dance")] == ["dance", *["dance together"] * 3]


@needs_hug
def test_published_set():
    triplets = load(HUG)
    assert [t.predicate for t in triplets] == ["hug", "hug", "hugging", "hugging", "hugs"]
    problems = check(HUG)
    assert [p.triplet for p in problems if p.level == "error"] == []
    # Seen on the contact sheet: the published bear has the tiger's keypoints, and the other way round.
    assert [p.triplet for p in problems] == ["2"]
    lion, polar_bear = triplets[0].objects
    assert lion.box == (224 / 1024, 99 / 1024, 601 / 1024, 942 / 1024)
    # This file is a view with a storage offset; ignoring it would put another animal's keypoints here.
    np.testing.assert_allclose(lion.target_keypoints[2], [0.36273, 0.27312, 2], atol=1e-5)
    np.testing.assert_allclose(polar_bear.target_keypoints[2], [0.47023, 0.34128, 2], atol=1e-5)


# --- other programs, foreign columns


@pytest.mark.slow
def test_datasets_shows_the_individuals_and_keeps_them_on_the_hub(small_hug: Path, tmp_path: Path) -> None:
    """Loaded as imagefolder, and once more from the parquet that ``push_to_hub`` would upload."""
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    from datasets.table import embed_table_storage

    folder = shutil.copytree(small_hug, tmp_path / "hug")
    lines = [json.loads(line) for line in (folder / METADATA).read_text().splitlines()]
    lines[0]["objects"][0]["mask"] = None  # it fills its box
    (folder / METADATA).write_text("".join(json.dumps(with_pictures(line)) + "\n" for line in lines))
    cache = str(tmp_path / "cache")
    loaded = datasets.load_dataset("imagefolder", data_dir=str(folder), split="train", cache_dir=cache)
    uploaded = tmp_path / "uploaded.parquet"
    loaded.with_format("arrow").map(embed_table_storage, batched=True).with_format(None).to_parquet(uploaded)
    shutil.rmtree(folder)
    again = datasets.load_dataset("parquet", data_files=str(uploaded), split="train", cache_dir=cache)
    pictures = datasets.List(datasets.Image())
    assert (again.features["image_prompts"], again.features["masks"]) == (pictures, pictures)
    triplets = load(small_hug)
    assert again.num_rows == len(triplets)
    for row, triplet in zip(again, triplets, strict=True):
        assert (row["text"], row["predicate"]) == (triplet.prompt, triplet.predicate)
        assert row["image"].convert("RGB").tobytes() == read_image(triplet.target).tobytes()
        prompts = [picture.convert("RGB").tobytes() for picture in row["image_prompts"]]
        assert prompts == [read_image(entry.image).tobytes() for entry in triplet.objects]
        assert [entry["name"] for entry in row["objects"]] == [entry.name for entry in triplet.objects]
    assert [len(row["masks"]) for row in again] == [1, 2, 2, 2]


def test_foreign_columns_are_warned_of_and_misspelt_fields_are_errors(small_hug: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(small_hug, tmp_path / "hug")
    lines = [json.loads(line) for line in (folder / METADATA).read_text().splitlines()]
    for line in lines:
        line["license"], line["objects"][0]["species"] = "CC0-1.0", "fox"
        line["objects_file_names"] = [entry["image"] for entry in line["objects"]]
    (folder / METADATA).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert len(load(folder)) == 4
    foreign = [str(problem) for problem in check(folder) if "no such key" in problem.what]
    assert len(foreign) == 3  # each once, not for every line
    assert all(problem.level == "warning" for problem in check(folder))
    lines[0]["objects"][1]["maks"] = lines[0]["objects"][1].pop("mask")
    (folder / METADATA).write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InputError, match=r"objects\[1\]\.maks: no such key; did you mean 'mask'\?"):
        load(folder)


def test_a_dataset_card_is_written_once(small_hug: Path, tmp_path: Path) -> None:
    text = (small_hug / "README.md").read_text()
    assert yaml.safe_load(text.split("---")[1])["task_categories"] == ["text-to-image"]
    assert "4 triplets" in text
    assert "hug" in text.split("Relation: ")[1].splitlines()[0]
    (tmp_path / "README.md").write_text("mine")
    write(load(small_hug), tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
