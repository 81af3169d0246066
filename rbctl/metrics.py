"""metrics.jsonl and its like: a row a step, appended as a run goes on. A kill may tear the last line."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from rbctl.errors import InputError, abridged
from rbctl.files import write_bytes
from rbctl.parsing import parse_json


def rows(path: Path) -> list[dict[str, Any]]:
    """All whole rows; none where there is no file.

    Raises:
        InputError: a row is no JSON object with a number ``step``; the line is named.
    """
    return [row for _, row in _lines(path)]


def cut(path: Path, step: int) -> None:
    """Drop the rows after ``step``, which are about to be made again, and a torn last line.

    Raises:
        InputError: as of :func:`rows`; the file then stays as it was.
    """
    if path.is_file():
        whole = b"".join(line for line, row in _lines(path) if row["step"] <= step)
        if len(whole) < path.stat().st_size:
            write_bytes(path, whole)


def _lines(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    lines = []
    if path.is_file():
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.endswith(b"\n") and line.strip():
                    lines.append((line, _row(line, f"{path}:{number}")))
    return lines


def _row(line: bytes, where: str) -> dict[str, Any]:
    # A gradient's norm may be infinite where fp16 overflows: such steps are skipped.
    row = parse_json(line.decode("utf-8", "replace"), where, finite=False)
    step = row.get("step") if isinstance(row, dict) else None
    if not isinstance(step, int | float) or isinstance(step, bool) or not 0 <= step < math.inf:
        raise InputError(f"{where}: a row with a step was expected, not {abridged(row)}; remove the line")
    return dict(row)
