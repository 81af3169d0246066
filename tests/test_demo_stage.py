"""``rbctl demo``: one command from nothing to the grid; and the shipped examples are what it would draw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from rbctl.cli import main
from rbctl.files import read_image, read_jsonl
from rbctl.lora import read
from rbctl.pictures import read_record
from rbctl.plugins.demo import examples
from rbctl.prompts import check_pictures, read_prompts
from rbctl.relations import load_relation, shipped
from rbctl.roles import find_relation
from rbctl.triplets import load

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "recipes" / "examples"


def demo(bundle: Path, output: Path, *flags: Any) -> Result:
    steps = ("--steps", 2, "--sampling-steps", 2, "--pairs", 2)
    arguments = ["demo", "--bundle", bundle, "--output", output, *steps, *flags]
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def made(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("demo") / "demo"
    return folder, demo(tiny_bundle, folder)


@pytest.mark.slow
def test_the_grid_is_made_and_its_path_told_last(made: tuple[Path, Result]) -> None:
    folder, result = made
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == str(folder / "demo.png")
    sheet = read_image(folder / "demo.png")
    assert (sheet.width - 8) // (examples.SIZE + 8) == 5
    assert sheet.height // (examples.SIZE + 8) == 2
    # the first cell is the first individual's picture, the second row's base picture is the base model's
    first = read_jsonl(folder / "base" / "metadata.jsonl")[0]["objects"][0]["image"]
    assert np.array_equal(np.asarray(sheet)[8:264, 8:264], np.asarray(read_image(folder / "base" / first)))


@pytest.mark.slow
def test_one_two_and_three_individuals_are_shown(made: tuple[Path, Result]) -> None:
    rows = read_jsonl(made[0] / "one_two_three" / "metadata.jsonl")
    assert [len(row["objects"]) for row in rows] == [1, 2, 3]
    assert (made[0] / "one_two_three" / "grid.png").is_file()


@pytest.mark.slow
def test_every_stage_did_its_part(made: tuple[Path, Result]) -> None:
    folder, _ = made
    assert len(load(folder / "lora" / "triplets")) == 6
    assert read(folder / "lora" / "ride.safetensors").metadata["rbctl.relation"] == "ride"
    base, relation = (
        [read_record(path) for path in sorted((folder / n).glob("a-*.png"))] for n in ("base", "relation")
    )
    assert len(base) == len(relation) == 2
    for a, b in zip(base, relation, strict=True):
        assert (a["lora_weight"], b["lora_weight"]) == (0, 1)
        assert a["objects"] == b["objects"]  # the same individuals in the same boxes
        assert a["seed"] == b["seed"]
        assert a["boxes_from"] == "layout prior"


@pytest.mark.slow
def test_the_same_command_again_makes_nothing_anew(made: tuple[Path, Result], tiny_bundle: Path) -> None:
    folder, _ = made
    before = (folder / "demo.png").read_bytes()
    result = demo(tiny_bundle, folder)
    assert result.exit_code == 0, result.output
    assert result.stderr.count("0 made, 2 were there") == 2
    assert (folder / "demo.png").read_bytes() == before


def test_what_cannot_be_shown_is_one_line(tiny_bundle: Path, tmp_path: Path) -> None:
    for flags, told in (
        (("--relation", "kiss"), "cannot be drawn"),
        (("--relation", "ridee"), "did you mean 'ride'"),
        (("--bundle", "nowhere"), "nowhere: no such bundle"),
    ):
        result = demo(tiny_bundle, tmp_path / "out", *flags)
        assert result.exit_code == 2
        assert told in result.stderr
        assert len(result.stderr.splitlines()) == 1
        assert not (tmp_path / "out").exists()


def test_the_examples_are_ready_to_use() -> None:
    prompts = read_prompts(EXAMPLES / "prompts.txt")
    check_pictures(prompts)
    relations = [load_relation(name) for name in shipped()]
    assert len(prompts) == 8
    assert {find_relation(prompt.text, relations).name for prompt in prompts} == {"ride"}
    pairs = {tuple(thing.image for thing in prompt.objects) for prompt in prompts}
    assert len(pairs) == 8
    everyone = {image for pair in pairs for image in pair}
    assert len(everyone) == 8
    assert all(read_image(image).size == (256, 256) for image in everyone)
    assert sum(path.stat().st_size for path in EXAMPLES.rglob("*.png")) < 300_000


def test_the_examples_are_what_the_world_draws(tmp_path: Path) -> None:
    """If the drawing was changed on purpose: python -m rbctl.plugins.demo.examples recipes/examples"""
    examples.write(tmp_path, load_relation("ride"))
    assert all(one.held_out for one in examples.individuals(8, 0))
    for name in ("prompts.txt", "one_two_three.txt"):
        assert (tmp_path / name).read_text() == (EXAMPLES / name).read_text()
    names = {path.name for path in (EXAMPLES / "pictures").iterdir()}
    assert names == {path.name for path in (tmp_path / "pictures").iterdir()}
    for name in names:
        ours, theirs = (np.asarray(read_image(f / "pictures" / name), float) for f in (tmp_path, EXAMPLES))
        assert np.abs(ours - theirs).mean() < 2, name


def test_the_first_pairs_share_nobody() -> None:
    groups = examples.groups(8, 2, 0)
    assert len({one for group in groups[:4] for one in group}) == 8
    assert len({tuple(group) for group in groups}) == 8
    assert all(a != b for a, b in groups)
