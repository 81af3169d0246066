"""gates.json: sections stored one by one, and the table that shows them."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rbctl.files import read_json, write_json
from rbctl.runs import versions


def gate(
    value: Mapping[str, Any] | float | None, at_least: float | None = None, at_most: float | None = None
) -> dict[str, Any]:
    """A figure against its threshold; ``passed`` is None where there is nothing to compare.

    Args:
        value: an interval of :mod:`bench.gates.intervals`, or a number.
    """
    found = dict(value) if isinstance(value, Mapping) else {"mean": value}
    mean, passed = found["mean"], None
    if mean is not None and at_least is not None:
        passed = bool(mean >= at_least)
    if mean is not None and at_most is not None:
        passed = bool(mean <= at_most) and passed is not False
    limits = {"at_least": at_least, "at_most": at_most}
    return {**found, **{k: v for k, v in limits.items() if v is not None}, "passed": passed}


def store(path: Path, subject: Mapping[str, str], name: str, section: Mapping[str, Any]) -> dict[str, Any]:
    """Put a section into the file; sections on another bundle or by another oracle are dropped.

    Args:
        subject: what is measured and by what, fingerprints.

    Returns:
        All that the file holds now.
    """
    before = read(path)
    if {key: before.get(key) for key in subject} != dict(subject):
        before = {}
    sections = {**before.get("sections", {}), name: {"date": now(), **section}}
    content = {
        **subject,
        "machine": {"platform": platform.platform(), "cores": os.cpu_count()},
        "versions": versions(),
        "gates": {f"{key}: {title}": g["passed"] for key, s in sections.items() for title, g in s["gates"].items()},
        "sections": sections,
    }
    write_json(path, content)
    return content


def read(path: Path) -> dict[str, Any]:
    """The file's content, empty where there is none."""
    return dict(read_json(path)) if path.is_file() else {}


def now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def table(content: Mapping[str, Any]) -> str:
    """All gates, a line each: section, what, value with interval, threshold, verdict."""
    rows = [("section", "gate", "value", "95 % interval", "n", "threshold", "")]
    for name, section in content.get("sections", {}).items():
        for title, found in section["gates"].items():
            limit = [f">= {found['at_least']:g}"] if "at_least" in found else []
            limit += [f"<= {found['at_most']:g}"] if "at_most" in found else []
            span = f"{found['low']:.3f} .. {found['high']:.3f}" if found.get("low") is not None else ""
            value = "-" if found["mean"] is None else f"{found['mean']:.3f}"
            verdict = {True: "passed", False: "FAILED", None: "not measured"}[found["passed"]]
            count = str(found.get("n", ""))
            rows.append((name, title, value, span, count, " ".join(limit), verdict))
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)
