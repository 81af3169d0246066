"""What data names lies in the data's own folder, and what is written lies in the output: no name, no link leads out."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from commands import call, refused
from PIL import Image

from rbctl.errors import InputError
from rbctl.files import append_line, atomic_write, write_text
from rbctl.menagerie.triplets import draw_triplets
from rbctl.paths import inside
from rbctl.relations import load_relation
from rbctl.runs import claim


@pytest.fixture
def triplets(small_hug: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_hug, tmp_path / "data" / "hug"))


@pytest.fixture
def private(tmp_path: Path) -> Path:
    """A picture of the user that no data set is to reach."""
    path = tmp_path / "private.png"
    Image.new("RGB", (64, 64), "red").save(path)
    return path


LEADING_OUT = [
    "../../private.png",
    "a/../../../private.png",
    "/etc/passwd",
    "\\private.png",
    "C:\\private.png",
    "x\0.png",
]


@pytest.mark.parametrize("name", LEADING_OUT)
def test_a_name_that_leads_out_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="list: "):
        inside(tmp_path, name, "list")


def test_a_link_that_leads_out_is_refused_and_one_that_stays_is_not(tmp_path: Path, private: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.png").write_bytes(private.read_bytes())
    (folder / "own.png").symlink_to("a.png")
    (folder / "out.png").symlink_to(private)
    (folder / "up").symlink_to(tmp_path)
    (folder / "round").symlink_to("round")
    assert inside(folder, "own.png", "list") == folder / "own.png"
    for name in ("out.png", "up/private.png", "round"):
        with pytest.raises(InputError, match="list: "):
            inside(folder, name, "list")
    assert inside(folder, "out.png", "list", follow_outside=True) == folder / "out.png"


def test_the_links_of_a_hub_cache_are_followed_to_its_own_blobs_alone(tmp_path: Path, private: Path) -> None:
    repository = tmp_path / "models--a--b"
    snapshot, blobs = repository / "snapshots" / "123", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    shutil.copy(private, blobs / "cafe")
    (snapshot / "cat.png").symlink_to("../../blobs/cafe")
    (snapshot / "out.png").symlink_to(private)
    inside(snapshot, "cat.png", "list")
    with pytest.raises(InputError, match="a link that leaves the folder"):
        inside(snapshot, "out.png", "list")


def change_first(folder: Path, **changes: object) -> None:
    path = folder / "metadata.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0] |= changes
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("how", ["a name", "a link"])
@pytest.mark.parametrize(
    "command", [("data", "check"), ("data", "show"), ("finetune", "--relation", "hug", "--steps", "1", "--data")]
)
def test_triplets_reach_no_picture_outside(
    triplets: Path, private: Path, tmp_path: Path, how: str, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if how == "a name":
        change_first(triplets, file_name="../../private.png")
    else:
        (triplets / "mine.png").symlink_to(private)
        change_first(triplets, file_name="mine.png")
    refused(call(*command, triplets), "leaves the folder")
    if command == ("data", "show"):
        followed = call(*command, triplets, "--follow-outside")
        assert followed.exit_code == 0, followed.output


def test_the_official_layout_reaches_no_file_outside(tmp_path: Path, private: Path) -> None:
    folder = tmp_path / "official"
    for part in ("videos/0", "masks/0"):
        (folder / part).mkdir(parents=True)
    (folder / "prompts.json").write_text(json.dumps({"0": {"prompt": "A cat.", "entities": ["cat"], "predicate": "x"}}))
    torch.save(torch.rand(1, 17, 2), folder / "videos/0/motion_keyposes.pth")
    torch.save(torch.rand(1, 17, 2), folder / "videos/0/concept_keyposes.pth")
    for name in ("videos/0/motion.png", "masks/0/motion.png"):
        shutil.copy(private, folder / name)
    (folder / "videos/0/concept.png").symlink_to(private)
    refused(call("data", "check", folder), "concept.png", "a link that leaves the folder")
    (folder / "videos/0/concept.png").unlink()
    shutil.copy(private, folder / "videos/0/concept.png")
    assert "leaves" not in call("data", "check", folder).output
    shutil.move(folder / "masks/0", tmp_path / "masks")
    (folder / "masks/0").symlink_to(tmp_path / "masks")
    refused(call("data", "check", folder), "a link that leaves the folder")


@pytest.mark.parametrize("listed", [True, False])
def test_raw_triplets_reach_no_picture_outside(tmp_path: Path, private: Path, listed: bool) -> None:
    folder = tmp_path / "raw"
    folder.mkdir()
    shutil.copy(private, folder / "0.png")
    (folder / "0-cat.png").symlink_to(private)
    if listed:
        row = {"file_name": "0.png", "objects": [{"name": "cat", "image": "0-cat.png"}]}
        (folder / "raw.jsonl").write_text(json.dumps(row))
    refused(call("annotate", folder), "0-cat.png", "a link that leaves the folder")


@pytest.mark.parametrize("table", ["metadata.jsonl", "metadata.csv", "a link"])
def test_a_report_shows_no_picture_from_outside_of_the_results(tmp_path: Path, private: Path, table: str) -> None:
    folder = tmp_path / "results" / "run"
    folder.mkdir(parents=True)
    if table == "metadata.jsonl":
        (folder / table).write_text(json.dumps({"file_name": "../../private.png", "text": "a cat"}))
    elif table == "metadata.csv":
        shutil.copy(private, folder / "0.png")
        (folder / table).write_text("file_name,text,image_prompts\n0.png,a cat,../../private.png\n")
    else:
        (folder / "a cat.png").symlink_to(private)
    refused(call("eval", folder, "--output", tmp_path / "report"), "leaves the folder")
    assert not (tmp_path / "report" / "report.html").exists()


def test_a_prior_set_reaches_no_picture_outside(triplets: Path, tmp_path: Path, private: Path) -> None:
    prior = tmp_path / "prior" / "sampled"
    prior.mkdir(parents=True)
    shutil.copy(private, prior / "0.png")
    thing = {"name": "cat", "image": "../../private.png", "box": [0, 0, 1, 1]}
    (prior / "metadata.jsonl").write_text(
        json.dumps({"file_name": "0.png", "text": "a cat", "fingerprint": "x", "objects": [thing]})
    )
    command = ("finetune", "--relation", "hug", "--data", triplets, "--output", tmp_path / "o", "--prior", prior)
    refused(call(*command), "leaves the folder")


DISTILL = ("distill", "--model", "ViT-B-32", "--random-weights", "--steps", "1", "--data")


@pytest.mark.parametrize("name", ["../private.png", "/etc/passwd"])
def test_coco_names_no_picture_outside(tmp_path: Path, private: Path, name: str) -> None:
    (tmp_path / "images").mkdir()
    coco = tmp_path / "coco.json"
    coco.write_text(json.dumps({"images": [{"id": 0, "file_name": name, "width": 64, "height": 64}]}))
    refused(call(*DISTILL, tmp_path / "images", "--annotations", coco), "coco.json", "leaves the folder")


def test_a_folder_to_distill_from_holds_no_link_to_a_picture_outside(tmp_path: Path, private: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").symlink_to(private)
    refused(call(*DISTILL, tmp_path / "images"), "a link that leaves the folder")


def test_a_bundles_record_names_no_file_outside(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "bundle.json").write_text(json.dumps({"files": {"../../x": {"sha256": "0", "size": 1}}}))
    refused(call("models", "verify", bundle), "bundle.json", "leaves the bundle")


@pytest.mark.parametrize("name", ["../../x.safetensors", "/etc/x.safetensors", 3])
def test_an_index_of_weights_names_no_file_outside(tiny_bundle: Path, tmp_path: Path, name: object) -> None:
    from diffusers import UNet2DConditionModel

    from rbctl.pretrained import from_pretrained

    folder = Path(shutil.copytree(tiny_bundle / "unet", tmp_path / "unet"))
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"conv_in.weight": name}}))
    with pytest.raises(InputError, match=r"weight_map: .* leaves the folder"):
        from_pretrained(UNet2DConditionModel, folder)


def test_a_bundle_of_links_in_a_circle_is_walked_to_its_end(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    for name in ("a", "b", "c"):
        (bundle / name).symlink_to(bundle)
    (bundle / "bundle.json").write_text(json.dumps({"files": {"x": {"sha256": "0", "size": 1}}}))
    refused(call("models", "verify", bundle), "x: missing")


# --- writing


@pytest.mark.parametrize("part", ["images", "images/deeper"])
def test_nothing_is_written_through_a_link_in_a_claimed_folder(tmp_path: Path, part: str) -> None:
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "set"
    elsewhere.mkdir()
    folder.mkdir()
    (folder / "images").symlink_to(elsewhere)
    for write in (write_text, append_line):
        with claim(folder), pytest.raises(InputError, match="images: is a link"):
            write(folder / part / "0.txt", "x")
    assert list(elsewhere.iterdir()) == []


def test_a_claimed_folder_may_be_a_link_itself(tmp_path: Path) -> None:
    (tmp_path / "large disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "large disk")
    with claim(tmp_path / "out"):
        write_text(tmp_path / "out" / "images" / "a.txt", "x")
    assert (tmp_path / "large disk" / "images" / "a.txt").read_text() == "x"


def test_a_link_in_the_place_of_a_file_is_replaced_or_refused_never_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "a").symlink_to(victim)
    write_text(tmp_path / "a", "theirs")
    assert not (tmp_path / "a").is_symlink()
    (tmp_path / "b").symlink_to(victim)
    with pytest.raises(InputError, match="b: cannot be written"):
        append_line(tmp_path / "b", "theirs")
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / ".lock").symlink_to(victim)
    with pytest.raises(InputError, match="is a link"), claim(folder):
        pass
    assert victim.read_text() == "mine"


@pytest.mark.slow
def test_generate_writes_through_no_link(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "set", tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert call("generate", "--relation", "hug", "--number", "1", "--output", folder).exit_code == 0
    shutil.rmtree(folder / "images")
    (folder / "images").symlink_to(elsewhere)
    refused(call("generate", "--relation", "hug", "--number", "2", "--output", folder), "images: is a link")
    assert list(elsewhere.iterdir()) == []


def test_triplets_that_are_drawn_anew_delete_nothing_outside(triplets: Path, tmp_path: Path, private: Path) -> None:
    """A set says which files it is made of, and a changed set is cleared away: a stranger's may name any file."""
    assert (triplets / "drawn.json").is_file()
    change_first(triplets, file_name="../../private.png")
    with pytest.raises(InputError, match="leaves the folder"):
        draw_triplets(load_relation("hug"), 5, 1, triplets, size=64)
    assert private.is_file()


@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o022, 0o644), (0o002, 0o664)])
def test_the_umask_is_respected(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_text(tmp_path / "a", "x")
        append_line(tmp_path / "b", "x")
        with atomic_write(tmp_path / "c") as temporary:
            temporary.write_text("x")
            assert temporary.stat().st_mode & 0o777 == mode
    finally:
        os.umask(before)
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in "abc"} == {mode}
