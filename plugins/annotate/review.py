"""One static HTML page of a set: to look at, to correct, and to save the corrections from. It needs no network."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rbctl.files import drop_partial, read_image, write_text
from rbctl.pages import render
from rbctl.plugins.annotate.corrections import CORRECTIONS, base
from rbctl.plugins.annotate.reports import Report, read_reports
from rbctl.triplets.keypoints import KEYPOINTS, SKELETON

PAGE = "review.html"


def write_page(folder: Path, follow_outside: bool = False) -> Path:
    """Write review.html beside the triplets; returns its path.

    Dropped triplets are on it too, their box ticked, so that they can be taken back.

    Args:
        follow_outside: pictures may lie outside of the folder.

    Raises:
        InputError: the folder holds no triplets of the native form; one of them, a report or a correction is broken.
    """
    drop_partial(folder / PAGE)
    (folder / PAGE).unlink(missing_ok=True)  # a page that came with the set may be anybody's
    rows, known = base(folder, follow_outside)
    reports = read_reports(folder, {row["file_name"]: len(row["objects"]) for row in rows})
    triplets = []
    for row in rows:
        report, correction = reports.pop(row["file_name"], None), known.of(row)
        figures = _figures(folder, correction.on(row), report)
        triplets.append({"row": row, "report": report, "dropped": correction.drop, "figures": figures})
    page = render(
        Path(__file__).with_name("review.html.jinja"),
        images="'self' file:",  # pictures of the set, wherever the page is opened from
        title=folder.resolve().name,
        command=f"rbctl annotate {shlex.quote(str(folder))} --apply {CORRECTIONS}",
        corrections=CORRECTIONS,
        names=KEYPOINTS,
        skeleton=SKELETON,
        triplets=triplets,
        left_out=reports.values(),
    )
    write_text(folder / PAGE, page)
    return folder / PAGE


def _figures(folder: Path, row: Mapping[str, Any], report: Report | None) -> list[dict[str, Any]]:
    """The target with all objects, and each image prompt with its own; an object is (number, row, report)."""
    reports = report.objects if report is not None and report.objects else [None] * len(row["objects"])
    objects = [(k, *pair) for k, pair in enumerate(zip(row["objects"], reports, strict=True))]
    pictures = [("target", row["file_name"], objects)]
    pictures += [("image", entry["image"], [(k, entry, entry_report)]) for k, entry, entry_report in objects]
    return [
        {"part": part, "file_name": file_name, "size": read_image(folder / file_name).size, "objects": shown}
        for part, file_name, shown in pictures
    ]
