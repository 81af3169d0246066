"""``rbctl sample`` as a user runs it: the right files, the same pixels whatever the batch, and every bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from rbctl import lora
from rbctl.bundle.load import load
from rbctl.cli import main
from rbctl.pictures import read_record
from rbctl.plugins.sample import run as stage
from rbctl.plugins.sample.config import SampleConfig
from rbctl.plugins.sample.jobs import Defaults, plan
from rbctl.prompts import read_prompts

SIX = """\
# one, two and three objects, two sizes, and plain text
A {cat: cat.png} is hugging a {plush bear: bear.png} --d 7 --s 3 --n "lowres"
A {dog: dog.png} is running --s 3 --lora none --images 2
A {cat: cat.png} is hugging a {dog: dog.png} and a {plush bear: bear.png} --s 3 --w 192 --h 128
A {cat: cat.png} hugs a {dog: dog.png} --s 3 --box 0,0.2,0.5,1 --box 0.5,0.2,1,1 --scale 0.9 --l 7.5
A {dog: dog.png} hugs a {cat: cat.png} --s 3 --subject-scale 0.4,0.8
A lion and a polar bear hug. --s 3 --d 3
"""


@pytest.fixture(scope="module")
def place(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures of three individuals and a relation LoRA where finetune would leave it."""
    folder = tmp_path_factory.mktemp("place")
    for name, colour in (("cat", "orange"), ("dog", "saddlebrown"), ("bear", "pink")):
        picture = Image.new("RGB", (90, 70), "white")
        picture.paste(Image.new("RGB", (40, 40), colour), (20, 15))
        picture.save(folder / f"{name}.png")
    unet = load(str(tiny_bundle), torch.device("cpu"), torch.float32, encoders=False).unet
    lora.add(unet, rank=4, alpha=4, seed=0)
    generator = torch.Generator().manual_seed(1)
    tensors = {k: torch.randn(v.shape, generator=generator) * 0.1 for k, v in lora.state(unet).items()}
    prior = {
        "roles": ["left", "right"],
        "mean": [[0.3, 0.5, 0.4, 0.6], [0.7, 0.5, 0.4, 0.6]],
        "spread": [[0.0] * 4] * 2,
    }
    path = folder / "runs" / "finetune" / "hug" / "lora.safetensors"
    lora.save(path, tensors, {"rbctl.relation": "hug", "rbctl.layout_prior": json.dumps(prior)}, 4.0, "diffusers")
    (folder / "prompts.txt").write_text(SIX)
    return folder


@pytest.fixture
def sample(place: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(place)

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(main, ["sample", "--bundle", str(tiny_bundle), *map(str, arguments)])

    return run


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def test_six_prompts_give_the_right_files(sample: Any, place: Path, tmp_path: Path) -> None:
    result = sample("prompts.txt", "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    made = {row["file_name"]: row for row in rows(tmp_path / "out")}
    assert list(made) == [
        "0001-0.png",
        "0002-0.png",
        "0002-1.png",
        "0003-0.png",
        "0004-0.png",
        "0005-0.png",
        "0006-0.png",
    ]
    sizes = {name: Image.open(tmp_path / "out" / name).size for name in made}
    assert sizes.pop("0003-0.png") == (192, 128)
    assert set(sizes.values()) == {(128, 128)}
    assert Image.open(tmp_path / "out" / "grid.png").width > 128
    first = made["0001-0.png"]
    assert first["text"] == "A cat is hugging a plush bear"
    assert first["boxes_from"] == "layout prior"
    assert first["objects"][0]["box"] == pytest.approx([0.1, 0.2, 0.5, 0.8])
    assert first["relation"] == "hug"
    assert first["seed"] == 7
    assert made["0002-0.png"]["lora"] is None
    assert made["0002-1.png"]["seed"] == made["0002-0.png"]["seed"] + 1
    assert made["0003-0.png"]["boxes_from"] == "side by side"
    assert made["0004-0.png"]["boxes_from"] == "prompt"
    assert [thing["subject_scale"] for thing in made["0005-0.png"]["objects"]] == [0.4, 0.8]
    picture = Image.open(tmp_path / "out" / "0001-0.png")
    assert picture.info["parameters"].startswith("A cat is hugging a plush bear\nNegative prompt: lowres\nSteps: 3, ")
    assert read_record(tmp_path / "out" / "0001-0.png") == {k: v for k, v in first.items() if k != "file_name"}


def test_the_same_pixels_whatever_the_batch(place: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    lines = [line.replace("--w 192 --h 128", "") for line in SIX.splitlines()[1:]]
    path = place / "same.txt"
    path.write_text("\n".join(f"{line} --lora none" for line in lines if "--images" not in line and "lion" not in line))
    prompts = read_prompts(path) + read_prompts(place / "prompts.txt")[1:2]
    config = SampleConfig(prompts=path, bundle=str(tiny_bundle), images=1)
    jobs = plan(prompts, config, Defaults(128, 0.6, "tiny", "x"), {})
    assert len(jobs) == 6
    assert len({job.kind for job in jobs}) == 1
    assert {len(job.objects) for job in jobs} == {1, 2, 3}
    bundle = load(str(tiny_bundle), torch.device("cpu"), torch.float32)
    encoder = stage.ObjectEncoder(bundle, config)
    together = stage.sample_batch(bundle, encoder, jobs, config, None)
    for number, job in enumerate(jobs):
        alone = stage.sample_batch(bundle, encoder, [job], config, None)
        assert (alone[0] - together[number]).abs().max() / 2 < 1e-3  # in [0, 1]


def test_what_is_made_stays(sample: Any, place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert sample("prompts.txt", "--output", out).exit_code == 0
    stamps = {path.name: path.stat().st_mtime_ns for path in out.glob("0*.png")}
    (out / "0003-0.png").write_bytes((out / "0003-0.png").read_bytes()[:300])  # cut short
    (out / "0005-0.png").unlink()
    result = sample("prompts.txt", "--output", out)
    assert result.exit_code == 0, result.output
    assert "2 made, 5 were there" in result.output
    changed = {n for n, stamp in stamps.items() if (out / n).stat().st_mtime_ns != stamp}
    assert changed == {"0003-0.png", "0005-0.png"}
    # another seed is another picture
    result = sample("prompts.txt", "--output", out, "--seed", "1")
    assert "5 made, 2 were there" in result.output  # two lines name their own


def test_the_lora_and_its_weight_change_the_picture(sample: Any, tmp_path: Path) -> None:
    line = tmp_path / "one.txt"
    shown = {}
    for name, option in (
        ("with", ""),
        ("half", "--lora runs/finetune/hug/lora.safetensors:0.5"),
        ("base", "--lora none"),
    ):
        line.write_text(f"A lion and a polar bear hug. --s 3 {option}\n")
        result = sample(line, "--output", tmp_path / name)
        assert result.exit_code == 0, result.output
        shown[name] = (tmp_path / name / "0001-0.png").read_bytes()
    assert len(set(shown.values())) == 3


@pytest.mark.parametrize(
    "options",
    [
        ("--local-tokens", "none"),
        ("--local-tokens", "first_image"),
        ("--pseudo-mask-step", "2"),
        ("--guidance-scale", "1"),
        ("--attention", "eager"),
        ("--precision", "bf16"),
    ],
)
def test_options(sample: Any, place: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    line = place / "one.txt"
    line.write_text(SIX.splitlines()[1].replace("--s 3", "--s 4") + "\n")
    plain = sample(line, "--output", tmp_path / "plain")
    assert plain.exit_code == 0, plain.output
    result = sample(line, "--output", tmp_path / "out", *options)
    assert result.exit_code == 0, result.output
    ours, base = (Image.open(tmp_path / name / "0001-0.png").tobytes() for name in ("out", "plain"))
    if options[0] != "--attention":  # another backend only rounds otherwise
        assert ours != base


def test_the_yaml_form_is_the_txt_form(sample: Any, place: Path, tmp_path: Path) -> None:
    yaml = place / "prompts.yaml"
    yaml.write_text(
        'prompts:\n  - text: "A {cat: cat.png} is hugging a {plush bear: bear.png}"\n    seed: 7\n    steps: 3\n'
    )
    line = place / "line.txt"
    line.write_text("A {cat: cat.png} is hugging a {plush bear: bear.png} --d 7 --s 3\n")
    assert sample(yaml, "--output", tmp_path / "yaml").exit_code == 0
    assert sample(line, "--output", tmp_path / "txt").exit_code == 0
    pixels = [Image.open(tmp_path / name / "0001-0.png").tobytes() for name in ("yaml", "txt")]
    assert pixels[0] == pixels[1]


@pytest.mark.parametrize("name", ["example_two_objects.yaml", "example_three_objects.yaml"])
def test_the_official_configurations(sample: Any, real_hug: Path, tmp_path: Path, name: str) -> None:
    config = real_hug.parent / "config" / name
    refused = sample("--config", config, "--steps", 2, "--output", tmp_path / "no")
    assert refused.exit_code == 2  # it names a LoRA that is not there
    assert "no LoRA file lora-weights/" in refused.output
    lora_file = "runs/finetune/hug/lora.safetensors"
    result = sample("--config", config, "--steps", 2, "--lora", lora_file, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    (row,) = rows(tmp_path / "out")
    assert row["boxes_from"] == "prompt"
    assert len(row["objects"]) == (2 if "two" in name else 3)


def refuses(result: Result, *told: str) -> None:
    assert result.exit_code == 2, result.output
    errors = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, result.output
    assert result.output.rstrip().endswith(errors[0])
    for words in told:
        assert words in errors[0]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("A {cat: nowhere.png} hugs.", "bad.txt:2: cat: no picture"),
        ("A {cat: cat.png} hugs a {dog: dog.png} --box 0,0,1.2,1 --box 0,0,1,1", "bad.txt:2"),
        ("A {cat: cat.png} hugs --box 0.5,0,0.5,1", "bad.txt:2"),
        ("A {cat: cat.png} hugs --relation huug", "did you mean 'hug'"),
        ("A {cat: cat.png} hugs --stepz 3", "bad.txt:2"),
        ("A {cat: broken.png} hugs", "not a readable picture"),
        ("A {cat: cat.png} rides a {dog: dog.png}", "rbctl finetune --relation ride"),
        ("A {cat: cat.png} hugs --lora nowhere.safetensors", "no LoRA file nowhere.safetensors"),
        ("A {cat: cat.png} hugs --lora cat.png", "not a readable safetensors file"),
    ],
)
def test_bad_prompts_are_told_by_line(sample: Any, place: Path, tmp_path: Path, line: str, told: str) -> None:
    (place / "broken.png").write_bytes((place / "cat.png").read_bytes()[:20])
    (place / "bad.txt").write_text(f"A {{dog: dog.png}} runs --lora none\n{line}\n")
    refuses(sample("bad.txt", "--output", tmp_path / "out"), told)
    assert not (tmp_path / "out").exists()


def test_bad_options_are_one_line(sample: Any, place: Path, tmp_path: Path) -> None:
    refuses(sample(), "PROMPTS")
    refuses(sample("nowhere.txt"), "no such file")
    refuses(sample("prompts.txt", "--width", "130"), "multiple of 8")
    refuses(sample("prompts.txt", "--stepz", "3"), "--steps")
    refuses(sample("prompts.txt", "--attention", "xformers", "--device", "cpu", "--output", tmp_path / "x"), "CUDA")


def test_a_bundle_without_local_encoder_says_so(place: Path, tiny_bundle: Path, tmp_path: Path, sample: Any) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(tiny_bundle, bare)
    shutil.rmtree(bare / "clipself")
    arguments = ["sample", "prompts.txt", "--bundle", str(bare), "--output", str(tmp_path / "out")]
    refuses(CliRunner().invoke(main, arguments), "--local-tokens none")
    result = CliRunner().invoke(main, [*arguments, "--local-tokens", "none"])
    assert result.exit_code == 0, result.output
