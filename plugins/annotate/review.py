"""One static HTML page of a set: to look at, to correct, and to save the corrections from. It needs no network."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rbctl.errors import InputError
from rbctl.files import read_image, read_jsonl, write_text
from rbctl.plugins.annotate import corrections
from rbctl.plugins.annotate.corrections import CORRECTIONS, corrected
from rbctl.plugins.annotate.page import SCRIPT, STYLE
from rbctl.triplets import load
from rbctl.triplets.folder import METADATA
from rbctl.triplets.keypoints import ABSENT, KEYPOINTS, OCCLUDED, SKELETON

PAGE = "review.html"
REPORT = "annotations.jsonl"

_COLOURS = ("#2563eb", "#ea580c", "#16a34a", "#c026d3", "#ca8a04", "#0891b2")  # an object each, as in 'rbctl data show'
_DOUBTFUL = 0.5  # a keypoint of less confidence is marked


def write_page(folder: Path) -> Path:
    """Write review.html beside the triplets; returns its path.

    Dropped triplets are on it too, their box ticked, so that they can be taken back.

    Raises:
        InputError: the folder holds no triplets of the native form, or one is broken.
    """
    if not (folder / METADATA).is_file():
        raise InputError(f"{folder}: holds no {METADATA}; run 'rbctl annotate {folder}', or 'rbctl data import', first")
    load(folder)
    rows, known = corrections.base(folder)
    reports = {report["file_name"]: report for report in _reports(folder)}
    undropped = {name: {**correction, "drop": False} for name, correction in known.items()}
    shown = corrected(rows, undropped)
    names = {row["file_name"] for row in shown}
    parts = [
        _triplet(folder, number, row, reports.get(row["file_name"], {}), known.get(row["file_name"], {}))
        for number, row in enumerate(shown)
    ]
    left_out = [
        f"<li>{html.escape(name)}: {html.escape(_why(report))}</li>"
        for name, report in reports.items()
        if name not in names
    ]
    title = html.escape(folder.resolve().name)
    content = (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{title}: review</title>\n'
        f'<meta name="viewport" content="width=device-width">\n<style>{STYLE}</style>\n'
        f"<header><h1>{title}</h1><p>{len(shown)} triplets. Drag a point to move it; double-click it to make it "
        "visible, occluded (hollow) or absent (a cross). Dashed rings mark doubtful points. Then take the saved file "
        f"in: <code>rbctl annotate {html.escape(str(folder))} --apply {CORRECTIONS}</code></p>"
        f'<button id="save" type="button">Save {CORRECTIONS}</button> <output id="count"></output></header>\n'
        f"<main>\n{''.join(parts)}</main>\n"
        + (f"<section><h2>Left out</h2><ul>{''.join(left_out)}</ul></section>\n" if left_out else "")
        + f"<script>{SCRIPT}</script>\n</html>\n"
    )
    write_text(folder / PAGE, content)
    return folder / PAGE


def _reports(folder: Path) -> list[dict[str, Any]]:
    return read_jsonl(folder / REPORT) if (folder / REPORT).is_file() else []


def _why(report: Mapping[str, Any]) -> str:
    return report.get("problem") or "fails " + ", ".join(_failed(report))


def _failed(report: Mapping[str, Any]) -> list[str]:
    """The gates that a triplet fails."""
    return [
        f"{name.replace('_', ' ')} ({gate['value']} of {gate['limit']})"
        for name, gate in report.get("gates", {}).items()
        if not gate["passed"]
    ]


def _triplet(
    folder: Path, number: int, row: Mapping[str, Any], report: Mapping[str, Any], known: Mapping[str, Any]
) -> str:
    told: list[Mapping[str, Any]] = report.get("objects") or [{} for _ in row["objects"]]
    figures = [_picture(folder, f"t{number}", row["file_name"], row["objects"], told, "target")]
    for k, thing in enumerate(row["objects"]):
        figures.append(_picture(folder, f"t{number}-{k}", thing["image"], [thing], [told[k]], "image", first=k))
    failed = "".join(f'<li class="failed">fails {html.escape(text)}</li>' for text in _failed(report))
    margin = f"<li>matched with margin {report['margin']}</li>" if "margin" in report else ""
    checked = " checked" if known.get("drop") else ""
    name = html.escape(row["file_name"])
    return (
        f'<article data-triplet="{name}"><h2>{html.escape(row["text"])}</h2>'
        f"<p>{name} · {html.escape(row.get('predicate') or 'no predicate')} "
        f'<label><input type="checkbox" class="drop"{checked}> drop</label></p><ul>{failed}{margin}</ul>'
        f'<div class="pictures">{"".join(figures)}</div></article>\n'
    )


def _picture(
    folder: Path,
    identity: str,
    file_name: str,
    objects: list[Any],
    told: list[Mapping[str, Any]],
    part: str,
    first: int = 0,
) -> str:
    """A target or image prompt with what is known of it over it; object k of the list has number ``first`` + k."""
    width, height = read_image(folder / file_name).size
    drawn = []
    for k, (thing, report) in enumerate(zip(objects, told, strict=True)):
        pieces = []
        box, mask = (thing["box"], thing.get("mask")) if part == "target" else (report.get("image_box"), None)
        if mask:
            pieces.append(
                f'<mask id="{identity}-m{k}"><image href="{_link(mask)}" width="{width}" height="{height}"/></mask>'
                f'<rect class="mask" width="{width}" height="{height}" mask="url(#{identity}-m{k})"/>'
            )
        if box:
            x0, y0, x1, y1 = (round(v * size, 2) for v, size in zip(box, (width, height) * 2, strict=True))
            pieces.append(
                f'<rect class="box" x="{x0}" y="{y0}" width="{round(x1 - x0, 2)}" height="{round(y1 - y0, 2)}"/>'
            )
        pieces.append(_skeleton(thing[f"{part}_keypoints"], report.get(f"{part}_confidence"), width, height))
        pieces.append(_name(thing, box, width, height))
        drawn.append(
            f'<g class="individual" data-object="{first + k}" data-part="{part}_keypoints" '
            f'style="--colour:{_COLOURS[(first + k) % len(_COLOURS)]}">{"".join(pieces)}</g>'
        )
    scores = [f"{t['name']}: similarity {t['similarity']}, pose change {t['pose_change']}" for t in told if t]
    caption = html.escape("; ".join(scores) if part == "image" else file_name)
    return (
        f'<figure><svg viewBox="0 0 {width} {height}" style="--unit:{max(width, height) / 128:g}px">'
        f'<image href="{_link(file_name)}" width="{width}" height="{height}"/>{"".join(drawn)}</svg>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _skeleton(points: list[list[float]], confidence: list[float] | None, width: int, height: int) -> str:
    at = [(round(x * width, 2), round(y * height, 2)) for x, y, _ in points]
    pieces = []
    for a, b in SKELETON:
        hidden = "" if points[a][2] and points[b][2] else " hidden"
        line = f'x1="{at[a][0]}" y1="{at[a][1]}" x2="{at[b][0]}" y2="{at[b][1]}"'
        pieces.append(f'<line class="bone{hidden}" data-a="{a}" data-b="{b}" {line}/>')
    for k, (x, y) in enumerate(at):
        seen = int(points[k][2])
        sure = None if confidence is None else confidence[k]
        doubtful = " doubtful" if seen != ABSENT and sure is not None and sure < _DOUBTFUL else ""
        state = {ABSENT: " absent", OCCLUDED: " occluded"}.get(seen, "")
        told = KEYPOINTS[k] if sure is None else f"{KEYPOINTS[k]}, confidence {sure}"
        if seen == ABSENT and not (x or y):
            x, y = round(width * (k + 1) / 18, 2), round(height * 0.98, 2)  # in a row at the foot, to be fetched
        pieces.append(
            f'<circle class="point{state}{doubtful}" data-k="{k}" data-seen="{seen}" cx="{x}" cy="{y}">'
            f"<title>{told}</title></circle>"
        )
    return "".join(pieces)


def _name(thing: Mapping[str, Any], box: list[float] | None, width: int, height: int) -> str:
    x, y = (box[0] * width, box[1] * height) if box else (0, 0)
    return f'<text x="{x:.2f}" y="{max(y, 0.06 * height):.2f}">{html.escape(thing["name"])}</text>'


def _link(file_name: str) -> str:
    return html.escape(quote(file_name))
