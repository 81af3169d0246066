"""``rbctl sample`` as a user runs it: the right files, the same pixels whatever the batch, and every bad input."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from PIL import Image

from rbctl import attention, denoising, lora, pictures
from rbctl.bundle.fingerprints import base_fingerprint, fingerprint
from rbctl.bundle.load import load
from rbctl.cli import main
from rbctl.errors import InputError
from rbctl.files import read_safetensors, write_safetensors
from rbctl.pictures import read_record
from rbctl.pipeline import RelationPipeline
from rbctl.plugins.sample import run as stage
from rbctl.plugins.sample.config import SampleConfig
from rbctl.plugins.sample.jobs import Job, described, plan
from rbctl.plugins.sample.learned import read_learned
from rbctl.prompts import parse_line, read_prompts
from rbctl.relations import load_relation
from rbctl.runs import tuned

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
    path = folder / tuned("hug", str(tiny_bundle)) / "hug.safetensors"
    lora.save(path, tensors, {"rbctl.relation": "hug", "rbctl.layout_prior": json.dumps(prior)}, 4.0)
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


def pngs(folder: Path) -> dict[str, int]:
    """The pictures in a folder, and when each was written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.png") if not path.name.startswith("grid")}


def pixels(folder: Path) -> bytes:
    """Of the first prompt's first picture."""
    return Image.open(folder / rows(folder)[0]["file_name"]).tobytes()


def planned(path: Path, bundle: Path) -> list[Job]:
    """The jobs of a prompts file without LoRAs."""
    prompts, config = read_prompts(path), SampleConfig(prompts=path, lora=("none",))
    return plan(prompts, read_learned(prompts, config), config, bundle, Path("out"))


@pytest.mark.slow
def test_six_prompts_give_the_right_files(sample: Any, place: Path, tmp_path: Path) -> None:
    result = sample("prompts.txt", "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    first, second, third, *others = made = rows(tmp_path / "out")
    assert [row["file_name"].rpartition("-")[0] for row in made] == [
        "a-cat-is-hugging-a-plush-bear-7",
        "a-dog-is-running-42",
        "a-dog-is-running-43",
        "a-cat-is-hugging-a-dog-and-a-plush-bear-42",
        "a-cat-hugs-a-dog-42",
        "a-dog-hugs-a-cat-42",
        "a-lion-and-a-polar-bear-hug-3",
    ]
    assert set(pngs(tmp_path / "out")) == {row["file_name"] for row in made}
    assert [Image.open(tmp_path / "out" / row["file_name"]).size for row in made] == [
        *[(128, 128)] * 3,
        (192, 128),
        *[(128, 128)] * 3,
    ]
    assert Image.open(tmp_path / "out" / "grid.png").width > 128
    written = os.path.relpath(place / "prompts.txt", tmp_path / "out")
    assert [row["source"] for row in made] == [f"{written}:{line}" for line in (2, 3, 3, 4, 5, 6, 7)]
    assert first["text"] == "A cat is hugging a plush bear"
    assert first["boxes_from"] == "layout prior"
    assert first["objects"][0]["box"] == pytest.approx([0.1, 0.2, 0.5, 0.8])
    assert first["relation"] == "hug"
    assert first["seed"] == 7
    assert (first["precision"], first["scheduler"]) == ("fp32", "EulerDiscreteScheduler")
    assert second["lora"] is None
    assert third["seed"] == second["seed"] + 1
    assert [row["boxes_from"] for row in others[:2]] == ["side by side", "prompt"]
    assert [thing["subject_scale"] for thing in others[2]["objects"]] == [0.4, 0.8]
    path = tmp_path / "out" / first.pop("file_name")
    start = "A cat is hugging a plush bear <lora:hug:1>\nNegative prompt: lowres\nSteps: 3, Sampler: Euler, "
    assert Image.open(path).info["parameters"].startswith(start)
    assert read_record(path) == first


@pytest.mark.slow
def test_the_same_pixels_whatever_the_batch(place: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    lines = [line.replace("--w 192 --h 128", "") for line in SIX.splitlines()[1:]]
    path = place / "same.txt"
    path.write_text("\n".join(f"{line} --lora none" for line in lines if "--images" not in line and "lion" not in line))
    prompts = read_prompts(path) + read_prompts(place / "prompts.txt")[1:2]
    config = SampleConfig(prompts=path, bundle=str(tiny_bundle), images=1)
    jobs = plan(prompts, read_learned(prompts, config), config, tiny_bundle, Path("out"))
    assert len(jobs) == 6
    assert len({job.kind for job in jobs}) == 1
    assert {len(job.request.subjects) for job in jobs} == {1, 2, 3}
    pipe = RelationPipeline.from_pretrained(tiny_bundle, device="cpu")
    together = pipe.sample([job.request for job in jobs])
    for number, job in enumerate(jobs):
        alone = pipe.sample([job.request])
        assert (alone[0] - together[number]).abs().max() / 2 < 1e-3  # in [0, 1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="memory on the GPU is what --lowvram saves")
def test_lowvram_on_a_gpu(sample: Any, tmp_path: Path) -> None:
    peaks = []
    for name, flags in (("plain", ()), ("low", ("--lowvram",))):
        torch.cuda.reset_peak_memory_stats()
        assert sample("prompts.txt", "--output", tmp_path / name, "--precision", "fp32", *flags).exit_code == 0
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] < peaks[0]
    plain, low = (np.asarray(Image.open(tmp_path / name / "grid.png"), int) for name in ("plain", "low"))
    assert np.abs(plain - low).max() <= 1


def test_lowvram_has_on_the_device_only_what_works(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every network's moves, on a made-up device: the meta device has no memory, so ours only counts."""
    bundle = load(str(tiny_bundle), torch.device("cpu"), torch.float32, lowvram=True)
    bundle.device = torch.device("meta")
    there: set[str] = set()
    for part in ("text_encoder", "text_encoder_2", "image_prompt_encoder", "unet", "vae"):

        def to(device: object, part: str = part) -> None:
            (there.discard if str(device) == "cpu" else there.add)(part)
            assert len(there) <= 2

        monkeypatch.setattr(getattr(bundle, part), "to", to)
    for wanted in (("unet",), ("text_encoder", "text_encoder_2"), ("image_prompt_encoder",), ("vae",), ("vae",)):
        bundle.place(*wanted)
        assert there == set(wanted)


@pytest.mark.slow
def test_lowvram_gives_the_same_pictures(sample: Any, tmp_path: Path) -> None:
    for name, flags in (("plain", ()), ("low", ("--lowvram",))):
        assert sample("prompts.txt", "--output", tmp_path / name, *flags).exit_code == 0
    assert pixels(tmp_path / "plain") == pixels(tmp_path / "low")


@pytest.mark.slow
def test_what_is_made_stays(sample: Any, place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert sample("prompts.txt", "--output", out).exit_code == 0
    before = pngs(out)
    cut, gone = (rows(out)[k]["file_name"] for k in (3, 5))
    (out / cut).write_bytes((out / cut).read_bytes()[:300])
    (out / gone).unlink()
    result = sample("prompts.txt", "--output", out)
    assert result.exit_code == 0, result.output
    assert "2 made, 5 were there" in result.output
    after = pngs(out)
    assert after.keys() == before.keys()
    assert {name for name in before if after[name] != before[name]} == {cut, gone}
    # another seed is another picture
    result = sample("prompts.txt", "--output", out, "--seed", "1")
    assert "5 made, 2 were there" in result.output  # two lines name their own
    assert after.items() <= pngs(out).items()


@pytest.mark.slow
def test_pictures_of_other_prompts_are_left_alone(sample: Any, tmp_path: Path) -> None:
    """Two files of one name share a folder; lines move, double and go."""
    out = tmp_path / "out"
    texts = ("A lion hugs a bear. --s 1", "A bear sleeps. --s 1", "¡! --s 1 --d 7", "A bear sleeps. --s 1 --images 2")
    made: dict[str, int] = {}
    for folder, lines, told in (
        ("a", [0], "1 made, 0 were there"),
        ("b", [1], "1 made, 0 were there"),
        ("a", [2, 0], "1 made, 1 were there"),
        ("a", [1, 0, 1, 3], "1 made, 2 were there"),
        ("b", [1], "0 made, 1 were there"),
    ):
        path = tmp_path / folder / "prompts.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(texts[line] for line in lines))
        result = sample(path, "--output", out, "--lora", "none")
        assert told in result.output, result.output
        assert made.items() <= pngs(out).items()
        made = pngs(out)
        assert [row["text"] for row in rows(out)][: len(lines)] == [texts[line].partition(" --")[0] for line in lines]
    assert len(made) == 4
    assert len(rows(out)) == 1


@pytest.mark.slow
def test_another_precision_is_another_picture(sample: Any, tmp_path: Path) -> None:
    line = tmp_path / "one.txt"
    line.write_text("A bear sleeps. --s 1 --lora none")
    for precision in ("bf16", "fp32"):
        assert "1 made" in sample(line, "--output", tmp_path / "out", "--precision", precision).output
    assert "0 made" in sample(line, "--output", tmp_path / "out", "--precision", "auto", "--device", "cpu").output
    assert rows(tmp_path / "out")[0]["precision"] == "fp32"


@pytest.mark.slow
def test_the_scheduler_of_the_bundle_is_told(tiny_bundle: Path, sample: Any, tmp_path: Path) -> None:
    other, line = tmp_path / "other", tmp_path / "one.txt"
    shutil.copytree(tiny_bundle, other)
    config = other / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "_class_name": "DDIMScheduler"}))
    line.write_text("A bear sleeps. --s 1 --lora none")
    result = sample(line, "--output", tmp_path / "out", "--bundle", other)
    assert result.exit_code == 0, result.output
    (row,) = rows(tmp_path / "out")
    assert row["scheduler"] == "DDIMScheduler"
    assert ", Sampler: DDIM, " in Image.open(tmp_path / "out" / row["file_name"]).info["parameters"]


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "mend"), [("fp16", "bf16 or fp32"), ("bf16", "fp32"), ("fp32", "--lora-weight")])
def test_a_picture_that_is_not_finite_is_not_saved(
    sample: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, mend: str
) -> None:
    noise = denoising.initial_noise

    def broken(generators: list[torch.Generator], *others: Any) -> torch.Tensor:
        return noise(generators, *others) * (torch.nan if generators[0].initial_seed() == 5 else 1)

    monkeypatch.setattr(denoising, "initial_noise", broken)
    line = tmp_path / "two.txt"
    line.write_text("A bear sleeps. --s 1\nA bear runs. --s 1 --d 5")
    arguments = (line, "--output", tmp_path / "out", "--lora", "none", "--batch-size", 1, "--precision", precision)
    refuses(sample(*arguments), f"{line}:2: ", "NaN", mend)
    assert [name.partition("-42-")[0] for name in pngs(tmp_path / "out")] == ["a-bear-sleeps"]
    monkeypatch.setattr(denoising, "initial_noise", noise)
    assert "1 made, 1 were there" in sample(*arguments).output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("A {cat: cat.png}'s friend hugs a {dog: dog.png}", ":1: cat: "),
        ("A {cat: cat.png} hugs a {dog: dog.png}; it is noon", ":1: dog: "),
        ('A "{cat: cat.png}" hugs a {dog: dog.png}', ":1: cat: "),
        (f"A {{cat: cat.png}} {'very ' * 80} hugs a {{dog: dog.png}}", ":1: dog: "),
    ],
)
def test_pseudo_masks_need_the_objects_names(sample: Any, place: Path, tmp_path: Path, text: str, told: str) -> None:
    (place / "names.txt").write_text(f"{text} --s 1 --lora none\n")
    flags = ("--quality", "best", "--pseudo-mask-step", 1)
    refuses(sample("names.txt", "--output", tmp_path / "out", *flags), f"names.txt{told}")
    assert pngs(tmp_path / "out") == {}
    assert sample("names.txt", "--output", tmp_path / "out").exit_code == 0  # the boxes need no name


def test_pseudo_masks_of_two_objects_of_one_name(place: Path, tiny_bundle: Path) -> None:
    path = place / "cats.txt"
    path.write_text("A {cat: cat.png} hugs a {cat: dog.png}")
    jobs = planned(path, tiny_bundle)
    first, second = RelationPipeline.from_pretrained(tiny_bundle, device="cpu").sampler.encoder.spans(jobs[0].request)
    assert first == (2, 3)
    assert second == (5, 6)


@pytest.mark.slow
def test_a_lora_of_another_base_is_refused(sample: Any, place: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    tensors, metadata = read_safetensors(place / "runs/finetune/hug-tiny-sdxl/hug.safetensors")
    line, path = tmp_path / "one.txt", tmp_path / "marked.safetensors"
    line.write_text("A bear sleeps. --s 1")
    arguments = (line, "--output", tmp_path / "out", "--lora", path)
    write_safetensors(path, tensors, {**metadata, "rbctl.base": base_fingerprint(tiny_bundle)})
    result = sample(*arguments)
    assert result.exit_code == 0, result.output
    write_safetensors(path, tensors, {**metadata, "rbctl.base": "0" * 64, "rbctl.local_tokens": "none"})
    refuses(sample(*arguments), f"{path}: made for another base", "--allow-other-base")
    result = sample(*arguments, "--allow-other-base")
    assert result.exit_code == 0, result.output
    assert f"{path}: trained with --local-tokens none, used with --local-tokens own\n" in result.stderr
    (row,) = rows(tmp_path / "out")
    assert row["lora_base"] == "0" * 64
    assert row["bundle_fingerprint"] == fingerprint(tiny_bundle)
    assert "trained with" not in sample(*arguments, "--allow-other-base", "--local-tokens", "none").stderr


def test_a_damaged_picture_is_told_before_anything_is_loaded(
    sample: Any, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.effect_noise((64, 64), 90).save(place / "whole.png")
    (place / "cut.png").write_bytes((place / "whole.png").read_bytes()[:2000])
    path = tmp_path / "elsewhere.txt"
    path.write_text(f"A bear sleeps.\nA {{cat: {place / 'cut.png'}}} sleeps.")
    monkeypatch.setattr(stage, "RelationPipeline", None)
    refuses(sample(path, "--lora", "none", "--output", tmp_path / "out"), f"{path}:2: cat: ", "not a readable picture")


def test_flags_have_the_limits_of_a_line(place: Path) -> None:
    limits = {field.name: field.metadata for field in dataclasses.fields(SampleConfig)}

    def line(option: str, value: float) -> bool:
        try:
            parse_line(f"a cat {option} {value}" if option != "--lora" else f"a cat --lora x:{value}", place, "here")
        except InputError:
            return False
        return True

    for name in ("seed", "images", "steps", "guidance_scale", "scale", "width", "height", "lora_weight"):
        option = "--lora" if name == "lora_weight" else f"--{name.replace('_', '-')}"
        low, high, step = limits[name]["min"], limits[name]["max"], 8 if name in ("width", "height") else 1
        taken = [line(option, value) for value in (low - step, low, high, high + step)]
        assert taken == [False, True, True, False], name


def test_a_seed_too_large_is_one_line(sample: Any, tmp_path: Path) -> None:
    result = sample("prompts.txt", "--output", tmp_path / "out", "--seed", "9" * 20)
    assert result.exit_code == 2
    assert "--seed" in result.output
    torch.Generator().manual_seed(2**63 - 10_001 + 10_000 - 1)  # the last seed of the most images


def test_the_grid_has_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Path, tiny_bundle: Path) -> None:
    monkeypatch.setattr(pictures, "PAGE", 2)
    monkeypatch.setattr(stage, "_ROW", 3)
    path = place / "many.txt"
    path.write_text("a cat --images 7\na dog\n{cat: cat.png} hugs")
    jobs = planned(path, tiny_bundle)
    for job in jobs:
        Image.new("RGB", (64, 64)).save(tmp_path / job.file_name)
    Image.new("RGB", (8, 8)).save(tmp_path / "grid-4.png")  # not ours

    def pages() -> dict[str, int]:
        return {path.name: Image.open(path).width for path in sorted(tmp_path.glob("grid*.png"))}

    stage._write_grid(tmp_path, jobs)
    assert list(pages()) == ["grid-2.png", "grid-3.png", "grid-4.png", "grid.png"]
    assert pages()["grid.png"] < 4 * 264
    stage._write_grid(tmp_path, jobs[-1:])
    assert list(pages()) == ["grid-4.png", "grid.png"]


@pytest.mark.slow
def test_the_lora_and_its_weight_change_the_picture(sample: Any, tmp_path: Path) -> None:
    line = tmp_path / "one.txt"
    shown = {}
    for name, option in (
        ("with", ""),
        ("half", "--lora runs/finetune/hug-tiny-sdxl/hug.safetensors:0.5"),
        ("base", "--lora none"),
    ):
        line.write_text(f"A lion and a polar bear hug. --s 3 {option}\n")
        result = sample(line, "--output", tmp_path / name)
        assert result.exit_code == 0, result.output
        shown[name] = pixels(tmp_path / name)
    assert len(set(shown.values())) == 3


@pytest.mark.slow
def test_the_weight_of_the_lora_that_is_found(sample: Any, real_hug: Path, tmp_path: Path) -> None:
    """From the flag, for an official configuration too, or from a YAML prompt that names no file."""
    official, own = real_hug.parent / "config" / "example_two_objects.yaml", tmp_path / "own.yaml"
    own.write_text("prompts: [{text: A lion and a polar bear hug., lora_weight: -0.5}]")
    flags = ("--lora", "runs/finetune/hug-tiny-sdxl/hug.safetensors", "--lora-weight", "-0.25", "--steps", 1)
    for arguments, weight in (
        (("--config", official, *flags), -0.25),
        ((own, "--steps", 1), -0.5),
        ((own, *flags), -0.5),
    ):
        result = sample(*arguments, "--output", tmp_path / "out")
        assert result.exit_code == 0, result.output
        assert rows(tmp_path / "out")[0]["lora_weight"] == weight


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ("--local-tokens", "none"),
        ("--local-tokens", "first_image"),
        ("--pseudo-mask-step", "2", "--quality", "best"),
        ("--quality", "draft"),
        ("--guidance-stop", "0.5"),
        ("--cache-span", "0.8"),
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
    ours, base = (pixels(tmp_path / name) for name in ("out", "plain"))
    if options[0] != "--attention":  # another backend only rounds otherwise
        assert ours != base


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variable", "options", "taken"),
    [("", (), None), ("auto", (), None), ("eager", (), "eager"), ("flash", ("--attention", "sdpa"), "sdpa")],
)
def test_the_variable_names_the_attention_backend_where_no_flag_does(
    sample: Any, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, options: Any, taken: Any
) -> None:
    compute, asked = attention.parallel_cross_attention, []

    def noted(*arguments: Any) -> torch.Tensor:
        asked.append(arguments[-1])
        return compute(*arguments)

    monkeypatch.setattr(attention, "parallel_cross_attention", noted)
    monkeypatch.setenv("RBCTL_ATTENTION", variable)
    line = place / "one.txt"
    line.write_text(SIX.splitlines()[1] + "\n")
    result = sample(line, "--output", tmp_path / "out", *options)
    assert result.exit_code == 0, result.output
    assert set(asked) == {taken}


@pytest.mark.slow
def test_the_yaml_form_is_the_txt_form(sample: Any, place: Path, tmp_path: Path) -> None:
    yaml = place / "prompts.yaml"
    yaml.write_text(
        'prompts:\n  - text: "A {cat: cat.png} is hugging a {plush bear: bear.png}"\n    seed: 7\n    steps: 3\n'
    )
    line = place / "line.txt"
    line.write_text("A {cat: cat.png} is hugging a {plush bear: bear.png} --d 7 --s 3\n")
    assert sample(yaml, "--output", tmp_path / "yaml").exit_code == 0
    assert sample(line, "--output", tmp_path / "txt").exit_code == 0
    assert pixels(tmp_path / "yaml") == pixels(tmp_path / "txt")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["example_two_objects.yaml", "example_three_objects.yaml"])
def test_the_official_configurations(sample: Any, real_hug: Path, tmp_path: Path, name: str) -> None:
    config = real_hug.parent / "config" / name
    refused = sample("--config", config, "--steps", 2, "--output", tmp_path / "no")
    assert refused.exit_code == 2  # it names a LoRA that is not there
    assert "no LoRA file lora-weights/" in refused.output
    lora_file = "runs/finetune/hug-tiny-sdxl/hug.safetensors"
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
        ("A {cat: cat.png} rides a {dog: dog.png}", "rbctl finetune --relation ride --bundle"),
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


@pytest.mark.parametrize(("name", "why"), [("flash", "no attention backend 'flash'"), ("xformers", "CUDA only")])
def test_a_variable_that_names_no_usable_backend_is_named(
    sample: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, why: str
) -> None:
    monkeypatch.setenv("RBCTL_ATTENTION", name)
    refuses(sample("prompts.txt", "--device", "cpu", "--output", tmp_path / "x"), f"RBCTL_ATTENTION={name}: ", why)


@pytest.mark.slow
def test_a_bundle_without_local_encoder_says_so(place: Path, tiny_bundle: Path, tmp_path: Path, sample: Any) -> None:
    bare = tmp_path / tiny_bundle.name  # its LoRAs are looked for by the bundle's name
    shutil.copytree(tiny_bundle, bare)
    shutil.rmtree(bare / "clipself")
    arguments = ["sample", "prompts.txt", "--bundle", str(bare), "--output", str(tmp_path / "out")]
    refuses(CliRunner().invoke(main, arguments), "--local-tokens none")
    result = CliRunner().invoke(main, [*arguments, "--local-tokens", "none"])
    assert result.exit_code == 0, result.output


@pytest.mark.slow
def test_the_bundles_own_recipe_is_taken(place: Path, tiny_bundle: Path, tmp_path: Path, sample: Any) -> None:
    bundle, line = tmp_path / "bundle", tmp_path / "one.txt"
    shutil.copytree(tiny_bundle, bundle)
    (bundle / "recipe.yaml").write_text('sample: {steps: 2, guidance_scale: 1, negative_prompt: ""}')
    line.write_text("A lion hugs a bear.")
    flags = ("--bundle", bundle, "--lora", "none", "--output", tmp_path / "out")
    result = sample(line, *flags, "--guidance-scale", 3)
    assert result.exit_code == 0, result.output
    (row,) = rows(tmp_path / "out")
    assert (row["steps"], row["guidance_scale"], row["negative_prompt"]) == (2, 3, "")


def sample_options(*arguments: object) -> dict[str, Any]:
    result = CliRunner().invoke(main, ["sample", "prompts.txt", "--dry-run", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    options: dict[str, Any] = yaml.safe_load(result.stdout)["sample"]
    return options


def test_flag_over_recipe_over_quality_over_the_bundles_own(tiny_bundle: Path, tmp_path: Path) -> None:
    keys = ("steps", "guidance_stop", "cache_span")

    def taken(*arguments: object) -> tuple[Any, ...]:
        return tuple(map(sample_options("--bundle", bundle, *arguments).get, keys))

    bundle, recipe = tmp_path / "bundle", tmp_path / "mine.yaml"
    shutil.copytree(tiny_bundle, bundle)
    assert taken() == (30, 1.0, 0.1)  # what every bundle has
    assert taken("--quality", "best") == (30, 1.0, 0)
    own = "draft: {steps: 4, cache_span: 0.5}, standard: {guidance_stop: 0.5}, best: {}"
    (bundle / "recipe.yaml").write_text(f"sample: {{steps: 20}}\nqualities: {{{own}}}")
    assert taken() == (20, 0.5, 0)
    assert taken("--quality", "draft") == (4, 1.0, 0.5)
    recipe.write_text("sample: {quality: draft, steps: 6}")
    assert taken("--recipe", recipe) == (6, 1.0, 0.5)
    assert taken("--recipe", recipe, "--cache-span", 0) == (6, 1.0, 0)
    recipe.write_text("sample: {}\nqualities: {draft: {}, standard: {cache_span: 0.7}, best: {}}")
    assert taken("--recipe", recipe) == (20, 1.0, 0.7)
    for name in ("paper", "official"):
        assert taken("--recipe", name) == (30, 1.0, 0)


@pytest.mark.parametrize(
    ("qualities", "said"),
    [
        ("draft", "qualities: draft, standard, best were expected"),
        ("{draft: {}, standard: {}}", "qualities: draft, standard, best were expected"),
        ("{draft: {}, standard: 3, best: {}}", "qualities: standard: a mapping"),
        ("{draft: {}, standard: {cache_span: 2}, best: {}}", "cache_span: 2 is not a number from 0"),
        ("{draft: {}, standard: {output: /tmp/x}, best: {}}", "output: no bundle may set this"),
        ("{draft: {}, standard: {stepz: 3}, best: {}}", "no option 'stepz'; did you mean 'steps'?"),
    ],
)
def test_wrong_qualities_of_a_bundle_are_one_line(tiny_bundle: Path, tmp_path: Path, qualities: str, said: str) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    (tmp_path / "bundle" / "recipe.yaml").write_text(f"qualities: {qualities}")
    refuses(CliRunner().invoke(main, ["sample", "p.txt", "--dry-run", "--bundle", str(tmp_path / "bundle")]), said)


def test_wrong_qualities_of_a_recipe_name_it_and_not_the_bundle(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("sample: {}\nqualities: {draft: {}, standard: {stepz: 3}, best: {}}")
    said = f"{recipe}: no option 'stepz'; did you mean 'steps'?"
    refuses(CliRunner().invoke(main, ["sample", "p.txt", "--dry-run", "--recipe", str(recipe)]), said)


def test_pseudo_masks_read_every_step() -> None:
    arguments = ["sample", "p.txt", "--dry-run", "--pseudo-mask-step", "3"]
    refuses(CliRunner().invoke(main, arguments), "--pseudo-mask-step: reads every step; add --quality best")
    assert CliRunner().invoke(main, [*arguments, "--quality", "best"]).exit_code == 0


@pytest.mark.slow
def test_a_picture_says_what_was_left_out(place: Path, tmp_path: Path, sample: Any) -> None:
    """And one with nothing left out has the fingerprint that it always had."""
    line = tmp_path / "one.txt"
    line.write_text("A lion hugs a bear.")
    for quality in ("standard", "best", "standard"):
        result = sample(line, "--lora", "none", "--steps", 2, "--quality", quality, "--output", tmp_path / "out")
        assert result.exit_code == 0, result.output
        (row,) = rows(tmp_path / "out")
        assert (row.get("cache_span"), row.get("guidance_stop")) == ((None, None) if quality == "best" else (0.1, 1.0))
    assert "0 made, 1 were there" in result.stderr  # neither took the other's place


@pytest.mark.slow
def test_the_lora_of_the_relation_that_is_named(sample: Any, tmp_path: Path) -> None:
    """Individuals by their pictures, words that say nothing of the relation: the flag alone finds LoRA and boxes."""
    line = tmp_path / "one.txt"
    line.write_text(f"A {{cat: {Path('cat.png').resolve()}}} and a {{dog: {Path('dog.png').resolve()}}} --s 1")
    result = sample(line, "--relation", "hug", "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    (row,) = rows(tmp_path / "out")
    assert (row["relation"], row["lora"], row["boxes_from"]) == (
        "hug",
        os.path.relpath("runs/finetune/hug-tiny-sdxl/hug.safetensors", tmp_path / "out"),
        "layout prior",
    )
    refuses(sample(line, "--relation", "ride", "--output", tmp_path / "out"), "rbctl finetune --relation ride")


def test_each_individual_gets_the_box_of_its_role(sample: Any, place: Path, tmp_path: Path) -> None:
    passive = tmp_path / "passive.txt"
    passive.write_text(f"The {{bear: {place}/bear.png}} is being ridden by the {{cat: {place}/cat.png}} --s 1\n")
    result = sample(passive, "--lora", "none", "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    said = "relation ride (from its words; bear mount, cat rider), base model, boxes from the relation"
    assert said in result.stderr
    rider, mount = (list(role.box) for role in load_relation("ride").roles)
    assert [entry["box"] for entry in rows(tmp_path / "out")[0]["objects"]] == [mount, rider]


def test_the_words_of_an_own_relation_are_known_from_its_run_folder_and_from_its_lora(
    place: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "juggle.yaml"
    own.write_text(
        "predicate: is juggling with\nforms: [juggles with]\nprompts: ['A {subject} is juggling with a {object}.']\n"
        "roles: [{name: juggler, box: [0, 0, 0.5, 1]}, {name: ball, box: [0.5, 0, 1, 1]}]\n"
    )
    relation = load_relation(own)
    folder = tuned("juggle", str(tiny_bundle))
    shipped_file = lora.read(place / tuned("hug", str(tiny_bundle)) / "hug.safetensors")
    content = {"rbctl.relation": "juggle", "rbctl.relation_file": json.dumps(dataclasses.asdict(relation))}
    lora.save(folder / "juggle.safetensors", shipped_file.tensors, content, 4.0)
    text = f"A {{bear: {place}/bear.png}} juggles with a {{cat: {place}/cat.png}}"
    prompts = [parse_line(text, tmp_path, "p.txt:1")]
    config = SampleConfig(prompts=Path("p.txt"), bundle=str(tiny_bundle))
    assert read_learned(prompts, config)[0].loras == ()  # nobody knows the words yet

    named = dataclasses.replace(config, lora=(str(folder / "juggle.safetensors"),))
    learned = read_learned(prompts, named)[0]
    assert learned.relation == relation
    assert learned.relation_from == "from its words"
    (folder / "relation.yaml").write_text(f"name: juggle\n{own.read_text()}")
    learned = read_learned(prompts, config)[0]
    assert [file.path for file, _ in learned.loras] == [folder / "juggle.safetensors"]
    assert learned.relation == relation
    assert "bear juggler, cat ball" in described(prompts[0], learned)


def test_three_individuals_for_two_roles_and_roles_that_are_not_told_are_said(place: Path, tiny_bundle: Path) -> None:
    config = SampleConfig(prompts=Path("p.txt"), bundle=str(tiny_bundle), lora=("none",), relation="ride")

    def said(text: str) -> str:
        prompt = parse_line(text, place, "p.txt:1")
        return described(prompt, read_learned([prompt], config)[0])

    three = said("A {cat: cat.png} is riding a {bear: bear.png} near a {dog: dog.png}")
    assert "3 individuals, but it has 2 roles: cat rider, bear mount" in three
    assert "boxes side by side" in three
    untold = said("A {cat: cat.png} and a {bear: bear.png}")
    assert "its words do not tell who is who, taken in their order: cat rider, bear mount" in untold
