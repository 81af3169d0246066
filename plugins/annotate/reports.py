"""annotations.jsonl: how each triplet was annotated, and how surely. It is read back as carefully as the triplets."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Interval, Len

from rbctl.errors import InputError
from rbctl.files import numbered_lines, write_jsonl
from rbctl.formats import Words, read
from rbctl.parsing import parse_json
from rbctl.triplets.keypoints import KEYPOINTS

REPORT = "annotations.jsonl"

Number = Annotated[float, Interval(ge=-1e6, le=1e6)]  # one without a range of its own
Unit = Annotated[float, Interval(ge=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class Gate:
    """A quality gate: what a triplet must be to teach a relation; ``value`` is None where it could not be told."""

    passed: bool
    value: Number | None = None
    limit: Number

    @staticmethod
    def at_least(value: float | None, limit: float) -> Gate:
        """A gate that a value of at least ``limit`` passes; one that cannot be told (None) fails."""
        rounded = None if value is None else round(value, 4)
        return Gate(passed=value is not None and value >= limit, value=rounded, limit=limit)


@dataclass(frozen=True, kw_only=True)
class ObjectReport:
    """One individual.

    Attributes:
        found: which of those in the target it is.
        similarity: cosine of its look in the target with that in its image prompt.
        box_score, image_box_score: how sure its boxes are.
        image_box: relative xyxy, around it in its image prompt.
        pose_change: from its image prompt to the target; None where too few keypoints are visible.
        target_confidence, image_confidence: of the 17 keypoints.
    """

    name: Words
    found: Annotated[int, Interval(ge=0, le=1000000)]
    similarity: Number
    box_score: Unit
    image_box_score: Unit
    image_box: Annotated[tuple[Unit, ...], Len(4, 4)]
    pose_change: Annotated[float, Interval(ge=0, le=1e6)] | None = None
    target_confidence: Annotated[tuple[Unit, ...], Len(len(KEYPOINTS), len(KEYPOINTS))]
    image_confidence: Annotated[tuple[Unit, ...], Len(len(KEYPOINTS), len(KEYPOINTS))]


@dataclass(frozen=True, kw_only=True)
class Report:
    """One triplet.

    Attributes:
        problem: why it could not be annotated; None where it could.
        backends: the name of each step's.
        roles_from: what tells who has which role: "raw.jsonl", "text", "picture", or "their order" for want of these.
        margin: by how much the matching is better than the next best; None where it was not matched.
        objects: none where it could not be annotated.
        kept: whether it stands in metadata.jsonl.
    """

    file_name: Words
    problem: Words | None = None
    backends: dict[str, Words]
    gates: dict[str, Gate]
    margin: Number | None = None
    roles_from: Words | None = None
    objects: tuple[ObjectReport, ...] = ()
    kept: bool

    @property
    def failed(self) -> dict[str, Gate]:
        """The gates that it does not pass."""
        return {name: gate for name, gate in self.gates.items() if not gate.passed}

    @property
    def passed(self) -> bool:
        """Whether it was annotated and passes every gate."""
        return self.problem is None and not self.failed

    def as_row(self) -> dict[str, Any]:
        """Its line of annotations.jsonl; of one that could not be annotated without margin and objects."""
        row = dataclasses.asdict(self)
        of_annotated = () if self.problem is None else ("margin", "roles_from", "objects")
        return {key: row[key] for key in row if key not in of_annotated}


def write_reports(folder: Path, reports: Iterable[Report]) -> None:
    """Write annotations.jsonl, atomically; what it says of files is relative to the folder."""
    rows = [report.as_row() for report in reports]
    for row in rows:
        row["problem"] = row["problem"] and row["problem"].replace(f"{folder}{os.sep}", "")
    write_jsonl(folder / REPORT, rows)


def read_reports(folder: Path, counts: Mapping[str, int]) -> dict[str, Report]:
    """The reports by the triplets' file names; none where the folder has no annotations.jsonl.

    Args:
        counts: objects of each triplet of the set, by its file name.

    Raises:
        InputError: a line is wrong, or does not fit its triplet; FILE:LINE and the field are named.
    """
    path, reports = folder / REPORT, dict[str, Report]()
    for number, line in numbered_lines(path) if path.exists() else ():
        where = f"{path}:{number}"
        report = read(Report, parse_json(line, where), where)
        if report.file_name in reports:
            raise InputError(f"{where}: file_name: a line above has the same one; remove one of them")
        count = counts.get(report.file_name)
        if report.objects and count not in (None, len(report.objects)):
            problem = f"objects: are {len(report.objects)}, those of the triplet {count}"
            raise InputError(f"{where}: {problem}; run 'rbctl annotate {folder}' again")
        reports[report.file_name] = report
    return reports
