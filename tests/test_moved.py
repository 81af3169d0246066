"""Runs that were moved: their folders name files from where they lie, so that everything works from anywhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import processes
import pytest

from rbctl.menagerie.triplets import draw_triplets
from rbctl.paths import shipped_yaml
from rbctl.plugins.demo.examples import write as write_prompts
from rbctl.relations import load_relation

pytestmark = pytest.mark.slow


class Tree:
    """A folder with data, bundle and runs of several stages, all of them named by absolute paths."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder.parent / "log.txt"

    def __call__(self, *arguments: object, cwd: Path) -> None:
        assert processes.run(arguments, self.log, folder=cwd) == 0, self.log.read_text()[-3000:]

    def finetune(self, cwd: Path, steps: int) -> None:
        size = ("--steps", steps, "--batch-size", 1, "--augmentation-draws", 1)
        place = self.folder
        self(
            *("finetune", "--relation", place / "mine.yaml", "--data", place / "triplets", "--bundle", place / "tiny"),
            *("--output", place / "runs" / "mine", "--lr-scheduler", "constant", *size, "--prior", "none"),
            cwd=cwd,
        )

    def sample(self, cwd: Path) -> None:
        place = self.folder
        self(
            *("sample", place / "prompts" / "prompts.txt", "--bundle", place / "tiny", "--steps", 1),
            *("--lora", place / "runs" / "mine" / "mine.safetensors", "--output", place / "runs" / "pictures"),
            cwd=cwd,
        )

    def evaluate(self, cwd: Path) -> None:
        place = self.folder
        features = place / "runs" / "features"
        self("eval", place / "runs" / "pictures", "--output", place / "runs" / "scores", "--cache", features, cwd=cwd)

    def bench(self, cwd: Path) -> None:
        place = self.folder
        self(
            *(
                "eval",
                "--bench",
                "relationbench-mini",
                "--relations",
                "ride",
                "--cases",
                1,
                "--steps",
                1,
                "--images",
                1,
            ),
            *("--output", place / "runs" / "bench", "--cache", place / "runs" / "features"),
            cwd=cwd,
        )

    def scores(self) -> dict[str, Any]:
        """What eval wrote, but for the way to the bundle, which did not move."""
        content: dict[str, Any] = json.loads((self.folder / "runs" / "scores" / "scores.json").read_text())
        del content["encoders"]
        return content

    def names(self, words: Path) -> list[str]:
        """Files that hold the words."""
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        return [str(path) for path in files if str(words).encode() in path.read_bytes()]


def test_a_moved_tree_goes_on_from_anywhere(tiny_bundle: Path, tmp_path: Path) -> None:
    before = Tree(tmp_path / "before" / "project")
    before.folder.mkdir(parents=True)
    shutil.copytree(tiny_bundle, before.folder / "tiny")
    draw_triplets(load_relation("hug"), 4, 3, before.folder / "triplets", size=64)
    write_prompts(before.folder / "prompts", load_relation("hug"), 1)
    hug = shipped_yaml("relations")["hug"].read_text()
    (before.folder / "mine.yaml").write_text(hug.replace("name: hug", "name: mine"))
    for stage in (lambda cwd: before.finetune(cwd, 2), before.sample, before.evaluate, before.bench):
        stage(cwd=before.folder)
    old = before.folder
    assert before.names(tmp_path) == []
    (tmp_path / "after" / "deeper").mkdir(parents=True)
    after = Tree(tmp_path / "after" / "deeper" / "project")
    old.rename(after.folder)
    scores = after.scores()
    kept = {path: path.stat().st_mtime_ns for path in after.folder.rglob("*.png") if "grid" not in path.name}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    after.evaluate(elsewhere)  # of pictures whose LoRA lies beside them
    after.sample(elsewhere)
    after.bench(elsewhere)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept  # no picture was made anew
    assert after.scores() == scores
    after.finetune(elsewhere, 3)  # goes on: neither data nor relation is another one
    rows = (after.folder / "runs" / "mine" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2, 3]
    recipe = after.folder / "runs" / "mine" / "recipe.yaml"
    after("finetune", "--recipe", recipe, "--steps", 4, cwd=elsewhere)  # a run's recipe works from anywhere
    assert list(elsewhere.iterdir()) == []
    assert after.names(tmp_path) == []
