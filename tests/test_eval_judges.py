"""``rbctl eval --judge``: questions of pictures of any origin, in figures, failures and who wins."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from rbctl.bundle.catalogue import resolve
from rbctl.files import read_jsonl, write_png
from rbctl.plugins.eval.case import Case, CaseObject, Picture
from rbctl.plugins.eval.encoders import load_clip
from rbctl.plugins.eval.judges.clip import ClipJudge
from rbctl.plugins.eval.judges.judge import Answer, Item
from rbctl.plugins.eval.judges.questions import questions
from tests.commands import call as rbctl


class Colour:
    """Calls a picture right where it is green, wrong where red; of others it knows nothing. Prefers the greener."""

    name, hash, paid = "colour", "c0", False

    def __call__(self, items: Sequence[Item]) -> Iterator[Answer]:
        for picture, question in items:
            red, green, _ = Image.open(picture.path, formats=["PNG"]).getpixel((0, 0))  # type: ignore[misc]
            if question.kind == "preferred":
                assert question.second is not None
                other = Image.open(question.second, formats=["PNG"]).getpixel((0, 0))
                yield Answer(float(green > other[1]))  # type: ignore[index]
            else:
                yield Answer(None if red == green else float((green > red) == question.wanted))


class Grumbler(Colour):
    """Says no to everything."""

    name, hash = "grumbler", "c1"

    def __call__(self, items: Sequence[Item]) -> Iterator[Answer]:
        yield from (Answer(0.1) for _ in items)


@pytest.fixture(autouse=True)
def judges(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: dict[str, Any] = {"boxes": Colour(), "oracle": Grumbler()}
    monkeypatch.setattr("rbctl.plugins.eval.judges.kinds.open_judge", lambda spec, *_: opened[spec])


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """Two systems' pictures of three cases, and the list of them."""
    for name, red, green in (("ours/0", 0, 200), ("ours/1", 0, 200), ("ours/2", 9, 9)):
        write_png(tmp_path / f"{name}.png", Image.new("RGB", (16, 16), (red, green, 0)))
    for name, red, green in (("theirs/0", 200, 0), ("theirs/1", 0, 150), ("theirs/2", 0, 150)):
        write_png(tmp_path / f"{name}.png", Image.new("RGB", (16, 16), (red, green, 0)))
    for name in ("cat", "dog"):
        write_png(tmp_path / f"{name}.png", Image.new("RGB", (16, 16), "blue"))
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "text", "image_prompts", "names"])
        for k, scene in enumerate(("", " in the snow", " at night")):
            writer.writerow([f"{k}.png", f"A cat is riding a dog{scene}.", "cat.png;dog.png", "cat;dog"])
    return tmp_path


def content(given: Path, *flags: str) -> dict[str, Any]:
    result = rbctl(
        "eval", given / "ours", given / "theirs", "--pairs", given / "pairs.csv", "--output", given / "out",
        "--cache", given / "features", "--answers", given / "answers", "--json", *flags,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    loaded: dict[str, Any] = json.loads(result.stdout)
    return loaded


def test_folders_without_a_list_are_judged_by_one_csv(given: Path) -> None:
    told = content(given, "--judge", "boxes")
    ours, theirs = (told["table"][run]["colour relation"] for run in ("ours", "theirs"))
    assert (ours["mean"], ours["n"]) == (1, 2)  # of the third nothing is known: no half point
    assert (theirs["mean"], theirs["n"]) == (pytest.approx(2 / 3, abs=1e-4), 3)
    counted = told["judges"]["judges"]["colour"]["runs"]["ours"]
    assert counted["present"] == {"asked": 6, "not_known": 2, "yes": 4}
    assert counted["exchanged"] == {"asked": 3, "not_known": 1, "yes": 0}
    rows = {row["file"]: row for row in read_jsonl(given / "out" / "pictures.jsonl")}
    failed = {name for name, there in rows["../theirs/0.png"]["failures"].items() if there}
    assert {
        "missing object",
        "merged bodies",
        "wrong relation",
        "wrong direction",
        "no contact",
        "copy-paste",
    } == failed
    assert rows["../theirs/0.png"]["answers"]["colour"]["relation 0 1"] == {"yes": 0.0, "text": ""}
    page = (given / "out" / "report.html").read_text()
    assert "Judge colour" in page
    assert "Judge colour: who wins" in page


def test_who_answers_better_wins(given: Path) -> None:
    standing = content(given, "--judge", "boxes")["wins"]["colour"]
    assert standing["cases"] == 2  # of the third case only one picture is known
    assert standing["rates"][0][1] == 0.75  # one win, one tie


def test_two_pictures_side_by_side(given: Path) -> None:
    standing = content(given, "--judge", "boxes", "--pairwise")["wins"]["colour"]
    assert standing["cases"] == 3
    assert standing["rates"][0][1] == pytest.approx(2 / 3, abs=1e-4)
    assert standing["strengths"]["ours"]["mean"] == -standing["strengths"]["theirs"]["mean"] > 0


def test_one_that_always_prefers_the_first_says_nothing(given: Path) -> None:
    class First(Colour):
        def __call__(self, items: Sequence[Item]) -> Iterator[Answer]:
            yield from (Answer(0.9) for _ in items)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("rbctl.plugins.eval.judges.kinds.open_judge", lambda spec, *_: First())
        standing = content(given, "--judge", "boxes", "--pairwise")["wins"]["colour"]
    assert standing["rates"][0][1] == 0.5


def test_several_judges_and_their_agreement(given: Path) -> None:
    told = content(given, "--judge", "boxes", "--judge", "oracle")
    rows = {row["kind"]: row for row in told["judges"]["agreement"]}
    assert rows["relation"]["n"] == 5  # where both know
    assert rows["relation"]["alike"] == pytest.approx(1 / 5)
    assert rows["relation"]["kappa"] == pytest.approx(0)
    assert "Agreement of judges" in (given / "out" / "report.md").read_text()


def test_a_leaderboard_of_several_evaluations(given: Path, tmp_path: Path) -> None:
    content(given, "--judge", "boxes")
    result = rbctl("eval", "leaderboard", given / "out", "--output", tmp_path / "board.html", "--json")
    assert result.exit_code == 0, result.output
    board = json.loads(result.stdout)
    assert board["by"] == "colour relation"
    assert board["rates"][board["runs"].index("ours")][board["runs"].index("theirs")] == 0.75
    assert "Leaderboard" in (tmp_path / "board.html").read_text()
    shown = rbctl("eval", "leaderboard", given / "out", "--by", "relationbench CLIP-T")
    assert "Strength by relationbench CLIP-T" in shown.output
    missing = rbctl("eval", "leaderboard", given / "out", "--by", "relationbench CLIPT")
    assert missing.exit_code == 2
    assert "did you mean 'relationbench CLIP-T'?" in missing.output
    empty = rbctl("eval", "leaderboard", given)
    assert (empty.exit_code, "no scores.json" in empty.output) == (2, True)


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("vlm", "--judge vlm: write vlm=FOLDER"),
        ("boxes=there", "write boxes alone"),
        ("gpt", "--judge gpt: no such judge; one of vlm, server"),
    ],
)
def test_a_judge_that_is_none(given: Path, spec: str, told: str) -> None:
    result = rbctl("eval", given / "ours", "--judge", spec)
    assert (result.exit_code, told in " ".join(result.output.split())) == (2, True), result.output


def test_clip_as_a_judge_prefers_the_statement_that_is_nearer(given: Path) -> None:
    """What it answers turns round where the two statements change places."""
    encoder = load_clip(resolve("mini"), torch.device("cpu"))
    case = Case("c", "A cat is riding a dog.", tuple(CaseObject(n, given / f"{n}.png") for n in ("cat", "dog")))
    picture = Picture("run", given / "ours" / "0.png", case)
    asked = {question.id: question for question in questions(case)}
    answers = list(ClipJudge(encoder)([(picture, question) for question in asked.values()]))
    said = dict(zip(asked, (answer.yes for answer in answers), strict=True))
    assert said["relation 0 1"] == pytest.approx(1 - said["exchanged 0 1"], abs=1e-6)
    assert 0 < said["present 0"] < 1
    assert [name for name, yes in said.items() if yes is None] == [
        "once 0", "once 1", "contact 0 1", "bodies 0 1", "same 0", "same 1", "copied 0", "copied 1",
    ]  # fmt: skip


def test_two_judges_of_one_name_cannot_be_told_apart(given: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rbctl.plugins.eval.judges.kinds.open_judge", lambda *_: Colour())
    flags = ("--pairs", given / "pairs.csv", "--output", given / "out", "--cache", given / "features")
    result = rbctl("eval", given / "ours", "--judge", "boxes", "--judge", "clip", *flags)
    assert (result.exit_code, "two are called colour" in result.output) == (2, True), result.output
