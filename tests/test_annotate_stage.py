"""``rbctl annotate`` as a user runs it, on the embedded world: raw pictures in, checked triplets out."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import processes
import pytest
from PIL import Image, ImageOps
from triplet_sets import annotate, as_raw, kept, lines, write_lines

from rbctl.menagerie.triplets import draw_triplets
from rbctl.plugins.annotate import backends
from rbctl.relations import load_relation
from rbctl.triplets import data_hash, load
from rbctl.triplets.check import check
from rbctl.triplets.folder import write
from rbctl.triplets.geometry import target
from rbctl.triplets.masks import read_mask


def told(folder: Path) -> tuple[list[float], str]:
    """The numbers in a folder's metadata.jsonl, and what stands around them."""
    text, number = (folder / "metadata.jsonl").read_text(), r"(?<=[\[ ])-?\d+(?:\.\d+)?(?:e-?\d+)?(?=[,\]])"
    return [float(value) for value in re.findall(number, text)], re.sub(number, "#", text)


@pytest.fixture
def copied(annotated_hug: Path, tmp_path: Path) -> Path:
    """The annotated set, to be spoilt."""
    return Path(shutil.copytree(annotated_hug, tmp_path / "hug"))


def test_help_is_light() -> None:
    program = (
        "import sys; from click.testing import CliRunner; from rbctl.cli import main\n"
        "result = CliRunner().invoke(main, ['annotate', '--help'])\n"
        "print(result.exit_code, sorted({'torch', 'transformers', 'numpy', 'PIL', 'scipy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "0 []\n"


@pytest.mark.slow
def test_raw_pictures_become_a_whole_set_near_the_truth(drawn_hug: Path, annotated_hug: Path) -> None:
    assert check(annotated_hug) == []
    assert (annotated_hug / "raw.jsonl").read_text().count("\n") == 4
    overlaps, errors = [], []
    for truth, found in zip(load(drawn_hug), load(annotated_hug), strict=True):
        assert (found.prompt, found.predicate) == (truth.prompt, truth.predicate)
        assert [(o.name, o.role) for o in found.objects] == [(o.name, o.role) for o in truth.objects]
        for ours, mask, other in zip(found.objects, target(found).masks, target(truth).masks, strict=True):
            overlaps.append((mask & other).sum() / (mask | other).sum())
            true = next(o for o in truth.objects if o.name == ours.name)
            for part in ("target_keypoints", "image_keypoints"):
                here, there = getattr(ours, part), getattr(true, part)
                both = (here[:, 2] == 2) & (there[:, 2] == 2)
                errors.append(np.median(np.abs(here[both, :2] - there[both, :2]).max(1)))
    assert np.mean(overlaps) > 0.65
    assert np.median(errors) < 0.03


def test_the_report_tells_steps_confidences_and_gates(annotated_hug: Path) -> None:
    for report in lines(annotated_hug / "annotations.jsonl"):
        assert report["problem"] is None
        assert report["backends"] == dict.fromkeys(("boxes", "masks", "keypoints", "identity"), "oracle")
        assert set(report["gates"]) == {"present", "same", "told_apart", "pose", "keypoints", "roles"}
        assert report["gates"]["pose"]["passed"]  # who hugs does not stand as on a portrait
        assert report["margin"] > 0.1
        for thing in report["objects"]:
            assert len(thing["target_confidence"]) == len(thing["image_confidence"]) == 17
            assert 0 < thing["similarity"] <= 1


def test_the_same_command_again_does_nothing_twice(copied: Path) -> None:
    before, metadata = kept(copied), (copied / "metadata.jsonl").read_bytes()
    result = annotate(copied)
    assert result.exit_code == 0
    assert "picture/s" not in result.stderr  # no step ran
    assert kept(copied) == before
    assert (copied / "metadata.jsonl").read_bytes() == metadata


@pytest.mark.slow
def test_only_what_changed_is_made_anew(copied: Path) -> None:
    before = kept(copied)
    row = lines(copied / "raw.jsonl")[0]
    picture = copied / row["objects"][0]["image"]
    Image.open(picture).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(picture)
    next((copied / ".annotate" / "keypoints").glob("1-hug-*.npz")).write_bytes(b"damaged")  # a broken disk
    assert annotate(copied).exit_code == 0
    after = kept(copied)
    new = {Path(name) for name in after if after[name] != before.get(name)}
    assert {path.name.rpartition("-")[0] for path in new if path.parent.name != "keypoints"} == {picture.stem}
    assert len(new) == 5


@pytest.mark.slow
def test_the_order_of_the_image_prompts_is_no_matter(drawn_hug: Path, tmp_path: Path) -> None:
    folder = as_raw(drawn_hug, tmp_path / "shuffled", shuffled=True)
    assert annotate(folder).exit_code == 0
    for truth, found in zip(load(drawn_hug), load(folder), strict=True):
        for thing in found.objects:
            true = next(o for o in truth.objects if o.name == thing.name)
            assert thing.mask is not None
            assert true.mask is not None
            mask, other = read_mask(thing.mask), read_mask(true.mask)
            assert (mask & other).sum() / (mask | other).sum() > 0.4


def by_names(drawn: Path, folder: Path, called: Callable[[int, str], str]) -> Path:
    """Pictures alone: 0.png, 0-cat.png, 0-bear.png and so on."""
    folder.mkdir()
    for number, row in enumerate(lines(drawn / "metadata.jsonl")):
        shutil.copy(drawn / row["file_name"], folder / f"{number}.png")
        for k, entry in enumerate(row["objects"]):
            shutil.copy(drawn / entry["image"], folder / f"{number}-{called(k, entry['name'])}.png")
    (folder / "set.json").write_text(json.dumps({"origin": "miniature"}))
    return folder


@pytest.mark.slow
def test_names_of_files_tell_no_roles_so_the_picture_does(tmp_path: Path) -> None:
    draw_triplets(load_relation("ride"), 4, 3, tmp_path / "ride", size=128)
    folder = by_names(tmp_path / "ride", tmp_path / "photos", lambda k, name: ("zebra", "ape")[k])
    assert annotate(folder, "--relation", "ride").exit_code == 0
    for triplet in load(folder):
        assert triplet.prompt == "A zebra is riding an ape."
        assert {entry.name: entry.role for entry in triplet.objects} == {"ape": "mount", "zebra": "rider"}
    assert {report["roles_from"] for report in lines(folder / "annotations.jsonl")} == {"picture"}
    # Who sits beside whom is in no picture: it is asked for.
    told = annotate(folder, "--relation", "chase")
    assert told.exit_code == 2
    assert "neither words nor picture tell which of ape, zebra is the chaser" in told.stderr


@pytest.mark.slow
def test_a_text_in_the_passive_voice_tells_the_roles(tmp_path: Path) -> None:
    draw_triplets(load_relation("ride"), 4, 3, tmp_path / "ride", size=128)
    folder = as_raw(tmp_path / "ride", tmp_path / "raw")
    rows = lines(folder / "raw.jsonl")
    for row in rows:
        rider, mount = row["objects"]
        row |= {"text": f"The {mount['name']} is being ridden by the {rider['name']}.", "predicate": ""}
        row["objects"] = [{**mount, "role": ""}, {**rider, "role": ""}]
    write_lines(folder / "raw.jsonl", rows)
    assert annotate(folder, "--relation", "ride").exit_code == 0
    for triplet in load(folder):
        assert [entry.role for entry in triplet.objects] == ["mount", "rider"]
        assert triplet.predicate == "is being ridden by"


@pytest.mark.slow
def test_targets_in_folders_share_no_masks_name(drawn_hug: Path, tmp_path: Path) -> None:
    """a/b.png and a-b.png: each individual keeps its own mask, also where the set is imported."""
    folder = as_raw(drawn_hug, tmp_path / "hug")
    rows = lines(folder / "raw.jsonl")
    (folder / "a").mkdir()
    for row, name in zip(rows[:2], ("a/b.png", "a-b.png"), strict=True):
        (folder / row["file_name"]).rename(folder / name)
        row["file_name"] = name
    write_lines(folder / "raw.jsonl", rows)
    assert annotate(folder).exit_code == 0
    assert check(folder) == []
    write(load(folder), tmp_path / "imported")
    for place in (folder, tmp_path / "imported"):
        masks = [entry.mask for triplet in load(place) for entry in triplet.objects]
        assert len(set(masks)) == len(list((place / "masks").iterdir())) == 8
    assert data_hash(load(folder)) == data_hash(load(tmp_path / "imported"))


@pytest.mark.slow
def test_pictures_alone_need_no_list(drawn_hug: Path, tmp_path: Path) -> None:
    """Their names tell who is who, the relation what they do."""
    folder = by_names(drawn_hug, tmp_path / "photos", lambda k, name: name)
    told = annotate(folder)
    assert told.exit_code == 2
    assert "state the relation with --relation" in told.stderr
    assert annotate(folder, "--relation", "hug").exit_code == 0
    assert check(folder) == []
    first = load(folder)[0]
    assert first.predicate in first.prompt
    assert {thing.role for thing in first.objects} == {"left", "right"}


def shard(path: Path, drawn_hug: Path, rows: list[dict]) -> None:
    """A WebDataset shard of raw triplets."""
    with tarfile.open(path, "w") as tar:
        for number, row in enumerate(rows):
            things = [{"name": thing["name"]} for thing in row["objects"]]
            facts = path.parent / f"{number}.txt"
            facts.write_text(json.dumps({"text": row["text"], "objects": things}))
            tar.add(facts, f"{number:04}.json")
            facts.unlink()
            tar.add(drawn_hug / row["file_name"], f"{number:04}.png")
            for k, thing in enumerate(row["objects"]):
                tar.add(drawn_hug / thing["image"], f"{number:04}.{k}.png")


@pytest.mark.slow
def test_shards(drawn_hug: Path, annotated_hug: Path, tmp_path: Path) -> None:
    rows = lines(drawn_hug / "metadata.jsonl")
    shard(tmp_path / "a.tar", drawn_hug, rows[:2])
    shard(tmp_path / "b.tar", drawn_hug, rows[2:])
    (tmp_path / "set.json").write_text(json.dumps({"origin": "miniature"}))
    assert annotate(tmp_path).exit_code == 0
    assert check(tmp_path) == []
    found = [[thing["box"] for thing in row["objects"]] for row in lines(tmp_path / "metadata.jsonl")]
    assert found == [[thing["box"] for thing in row["objects"]] for row in lines(annotated_hug / "metadata.jsonl")]
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "c.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:3000])
    result = annotate(broken)
    assert result.exit_code == 2
    assert "c.tar" in result.stderr.splitlines()[-1]


def pasted(folder: Path, row: dict) -> Image.Image:
    """The image prompts cut out and laid side by side, the second one mirrored."""
    sheet = Image.new("RGB", (128, 128), (237, 237, 235))
    for k, thing in enumerate(row["objects"]):
        portrait = Image.open(folder / thing["image"]).convert("RGB").resize((70, 70))
        pixels = np.asarray(portrait).astype(int)
        cut = Image.fromarray((abs(pixels - pixels[0, 0]).sum(2) > 24).astype(np.uint8) * 255)
        if k:
            portrait, cut = ImageOps.mirror(portrait), ImageOps.mirror(cut)
        sheet.paste(portrait, (58 * k, 39), cut)
    return sheet


@pytest.mark.slow
def test_copied_poses_fail_their_gate_and_can_be_dropped(drawn_hug: Path, tmp_path: Path) -> None:
    """The copy-paste effect: a target shows both as their image prompts do. The last triplet stays as it was."""
    folder = as_raw(drawn_hug, tmp_path / "pasted")
    rows = lines(folder / "raw.jsonl")
    for row in rows[:3]:
        pasted(folder, row).save(folder / row["file_name"])
    result = annotate(folder)
    assert result.exit_code == 0
    reports = lines(folder / "annotations.jsonl")
    copied = [report["file_name"] for report in reports if not report["gates"]["pose"]["passed"]]
    assert len(copied) >= 2  # the oracle may misread one
    assert rows[3]["file_name"] not in copied
    for name in copied:
        assert f"{name}: kept: fails" in result.stderr
    assert all(report["gates"]["present"]["passed"] for report in reports)
    assert annotate(folder, "--drop-failed").exit_code == 0
    left = [row["file_name"] for row in lines(folder / "metadata.jsonl")]
    assert not {*copied} & {*left}
    assert rows[3]["file_name"] in left
    assert [r["file_name"] for r in lines(folder / "annotations.jsonl") if not r["kept"]] == copied


@pytest.mark.slow
def test_other_individuals_than_in_the_image_prompts_fail_a_gate(drawn_hug: Path, tmp_path: Path) -> None:
    folder = as_raw(drawn_hug, tmp_path / "wrong")
    rows = lines(folder / "raw.jsonl")
    swapped = [rows[1]["objects"][k]["image"] for k in range(2)]
    for thing, image in zip(rows[0]["objects"], swapped, strict=True):
        shutil.copy(drawn_hug / image, folder / thing["image"])
    report = json.loads(annotate(folder, "--json").stdout)[0]
    assert not (report["gates"]["same"]["passed"] and report["gates"]["told_apart"]["passed"])


@pytest.mark.slow
@pytest.mark.parametrize("ground", [0, 90, 128, 200, 255])
def test_a_picture_without_an_animal_is_listed_and_the_rest_is_written(copied: Path, ground: int) -> None:
    row = lines(copied / "raw.jsonl")[1]
    Image.new("RGB", (128, 128), (ground, ground, ground)).save(copied / row["file_name"])
    result = annotate(copied)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("Error: ")
    assert f"{row['file_name']}: nobody was found" in result.stderr
    assert len(lines(copied / "metadata.jsonl")) == 3
    assert "nobody was found" in lines(copied / "annotations.jsonl")[1]["problem"]
    assert annotate(copied, "--drop-failed").exit_code == 0


@pytest.mark.slow
def test_a_corrupt_picture_is_told_and_the_rest_is_written(copied: Path) -> None:
    row = lines(copied / "raw.jsonl")[2]
    picture = copied / row["objects"][1]["image"]
    picture.write_bytes(picture.read_bytes()[:200])
    result = annotate(copied)
    assert result.exit_code == 2
    assert f"{picture}: not a readable picture" in result.stderr.splitlines()[-1]
    assert len(lines(copied / "metadata.jsonl")) == 3
    assert not list(copied.glob("**/*.partial"))


def found_three(images, names):
    """A backend of a user's own, that sees three in every target."""
    from rbctl.plugins.annotate.steps import Detections

    boxes = np.array([[0, 0.2, 0.3, 0.8], [0.35, 0.2, 0.6, 0.8], [0.65, 0.2, 1, 0.8]])
    scores = np.array([0.9, 0.8, 0.7])
    counts = [3 if len(row) > 1 else 1 for row in names]
    return [Detections(boxes[:count], scores[:count]) for count in counts]


def corner_points(images, boxes):
    """A backend of a user's own: every keypoint in the corner of its box."""
    return [np.stack([np.tile([*box[:2], 0.9], (17, 1)) for box in rows]) for rows in boxes]


def no_points(images, boxes):
    return [np.zeros((len(rows), 5, 3)) for rows in boxes]


@pytest.mark.slow
def test_more_individuals_than_image_prompts(copied: Path) -> None:
    result = annotate(copied, "--backend", "boxes=test_annotate_stage:found_three")
    assert result.exit_code == 2
    assert "3 individuals were found for 2 image prompts" in result.stderr.splitlines()[-1]


def test_two_equal_names(copied: Path) -> None:
    path = copied / "raw.jsonl"
    rows = lines(path)
    rows[1]["objects"][1]["name"] = rows[1]["objects"][0]["name"]
    write_lines(path, rows)
    before = kept(copied)
    result = annotate(copied)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"Error: {path}:2: ")
    assert result.stderr.count("\n") == 1
    assert kept(copied) == before


@pytest.mark.slow
def test_a_backend_of_ones_own(copied: Path) -> None:
    assert annotate(copied, "--backend", "keypoints=test_annotate_stage:corner_points").exit_code == 0
    thing = load(copied)[0].objects[0]
    report = lines(copied / "annotations.jsonl")[0]
    assert report["backends"]["keypoints"] == "test_annotate_stage:corner_points"
    assert np.ptp(thing.target_keypoints[:, 0]) == 0
    wrong = annotate(copied, "--backend", "keypoints=test_annotate_stage:no_points")
    assert wrong.exit_code == 2
    assert (
        "returned an array of shape (2, 5, 3)" in wrong.stderr or "returned an array of shape (1, 5, 3)" in wrong.stderr
    )


@pytest.mark.slow
def test_a_backend_that_a_package_offers(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offered = EntryPoint("my-pose", "test_annotate_stage:corner_points", backends.GROUP)
    monkeypatch.setattr(backends, "entry_points", lambda group: [offered])
    assert annotate(copied, "--backend", "keypoints=my-pose").exit_code == 0
    assert lines(copied / "annotations.jsonl")[0]["backends"]["keypoints"] == "my-pose"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--backend", "keypoints=xpose"], "(non-commercial licence) fits"),
        (["--backend", "keypoints=xpose", "--xpose", "/nowhere"], "/nowhere: no such file"),
        (["--backend", "keypoints=vitpos"], "did you mean 'vitpose'?"),
        (["--backend", "boxs=owlv2"], "did you mean 'boxes'?"),
        (["--backend", "boxes"], "the form is STEP=NAME"),
        (["--backend", "boxes=nowhere.at_all:it"], "cannot be imported"),
        (["--backend", "boxes=owlv2"], "give the folder of its model with --owlv2; google/owlv2-base-patch16-ensemble"),
        (["--backend", "masks=sam", "--sam", "/nowhere"], "no config.json is there"),
        (["--bundle", "/nowhere"], "choose a bundle that has oracle/"),
        (["--relation", "hugg"], "did you mean"),
        (["--apply", "nothing.json"], "no such file"),
    ],
)
def test_bad_options_are_one_line(copied: Path, arguments: list[str], told: str) -> None:
    before = (copied / "metadata.jsonl").read_bytes()
    result = annotate(copied, *arguments)
    assert result.exit_code == 2
    assert told in result.stderr
    assert result.stderr.count("\n") == 1
    assert (copied / "metadata.jsonl").read_bytes() == before


def test_damaged_weights_of_a_late_step_are_told_before_the_first_picture(copied: Path, tmp_path: Path) -> None:
    weights = tmp_path / "vitpose.pth"
    weights.write_bytes(b"half a download")
    shutil.rmtree(copied / ".annotate", ignore_errors=True)
    result = annotate(copied, "--backend", "keypoints=vitpose", "--vitpose", str(weights))
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith(f"Error: {weights}: not a readable PyTorch file")
    assert not list(copied.glob(".annotate/*/*"))


@pytest.mark.slow
def test_the_clip_of_the_bundle_tells_them_apart_too(copied: Path) -> None:
    before = (copied / "metadata.jsonl").read_bytes()
    result = annotate(copied, "--backend", "identity=clip", "--min-similarity", "0.2")
    assert result.exit_code == 0, result.stderr
    assert (copied / "metadata.jsonl").read_bytes() == before


@pytest.mark.slow
def test_several_processes_share_the_work(drawn_hug: Path, annotated_hug: Path, tmp_path: Path) -> None:
    folder = as_raw(drawn_hug, tmp_path / "shared")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    ran = subprocess.run(
        [*command, "-m", "rbctl", "annotate", str(folder)], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count(str(folder)) == 1  # rank 0 alone tells
    # Batches of other sizes round otherwise.
    numbers, words = zip(*(told(place) for place in (folder, annotated_hug)), strict=True)
    assert words[0] == words[1]
    np.testing.assert_allclose(*numbers, rtol=0, atol=1e-3)
    assert len(kept(folder)) == len(kept(annotated_hug))


@pytest.mark.slow
def test_killed_ten_times_it_goes_on(drawn_hug: Path, tmp_path: Path) -> None:
    straight, folder = as_raw(drawn_hug, tmp_path / "straight"), as_raw(drawn_hug, tmp_path / "killed")
    assert processes.run(["annotate", straight, "--batch-size", 1], tmp_path / "log") == 0
    rng = random.Random(5)
    done: dict[str, int] = {}
    for _ in range(10):
        process = processes.start(["annotate", folder, "--batch-size", 1], tmp_path / "log")
        more = rng.randint(0, 5)  # results, wherever that is; then anything up to the next one
        while process.is_alive() and len(kept(folder)) < len(done) + more:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        process.join()
        now = kept(folder)
        assert done.items() <= now.items()  # nothing was written again, nothing got lost
        done = now
    assert len(done) > 10
    assert processes.run(["annotate", folder, "--batch-size", 1], tmp_path / "log") == 0
    assert done.items() <= kept(folder).items()
    assert set(kept(folder)) == set(kept(straight))
    assert (folder / "metadata.jsonl").read_bytes() == (straight / "metadata.jsonl").read_bytes()
    assert not list(folder.glob("**/*.partial"))
