"""A few of the kills of ``make kill``, and what its list of documented differences says in the docs."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from kill.commands import COMMANDS
from kill.documented import DOCUMENTED
from kill.harness import Kills, differences, may_mount

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kill")
    (folder / "inputs").mkdir()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["data-import", "annotate-apply", "models-import", "finetune", "distill"])
def test_a_killed_command_ends_as_one_left_alone(work: Path, name: str) -> None:
    kills = Kills(work, name, random.Random(name))
    kills.undisturbed()
    kills.kill_and_resume(3)
    if may_mount(work):
        kills.fill_the_disk()
    assert list(kills.result.differences) == []


def test_whatever_differs_is_told(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name / "run").mkdir(parents=True)
        (tmp_path / name / "run" / "metrics.jsonl").write_text(f'{{"step": 1, "loss": 2.0, "seconds": {len(name)}}}\n')
    assert differences(tmp_path / "one", tmp_path / "other") == []
    (tmp_path / "other" / "run" / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5, "seconds": 3}\n')
    (tmp_path / "one" / "lost").mkdir()
    (tmp_path / "one" / "lost" / "file").touch()
    (tmp_path / "other" / "run" / ".half.partial").touch()
    assert differences(tmp_path / "one", tmp_path / "other") == [
        "lost: is missing",
        "run/.half.partial: is left",
        "run/metrics.jsonl: [0].loss: 2.0 / 2.5",
    ]


def test_the_docs_list_what_may_differ() -> None:
    text = (ROOT / "docs" / "formats.md").read_text("utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| `") and line.count("|") == 4]
    for known in DOCUMENTED:
        fields = ", ".join(f"`{field}`" for field in known.fields) or "all"
        assert f"| `{known.files}` | {fields} | {known.reason} |" in rows


def test_every_command_that_writes_is_in_the_table() -> None:
    from rbctl.cli import stages

    named = {command.arguments[0] for command in COMMANDS.values()}
    assert named == {*stages()} - {"ui"}  # it serves until it is stopped; what it writes, stages write
