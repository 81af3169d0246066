"""How wrong judges are: the statistics, planted faults with their truth, the command, and what eval makes of it."""

from __future__ import annotations

import base64
import csv
import hashlib
import html
import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rbctl.errors import InputError
from rbctl.plugins.eval.benchmarks import load_benchmark
from rbctl.plugins.eval.case import Case, Wanted
from rbctl.plugins.eval.judges.answers_file import read_answers
from rbctl.plugins.eval.judges.check_file import read_check
from rbctl.plugins.eval.judges.error import KindError, corrected, measure, wilson
from rbctl.plugins.eval.judges.judge import Answer, Item
from rbctl.plugins.eval.judges.planted import FAULTS, plant
from tests.commands import call, refused

# --- statistics -----------------------------------------------------------------------------------------------------


def answered(rng: np.random.Generator, truth: np.ndarray, right: float) -> np.ndarray:
    return np.where(rng.random(len(truth)) < right, truth, ~truth)


def test_the_correction_recovers_the_true_rate() -> None:
    """A judge that is right with probability 0.8, in 100 seeded runs of each of three true rates."""
    for true in (0.2, 0.6, 0.9):
        held = 0
        for seed in range(100):
            rng = np.random.default_rng(seed)
            known = rng.random(200) < 0.5
            error = measure([float(a) for a in answered(rng, known, 0.8)], list(known))
            said = answered(rng, rng.random(200) < true, 0.8)
            share = corrected(int(said.sum()), len(said), error)
            assert share is not None
            held += share.low <= true <= share.high
        assert held >= 95, true


def test_a_judge_that_guesses_is_worthless() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random(400) < 0.5
    error = measure(list(rng.random(400)), list(truth))
    accuracy = error.balanced_accuracy
    assert accuracy is not None
    assert accuracy.low <= 0.5 <= accuracy.high
    assert error.worthless
    assert corrected(100, 200, error) is None
    sure = measure([float(t) for t in truth], list(truth))
    assert (sure.worthless, sure.calibration_error) == (False, 0)
    assert sure.rank_correlation is not None
    assert sure.rank_correlation.low == pytest.approx(1)


def test_what_is_not_known_is_counted_and_is_no_half_point() -> None:
    error = measure([0.9, None, 0.1, 0.4, None], [True, True, False, True, False])
    assert (error.asked, error.not_known) == (5, 2)
    assert (error.yes, error.yes_right, error.no, error.no_right) == (2, 1, 1, 1)
    assert [(part.count, part.truth) for part in error.calibration] == [(1, 0), (1, 1), (1, 1)]
    assert measure([], []) == KindError(0, 0, 0, 0, 0, 0)
    assert wilson(0, 0) is None


# --- planted faults -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, ...]:
    wanted = Wanted(relations=("ride", "hug", "chase", "wave"), cases=1, drawn=tmp_path_factory.mktemp("world"))
    return load_benchmark("relationbench-mini", wanted).cases


def test_every_fault_has_its_truth(cases: Sequence[Case], tmp_path: Path) -> None:
    planted = {(own.picture.case.relation, own.fault): own for own in plant(cases, tmp_path)}
    assert {fault for relation, fault in planted if relation == "ride"} == set(FAULTS)
    assert ("hug", "exchanged") not in planted  # symmetric
    assert ("chase", "no contact") not in planted  # nobody touches anybody
    assert {fault for relation, fault in planted if relation == "wave"} == {
        "none", "twice", "other relation", "stranger", "copied pose",
    }  # fmt: skip
    none = planted["ride", "none"].truth
    assert none["relation 0 1"] is True
    assert none["exchanged 0 1"] is False
    turned = planted["ride", "exchanged"].truth
    assert (turned["relation 0 1"], turned["exchanged 0 1"], turned["contact 0 1"]) == (False, True, True)
    missing = planted["ride", "missing"]
    absent = missing.picture.boxes.index(None) if missing.picture.boxes else -1
    assert missing.truth[f"present {absent}"] is False
    assert missing.truth[f"present {1 - absent}"] is True
    assert "bodies 0 1" not in missing.truth
    fled = planted["chase", "other relation"].truth  # fleeing from it is being chased by it
    assert (fled["relation 0 1"], fled["exchanged 0 1"]) == (False, True)
    assert planted["hug", "merged"].truth["bodies 0 1"] is False


def test_figures_that_do_not_touch_are_apart(cases: Sequence[Case], tmp_path: Path) -> None:
    apart = next(
        own for own in plant(cases, tmp_path) if own.fault == "no contact" and own.picture.case.relation == "hug"
    )
    (first, second) = sorted(box for box in apart.picture.boxes or () if isinstance(box, tuple))
    assert first[2] < second[0]


# --- the command ----------------------------------------------------------------------------------------------------


class Guess:
    """Answers at random, the same at every call."""

    name, hash, paid = "guess", "g0", False

    def __call__(self, items: Sequence[Item]) -> Iterator[Answer]:
        for picture, question in items:
            seed = [*picture.path.name.encode(), *question.id.encode()]
            yield Answer(float(np.random.default_rng(seed).random()))


@pytest.fixture
def guess(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rbctl.plugins.eval.judges.kinds.open_judge", lambda spec, *_: Guess())


def check(tmp_path: Path, *flags: object) -> dict[str, Any]:
    result = call(
        "eval", "judge-check", "--output", tmp_path / "check", "--answers", tmp_path / "answers", "--json", *flags
    )
    assert result.exit_code == 0, result.output
    content: dict[str, Any] = json.loads(result.stdout)
    return content


@pytest.mark.usefixtures("guess")
def test_a_random_judge_is_told_to_be_worthless(tmp_path: Path) -> None:
    small = ("--relations", "ride", "--relations", "chase", "--cases", 3)
    content = check(tmp_path, "--judge", "boxes", *small)
    kinds = read_check(tmp_path / "check" / "check.json").of("g0")
    worthless = [kind for kind, error in kinds.items() if error.worthless]
    assert len(worthless) >= len(kinds) - 1  # one of eight may be lucky
    assert content["pictures"] == 3 * len(FAULTS) * 2 - 3  # chasing has no contact to lose
    assert "worthless" in (tmp_path / "check" / "table.md").read_text()
    # The set itself is data that any judge, or a person, can be held against.
    again = check(tmp_path, tmp_path / "check", "--judge", "boxes")
    assert again["judges"]["guess"]["kinds"] == content["judges"]["guess"]["kinds"]


@pytest.mark.slow
def test_the_oracle_is_near_the_truth(tmp_path: Path) -> None:
    check(tmp_path, "--judge", "oracle", "--relations", "ride", "--cases", 4)
    kinds = next(iter(read_check(tmp_path / "check" / "check.json").judges.values())).kinds
    for kind in ("present", "relation", "exchanged", "same"):
        accuracy = kinds[kind].balanced_accuracy
        assert accuracy is not None
        assert accuracy.mean > 0.8, kind


@pytest.mark.slow
def test_sampled_pictures_keep_what_is_planted(tmp_path: Path) -> None:
    check(tmp_path, "--judge", "clip", "--relations", "ride", "--cases", 1, "--sampled")
    (sampled,) = (tmp_path / "check").glob("sampled-*")
    names = sorted(path.name for path in (tmp_path / "check" / "pictures").glob("*.png"))
    assert names == sorted(path.name for path in sampled.glob("*.png"))
    for name in names:
        first, second = (
            np.asarray(Image.open(folder / name, formats=["PNG"]).convert("RGB"), dtype=float)
            for folder in (tmp_path / "check" / "pictures", sampled)
        )
        assert 1 < np.abs(first - second).mean() < 40  # sampled anew, and the same scene


@pytest.mark.usefixtures("guess")
def test_eval_prints_the_error_and_corrects_by_it(tmp_path: Path) -> None:
    check(tmp_path, "--judge", "boxes", "--relations", "ride", "--cases", 2)
    (tmp_path / "good.json").write_text(
        json.dumps(
            {
                "source": "made up",
                "pictures": 200,
                "judges": {
                    "guess": {
                        "hash": "g0",
                        "kinds": {
                            "relation": {
                                "asked": 200,
                                "not_known": 0,
                                "yes": 100,
                                "yes_right": 90,
                                "no": 100,
                                "no_right": 80,
                            }
                        },
                    }
                },
            }
        )
    )
    result = call(
        "eval", tmp_path / "check", "--judge", "boxes", "--judge-check", tmp_path / "good.json", "--output",
        tmp_path / "out", "--answers", tmp_path / "answers", "--cache", tmp_path / "features", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)["judges"]["judges"]["guess"]
    assert said["error"]["relation"]["sensitivity"]["mean"] == 0.9
    counted = said["runs"]["check"]["relation"]
    observed = counted["yes"] / counted["asked"]
    assert counted["corrected"]["mean"] == pytest.approx(min(max((observed + 0.8 - 1) / (0.9 + 0.8 - 1), 0), 1))
    assert counted["corrected"]["low"] <= counted["corrected"]["mean"] <= counted["corrected"]["high"]
    assert "corrected" not in said["runs"]["check"]["present"]
    report = (tmp_path / "out" / "report.md").read_text()
    assert "0.900 [0.826, 0.945]" in report
    assert "not measured" in report


# --- answers.csv ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["picture,question,answer"], "the columns file_name,question,answer were expected"),
        (
            ["file_name,question,answer", "b.png,relation 0 1,yes"],
            ":2: no picture 'b.png' in the list; did you mean 'a.png'?",
        ),
        (
            ["file_name,question,answer", "a.png,relation,yes"],
            ":2: no question 'relation'; did you mean 'relation 0 1'?",
        ),
        (["file_name,question,answer", "a.png,relation 0 1,maybe"], ":2: 'maybe': write yes or no"),
        (
            ["file_name,question,answer", "a.png,relation 0 1,yes", "a.png,relation 0 1,no"],
            ":3: 'a.png', relation 0 1: has",
        ),
    ],
)
def test_wrong_answers_are_one_line(tmp_path: Path, lines: list[str], told: str) -> None:
    (tmp_path / "answers.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError) as caught:
        read_answers(tmp_path / "answers.csv", {"a.png": ["relation 0 1", "present 0"]})
    assert told in str(caught.value)


def test_a_folder_without_answers_says_how_to_make_them(tmp_path: Path) -> None:
    with (tmp_path / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file_name", "text"], ["a.png", "A cat is riding a dog."]])
    (tmp_path / "a.png").write_bytes(b"")
    refused(call("eval", "judge-check", tmp_path, "--judge", "clip", "--output", tmp_path / "c"), "answers.csv")
    refused(call("eval", "judge-check", "--output", tmp_path / "c"), "give --judge")


# --- the page -------------------------------------------------------------------------------------------------------

_PLAYED = """
for (const key of ["y", "n", " ", "y", "Backspace", "n"]) document.dispatchEvent(new KeyboardEvent("keydown", {key}));
document.querySelector('nav [data-key="y"]').click();
const done = document.createElement("pre");
done.textContent = "<<" + table() + ">>";
document.body.append(done);
"""


@pytest.mark.usefixtures("guess")
def test_a_person_answers_on_a_page(tmp_path: Path) -> None:
    check(tmp_path, "--judge", "boxes", "--relations", "ride", "--cases", 1)
    folder = tmp_path / "check"
    result = call("eval", "judge-page", folder, "--count", 16)
    assert result.exit_code == 0, result.output
    page = (folder / "questions.html").read_text()
    assert page.count("<article") == 16
    assert page.count('alt="the second picture"') == 4  # two of each of eight kinds
    if (chromium := shutil.which("chromium")) is None:
        pytest.skip("the rest needs Chromium")
    played = folder / "played.html"
    allowed = f"script-src 'sha256-{base64.b64encode(hashlib.sha256(_PLAYED.encode()).digest()).decode()}'"
    played.write_text(page.replace("script-src", allowed).replace("</html>", f"<script>{_PLAYED}</script></html>"))
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --dump-dom"
    command = [chromium, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", played.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    table = html.unescape(dom.split("&lt;&lt;")[1].split("&gt;&gt;")[0])
    rows = list(csv.DictReader(table.splitlines()))
    assert [row["answer"] for row in rows] == ["yes", "no", "no", "yes"]  # the third was skipped, the fourth taken back
    (folder / "answers.csv").write_text(table)
    assert (
        sum(kind["asked"] for kind in check(tmp_path, folder, "--judge", "boxes")["judges"]["guess"]["kinds"].values())
        == 4
    )
