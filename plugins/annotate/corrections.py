"""What a person corrected on the review page, and laying it over what was annotated.

FOLDER/corrections.json holds all corrections taken in so far; FOLDER/.annotate/metadata.jsonl the triplets without
them. So a correction can be taken back, and annotating again does not lose it. The form::

    {"triplets": {"0.png": {"drop": true},
                  "1.png": {"objects": [{"target_keypoints": {"3": [0.4, 0.25, 2]}, "image_keypoints": {}}, {}]}}}
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from rbctl.errors import InputError
from rbctl.files import read_json, read_jsonl, write_json, write_jsonl
from rbctl.plugins.annotate.store import KEPT
from rbctl.triplets.folder import METADATA
from rbctl.triplets.keypoints import KEYPOINTS

CORRECTIONS = "corrections.json"
_POINTS = ("target_keypoints", "image_keypoints")

Rows = list[dict[str, Any]]
Corrections = dict[str, dict[str, Any]]


def corrected(rows: Rows, corrections: Corrections) -> Rows:
    """The rows with corrections laid over them; dropped ones are left out."""
    left = []
    for row in copy.deepcopy(rows):
        correction = corrections.get(row["file_name"], {})
        if correction.get("drop"):
            continue
        for thing, changed in zip(row["objects"], correction.get("objects", []), strict=False):
            for part in _POINTS:
                for number, point in changed.get(part, {}).items():
                    thing[part][int(number)] = list(point)
        left.append(row)
    return left


def read(path: Path) -> Corrections:
    """Corrections by the triplets' file names.

    Raises:
        InputError: the file is damaged, or no such thing; the entry is named.
    """
    content = read_json(path)
    triplets = content.get("triplets") if isinstance(content, dict) else None
    if not isinstance(triplets, dict):
        raise InputError(f"{path}: triplets: not there; the review page saves such a file ('rbctl annotate --review')")
    for name, correction in triplets.items():
        if not isinstance(correction, dict) or not isinstance(correction.get("drop", False), bool):
            raise InputError(f"{path}: {name}: drop must be true or false, objects a list")
        objects = correction.get("objects", [])
        if not isinstance(objects, list) or not all(isinstance(thing, dict) for thing in objects):
            raise InputError(f"{path}: {name}: objects: a list of JSON objects was expected")
        for k, thing in enumerate(objects):
            for part in _POINTS:
                points = thing.get(part, {})
                if not isinstance(points, dict):
                    raise InputError(f"{path}: {name}: objects[{k}].{part}: a JSON object was expected")
                for number, point in points.items():
                    _check_point(f"{path}: {name}: objects[{k}].{part}.{number}", number, point)
    return triplets


def _check_point(where: str, number: str, point: Any) -> None:
    if number not in map(str, range(len(KEYPOINTS))):
        raise InputError(f"{where}: keypoints are counted from 0 to {len(KEYPOINTS) - 1}")
    numbers = isinstance(point, list) and len(point) == 3 and all(type(v) in (int, float) for v in point)
    if not numbers or not (0 <= point[0] <= 1 and 0 <= point[1] <= 1) or point[2] not in (0, 1, 2):
        raise InputError(f"{where}: {point!r}; [x, y, visibility] was expected, x and y in [0, 1], then 0, 1 or 2")


def publish(folder: Path, rows: Rows) -> int:
    """Write metadata.jsonl: the rows and the corrections known of them; returns how many triplets that are."""
    write_jsonl(folder / KEPT / METADATA, rows)
    left = corrected(rows, _known(folder))
    write_jsonl(folder / METADATA, left)
    return len(left)


def apply(folder: Path, path: Path) -> int:
    """Take corrections in; returns how many triplets are left.

    Raises:
        InputError: the file is wrong, names a triplet that is not there, or would leave none.
    """
    new = read(path)
    rows, known = base(folder)
    for name, correction in new.items():
        row = next((row for row in rows if row["file_name"] == name), None)
        if row is None:
            raise InputError(f"{path}: {name}: no such triplet in {folder / METADATA}; it is of another set")
        if len(correction.get("objects", [])) > len(row["objects"]):
            raise InputError(f"{path}: {name}: has {len(row['objects'])} objects, not {len(correction['objects'])}")
        known[name] = _merged(known.get(name, {}), correction)
    if not corrected(rows, known):
        raise InputError(f"{path}: drops every triplet; keep one at least")
    write_jsonl(folder / KEPT / METADATA, rows)
    write_json(folder / CORRECTIONS, {"triplets": known})
    return publish(folder, rows)


def _merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    objects = []
    for k in range(max(len(old.get("objects", [])), len(new.get("objects", [])))):
        both = [c.get("objects", [])[k] if k < len(c.get("objects", [])) else {} for c in (old, new)]
        objects.append({part: {**both[0].get(part, {}), **both[1].get(part, {})} for part in _POINTS})
    return {"drop": new.get("drop", old.get("drop", False)), "objects": objects}


def _known(folder: Path) -> Corrections:
    path = folder / CORRECTIONS
    return read(path) if path.is_file() else {}


def base(folder: Path) -> tuple[Rows, Corrections]:
    """The triplets without corrections, and those; triplets that somebody else changed since are taken as they are."""
    if not (folder / METADATA).is_file():
        raise InputError(f"{folder}: holds no annotated triplets yet; run 'rbctl annotate {folder}' first")
    now, path = read_jsonl(folder / METADATA), folder / KEPT / METADATA
    if path.is_file():
        rows, known = read_jsonl(path), _known(folder)
        if corrected(rows, known) == now:
            return rows, known
    return now, {}
