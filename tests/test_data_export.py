"""``rbctl data export``: inputs in other methods' formats, and their pictures scored."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from PIL import Image

from rbctl.cli import main
from rbctl.plugins.eval.benchmarks import load_benchmark
from rbctl.plugins.eval.case import Wanted
from rbctl.plugins.eval.sampling import prompts


def export(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["data", "export", *map(str, arguments)])


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """Prompts with one and two individuals, whose pictures are cut out: opaque in their left half."""
    for name, colour in (("rex", "red"), ("toy", "blue")):
        picture = Image.new("RGBA", (40, 40), "#00000000")
        picture.paste(colour, (0, 0, 20, 40))
        picture.save(tmp_path / f"{name}.png")
    two = "A {plush bear: toy.png} is riding a {dog: rex.png}. --box 0.25,0,0.75,0.5 --box 0,0.5,1,1 --d 7"
    (tmp_path / "two.txt").write_text(f"{two}\nA {{dog: rex.png}}'s walk. --d 8\n")
    (tmp_path / "one.txt").write_text("A photo of {dog: rex.png}, asleep. --d 8\n")
    return tmp_path


def commands(folder: Path) -> list[list[str]]:
    """What a shell would start, by its first words' options."""
    return [shlex.split(line) for line in (folder / "commands.sh").read_text().splitlines()[2:]]


def test_anydoor_gets_cut_outs_and_a_mask_of_each_place(written: Path) -> None:
    out = written / "out"
    result = export(written / "two.txt", out, "--for", "anydoor")
    assert (result.exit_code, result.output) == (0, f"{out}\n")
    (bear,) = (out / "FG").glob("plush-bear-*.png")
    assert len(list((out / "FG").iterdir())) == 2  # the dog once, of both prompts
    with Image.open(bear) as picture:
        assert picture.mode == "RGBA"
        assert picture.getpixel((5, 5)) == (0, 0, 255, 255)
        assert picture.getpixel((30, 5))[3] == 0
    with Image.open(out / "BG" / "000-0_mask.png") as mask:
        assert mask.size == (512, 512)
        assert mask.getbbox() == (128, 0, 384, 256)
    with Image.open(out / "BG" / "000_GT.png") as scene:
        assert scene.getcolors() == [(512 * 512, (255, 255, 255))]


def test_elite_gets_a_placeholder_between_spaces_and_a_mask_of_three_channels(written: Path) -> None:
    out = written / "out"
    assert export(written / "one.txt", out, "--for", "elite").exit_code == 0
    ((*_, test_data, output, template, suffix, fusing, seed),) = commands(out)
    assert (test_data, template) == ("--test_data_dir=000", "--template=A photo of S , asleep.")
    assert output == "--output_dir=outputs/000"
    with Image.open(out / "000" / "0_bg.png") as mask:
        assert mask.mode == "RGB"
        assert mask.getbbox() == (0, 0, 20, 40)
    (row,) = csv.DictReader((out / "metadata.csv").open())
    assert row["file_name"] == "outputs/000/object_l0p8/00000_00008.jpg"  # as its code names it
    assert (suffix, fusing, seed) == ("--suffix=object", "--llambda=0.8", "--seed=8")


def test_cones2_learns_each_individual_once_and_gets_a_layout(written: Path) -> None:
    out = written / "out"
    assert export(written / "two.txt", out, "--for", "cones2").exit_code == 0
    (settings,) = json.loads((out / "000.json").read_text())
    assert settings["subject_list"] == [["plush bear", 3], ["dog", 7]]
    assert settings["color_context"] == {"255,192,0": ["plush bear", 2.5], "255,0,0": ["dog", 2.5]}
    with Image.open(out / settings["layout"]) as layout:
        assert layout.getpixel((384, 100)) == (255, 192, 0)
        assert layout.getpixel((10, 700)) == (255, 0, 0)
        assert layout.getpixel((10, 100)) == (0, 0, 0)
    started = [words[0] for words in commands(out)]
    assert started == ["accelerate", "accelerate", "python", "python"]
    learned = {words[-1].removeprefix("--output_dir=") + "/residual.pt" for words in commands(out)[:2]}
    assert set(settings["residual_dict"].values()) == learned


def test_words_of_a_prompt_are_words_to_the_shell(written: Path) -> None:
    (written / "p.txt").write_text("A {dog: rex.png} \"$(touch gone)\" `$REPO` 'x'.\n")
    assert export(written / "p.txt", written / "out", "--for", "lambda_eclipse").exit_code == 0
    assert commands(written / "out")[1][2] == "--prompt=A dog \"$(touch gone)\" `$REPO` 'x'."


def test_settings_of_the_others(written: Path) -> None:
    assert export(written / "two.txt", written / "ssr", "--for", "ssr_encoder").exit_code == 0
    ssr = json.loads((written / "ssr" / "000.json").read_text())
    assert (ssr["subject_list"], ssr["prompt"]) == (["plush bear", "dog"], "A plush bear is riding a dog.")
    for image, own in zip(ssr["pil_image_list"], ("toy.png", "rex.png"), strict=True):
        assert (written / "ssr" / image).read_bytes() == (written / own).read_bytes()
    assert export(written / "one.txt", written / "blip", "--for", "blip_diffusion").exit_code == 0
    blip = json.loads((written / "blip" / "000.json").read_text())
    assert (blip["prompt"], blip["target_subject_category"]) == (["asleep."], ["dog"])


def test_what_cannot_be_exported_is_one_line(written: Path) -> None:
    (written / "same.txt").write_text("A {dog: rex.png} and a {dog: toy.png}.\n")
    (written / "none.txt").write_text("A dog.\n")
    Image.new("RGB", (8, 8)).save(written / "rex.jpg")
    (written / "whole.txt").write_text("A {dog: rex.jpg}.\n")
    for prompts_file, method, message in (
        ("two.txt", "elite", "has 2 individuals, elite takes one individual"),
        ("none.txt", "ssr_encoder", "has 0 individuals"),
        ("same.txt", "cones2", "give each its own"),
        ("one.txt", "elit", "did you mean 'elite'?"),
    ):
        result = export(written / prompts_file, written / "out", "--for", method)
        assert result.exit_code == 2, result.output
        assert message in result.output
    told = export(written / "whole.txt", written / "out", "--for", "elite")
    assert told.exit_code == 0
    assert "all of each counts as the individual" in told.output
    assert "counts" not in export(written / "whole.txt", written / "out", "--for", "ssr_encoder").output


@pytest.mark.slow
def test_pictures_of_a_method_are_scored_where_its_code_puts_them(tmp_path: Path) -> None:
    """The truth as drawn stands for what the method makes."""
    wanted = Wanted(relations=("ride",), cases=2, drawn=tmp_path / "eval" / "bench")
    cases = load_benchmark("relationbench-mini", wanted).cases
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(prompts(cases, {}, tmp_path)))
    runs = []
    for method in ("cones2", "anydoor"):
        assert export(tmp_path / "p.yaml", tmp_path / method, "--for", method).exit_code == 0
        for row, case in zip(csv.DictReader((tmp_path / method / "metadata.csv").open()), cases, strict=True):
            made = tmp_path / method / row["file_name"]
            made.parent.mkdir(parents=True, exist_ok=True)
            assert case.truth
            shutil.copy(case.truth.picture, made)
        runs += ["--run", f"{method}={tmp_path / method}"]
    asked = ["eval", "--bench", "relationbench-mini", "--relations", "ride", "--cases", "2", "--no-base", *runs]
    result = CliRunner().invoke(main, [*asked, "--output", str(tmp_path / "eval"), "--json"])
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "eval" / "scores.json").read_text())
    for method in ("cones2", "anydoor"):
        assert content["table"][method]["oracle identity"]["mean"] == 1
