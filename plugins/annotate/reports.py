"""annotations.jsonl: what is told of each triplet, read back as carefully as the triplets themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from rbctl.errors import InputError, abridged, nearest
from rbctl.files import numbered_lines
from rbctl.parsing import parse_json
from rbctl.triplets.keypoints import KEYPOINTS

REPORT = "annotations.jsonl"

_MOST = 1e6  # of a number without a range of its own


@dataclass(frozen=True, kw_only=True)
class Gate:
    """A quality gate; ``value`` is None where it could not be told."""

    passed: bool
    value: float | None
    limit: float


@dataclass(frozen=True, kw_only=True)
class ObjectReport:
    """One individual.

    Attributes:
        found: which of those in the target it is.
        similarity: cosine of its look in the target with that in its image prompt.
        box_score, image_box_score: how sure its boxes are, in [0, 1].
        image_box: relative xyxy, around it in its image prompt.
        pose_change: from its image prompt to the target; None where too few keypoints are visible.
        target_confidence, image_confidence: of the 17 keypoints, in [0, 1].
    """

    name: str
    found: float
    similarity: float
    box_score: float
    image_box_score: float
    image_box: tuple[float, ...]
    pose_change: float | None
    target_confidence: tuple[float, ...]
    image_confidence: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Report:
    """One triplet.

    Attributes:
        problem: why it could not be annotated; empty where it could.
        backends: the name of each step's.
        margin: by how much the matching is better than the next best; None where it was not matched.
        objects: none where it could not be annotated.
        kept: whether it stands in metadata.jsonl.
    """

    file_name: str
    problem: str
    backends: Mapping[str, str]
    gates: Mapping[str, Gate]
    margin: float | None
    objects: tuple[ObjectReport, ...]
    kept: bool

    @property
    def failed(self) -> Mapping[str, Gate]:
        """The gates that it does not pass."""
        return {name: gate for name, gate in self.gates.items() if not gate.passed}


def read_reports(folder: Path, counts: Mapping[str, int]) -> dict[str, Report]:
    """The reports by the triplets' file names; none where the folder has no annotations.jsonl.

    Args:
        counts: objects of each triplet of the set, by its file name.

    Raises:
        InputError: a line is wrong, or does not fit its triplet; FILE:LINE and the field are named.
    """
    path, reports = folder / REPORT, dict[str, Report]()
    for number, line in numbered_lines(path) if path.exists() else ():
        where = f"{path}:{number}: "
        report = _report(parse_json(line, f"{path}:{number}"), where)
        if report.file_name in reports:
            raise InputError(f"{where}file_name: a line above has the same one; remove one of them")
        told, count = len(report.objects), counts.get(report.file_name)
        if told and count not in (None, told):
            what = f"objects: are {told}, those of the triplet {count}"
            raise InputError(f"{where}{what}; run 'rbctl annotate {folder}' again")
        reports[report.file_name] = report
    return reports


def _report(value: Any, where: str) -> Report:
    row = _row(value, Report, where)
    objects = row.get("objects", [])
    if not isinstance(objects, list):
        raise InputError(f"{where}objects: a list was expected, not {abridged(objects)}")
    problem, margin = row.get("problem"), row.get("margin")
    backends, gates = (_mapping(row.get(key), f"{where}{key}: ") for key in ("backends", "gates"))
    return Report(
        file_name=_words(row.get("file_name"), f"{where}file_name"),
        problem="" if problem is None else _words(problem, f"{where}problem"),
        backends={step: _words(name, f"{where}backends.{abridged(step)}") for step, name in backends.items()},
        gates={name: _gate(gate, f"{where}gates.{abridged(name)}") for name, gate in gates.items()},
        margin=None if margin is None else _number(margin, f"{where}margin", -_MOST),
        objects=tuple(_object(entry, f"{where}objects[{k}]") for k, entry in enumerate(objects)),
        kept=_truth(row.get("kept"), f"{where}kept"),
    )


def _gate(value: Any, where: str) -> Gate:
    row = _row(value, Gate, f"{where}: ")
    value = row.get("value")
    return Gate(
        passed=_truth(row.get("passed"), f"{where}.passed"),
        value=None if value is None else _number(value, f"{where}.value", -_MOST),
        limit=_number(row.get("limit"), f"{where}.limit", -_MOST),
    )


def _object(value: Any, where: str) -> ObjectReport:
    row = _row(value, ObjectReport, f"{where}: ")
    change = row.get("pose_change")
    return ObjectReport(
        name=_words(row.get("name"), f"{where}.name"),
        found=_number(row.get("found"), f"{where}.found"),
        similarity=_number(row.get("similarity"), f"{where}.similarity", -_MOST),
        box_score=_number(row.get("box_score"), f"{where}.box_score", most=1),
        image_box_score=_number(row.get("image_box_score"), f"{where}.image_box_score", most=1),
        image_box=_unit(row.get("image_box"), f"{where}.image_box", 4),
        pose_change=None if change is None else _number(change, f"{where}.pose_change"),
        target_confidence=_unit(row.get("target_confidence"), f"{where}.target_confidence", len(KEYPOINTS)),
        image_confidence=_unit(row.get("image_confidence"), f"{where}.image_confidence", len(KEYPOINTS)),
    )


def _row(value: Any, kind: type[Report] | type[Gate] | type[ObjectReport], where: str) -> Mapping[str, Any]:
    """A JSON object with no other fields than a dataclass has."""
    row, known = _mapping(value, where), [field.name for field in fields(kind)]
    for key in row:
        if key not in known:
            raise InputError(f"{where}no field {abridged(key)}{nearest(key, known) or '; leave it out'}")
    return row


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where}a JSON object was expected, not {abridged(value)}")
    return value


def _words(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where}: words were expected, not {abridged(value)}")
    return value


def _truth(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"{where}: true or false was expected, not {abridged(value)}")
    return value


def _number(value: Any, where: str, least: float = 0, most: float = _MOST) -> float:
    if type(value) not in (int, float) or not least <= value <= most:
        raise InputError(f"{where}: a number from {least:,.0f} to {most:,.0f} was expected, not {abridged(value)}")
    return float(value)


def _unit(values: Any, where: str, count: int) -> tuple[float, ...]:
    """``count`` numbers in [0, 1]."""
    if not isinstance(values, list) or len(values) != count:
        raise InputError(f"{where}: {count} numbers were expected, not {abridged(values)}")
    return tuple(_number(value, f"{where}[{k}]", most=1) for k, value in enumerate(values))
