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
from rbctl.plugins.annotate.corrections import CORRECTIONS, base
from rbctl.plugins.annotate.reports import ObjectReport, read_reports
from rbctl.triplets.keypoints import ABSENT, KEYPOINTS, SKELETON

PAGE = "review.html"

_DOUBTFUL = 0.5  # a keypoint of less confidence is marked


@dataclass(frozen=True)
class _Point:
    """A keypoint as it is drawn, in pixels of the picture."""

    x: float
    y: float
    visibility: int
    doubtful: bool
    title: str


@dataclass(frozen=True)
class _Individual:
    """What is drawn of object ``number`` of a triplet: a mask (its link), a box (x, y, width, height) and points."""

    number: int
    name: str
    mask: str
    box: Sequence[float] | None
    points: Sequence[_Point]


@dataclass(frozen=True)
class _Figure:
    """A target or an image prompt (``part``: target, image), with what is known of it over it."""

    part: str
    width: int
    height: int
    link: str
    caption: str
    individuals: Sequence[_Individual]


def write_page(folder: Path, follow_outside: bool = False) -> Path:
    """Write review.html beside the triplets; returns its path.

    Dropped triplets are on it too, their box ticked, so that they can be taken back.

    Args:
        follow_outside: pictures may lie outside of the folder.

    Raises:
        InputError: the folder holds no triplets of the native form; one of them, a report or a correction is broken.
    """
    (folder / PAGE).unlink(missing_ok=True)  # a page that came with the set may be anybody's
    rows, known = base(folder, follow_outside)
    reports = read_reports(folder, {row["file_name"]: len(row["objects"]) for row in rows})
    triplets = []
    for row in rows:
        report, correction = reports.pop(row["file_name"], None), known.of(row)
        objects = report.objects if report else ()
        figures = _figures(folder, correction.on(row), objects or [None] * len(row["objects"]))
        triplets.append({"row": row, "report": report, "dropped": correction.drop, "figures": figures})
    page = render(
        Path(__file__).with_name("review.html.jinja"),
        images="'self' file:",  # pictures of the set, wherever the page is opened from
        title=folder.resolve().name,
        command=f"rbctl annotate {shlex.quote(str(folder))} --apply {CORRECTIONS}",
        corrections=CORRECTIONS,
        skeleton=SKELETON,
        triplets=triplets,
        left_out=reports.values(),
    )
    write_text(folder / PAGE, page)
    return folder / PAGE


def _figures(folder: Path, row: Mapping[str, Any], reports: Sequence[ObjectReport | None]) -> list[_Figure]:
    """The target with all objects, and each image prompt with its own."""
    objects = list(enumerate(zip(row["objects"], reports, strict=True)))
    parts = [("target", row["file_name"], row["file_name"], objects)]
    for k, (entry, report) in objects:
        caption = ""
        if report is not None:
            change = "not known" if report.pose_change is None else f"{report.pose_change:g}"
            caption = f"{report.name}: similarity {report.similarity:g}, pose change {change}"
        parts.append(("image", entry["image"], caption, [(k, (entry, report))]))
    figures = []
    for part, file_name, caption, shown in parts:
        width, height = read_image(folder / file_name).size
        individuals = [_individual(part, k, entry, report, width, height) for k, (entry, report) in shown]
        figures.append(_Figure(part, width, height, quote(file_name), caption, individuals))
    return figures


def _individual(
    part: str, number: int, entry: Mapping[str, Any], report: ObjectReport | None, width: int, height: int
) -> _Individual:
    on_target = part == "target"
    relative, confidence, box = entry["box"] if on_target else None, None, None
    if report is not None:
        relative = relative or report.image_box
        confidence = report.target_confidence if on_target else report.image_confidence
    if relative:
        x0, y0, x1, y1 = (round(v * size, 2) for v, size in zip(relative, (width, height) * 2, strict=True))
        box = x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)
    points = []
    for k, (x, y, visibility) in enumerate(entry[f"{part}_keypoints"]):
        if visibility == ABSENT and not (x or y):
            x, y = (k + 1) / 18, 0.98  # in a row at the foot, to be fetched
        title = KEYPOINTS[k] if confidence is None else f"{KEYPOINTS[k]}, confidence {confidence[k]:g}"
        doubtful = visibility != ABSENT and confidence is not None and confidence[k] < _DOUBTFUL
        points.append(_Point(round(x * width, 2), round(y * height, 2), int(visibility), doubtful, title))
    return _Individual(number, entry["name"], quote(entry.get("mask") or "") if on_target else "", box, points)
