"""A run's folder as it lies on the disk, read without any of the stage that wrote it."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rbctl import metrics
from rbctl.bundle.catalogue import size_text
from rbctl.errors import InputError
from rbctl.files import PARTIAL, read_object, read_yaml

RECIPE, RECORD, METRICS, CHECKPOINTS = "recipe.yaml", "run.json", "metrics.jsonl", "checkpoints/step-*"


@dataclass(frozen=True)
class RunFolder:
    """What a run says of itself.

    Attributes:
        stage: the recipe's section. options: of the recipe.
        record: run.json, with versions, machine, seed and the hashes of the inputs.
        last: the last row of metrics.jsonl; empty where there is none.
        bytes: of all files.
        modified: when its record was written, seconds since 1970.
    """

    folder: Path
    stage: str
    options: dict[str, Any]
    record: dict[str, Any]
    last: dict[str, Any]
    bytes: int
    modified: float

    @property
    def progress(self) -> str:
        """Steps done, of those that its options ask for."""
        steps = self.options.get("steps")
        done = self.last.get("step")
        return "-" if done is None and steps is None else f"{done or 0}{f' of {steps}' if steps else ''}"

    @property
    def loss_text(self) -> str:
        loss = self.last.get("loss")
        return f"{loss:.4g}" if isinstance(loss, int | float) else "-"

    @property
    def size_text(self) -> str:
        return size_text(self.bytes)

    @property
    def begun(self) -> str:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(self.modified))

    def facts(self) -> dict[str, Any]:
        """The record, one value a name: a version stands as ``versions.torch``."""
        flat: dict[str, Any] = {}
        for name, value in self.record.items():
            flat |= {f"{name}.{key}": v for key, v in value.items()} if isinstance(value, dict) else {name: value}
        return flat


def read_run(folder: Path) -> RunFolder:
    """Read one run.

    Raises:
        InputError: the folder holds no run, or its recipe, record or metrics are damaged.
    """
    record, recipe = folder / RECORD, folder / RECIPE
    if not (record.is_file() and recipe.is_file()):
        raise InputError(f"{folder}: holds no run ({RECORD} and {RECIPE}); 'rbctl runs list' shows where some are")
    sections = [(name, options) for name, options in read_yaml(recipe).items() if isinstance(options, dict)]
    if not sections:
        raise InputError(f"{recipe}: no section of a stage; the run cannot be read")
    stage, options = sections[0]
    rows = metrics.rows(folder / METRICS)
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return RunFolder(
        folder=folder,
        stage=stage,
        options=options,
        record=read_object(record),
        last=rows[-1] if rows else {},
        bytes=sum(path.stat().st_size for path in files),
        modified=record.stat().st_mtime,
    )


def run_folders(root: Path) -> list[Path]:
    """Folders of all runs below one, the newest last.

    Raises:
        InputError: the folder is not there.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; name the one that holds your runs")
    records = [path for path in root.rglob(RECORD) if (path.parent / RECIPE).is_file()]
    return [path.parent for path in sorted(records, key=lambda path: (path.stat().st_mtime, str(path)))]


def differences(runs: Sequence[RunFolder]) -> list[tuple[str, list[Any]]]:
    """Name -> value of each run, where they are not all equal; None where a run has none."""
    tables = [{"stage": run.stage, **run.options, **run.facts(), **_named("last", run.last)} for run in runs]
    names = dict.fromkeys(name for table in tables for name in table)
    rows = [(name, [table.get(name) for table in tables]) for name in names]
    return [(name, values) for name, values in rows if any(value != values[0] for value in values)]


def _named(prefix: str, row: dict[str, Any]) -> dict[str, Any]:
    return {f"{prefix}.{name}": value for name, value in row.items()}


def superfluous(folder: Path, keep: int) -> list[tuple[Path, int]]:
    """Checkpoints (files or folders) but for the newest ``keep``, with their bytes."""

    def step(path: Path) -> int:
        number = re.search(r"step-(\d+)", path.name)
        return int(number[1]) if number else -1

    paths = sorted(folder.glob(CHECKPOINTS), key=step, reverse=True)[keep:]
    return [(path, _bytes(path)) for path in paths]


def _bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def delete(path: Path) -> None:
    """Delete a checkpoint: a file, or a folder that is no link.

    A folder loses its name first, so that a kill leaves no half of a checkpoint; :func:`rbctl.files.sweep`
    deletes the rest.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path.rename(path.with_name(f".{path.name}{PARTIAL}")))
    else:
        path.unlink()
