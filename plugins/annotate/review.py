"""One static HTML page of a set: to look at, to correct, and to save the corrections from. It needs no network."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rbctl.files import write_text
from rbctl.images import read_image
from rbctl.pages import render
from rbctl.plugins.annotate import corrections
from rbctl.plugins.annotate.corrections import CORRECTIONS, corrected
from rbctl.plugins.annotate.reports import ObjectReport, Report, read_reports
from rbctl.triplets.keypoints import ABSENT, KEYPOINTS, OCCLUDED, SKELETON, VISIBLE

PAGE = "review.html"

_DOUBTFUL = 0.5  # a keypoint of less confidence is marked
_STATES = {ABSENT: "absent", OCCLUDED: "occluded", VISIBLE: ""}


@dataclass(frozen=True)
class _Point:
    """A keypoint as it is drawn, in pixels of the picture."""

    x: float
    y: float
    seen: int
    doubtful: bool
    title: str

    @property
    def state(self) -> str:
        return _STATES[self.seen]


@dataclass(frozen=True)
class _Individual:
    """What is drawn of object ``number`` of a triplet: mask (a link), box (x, y, width, height), points and name."""

    number: int
    part: str
    name: str
    label: tuple[float, float]
    mask: str
    mask_id: str
    box: tuple[float, ...] | None
    points: Sequence[_Point]


@dataclass(frozen=True)
class _Figure:
    """A target or an image prompt, with what is known of it over it."""

    width: int
    height: int
    link: str
    caption: str
    individuals: Sequence[_Individual]


@dataclass(frozen=True)
class _Shown:
    """A triplet."""

    file_name: str
    text: str
    predicate: str
    dropped: bool
    failed: Sequence[str]
    margin: float | None
    figures: Sequence[_Figure]


def write_page(folder: Path, follow_outside: bool = False) -> Path:
    """Write review.html beside the triplets; returns its path.

    Dropped triplets are on it too, their box ticked, so that they can be taken back.

    Args:
        follow_outside: pictures may lie outside of the folder.

    Raises:
        InputError: the folder holds no triplets of the native form; one of them, a report or a correction is broken.
    """
    (folder / PAGE).unlink(missing_ok=True)  # a page that came with the set may be anybody's
    rows, known = corrections.base(folder, follow_outside)
    rows = corrected(rows, {name: {**correction, "drop": False} for name, correction in known.items()})
    reports = read_reports(folder, {row["file_name"]: len(row["objects"]) for row in rows})
    triplets = [
        _shown(folder, number, row, reports.pop(row["file_name"], None), known.get(row["file_name"], {}))
        for number, row in enumerate(rows)
    ]
    page = render(
        Path(__file__).with_name("review.html.jinja"),
        images="'self' file:",  # pictures of the set, wherever the page is opened from
        title=folder.resolve().name,
        command=f"rbctl annotate {shlex.quote(str(folder))} --apply {CORRECTIONS}",
        corrections=CORRECTIONS,
        skeleton=SKELETON,
        triplets=triplets,
        left_out={name: report.problem or f"fails {', '.join(_failed(report))}" for name, report in reports.items()},
    )
    write_text(folder / PAGE, page)
    return folder / PAGE


def _shown(
    folder: Path, number: int, row: Mapping[str, Any], report: Report | None, correction: Mapping[str, Any]
) -> _Shown:
    objects: Sequence[ObjectReport | None] = [None] * len(row["objects"])
    if report is not None and report.objects:
        objects = report.objects
    figures = [_figure(folder, f"t{number}", row["file_name"], row["file_name"], row["objects"], objects, "target")]
    for k, (thing, told) in enumerate(zip(row["objects"], objects, strict=True)):
        caption = ""
        if told is not None:
            change = "not known" if told.pose_change is None else f"{told.pose_change:g}"
            caption = f"{told.name}: similarity {told.similarity:g}, pose change {change}"
        figures.append(_figure(folder, f"t{number}-{k}", thing["image"], caption, [thing], [told], "image", k))
    return _Shown(
        file_name=row["file_name"],
        text=row["text"],
        predicate=row.get("predicate", ""),
        dropped=correction.get("drop", False),
        failed=[] if report is None else _failed(report),
        margin=None if report is None else report.margin,
        figures=figures,
    )


def _failed(report: Report) -> list[str]:
    """The gates that a triplet fails, in words."""
    return [
        f"{name.replace('_', ' ')} ({'not known' if gate.value is None else f'{gate.value:g}'} of {gate.limit:g})"
        for name, gate in report.failed.items()
    ]


def _figure(
    folder: Path,
    identity: str,
    file_name: str,
    caption: str,
    objects: Sequence[Mapping[str, Any]],
    reports: Sequence[ObjectReport | None],
    part: str,
    first: int = 0,
) -> _Figure:
    """A picture and the objects in it, the first of which has number ``first`` in its triplet."""
    width, height = read_image(folder / file_name).size
    individuals = []
    for k, (thing, report) in enumerate(zip(objects, reports, strict=True)):
        on_target = part == "target"
        relative, confidence, box = thing["box"] if on_target else None, None, None
        if report is not None:
            relative = relative or report.image_box
            confidence = report.target_confidence if on_target else report.image_confidence
        if relative:
            x0, y0, x1, y1 = (round(v * size, 2) for v, size in zip(relative, (width, height) * 2, strict=True))
            box = x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)
        individuals.append(
            _Individual(
                number=first + k,
                part=part,
                name=thing["name"],
                label=(box[0] if box else 0, max(box[1] if box else 0, round(0.06 * height, 2))),
                mask=quote(thing.get("mask") or "") if on_target else "",
                mask_id=f"{identity}-m{k}",
                box=box,
                points=_points(thing[f"{part}_keypoints"], confidence, width, height),
            )
        )
    return _Figure(width, height, quote(file_name), caption, individuals)


def _points(
    keypoints: Sequence[Sequence[float]], confidence: Sequence[float] | None, width: int, height: int
) -> list[_Point]:
    points = []
    for k, (x, y, seen) in enumerate(keypoints):
        sure = None if confidence is None else confidence[k]
        if seen == ABSENT and not (x or y):
            x, y = (k + 1) / 18, 0.98  # in a row at the foot, to be fetched
        title = KEYPOINTS[k] if sure is None else f"{KEYPOINTS[k]}, confidence {sure:g}"
        doubtful = seen != ABSENT and sure is not None and sure < _DOUBTFUL
        points.append(_Point(round(x * width, 2), round(y * height, 2), int(seen), doubtful, title))
    return points
