"""What a person corrected on the review page, and laying it over what was annotated.

FOLDER/corrections.json alone holds what was corrected so far, and FOLDER/.annotate/metadata.jsonl the triplets without
that: so a correction can be taken back, and annotating again does not lose it. metadata.jsonl is made of both. It is
written last, and corrections.json tells by digests which of its contents are ours: wherever a kill comes, what was
corrected stays known, and the next run does not take it for the work of somebody else. The form::

    {"triplets": {"0.png": {"drop": true},
                  "1.png": {"objects": [{"target_keypoints": {"3": [0.4, 0.25, 2]}, "image_keypoints": {}}, {}]}},
     "published": ["sha256 of metadata.jsonl's rows before", "and after it was written last"]}
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
from pathlib import Path
from typing import Any

from rbctl.errors import InputError, abridged
from rbctl.files import numbered_lines, read_json, read_jsonl, write_json, write_jsonl
from rbctl.parsing import parse_json
from rbctl.plugins.annotate.store import KEPT
from rbctl.triplets.folder import METADATA
from rbctl.triplets.folder import read as read_triplets
from rbctl.triplets.keypoints import KEYPOINTS
from rbctl.triplets.problem import Problem, refuse

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
        where = f"{path}: {abridged(name)}"
        if not isinstance(correction, dict) or not isinstance(correction.get("drop", False), bool):
            raise InputError(f"{where}: drop must be true or false, objects a list")
        objects = correction.get("objects", [])
        if not isinstance(objects, list) or not all(isinstance(thing, dict) for thing in objects):
            raise InputError(f"{where}: objects: a list of JSON objects was expected")
        for k, thing in enumerate(objects):
            for part in _POINTS:
                points = thing.get(part, {})
                if not isinstance(points, dict):
                    raise InputError(f"{where}: objects[{k}].{part}: a JSON object was expected")
                for number, point in points.items():
                    _check_point(f"{where}: objects[{k}].{part}.{abridged(number)}", number, point)
    return triplets


def _check_point(where: str, number: str, point: Any) -> None:
    if number not in map(str, range(len(KEYPOINTS))):
        raise InputError(f"{where}: keypoints are counted from 0 to {len(KEYPOINTS) - 1}")
    numbers = isinstance(point, list) and len(point) == 3 and all(type(v) in (int, float) for v in point)
    if not numbers or not (0 <= point[0] <= 1 and 0 <= point[1] <= 1) or point[2] not in (0, 1, 2):
        what = "[x, y, visibility] was expected, x and y in [0, 1], then 0, 1 or 2"
        raise InputError(f"{where}: {abridged(point)}; {what}")


def publish(folder: Path, rows: Rows) -> None:
    """Write metadata.jsonl: newly annotated rows and the corrections known of them."""
    _write(folder, rows, _known(folder))


def apply(folder: Path, path: Path, follow_outside: bool = False) -> int:
    """Take corrections in; returns how many triplets are left.

    Raises:
        InputError: the file is wrong, names a triplet that is not there, or would leave none.
    """
    new = read(path)
    rows, known = base(folder, follow_outside)
    by_name = {row["file_name"]: row for row in rows}
    for name, correction in new.items():
        where = f"{path}: {abridged(name)}"
        if name not in by_name:
            raise InputError(f"{where}: no such triplet in {folder / METADATA}; it is of another set")
        count, own = len(correction.get("objects", [])), len(by_name[name]["objects"])
        if count > own:
            raise InputError(f"{where}: has {own} objects, not {count}")
        known[name] = _merged(known.get(name, {}), correction)
    if not corrected(rows, known):
        raise InputError(f"{path}: drops every triplet; keep one at least")
    return _write(folder, rows, known)


def _write(folder: Path, rows: Rows, known: Corrections) -> int:
    """Write base, corrections and what both make, in the order in which a kill loses nothing; returns what is left."""
    left = corrected(rows, known)
    write_jsonl(folder / KEPT / METADATA, rows)
    if known:
        before = []
        with contextlib.suppress(InputError):  # there is none, or it is damaged
            before = [_digest(read_jsonl(folder / METADATA))]
        write_json(folder / CORRECTIONS, {"triplets": known, "published": [*before, _digest(left)]})
    write_jsonl(folder / METADATA, left)
    return len(left)


def _digest(rows: Rows) -> str:
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def _merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    objects = []
    for k in range(max(len(old.get("objects", [])), len(new.get("objects", [])))):
        both = [c.get("objects", [])[k] if k < len(c.get("objects", [])) else {} for c in (old, new)]
        objects.append({part: {**both[0].get(part, {}), **both[1].get(part, {})} for part in _POINTS})
    return {"drop": new.get("drop", old.get("drop", False)), "objects": objects}


def _known(folder: Path) -> Corrections:
    path = folder / CORRECTIONS
    return read(path) if path.is_file() else {}


def base(folder: Path, follow_outside: bool = False) -> tuple[Rows, Corrections]:
    """The triplets without corrections, and the corrections.

    Where somebody else changed metadata.jsonl since, its triplets are taken as they are: corrections that they do not
    show were overruled. Dropped ones are kept all the same.

    Raises:
        InputError: there are no triplets, or they or the corrections are broken.
    """
    if not (folder / METADATA).is_file():
        run = f"run 'rbctl annotate {folder}', or 'rbctl data import', first"
        raise InputError(f"{folder}: holds no {METADATA}; {run}")
    now, known = _rows(folder, METADATA, follow_outside, strict=True), _known(folder)
    if not now:
        raise InputError(f"{folder}: holds no triplet")
    if not known:
        return now, {}
    before = f"{KEPT}/{METADATA}"
    rows = _rows(folder, before, follow_outside, strict=False) if (folder / before).is_file() else []
    if rows and _digest(now) in _published(folder):
        return rows, known
    names = {row["file_name"] for row in now}
    dropped = [row for row in rows if row["file_name"] not in names and known.get(row["file_name"], {}).get("drop")]
    return [*now, *dropped], _seen(known, now)


def _published(folder: Path) -> list[Any]:
    """Digests of what metadata.jsonl held when it was written last, or was about to be."""
    published = read_json(folder / CORRECTIONS).get("published")
    return published if isinstance(published, list) else []


def _seen(known: Corrections, rows: Rows) -> Corrections:
    """The corrections that rows show, and those of other triplets."""
    seen = dict(known)
    for row in rows:
        if correction := known.get(row["file_name"]):
            objects = [
                {part: _agreeing(changed.get(part, {}), thing[part]) for part in _POINTS}
                for thing, changed in zip(row["objects"], correction.get("objects", []), strict=False)
            ]
            seen[row["file_name"]] = {"drop": False, "objects": objects}
    return seen


def _agreeing(points: dict[str, Any], keypoints: list[Any]) -> dict[str, Any]:
    return {number: point for number, point in points.items() if keypoints[int(number)] == point}


def _rows(folder: Path, table: str, follow_outside: bool, strict: bool) -> Rows:
    """The rows of a table of triplets, each checked as any triplet is.

    Args:
        strict: a broken one is an error; else it is left out: of a triplet that was dropped the pictures may be gone.
    """
    broken: set[str] = set()

    def tell(problem: Problem) -> None:
        if strict:
            refuse(problem)
        broken.add(problem.file)

    for _ in read_triplets(folder, tell, follow_outside=follow_outside, table=table):
        pass
    lines = [(f"{folder / table}:{number}", line) for number, line in numbered_lines(folder / table)]
    return [parse_json(line, where) for where, line in lines if where not in broken]
