"""``rbctl data export --to``: training sets of edit models, and the way back."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from commands import call, refused
from PIL import Image, ImageCms
from training_sets import EVERY, GOLDENS, TRAINED, listing, tiny_set
from triplet_sets import lines, write_lines

from rbctl.instructions import instruct
from rbctl.plugins.data.trainers.instruction import places, read_instruction
from rbctl.triplets import data_hash, load
from rbctl.triplets.raw import read_raw

WITH_REFERENCES = [(trainer, base) for trainer, base in EVERY if trainer != "civitai"]


def export(*arguments: object) -> None:
    result = call("data", "export", *arguments)
    assert result.exit_code == 0, result.output


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_set(tmp_path_factory.mktemp("tiny") / "set")


@pytest.mark.parametrize(("trainer", "base"), EVERY)
def test_a_trainer_gets_its_layout(tiny: Path, tmp_path: Path, trainer: str, base: str) -> None:
    export(tiny, tmp_path / "out", "--to", trainer, "--base", base)
    assert listing(tmp_path / "out") == (GOLDENS / f"{trainer}-{base}.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize(("trainer", "base"), EVERY)
def test_an_export_holds_the_whole_set(tiny: Path, tmp_path: Path, trainer: str, base: str) -> None:
    export(tiny, tmp_path / "out", "--to", trainer, "--base", base)
    assert data_hash(load(tmp_path / "out")) == data_hash(load(tiny))


@pytest.mark.slow
@pytest.mark.parametrize("trainer", TRAINED)
def test_import_brings_back_the_same_set(tiny: Path, tmp_path: Path, trainer: str) -> None:
    export(tiny, tmp_path / "out", "--to", trainer)
    result = call("data", "import", tmp_path / "out", tmp_path / "back")
    assert result.exit_code == 0
    assert data_hash(load(tmp_path / "back")) == data_hash(load(tiny))


@pytest.mark.parametrize(("trainer", "base"), WITH_REFERENCES)
def test_without_our_table_pictures_and_roles_come_back(tiny: Path, tmp_path: Path, trainer: str, base: str) -> None:
    out, back = tmp_path / "out", tmp_path / "back"
    export(tiny, out, "--to", trainer, "--base", base)
    (out / "triplets.jsonl").unlink()
    result = call("data", "import", out, back)
    assert result.exit_code == 0
    assert f"rbctl annotate {back}" in result.stderr
    raw, whole = {triplet.id: triplet for triplet in read_raw(back)}, load(tiny)
    assert sorted(raw) == ["000", "001", "002", "003", "004"]
    for number, triplet in enumerate(whole):
        found = raw[f"00{number}"]
        assert found.target.read_bytes() == triplet.target.read_bytes()
        told = {entry.image.read_bytes(): (entry.name.removeprefix("sleepy "), entry.role) for entry in found.objects}
        # Of two that may change places, the first reference is the first role.
        order = [1, 0] if number == 1 else range(len(triplet.objects))
        roles = [entry.role for entry in triplet.objects]
        assert told == {
            triplet.objects[k].image.read_bytes(): (triplet.objects[k].name, role)
            for k, role in zip(order, roles, strict=True)
        }


@pytest.mark.slow
def test_datasets_reads_the_columns_of_diffusers(tiny: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="diffusers reads by it: pip install datasets")
    export(tiny, tmp_path / "out", "--to", "diffusers")
    rows = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "out/data"), cache_dir=str(tmp_path / "cache"))
    train = rows["train"]
    assert train.column_names == ["image", "condition", "text"]
    assert train["text"][0] == "The red cat of the left panel is hugging the blue bear of the right panel."
    # Both pictures of a row: the target, and its two references side by side.
    assert train[0]["image"].getpixel((0, 0)) == (0, 90, 30)
    assert [train[0]["condition"].getpixel((x, 12)) for x in (8, 24)] == [(10, 0, 200), (70, 0, 200)]


def test_a_reference_is_who_its_caption_says(tiny: Path, tmp_path: Path) -> None:
    export(tiny, tmp_path / "out", "--to", "ai-toolkit")
    for number, triplet in enumerate(load(tiny)):
        caption = (tmp_path / f"out/targets/00{number}.txt").read_text()
        _, mentions = read_instruction(caption)
        pictures = {entry.name: entry.image.read_bytes() for entry in triplet.objects}
        for mention in mentions:
            reference = tmp_path / f"out/references/{mention.reference + 1}/00{number}.png"
            assert reference.read_bytes() == pictures[mention.name.removeprefix("sleepy ")]


def test_only_those_who_may_change_places_do(tmp_path: Path) -> None:
    hugs = [(f"A cat is hugging a {name}.", [("cat", "left"), (name, "right")]) for name in ("dog", "hen", "owl")]
    rides = [(f"A cat is riding a {name}.", [("cat", "rider"), (name, "mount")]) for name in ("dog", "hen", "owl")]
    carries = [
        (f"A cat and a {name} are carrying together a pig.", [("cat", "left"), (name, "right"), ("pig", "load")])
        for name in ("dog", "hen", "owl")
    ]
    for kind, texts, turned in (("hug", hugs, 2), ("ride", rides, 1), ("carry", carries, 2)):
        export(tiny_set(tmp_path / kind, texts), "--to", "musubi")
        captions = [path.read_text() for path in sorted((tmp_path / f"{kind}-musubi/targets").glob("*.txt"))]
        assert [f"cat of image {1 if k % 2 == 0 or turned == 1 else 2}" in c for k, c in enumerate(captions)] == [
            True
        ] * 3
    assert all("pig of image 3" in caption for caption in captions)


def test_samples_show_pairs_that_no_training_saw(tmp_path: Path) -> None:
    rides = [
        (f"A {rider} is riding a {mount}.", [(rider, "rider"), (mount, "mount")])
        for rider, mount in (("cat", "dog"), ("hen", "cow"), ("pig", "ox"))
    ]
    export(tiny_set(tmp_path / "ride", rides), tmp_path / "out", "--to", "ai-toolkit")
    config = yaml.safe_load((tmp_path / "out/config.yaml").read_text())
    (process,) = config["config"]["process"]
    assert process["sample"]["samples"][0] == {
        "prompt": "The cat of image 1 is riding the cow of image 2.",
        "ctrl_img_1": "references/1/000.png",
        "ctrl_img_2": "references/2/001.png",
    }
    assert all((tmp_path / "out" / s[f"ctrl_img_{k}"]).is_file() for s in process["sample"]["samples"] for k in (1, 2))


def test_a_relation_of_ones_own_gives_roles_and_words(tmp_path: Path) -> None:
    (tmp_path / "greet.yaml").write_text(
        "name: greet\npredicate: is greeting\nsymmetric: true\nprompts: ['A {subject} is greeting a {object}.']\n"
        "roles:\n  - {name: one, box: [0, 0, 0.5, 1]}\n  - {name: other, box: [0.5, 0, 1, 1]}\n"
    )
    texts = [("Two greet.", [("cat", "one"), ("dog", "other")]), ("Both greet.", [("hen", "one"), ("ox", "other")])]
    source = tiny_set(tmp_path / "set", texts)
    told = refused(call("data", "export", source, "--to", "musubi"), "triplet 0", "'cat' and 'dog'", "--relation")
    assert told.count("\n") == 1
    assert not (tmp_path / "set-musubi/targets").exists()
    export(source, "--to", "musubi", "--relation", tmp_path / "greet.yaml")
    captions = [path.read_text() for path in sorted((tmp_path / "set-musubi/targets").glob("*.txt"))]
    assert captions == [
        "The cat of image 1 is greeting the dog of image 2.",
        "The hen of image 2 is greeting the ox of image 1.",
    ]


@pytest.mark.parametrize(
    ("text", "names", "caption"),
    [
        ("A red cat hugs a cat.", ["cat", "red cat"], "The red cat of image 2 hugs the cat of image 1."),
        ("A cat and a cat hug.", ["cat", "cat"], "The cat of image 1 and the cat of image 2 hug."),
        ("my cat rides Tom", ["cat", "Tom"], "my cat of image 1 rides Tom of image 2"),
        ("Tom rides a cat", ["Tom", "cat"], "Tom of image 1 rides the cat of image 2"),
        ("Cat rides Tom", ["cat", "Tom"], "The cat of image 1 rides Tom of image 2"),
        ("red cat, blue dog", ["red cat", "blue dog"], "The red cat of image 1, the blue dog of image 2"),
        ("In snow, an old fox hugs a very old ox.", ["fox", "ox"], None),
        ("Two cats hug.", ["cat", "cat"], False),
        ("Ein Bär reitet.", ["Bär"], "Ein Bär of image 1 reitet."),
    ],
)
def test_a_text_becomes_an_instruction(text: str, names: list[str], caption: str | bool | None) -> None:
    made = instruct(text, names, places("image", len(names)))
    if caption is None:
        caption = "In snow, the old fox of image 1 hugs the very old ox of image 2."
    assert made == (caption or None)


@pytest.mark.parametrize("wording", ["image", "Picture", "panel"])
@pytest.mark.parametrize("names", [["lion"], ["bird of prey", "polar bear"], ["cat", "Tom", "old owl"]])
def test_an_instruction_is_read_back(wording: str, names: list[str]) -> None:
    text = " and ".join(name if name[0].isupper() else f"the {name}" for name in names) + " dance at night."
    caption = instruct(text, names[::-1], places(wording, len(names))[::-1])
    assert caption is not None
    read, mentions = read_instruction(caption)
    assert read == text
    assert [(mention.name, mention.reference) for mention in mentions] == list(zip(names, range(3), strict=False))


@pytest.mark.parametrize("trainer", ["ai-toolkit", "musubi", "simpletuner"])
def test_what_programs_read_differently_is_converted_and_kept(tmp_path: Path, trainer: str) -> None:
    source = tiny_set(tmp_path / "set")
    rows = lines(source / "metadata.jsonl")
    turned = Image.new("RGB", (24, 32), "red")
    turned.paste("blue", (0, 0, 24, 16))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    turned.save(source / "0.jpg", exif=exif, quality=95)
    cut_out = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    cut_out.paste("red", (0, 0, 8, 16))
    cut_out.save(source / "images/0-0.png")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.new("RGB", (16, 16), "green").save(source / "images/0-1.png", icc_profile=profile)
    rows[0]["file_name"] = "0.jpg"
    write_lines(source / "metadata.jsonl", rows)
    export(source, tmp_path / "out", "--to", trainer)
    assert data_hash(load(tmp_path / "out")) == data_hash(load(source))
    kept = {path.name for path in (tmp_path / "out/originals").glob("000*") if "mask" not in path.name}
    assert kept == {"000.jpg", "000-0.png", "000-1.png"}
    (target,) = (path for path in (tmp_path / "out").rglob("targets/000.png"))
    with Image.open(target) as picture:
        assert (picture.size, picture.mode) == ((32, 24), "RGB")
        assert picture.getpixel((31, 12))[2] > 200  # blue was above, and is on the right
    pattern = {"ai-toolkit": "1/000.png", "musubi": "000_0.png", "simpletuner": "references-1/000.png"}[trainer]
    (reference,) = (tmp_path / "out").rglob(pattern)
    with Image.open(reference) as picture:
        assert [picture.getpixel((x, 8)) for x in (2, 12)] == [(255, 0, 0), (255, 255, 255)]


def test_simpletuner_gets_the_same_suffix_in_every_set(tmp_path: Path) -> None:
    source = tiny_set(tmp_path / "set", suffix=".jpg")
    for flag, suffix in (("--masks", ".png"), ("--no-masks", ".jpg")):
        out = tmp_path / flag
        export(source, out, "--to", "simpletuner", flag)
        pictures = [path for path in out.glob("of-*/*/*") if path.suffix != ".txt"]
        assert {path.suffix for path in pictures} == {suffix}
        assert data_hash(load(out)) == data_hash(load(source))


def test_the_loss_counts_on_the_individuals(tiny: Path, tmp_path: Path) -> None:
    export(tiny, tmp_path / "out", "--to", "ai-toolkit")
    with Image.open(tmp_path / "out/masks/000.png") as mask:
        white = np.asarray(mask) == 255
    assert white.shape == (24, 32)
    assert white[6:].all()  # the cat's mask, and the box of the bear, who has none
    assert not white[:6].any()
    export(tiny, tmp_path / "none", "--to", "ai-toolkit", "--no-masks")
    assert not (tmp_path / "none/masks").exists()
    assert "mask_path" not in (tmp_path / "none/config.yaml").read_text()


def test_the_archive_is_the_same_at_every_run(tiny: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        export(tiny, tmp_path / name, "--to", "civitai")
    assert (tmp_path / "a/upload.zip").read_bytes() == (tmp_path / "b/upload.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a/upload.zip") as archive:
        assert archive.read("000.png") == (tmp_path / "a/targets/000.png").read_bytes()


def test_a_whole_export_stays_as_it_is_and_a_torn_one_is_ended(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(tiny, out, "--to", "musubi")
    before = listing(out)
    (out / "triplets.jsonl").unlink()  # what is written last
    (out / "targets/001.png").unlink()
    (out / "dataset.toml").write_text("torn")
    export(tiny, out, "--to", "musubi")
    assert listing(out) == before
    (out / "dataset.toml").write_text("# mine\n")
    (out / "cache").mkdir()
    (out / "cache/000.safetensors").touch()
    export(tiny, out, "--to", "musubi")
    assert (out / "dataset.toml").read_text() == "# mine\n"


def test_another_folder_is_never_written_over(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(tiny, out, "--to", "musubi")
    refused(call("data", "export", tiny, out, "--to", "musubi", "--base", "flux-kontext"), "another export lies here")
    refused(call("data", "export", tiny, out, "--to", "ai-toolkit"), "another export lies here")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/novel.txt").write_text("Once")
    refused(call("data", "export", tiny, tmp_path / "mine", "--to", "musubi"), "mine: holds novel.txt; choose a folder")
    assert os.listdir(tmp_path / "mine") in (["novel.txt"], [".lock", "novel.txt"], ["novel.txt", ".lock"])
    refused(call("data", "export", tiny, tiny, "--to", "musubi"), "is the source itself")


def test_names_and_paths_of_any_kind(tmp_path: Path) -> None:
    names = ["a b", "ü/x", "ü~1x", "-rf"]
    source = tiny_set(
        tmp_path / "my set ü", [(f"A Bär-{k} hugs a Ёж.", [(f"Bär-{k}", "left"), ("Ёж", "right")]) for k in range(4)]
    )
    rows = lines(source / "metadata.jsonl")
    (source / "ü").mkdir()
    for row, name in zip(rows, names, strict=True):
        (source / row["file_name"]).rename(source / f"{name}.png")
        row["file_name"] = f"{name}.png"
    write_lines(source / "metadata.jsonl", rows)
    result = call("data", "export", source, "--to", "diffsynth")
    assert result.exit_code == 0, result.output
    out = tmp_path / "my set ü-diffsynth"
    assert f"sh '{out}/train.sh'" in result.stderr
    (out / "metadata.json").read_text(encoding="ascii")
    assert data_hash(load(out)) == data_hash(load(source))


def test_what_cannot_be_exported_is_told_in_a_line(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused(call("data", "export", tiny, out), "--to TRAINER", "--for METHOD")
    refused(call("data", "export", tiny, out, "--to", "musubi", "--for", "elite"), "--to TRAINER")
    refused(call("data", "export", tiny, out, "--to", "musuby"), "--to musuby: unknown; did you mean 'musubi'?")
    refused(
        call("data", "export", tiny, out, "--to", "musubi", "--base", "sdxl"), "--base sdxl: unknown", "flux2-klein"
    )
    told = refused(call("data", "export", tiny, out, "--to", "diffusers", "--base", "qwen-image-edit"))
    assert "diffusers does not train it; it trains flux2-klein, flux-kontext" in told
    refused(call("data", "export", tmp_path / "none", out, "--to", "musubi"), "no such folder of triplets")
    four = [("A cat, a dog, a hen and an owl dance.", [(name, f"r{name}") for name in ("cat", "dog", "hen", "owl")])]
    refused(call("data", "export", tiny_set(tmp_path / "four", four), out, "--to", "musubi"), "has 4 individuals")
    torn = shutil.copytree(tiny, tmp_path / "torn")
    (torn / "images/0-0.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    refused(call("data", "export", torn, out, "--to", "musubi"), "images/0-0.png", "picture")
    (torn / "images/0-0.png").unlink()
    refused(call("data", "export", torn, out, "--to", "musubi"), "metadata.jsonl:1", "no such file")


def test_a_trainers_own_folder_is_checked_before_it_is_imported(tiny: Path, tmp_path: Path) -> None:
    back, secret = tmp_path / "back", tmp_path / "secret.png"
    Image.new("RGB", (8, 8)).save(secret)
    out = tmp_path / "diffsynth"
    export(tiny, out, "--to", "diffsynth")
    (out / "triplets.jsonl").unlink()
    rows = json.loads((out / "metadata.json").read_text())
    for key, value, told in (
        ("image", "../secret.png", "leaves the folder"),
        ("image", "train.sh", "not a readable picture"),
        ("image", "none.png", "none.png"),
        ("prompt", "Two hug.", "does not say who is in each of 2 references"),
        ("prompt", "The cat of image 1 hugs the dog of image 3.", "does not say who"),
        ("prompt", 3, "rows[0].prompt"),
    ):
        (out / "metadata.json").write_text(json.dumps([{**rows[0], key: value}]))
        refused(call("data", "import", out, back), told)
    out = tmp_path / "musubi"
    export(tiny, out, "--to", "musubi")
    (out / "triplets.jsonl").unlink()
    (out / "references/000_1.png").unlink()
    (out / "references/000_1.png").symlink_to(secret)
    refused(call("data", "import", out, back), "is a link that leaves the folder")
    out = tmp_path / "kontext"
    export(tiny, out, "--to", "musubi", "--base", "flux-kontext")
    (out / "triplets.jsonl").unlink()
    shutil.rmtree(out / "originals")
    refused(call("data", "import", out, back), "originals/000-0 is missing")
    out = tmp_path / "civitai"
    export(tiny, out, "--to", "civitai")
    (out / "triplets.jsonl").unlink()
    refused(call("data", "import", out, back), "no pictures of the individuals")
