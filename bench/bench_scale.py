"""Ten times the items in one go, against ten goes of the items: the ratio is 1 where the time per item stays the same.

A time that grows with the square would give ratios far below it. What a go costs once gives a little more than 1.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rbctl.bundle.catalogue import resolve
from rbctl.menagerie.triplets import draw_triplets
from rbctl.plugins.data.export import export
from rbctl.plugins.generate.candidates import Candidate
from rbctl.plugins.generate.painting import paint_set
from rbctl.plugins.sample.config import SampleConfig
from rbctl.plugins.sample.jobs import described, plan
from rbctl.plugins.sample.learned import read_learned
from rbctl.prompts import check_pictures, read_prompts
from rbctl.relations import load_relation, shipped
from rbctl.triplets import load
from rbctl.triplets.check import check
from rbctl.triplets.contact_sheet import contact_sheet
from rbctl.triplets.fix import fix
from rbctl.triplets.folder import METADATA, write
from rbctl.triplets.raw import read_raw

TIMES = 10
SMALL = {"prompts": 20, "triplets": 2, "painted": 10}  # items of one go


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts and triplets, few and ten times as many, all from two drawn triplets."""
    folder = tmp_path_factory.mktemp("scale")
    draw_triplets(load_relation("hug"), 2, 0, folder / "drawn", size=64)
    rows = [json.loads(line) for line in (folder / "drawn" / METADATA).read_text().splitlines()]
    for times in (1, TIMES):
        _write_triplets(folder / "drawn", rows, folder / f"triplets-{times}", SMALL["triplets"] * times)
        lines = _lines(rows, SMALL["prompts"] * times)
        (folder / "drawn" / f"prompts-{times}.txt").write_text("\n".join(lines))
    return folder


def _write_triplets(drawn: Path, rows: Sequence[Any], folder: Path, count: int) -> None:
    """Copies of the drawn triplets, each with pictures of its own name."""

    def copy(name: str, number: int) -> str:
        place = Path(name).with_name(f"{number}-{Path(name).name}")
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(drawn / name, folder / place)
        return place.as_posix()

    copies = []
    for number in range(count):
        row = rows[number % len(rows)]
        objects = [{**o, **{key: copy(o[key], number) for key in ("image", "mask")}} for o in row["objects"]]
        copies.append({**row, "file_name": copy(row["file_name"], number), "objects": objects})
    (folder / METADATA).write_text("".join(json.dumps(row) + "\n" for row in copies))


def _lines(rows: Sequence[Any], count: int) -> Iterator[str]:
    """Prompts of all shipped relations in turn."""
    images = [entry["image"] for row in rows for entry in row["objects"]]
    relations = [load_relation(name) for name in shipped()]
    for number in range(count):
        relation = relations[number % len(relations)]
        marks = [f"a {{animal {k}: {images[k % len(images)]}}}" for k in range(len(relation.roles))]
        yield f"{marks[0]} {relation.predicate} {' and '.join(marks[1:])}, scene {number}"


@pytest.fixture
def scale(compare: Callable[..., Any], tmp_path: Path) -> Callable[[str, Callable[[int, Path], Any]], None]:
    """``scale(name, work)``: ``work`` takes the number of times and an empty folder."""

    def run(name: str, work: Callable[[int, Path], Any]) -> None:
        def go(times: int) -> None:
            with tempfile.TemporaryDirectory(dir=tmp_path) as made:
                work(times, Path(made))

        go(1)
        compare(
            f"scale, {name}, {TIMES} goes / {TIMES} times the items in one",
            lambda: go(TIMES),
            lambda: [go(1) for _ in range(TIMES)],
            rounds=1,
            warm_up=0,
        )

    return run


def test_planning(folder: Path, scale: Any) -> None:
    bundle = resolve("mini")

    def work(times: int, made: Path) -> None:
        config = SampleConfig(prompts=folder / "drawn" / f"prompts-{times}.txt", lora=("none",))
        prompts = read_prompts(config.prompts)
        check_pictures(prompts)
        learned = read_learned(prompts, config)
        said = [described(prompt, own) for prompt, own in zip(prompts, learned, strict=True)]
        assert len(plan(prompts, learned, config, bundle, made)) == len(said) == SMALL["prompts"] * times

    scale("planning of prompts", work)


def test_check(folder: Path, scale: Any) -> None:
    scale("data check", lambda times, _: check(folder / f"triplets-{times}", resolution=128))


def test_fix(folder: Path, scale: Any) -> None:
    scale("data fix", lambda times, made: fix(load(folder / f"triplets-{times}"), made))


def test_import(folder: Path, scale: Any) -> None:
    scale("data import", lambda times, made: write(load(folder / f"triplets-{times}"), made))


def test_show(folder: Path, scale: Any) -> None:
    def work(times: int, made: Path) -> None:
        contact_sheet(load(folder / f"triplets-{times}")[:times], made / "sheet.png")

    scale("data show", work)


def test_export(folder: Path, scale: Any) -> None:
    def work(times: int, made: Path) -> None:
        prompts = read_prompts(folder / "drawn" / f"prompts-{times}.txt")
        export([prompt for prompt in prompts if len(prompt.objects) == 2], "ssr_encoder", made)

    scale("data export", work)


class _Painter:
    name, sees_references = "bench", False

    def paint(self, prompt: str, references: Sequence[Path], candidate: int, index: int) -> Image.Image:
        return Image.new("RGB", (8, 8))


def test_painting(scale: Any) -> None:
    def endless() -> Iterator[Candidate]:
        return map(_candidate, range(1 << 20))

    def work(times: int, made: Path) -> None:
        count = SMALL["painted"] * times
        paint_set(made, load_relation("hug"), endless(), count, _Painter(), max_refusals=1)
        assert len(read_raw(made)) == count

    scale("painting of triplets", work)


def _candidate(number: int) -> Candidate:
    return Candidate(number=number, names=("cat", "dog"), text="A cat hugs a dog", predicate="hugs", prompts=("",) * 3)
