"""Sets of triplets as tests make and read them."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

from commands import call

annotate = functools.partial(call, "annotate")


def lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def as_raw(drawn: Path, folder: Path, shuffled: bool = False) -> Path:
    """Triplets of the embedded world without their annotations."""
    rows = [
        {key: value for key, value in row.items() if not key.endswith("_file_names")}
        for row in lines(drawn / "metadata.jsonl")
    ]
    (folder / "images").mkdir(parents=True)
    for number, row in enumerate(rows):
        shutil.copy(drawn / row["file_name"], folder / row["file_name"])
        things = row["objects"][::-1] if shuffled and number % 2 else row["objects"]
        row["objects"] = [{key: thing[key] for key in ("name", "role", "image")} for thing in things]
        for thing in things:
            shutil.copy(drawn / thing["image"], folder / thing["image"])
    write_lines(folder / "raw.jsonl", rows)
    (folder / "set.json").write_text(json.dumps({"origin": "miniature", "relation": "hug"}))
    return folder


def kept(folder: Path) -> dict[str, int]:
    """Every result of a step that annotation keeps, and when it was written."""
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.glob(".annotate/*/*.npz")}
