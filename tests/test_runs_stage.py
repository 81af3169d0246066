"""``rbctl runs`` on folders as finetune and distill leave them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rbctl.files import write_json, write_text
from tests.commands import call, refused


def write_run(folder: Path, steps_done: int = 0, **options: Any) -> Path:
    """A run of 300 steps with three checkpoints, of which the last one is a folder as distill's are."""
    folder.mkdir(parents=True)
    lines = {"steps": 300, "rank": 16, **options}
    write_text(folder / "recipe.yaml", "finetune:\n" + "".join(f"  {k}: {v}\n" for k, v in lines.items()))
    write_json(folder / "run.json", {"versions": {"torch": "2.15.0"}, "seed": 0, "data": "ab" * 32})
    rows = [{"step": step, "loss": 1 / step} for step in range(1, steps_done + 1)]
    write_text(folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    (folder / "checkpoints" / "step-001000").mkdir(parents=True)
    (folder / "checkpoints" / "step-001000" / "shard.safetensors").write_bytes(b"1234")
    for step in (100, 200):
        (folder / "checkpoints" / f"step-000{step}.safetensors").write_bytes(b"12")
    (folder / "ride.safetensors").write_bytes(b"lora")
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two runs, and one whose recipe is damaged."""
    write_run(tmp_path / "a", steps_done=4)
    write_run(tmp_path / "below" / "b", rank=8)
    write_text(write_run(tmp_path / "c") / "recipe.yaml", "[")
    return tmp_path


def test_list_shows_whole_runs_and_names_the_damaged_one(runs: Path) -> None:
    result = call("runs", "list", runs)
    assert result.exit_code == 0
    head, *rows = result.stdout.splitlines()
    assert head.split() == ["run", "stage", "steps", "loss", "size", "begun"]
    assert {row.split()[0] for row in rows} == {str(runs / "a"), str(runs / "below" / "b")}
    assert "finetune  4 of 300  0.25" in next(row for row in rows if str(runs / "a ") in row)
    assert str(runs / "c" / "recipe.yaml") in result.stderr


def test_show(runs: Path) -> None:
    lines = [line.split() for line in call("runs", "show", runs / "a").stdout.splitlines()]
    for line in (["stage", "finetune"], ["rank", "16"], ["versions.torch", "2.15.0"], ["data", "ab" * 32]):
        assert line in lines
    assert json.loads(call("runs", "show", runs / "a", "--json").stdout)["last"] == {"step": 4, "loss": 0.25}


def test_compare_shows_only_what_differs(runs: Path) -> None:
    rows = json.loads(call("runs", "compare", runs / "a", runs / "below" / "b", "--json").stdout)
    assert rows == {"rank": [16, 8], "last.step": [4, None], "last.loss": [0.25, None]}
    table = call("runs", "compare", runs / "a", runs / "below" / "b").stdout
    assert "rank" in table
    assert "steps" not in table.replace("last.step", "")


def test_clean_keeps_the_newest_checkpoint_and_all_results(runs: Path) -> None:
    run = runs / "a"
    before = sorted(run.rglob("*"))
    shown = call("runs", "clean", run, "--dry-run").stdout
    assert sorted(set(run.rglob("*")) - {run / ".lock"}) == before
    assert call("runs", "clean", run).stdout == shown
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-001000"]
    assert (run / "ride.safetensors").is_file()
    assert "step-001000  4 B" in call("runs", "clean", run, "--all").stdout
    assert not list((run / "checkpoints").iterdir())


def test_what_is_no_run_is_refused_and_nothing_is_deleted(runs: Path) -> None:
    refused(call("runs", "clean", runs / "a", runs / "nowhere"), "nowhere", "run.json")
    assert len(list((runs / "a" / "checkpoints").iterdir())) == 3
    refused(call("runs", "list", runs / "nowhere"), "no such folder")
