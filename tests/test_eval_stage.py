"""``rbctl eval``: pictures in, scores and report out."""

from __future__ import annotations

import csv
import dataclasses
import datetime
import functools
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from rbctl.bundle.catalogue import resolve
from rbctl.cli import main
from rbctl.files import read_image, read_json, read_jsonl
from rbctl.menagerie import Individual, Scene, compose
from rbctl.menagerie.cases import DrawnCase
from rbctl.menagerie.judge import Judge
from rbctl.menagerie.oracle import load_oracle
from rbctl.menagerie.oracle_extension import extend
from rbctl.menagerie.scenes import portrait
from rbctl.menagerie.triplets import pictures
from rbctl.plugins.eval.benchmarks import load_benchmark
from rbctl.plugins.eval.case import Case, Wanted
from rbctl.processes import together
from rbctl.relations import load_relation

CASES = 2
KINDS = ("true", "swapped", "other", "missing", "twice", "coats", "pasted")

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]


CAT = Individual(species="cat", coat="orange", second="blue", pattern="stripes")
FOX = Individual(species="fox", coat="red", second="red", pattern="plain")


def rbctl(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)


@dataclasses.dataclass(frozen=True)
class World:
    """Pictures of the same cases, right and wrong in known ways, a folder each, and the evaluation of them all."""

    folder: Path
    cases: tuple[Case, ...]
    result: Result

    @property
    def content(self) -> dict[str, Any]:
        found: dict[str, Any] = read_json(self.folder / "out" / "scores.json")
        return found

    def rows(self, run: str) -> list[dict[str, Any]]:
        return [row for row in read_jsonl(self.folder / "out" / "pictures.jsonl") if row["run"] == run]

    def arguments(self, kinds: Sequence[str] = KINDS) -> list[object]:
        runs = [part for kind in kinds for part in ("--run", f"{kind}={self.folder / kind}")]
        which = ["--relations", "ride", "--cases", CASES, "--no-base", "--cache", self.folder / "features"]
        return ["eval", "--bench", "relationbench-mini", *which, *runs]


def wrong(case: Case, kind: str, number: int) -> Scene:
    """A scene that fails a case in one way."""
    assert case.truth
    one, two = case.truth.individuals
    rng = np.random.default_rng((5, number))
    relation = load_relation("stand_next_to" if kind == "other" else case.relation)
    coats = [
        dataclasses.replace(a, **{n: getattr(b, n) for n in ("coat", "second", "pattern")})
        for a, b in ((one, two), (two, one))
    ]
    shown: list[Individual] = {"swapped": [two, one], "twice": [one, one], "coats": coats}.get(kind, [one, two])
    scene = compose(relation, shown, rng)
    if kind == "missing":
        scene = dataclasses.replace(
            scene, individuals=(one,), figures=scene.figures[:1], order=(0,), straddle=False, embrace=False
        )
    return scene


def pasted(case: Case) -> Image.Image:
    """The image prompts themselves, side by side."""
    sheet = Image.new("RGB", (128, 128), (237, 237, 235))
    for k, thing in enumerate(case.objects):
        sheet.paste(read_image(thing.image).resize((64, 64), Image.Resampling.BICUBIC), (64 * k, 32))
    return sheet


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    wanted = Wanted(relations=("ride",), cases=CASES, drawn=folder / "out" / "bench")
    cases = load_benchmark("relationbench-mini", wanted).cases
    for kind in KINDS:
        (folder / kind).mkdir()
        rows = []
        for number, case in enumerate(cases):
            if kind == "pasted":
                image = pasted(case)
            elif kind == "true":
                assert case.truth
                image = read_image(case.truth.picture)
            else:
                (image,) = pictures([wrong(case, kind, number)], 128)
            image.save(folder / kind / f"{number}.png")
            rows.append({"image": f"{number}.png", "prompt": case.text, "case": case.id})
        with (folder / kind / "metadata.csv").open("w", newline="") as file:
            table = csv.DictWriter(file, ["image", "prompt", "case"])
            table.writeheader()
            table.writerows(rows)
    made = World(folder, cases, None)  # type: ignore[arg-type]
    result = rbctl(*made.arguments(), "--output", folder / "out", "--profile", "relationbench", "--profile", "crops")
    assert result.exit_code == 0, result.output
    return dataclasses.replace(made, result=result)


@pytest.mark.parametrize(
    ("kind", "there", "absent"),
    [
        (
            "true",
            (),
            ("missing object", "duplicate", "wrong relation", "wrong direction", "no contact", "identity swap"),
        ),
        ("swapped", ("wrong direction",), ("missing object", "duplicate", "wrong relation", "no contact")),
        ("other", ("wrong relation", "no contact"), ("missing object", "duplicate")),
        ("missing", ("missing object",), ("duplicate",)),
        ("twice", ("missing object", "duplicate"), ()),
        ("coats", ("identity swap",), ("missing object", "duplicate", "wrong relation")),
        ("pasted", ("wrong relation", "copy-paste"), ("missing object",)),
    ],
)
def test_failures_are_named(world: World, kind: str, there: tuple[str, ...], absent: tuple[str, ...]) -> None:
    for row in world.rows(kind):
        for name in there:
            assert row["failures"][name] is True, (row["case"], name)
        for name in absent:
            assert not row["failures"][name], (row["case"], name)


def test_the_oracle_stands_beside_the_fields_scores(world: World) -> None:
    table = world.content["table"]
    for run in ("true", "truth"):
        assert {
            name: table[run][f"oracle {name}"]["mean"] for name in ("relation", "direction", "contact", "identity")
        } == {
            "relation": 1,
            "direction": 1,
            "contact": 1,
            "identity": 1,
        }
    assert table["swapped"]["oracle direction"]["mean"] == 0
    assert table["other"]["oracle relation"]["mean"] == 0
    assert table["true"]["relationbench CLIP-R"]["mean"] > table["other"]["relationbench CLIP-R"]["mean"]
    assert table["true"]["relationbench CLIP-T"]["mean"] > table["swapped"]["relationbench CLIP-T"]["mean"]
    assert world.content["rank_correlation"]["all"]["rho"] > 0
    assert world.content["rank_correlation"]["all"]["n"] == CASES * len(KINDS)  # the truth is no method's picture


def test_every_number_says_what_it_is(world: World) -> None:
    content = world.content
    for cells in content["table"].values():
        for column, cell in cells.items():
            assert cell["n"] == CASES
            assert cell["low"] <= cell["mean"] <= cell["high"]
            assert re.fullmatch("[0-9a-f]{16}", cell["prompt_hash"])
            assert content["columns"][column]["profile"] in ("oracle", "relationbench", "crops")
            assert re.fullmatch("[0-9a-f]{64}", content["columns"][column]["hash"])
    assert content["columns"]["relationbench DINO"]["hash"] != content["columns"]["relationbench CLIP-I"]["hash"]
    bounds = content["bounds"]["relationbench CLIP-I"]
    assert bounds["ceiling"]["mean"] > bounds["floor"]["mean"]


class Page(HTMLParser):
    """Cells of the tables and what a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.fetched: list[str] = []
        self._open = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open = tag == "td"
        if tag in ("img", "script", "link", "iframe"):
            self.fetched += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        if self._open:
            self.cells.append(data)
            self._open = False


def test_the_report_says_what_the_json_says(world: World) -> None:
    page = Page()
    text = (world.folder / "out" / "report.html").read_text()
    page.feed(text)
    markdown = (world.folder / "out" / "report.md").read_text()
    for run, cells in world.content["table"].items():
        for cell in cells.values():
            mean = f"{cell['mean']:.1f}" if abs(cell["mean"]) >= 10 else f"{cell['mean']:.3f}"
            assert any(shown.startswith(f"{mean} [") for shown in page.cells), (run, mean)
            assert f"{mean} [" in markdown
            assert f"{mean} [" in world.result.stdout
    for row in world.rows("swapped"):
        scores = [f"{v:.1f}" if abs(v) >= 10 else f"{v:.3f}" for v in row["scores"].values() if v is not None]
        assert f"| {row['case']} | {row['text']} | swapped | {' | '.join(scores)} |" in markdown
    for column, tests in world.content["tests"].items():
        for test in tests:
            assert f"| {column} | {test['a']} | {test['b']} | " in markdown
    assert "rank correlation" in world.result.stdout
    assert page.fetched
    assert all(address.startswith("data:image/jpeg;base64,") for address in page.fetched)  # nothing from elsewhere
    assert "<circle" in text
    assert "http://" not in text
    assert "https://" not in text


def test_the_same_again_encodes_nothing_and_says_the_same(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from rbctl.plugins.eval.features import FeatureStore

    monkeypatch.setattr(FeatureStore, "_encode", None)
    kinds = ("swapped", "true")  # another order, and batches of another size
    result = rbctl(*world.arguments(kinds), "--output", world.folder / "out", "--batch-size", 3, "--json")
    assert result.exit_code == 0, result.output
    again, before = json.loads(result.stdout)["table"], world.content["table"]
    for run in kinds:
        for column, cell in again[run].items():
            assert cell == before[run][column]


# --- pictures of any origin ----------------------------------------------------------------------------------------


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """Two pictures of different sizes, with image prompts and boxes, told by a CSV."""
    folder, rng = tmp_path / "theirs", np.random.default_rng(0)
    folder.mkdir()
    for name, size in (("a.png", (90, 60)), ("b.jpg", (128, 128)), ("cat.png", (64, 64)), ("dog.png", (80, 70))):
        Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(folder / name)
    write_csv(
        folder,
        [
            ["a.png", "A cat is riding a dog.", "cat.png;dog.png", "cat;dog", "0 0 0.5 1; 0.5 0 1 1"],
            ["b.jpg", "a cat in the snow", "cat.png", "cat", ""],
        ],
    )
    return folder


def write_csv(folder: Path, rows: list[list[str]]) -> None:
    with (folder / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "prompt", "image_prompts", "names", "boxes"], *rows])


def score(tmp_path: Path, *folders: object) -> Result:
    return rbctl("eval", *folders, "--output", tmp_path / "out", "--cache", tmp_path / "features", "--json")


def test_pictures_told_by_a_csv(given: Path, tmp_path: Path) -> None:
    result = score(tmp_path, given, given / "metadata.csv")
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    first, second = content["runs"]
    assert content["table"][first] == content["table"][second]  # a folder, or the CSV itself
    cells = content["table"][first]
    assert cells["relationbench CLIP-T"]["n"] == 2
    assert cells["relationbench CLIP-R"]["n"] == 1  # "a cat in the snow" says no relation
    assert any("CLIP-R of 1 of 2 prompts" in line for line in content["left_out"])
    rows = read_jsonl(tmp_path / "out" / "pictures.jsonl")
    assert (rows[0]["predicate"], rows[1]["predicate"]) == ("is riding", "")
    assert rows[0]["failures"]["missing object"] is False
    assert rows[0]["failures"]["wrong direction"] is None
    assert rows[1]["failures"]["missing object"] is None
    assert "not known" in (tmp_path / "out" / "report.md").read_text()
    assert "scored by the CLIP of mini, which knows drawn animals alone" in result.stderr


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("pictures", "2 pictures are missing: .*a.png.*dog.png"),
        ("unreadable", "1 pictures cannot be read: .*b.jpg"),
        ("column", "no column 'promt'; did you mean 'prompt'|no column 'promt'"),
        ("boxes", "metadata.csv:2: 1 boxes for 2 image prompts"),
        ("names", "metadata.csv:2: 1 names for 2 image prompts"),
        ("empty", "lists no picture"),
        ("nothing", "no metadata.jsonl, metadata.csv or pictures"),
        ("numbers", "theirs/007.png: neither name nor list says a prompt"),
    ],
)
def test_bad_input_is_one_line(given: Path, tmp_path: Path, change: str, said: str) -> None:
    table = given / "metadata.csv"
    if change == "pictures":
        (given / "a.png").unlink()
        (given / "dog.png").unlink()
    elif change == "unreadable":
        (given / "b.jpg").write_bytes(b"no picture")
    elif change == "column":
        table.write_text(table.read_text().replace("prompt,", "promt,", 1))
    elif change == "boxes":
        table.write_text(table.read_text().replace("0 0 0.5 1; 0.5 0 1 1", "0 0 0.5 1"))
    elif change == "names":
        table.write_text(table.read_text().replace("cat;dog", "cat"))
    elif change == "empty":
        write_csv(given, [])
    else:
        table.unlink()
        for path in given.iterdir():
            path.unlink() if change == "nothing" else path.rename(given / "007.png")
    result = score(tmp_path, given)
    assert result.exit_code == 2
    lines = [line for line in result.stderr.splitlines() if line.startswith("Error")]
    assert len(lines) == 1
    assert re.search(said, lines[0]), lines[0]
    assert "Traceback" not in result.output


def test_masks_leave_the_background_out(given: Path, tmp_path: Path) -> None:
    """What lies around a mask changes no score of the crop; a mask that does not fit is one line."""
    mask = np.zeros((128, 128), dtype=np.uint8)
    mask[32:96, 16:112] = 255
    Image.fromarray(mask).save(given / "mask.png")
    other = np.asarray(Image.open(given / "b.jpg")).copy()
    Image.fromarray(other).save(given / "b.png")
    other[mask == 0] = 99
    Image.fromarray(other).save(given / "c.png")
    table = "image,prompt,image_prompts,{}\n" + "".join(f"{name}.png,a {name},cat.png,{{}}\n" for name in "bc")
    found = []
    for column, value in (("masks", "mask.png"), ("boxes", "0.125 0.25 0.875 0.75"), ("boxes", "0 0.2 1 0.8")):
        (given / "metadata.csv").write_text(table.format(column, value, value))
        result = score(tmp_path, given, "--profile", "crops")
        assert result.exit_code == 0, result.output
        rows = read_jsonl(tmp_path / "out" / "pictures.jsonl")
        found.append([row["scores"]["crops CLIP-I crop"] for row in rows])
    masked, inside, around = found
    assert masked[0] == masked[1]
    assert masked != inside
    assert around[0] != around[1]
    Image.new("L", (64, 64), 255).save(given / "mask.png")
    (given / "metadata.csv").write_text(table.format("masks", "mask.png", "-"))
    result = score(tmp_path, given, "--profile", "crops")
    assert result.exit_code == 2
    assert "mask.png: 64 x 64, its picture 128 x 128" in result.stderr
    (given / "mask.png").unlink()
    result = score(tmp_path, given, "--profile", "crops")
    assert f"1 pictures are missing: {given / 'mask.png'}" in result.stderr


def test_a_missing_object_counts_nothing_where_somebody_looked(given: Path, tmp_path: Path) -> None:
    """The boxes of a CSV and of a record are found ones, those of ``rbctl sample`` were only asked for."""

    def crops() -> tuple[float, list[str]]:
        result = score(tmp_path, given, "--profile", "crops")
        assert result.exit_code == 0, result.output
        content = json.loads(result.stdout)
        told = [line for line in content["left_out"] if "boxes were only asked for" in line]
        return content["table"]["theirs"]["crops CLIP-I crop"]["mean"], told

    write_csv(
        given, [["a.png", "A cat rides a dog.", "cat.png;dog.png", "", ";"], ["b.jpg", "a cat", "cat.png", "", "-"]]
    )
    assert crops() == (0, [])
    thing: dict[str, Any] = {"name": "cat", "image": "cat.png", "box": None}
    row: dict[str, Any] = {"file_name": "a.png", "text": "a cat", "objects": [thing]}
    (given / "metadata.jsonl").write_text(json.dumps(row))
    assert crops() == (0, [])
    thing["box"] = [0, 0, 0.5, 1]
    (given / "metadata.jsonl").write_text(json.dumps({**row, "boxes_from": "relation"}))
    mean, told = crops()
    assert mean > 0
    assert told == ["theirs: the 0 of crops for a missing object; boxes were only asked for"]


def test_pictures_told_by_their_names(given: Path, tmp_path: Path) -> None:
    (given / "metadata.csv").unlink()
    for old, new in (("a.png", "A-cat_is riding_a_dog-02.png"), ("b.jpg", "a_dog2.jpg")):
        (given / old).rename(given / new)
    result = score(tmp_path, given)
    assert result.exit_code == 0, result.output
    rows = read_jsonl(tmp_path / "out" / "pictures.jsonl")
    assert [row["text"] for row in rows] == ["A cat is riding a dog", "a dog2", "cat", "dog"]
    assert json.loads(result.stdout)["table"]["theirs"]["relationbench CLIP-R"]["n"] == 1


def test_relationbench_of_drawn_pictures_ends_in_groups_and_published_rows(tmp_path: Path) -> None:
    """A folder as it is published: benchmark/SUBJECT/N.jpg and prompts.json."""
    prompts = {
        "cat_0": "A cat is riding a bike along the scenic countryside road.",
        "cat_8": "A cat is playing chess with a dog under a tree.",
        "dog_9": "A dog is kissing a cat.",
    }
    for number, name in enumerate(("cat_0", "cat_8", "dog_0", "dog_9")):
        rng = np.random.default_rng(number)
        individual = dataclasses.replace(CAT, species=name[:3])
        for k in range(2):
            folder = tmp_path / "data" / "benchmark" / name
            folder.mkdir(parents=True, exist_ok=True)
            pictures([portrait(individual, rng)], 128)[0].save(folder / f"{k}.jpg")
    entries = [{"sub1": f"benchmark/{name}", "prompt": text} for name, text in prompts.items()]
    (tmp_path / "data" / "prompts.json").write_text(json.dumps(entries))
    common = ["--bench", "relationbench", "--data", tmp_path / "data", "--steps", 1, "--device", "cpu"]
    result = rbctl("eval", *common, "--output", tmp_path / "out", "--cache", tmp_path / "features")
    assert result.exit_code == 0, result.output
    content = read_json(tmp_path / "out" / "scores.json")
    assert set(content["groups"]) == {"ride_bike", "play_chess", "kiss"}
    assert {name: part["base"]["relationbench CLIP-R"]["n"] for name, part in content["numbers"].items()} == {
        "single": 1,
        "multi": 2,
    }
    single, multi = result.stdout.split("multi-subject cases")
    assert re.search(r"DreamRelation \(published\) +30\.6 +21\.4 +77\.9 +63\.4", single.split("single-subject")[1])
    assert re.search(r"DreamRelation \(published\) +28\.9 +20\.4 +75\.4 +62\.1", multi)
    for report in ("report.md", "report.html"):
        assert "without KML (published)" in (tmp_path / "out" / report).read_text()
    tables = json.loads(rbctl("eval", "tables", tmp_path / "out", "--tables", "Table 1", "--json").stdout)["tables"]
    for table, name in zip(tables, ("single", "multi"), strict=True):
        *_, ours = table["rows"]
        means = {mean["mean"] for mean in ours["measured"].values()}
        assert means == {mean["mean"] for c, mean in content["numbers"][name]["base"].items() if "relationbench" in c}
        assert ours["row"] == "base"
    # of several individuals alone, there is still a table to compare with
    result = rbctl("eval", *common, "--relations", "kiss", "--output", tmp_path / "kiss")
    assert result.exit_code == 0, result.output
    assert "multi-subject cases" in result.stdout
    assert "single-subject cases" not in result.stdout


@pytest.mark.parametrize("seed", ["7", True, 7.5])
def test_a_seed_in_metadata_is_a_whole_number(given: Path, tmp_path: Path, seed: object) -> None:
    rows = [{"file_name": name, "text": "a cat", "seed": s} for name, s in (("a.png", 7), ("b.jpg", seed))]
    (given / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = score(tmp_path, given)
    assert result.exit_code == 2
    assert result.stderr == f"Error: {given / 'metadata.jsonl'}:2: seed: {seed!r} is not a whole number\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give a folder of pictures, or --bench NAME"),
        (["x", "--bench", "relationbench-mini"], "name it as --run NAME=x"),
        (["x", "--lora", "ride=a"], "--lora: needs --bench"),
        (["--bench", "relationbench-mini", "--lora", "ride"], "write RELATION=PATH"),
        (["--bench", "relationbench-mini", "--data", "nowhere"], "the embedded world draws the pictures"),
        (["--bench", "relationbench-mini", "--run", "a b=x"], "write NAME=FOLDER"),
        (["--bench", "relationbench-mnii"], "did you mean 'relationbench-mini'"),
        (["--bench", "dreambench"], "give their folder with --data"),
        (["x", "--clip", "nowhere"], "no metadata.jsonl"),
        (["--bench", "relationbench-mini", "--bundle", "nowhere"], "nowhere: no such bundle or folder"),
        (["--bench", "relationbench-mini", "--cache", "/dev/null"], "--cache /dev/null: cannot be written"),
    ],
)
def test_bad_arguments(tmp_path: Path, arguments: list[str], said: str) -> None:
    result = rbctl("eval", *arguments, "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert said in result.stderr


def test_a_run_must_have_a_picture_of_every_case(world: World, tmp_path: Path) -> None:
    few = tmp_path / "few"
    few.mkdir()
    (few / "0.png").write_bytes((world.folder / "true" / "0.png").read_bytes())
    (few / "metadata.csv").write_text(f"image,prompt,case\n0.png,x,{world.cases[0].id}\n")
    arguments = [*world.arguments(()), "--run", f"few={few}", "--output", world.folder / "out-few"]
    result = rbctl(*arguments)
    assert result.exit_code == 2
    assert f"pictures of 1 cases are missing: {world.cases[1].id}" in result.stderr
    result = rbctl(*arguments, "--partial", "--json")
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert content["table"]["few"]["oracle relation"]["n"] == 1
    assert "few: 1 cases have no picture" in content["left_out"]


def test_names_of_cases_tell_a_benchmarks_pictures(world: World, tmp_path: Path) -> None:
    for number, case in enumerate(world.cases):
        (tmp_path / f"{case.id}.png").write_bytes((world.folder / "true" / f"{number}.png").read_bytes())
    arguments = [*world.arguments(()), "--run", f"named={tmp_path}", "--output", world.folder / "out-named", "--json"]
    result = rbctl(*arguments)
    assert result.exit_code == 0, result.output
    listed, named = world.content["table"]["true"], json.loads(result.stdout)["table"]["named"]
    assert named == {column: listed[column] for column in named}
    (tmp_path / "x.png").write_bytes((tmp_path / f"{world.cases[0].id}.png").read_bytes())
    result = rbctl(*arguments)
    assert result.exit_code == 2
    assert "1 pictures belong to no case of the benchmark: x.png" in result.stderr


@pytest.mark.slow
def test_sampling_what_is_missing(tmp_path: Path) -> None:
    arguments = ["eval", "--bench", "relationbench-mini", "--relations", "ride", "--cases", 2, "--steps", 3]
    (tmp_path / "weak.yaml").write_text("sample: {scale: 0.25}\n")
    arguments += ["--sample-recipe", tmp_path / "weak.yaml"]
    arguments += ["--output", tmp_path / "out", "--cache", tmp_path / "features", "--json"]
    result = rbctl(*arguments)
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert list(content["runs"]) == ["base", "truth"]
    assert content["runs"]["base"]["made_with"]["steps"] == "3"
    assert content["runs"]["base"]["made_with"]["scale"] == "0.25"
    assert "CLIP of mini" not in result.stderr
    assert content["table"]["base"]["relationbench CLIP-R"]["n"] == 2
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "samples" / "base").glob("a-*.png")}
    assert len(made) == 2
    again = rbctl(*arguments)
    assert json.loads(again.stdout)["table"] == content["table"]
    assert {path: path.stat().st_mtime_ns for path in made} == made


def test_processes_wait_as_long_as_the_first_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    patience: list[datetime.timedelta] = []
    launched = {"RANK": 1, "LOCAL_RANK": 1, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}
    for name, value in launched.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr("torch.distributed.init_process_group", lambda backend, timeout: patience.append(timeout))
    monkeypatch.setattr("torch.distributed.destroy_process_group", lambda: None)
    with together() as here:
        assert not here.first
    assert [wait.days for wait in patience] == [7]


@pytest.mark.slow
def test_two_processes_share_the_encoding(given: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "rbctl"]
    command += ["eval", str(given), "--output", str(tmp_path / "two"), "--cache", str(tmp_path / "other"), "--json"]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert told.returncode == 0, told.stderr[-2000:]
    together, alone = (json.loads(text)["table"] for text in (told.stdout, score(tmp_path, given).stdout))
    assert together.keys() == alone.keys()
    for run, cells in alone.items():
        assert together[run].keys() == cells.keys()
        for column, cell in cells.items():
            for part in ("mean", "low", "high", "n"):  # scores are 100 x cos: this is 1e-6 of a cosine
                assert together[run][column][part] == pytest.approx(cell[part], abs=1e-4)


@pytest.mark.slow
def test_each_relation_of_a_user_is_judged_by_an_oracle_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two YAMLs that are not shipped: teaching the second must not ask for the first by its name."""
    monkeypatch.setattr("rbctl.menagerie.judge.extend", functools.partial(extend, steps=1, each=1))
    text = (Path(__file__).resolve().parents[1] / "recipes" / "examples" / "sit_back_to_back.yaml").read_text()
    judge = Judge(load_oracle(resolve("mini") / "oracle"))
    known = judge.oracle.relations
    for name in ("sit_one_way", "sit_another_way", "sit_one_way"):
        (tmp_path / f"{name}.yaml").write_text(text.replace("sit_back_to_back", name))
        relation = load_relation(str(tmp_path / f"{name}.yaml"))
        scene = compose(relation, [CAT, FOX], np.random.default_rng(0))
        case = DrawnCase("0", relation, scene, tmp_path / "truth.png", (), seed=0, lineup=(0,))
        assert len(judge(pictures([scene], 128), [case])) == 1
    assert judge.oracle.relations == known


def test_what_is_named_is_checked_before_anything_is_sampled(tmp_path: Path) -> None:
    for named in (("--clip", "nowhere"), ("--dino", "nowhere"), ("--lora", "hug=nowhere.safetensors")):
        result = CliRunner().invoke(
            main, ["eval", "--bench", "relationbench-mini", "--cases", "1", "--output", str(tmp_path / "e"), *named]
        )
        assert result.exit_code == 2, result.output
        assert "nowhere" in result.output.splitlines()[-1]
        assert not list((tmp_path / "e").glob("samples/*/*.png"))


def test_a_single_case_has_no_interval_and_a_picture_listed_twice_is_one(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\n" + "a.png,A fox is riding a lion\n" * 2)
    result = CliRunner().invoke(
        main, ["eval", str(tmp_path), "--output", str(tmp_path / "e"), "--cache", str(tmp_path / "c")]
    )
    assert result.exit_code == 0, result.output
    scores = json.loads((tmp_path / "e" / "scores.json").read_text())
    assert scores["benchmark"]["cases"] == 1
    row = next(line for line in result.stdout.splitlines() if line.startswith(tmp_path.name))
    assert "[" not in row
