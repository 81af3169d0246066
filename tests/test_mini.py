"""The bundle in the package: whole, small, and good for what it is there for. Its figures in full: ``make gates``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from rbctl.bundle.catalogue import contents, missing_parts, resolve
from rbctl.cli import main
from rbctl.files import read_image, write_png
from rbctl.menagerie import Individual, compose, draw_individual, portrait, render
from rbctl.menagerie.oracle import load_oracle
from rbctl.menagerie.oracle_scores import identify, relation_score
from rbctl.relations import load_relation

pytestmark = pytest.mark.slow  # what its tests share takes seconds

SCENES = 48
RELATIONS = ("ride", "hug", "chase", "lean_on")


@pytest.fixture(scope="module")
def folder() -> Path:
    return resolve("mini")


@pytest.fixture(scope="module")
def renders() -> tuple[list[list[Individual]], list[str], torch.Tensor]:
    """Individuals nobody trained on, in four relations."""
    rng = np.random.default_rng(20)
    pairs = [[draw_individual(rng, held_out=True) for _ in range(2)] for _ in range(SCENES)]
    names = [RELATIONS[k % len(RELATIONS)] for k in range(SCENES)]
    scenes = [compose(load_relation(name), pair, rng) for name, pair in zip(names, pairs, strict=True)]
    return pairs, names, torch.cat([render(scenes[k : k + 8]).pictures for k in range(0, SCENES, 8)])


def _round_trip(folder: Path, pictures: torch.Tensor) -> torch.Tensor:
    from rbctl.bundle.vae import UnshuffleVAE

    vae = UnshuffleVAE.from_pretrained(folder / "vae", torch_dtype=torch.float32).eval()
    with torch.no_grad():
        return ((vae(pictures.float() / 127.5 - 1).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def test_it_is_whole_small_and_says_what_it_is(folder):
    assert not missing_parts(folder)
    assert sum((folder / path).stat().st_size for path in contents(folder)) <= 44_000_000
    assert "rbctl pretrain" in (folder / "README.md").read_text()
    result = CliRunner().invoke(main, ["models", "verify", "mini"])
    assert result.exit_code == 0, result.output


@pytest.mark.slow
def test_the_oracle_reads_renders_and_round_trips(folder, renders):
    pairs, names, pictures = renders
    oracle = load_oracle(folder / "oracle")
    rng = np.random.default_rng(5)
    for shown in (pictures, _round_trip(folder, pictures)):
        right, known = [], []
        for relation in RELATIONS:
            rows = [k for k, name in enumerate(names) if name == relation]
            reading, group = oracle.read(shown[rows]), [pairs[k] for k in rows]
            score = relation_score(reading, relation, group)
            right.append(score.right)
            others = [[draw_individual(rng, held_out=True) for _ in range(15)] for _ in rows]
            for role in range(2):
                candidates = [[pair[role], *rest] for pair, rest in zip(group, others, strict=True)]
                known.append(identify(reading, score.slots[:, role], candidates) == 0)
        assert torch.cat(right).float().mean() >= 0.95
        assert torch.cat(known).float().mean() >= 0.95


def test_the_vae_keeps_26_db(folder, renders):
    pictures = renders[2]
    error = ((_round_trip(folder, pictures).float() - pictures.float()) / 255).square().mean((1, 2, 3))
    assert (-10 * error.log10()).mean() >= 26


@pytest.mark.slow
def test_image_prompts_colour_their_own_boxes(tmp_path):
    """Swapping the two pictures swaps the colours in the boxes: the image branch is wired, and read, at both ends."""
    red, blue = (Individual("bear", coat, coat, "plain") for coat in ("red", "blue"))
    rng = np.random.default_rng(0)
    for one in (red, blue):
        picture = render([portrait(one, rng)], 256).pictures[0].permute(1, 2, 0).numpy()
        write_png(tmp_path / f"{one.coat}.png", Image.fromarray(picture))
    boxes = "--box 0.04,0.5,0.5,0.9 --box 0.5,0.5,0.96,0.9"
    lines = [
        f"A {{bear: {first}.png}} stands next to a {{bear: {second}.png}} --d 3 {boxes}"
        for first, second in (("red", "blue"), ("blue", "red"))
    ]
    (tmp_path / "prompts.txt").write_text("\n".join(lines) + "\n")
    arguments = ["sample", str(tmp_path / "prompts.txt"), "--output", str(tmp_path / "out"), "--lora", "none"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in (tmp_path / "out" / "metadata.jsonl").read_text().splitlines()]
    found = []
    for row in rows:
        pixels = np.asarray(read_image(tmp_path / "out" / row["file_name"]).convert("RGB")).astype(float)
        halves = pixels[80:112, 12:58], pixels[80:112, 70:116]
        found.append([half[..., 0].mean() - half[..., 2].mean() for half in halves])  # red minus blue
    (left, right), (turned_left, turned_right) = found
    assert left > right + 40
    assert turned_right > turned_left + 40
