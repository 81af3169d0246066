"""The native form: a folder with ``metadata.jsonl`` (Hugging Face imagefolder), one triplet a line.

::

    {"file_name": "0.png", "text": "A lion and a polar bear hug.", "predicate": "hug", "objects": [
        {"name": "lion", "role": "subject", "image": "images/0-0.png", "mask": "masks/0-0.png",
         "box": [0.21, 0.09, 0.58, 0.92], "target_keypoints": [[x, y, visibility], ...], "image_keypoints": [...]}]}

Paths are relative to the folder. ``mask`` may be null; a missing ``predicate`` is an empty one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from rbctl.errors import InputError, abridged, nearest
from rbctl.files import numbered_lines, write_bytes, write_jsonl
from rbctl.images import open_image, read_image, write_png
from rbctl.parsing import parse_json
from rbctl.paths import inside
from rbctl.triplets.keypoints import KEYPOINTS, absent, misplaced
from rbctl.triplets.problem import NO_BOX, NOWHERE, Reporter, Sink, refuse
from rbctl.triplets.triplet import Box, Triplet, TripletObject, data_hash

METADATA = "metadata.jsonl"

_KEYS = ("file_name", "text", "predicate", "objects")
_OBJECT_KEYS = ("name", "role", "image", "mask", "box", "target_keypoints", "image_keypoints")
_SUFFIXES = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp"}  # what every reader of imagefolder knows


def read(
    folder: Path, sink: Sink = refuse, predicate: str = "", follow_outside: bool = False, table: str = METADATA
) -> Iterator[tuple[Triplet, Reporter]]:
    """Read the triplets of a folder one by one, each with who tells of its problems.

    Args:
        folder: holds ``metadata.jsonl``.
        sink: is told each problem; a sink that returns gets triplets with holes (see ``problem``).
        predicate: for triplets that state none.
        follow_outside: pictures may lie outside of the folder.
        table: another file of the folder that has the form of ``metadata.jsonl``.

    Raises:
        InputError: there is no readable ``metadata.jsonl``; with the strict sink, any problem, as FILE:LINE and field.
    """
    path = folder / table
    seen: set[str] = set()
    for number, line in numbered_lines(path):
        reporter = Reporter(f"on line {number}", f"{path}:{number}", sink)
        try:
            row = parse_json(line, reporter.file, finite=False)  # keypoints and boxes are checked by field
        except InputError as error:
            reporter.failed(error, Path(reporter.file))
            continue
        if not isinstance(row, dict):
            reporter.error("a JSON object was expected")
            continue
        if isinstance(row.get("file_name"), str):
            name = PurePosixPath(row["file_name"]).with_suffix("").as_posix() if row["file_name"].strip("./") else ""
            reporter = Reporter(name or reporter.triplet, reporter.file, sink)
        if reporter.triplet in seen:
            reporter.error("file_name: a line above has the same one", "give each triplet its own target")
        seen.add(reporter.triplet)
        yield _triplet(folder, row, reporter, predicate, follow_outside), reporter


def _triplet(folder: Path, row: dict[str, Any], reporter: Reporter, predicate: str, follow_outside: bool) -> Triplet:
    _known(row, _KEYS, "", reporter)
    stated = row.get("predicate", "")
    if not isinstance(stated, str):
        reporter.error(f"predicate: words were expected, not {abridged(stated)}")
        stated = ""
    objects = row.get("objects")
    if not isinstance(objects, list) or not objects:
        reporter.error("objects: a list of at least one was expected", f"each with {', '.join(_OBJECT_KEYS)}")
        objects = []
    return Triplet(
        id=reporter.triplet,
        target=_file(folder, row, "file_name", "", reporter, follow_outside),
        prompt=_words(row, "text", "", reporter),
        predicate=stated.strip() or predicate,
        objects=tuple(
            _object(folder, entry, f"objects[{k}]", reporter, follow_outside) for k, entry in enumerate(objects)
        ),
    )


def _object(folder: Path, row: Any, field: str, reporter: Reporter, follow_outside: bool) -> TripletObject:
    if not isinstance(row, dict):
        reporter.error(f"{field}: a JSON object was expected, not {abridged(row)}")
        row = {"name": "", "role": "", "image": "", "box": None}
        reporter = Reporter(reporter.triplet, reporter.file, lambda problem: None)  # told above: all of it is a hole
    _known(row, _OBJECT_KEYS, f"{field}.", reporter)
    prefix = f"{field}."
    return TripletObject(
        name=_words(row, "name", prefix, reporter),
        role=_words(row, "role", prefix, reporter),
        image=_file(folder, row, "image", prefix, reporter, follow_outside),
        mask=None if row.get("mask") is None else _file(folder, row, "mask", prefix, reporter, follow_outside),
        box=_box(row.get("box"), f"{field}.box", reporter),
        target_keypoints=_keypoints(row.get("target_keypoints"), f"{field}.target_keypoints", reporter),
        image_keypoints=_keypoints(row.get("image_keypoints"), f"{field}.image_keypoints", reporter),
    )


def _known(row: dict[str, Any], keys: Sequence[str], prefix: str, reporter: Reporter) -> None:
    for key in row:
        if key not in keys:
            reporter.error(f"no field {prefix}{key[:60]}", nearest(key, keys).removeprefix("; ") or "leave it out")


def _words(row: dict[str, Any], key: str, prefix: str, reporter: Reporter) -> str:
    value = row.get(key)
    if isinstance(value, str) and value.strip():
        return value
    reporter.error(f"{prefix}{key}: {'is missing' if value is None else f'words were expected, not {abridged(value)}'}")
    return ""


def _file(folder: Path, row: dict[str, Any], key: str, prefix: str, reporter: Reporter, follow_outside: bool) -> Path:
    name = _words(row, key, prefix, reporter)
    if not name:
        return NOWHERE
    try:
        path = inside(folder, name, f"{prefix}{key}", follow_outside)
    except InputError as error:
        reporter.error(str(error))
        return NOWHERE
    if not path.is_file():
        reporter.error(f"{prefix}{key}: no such file: {path}")
        return NOWHERE
    return path


def _array(value: Any, shape: tuple[int, ...], field: str, reporter: Reporter) -> np.ndarray | None:
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError):  # rows of different lengths; numbers of hundreds of digits
        array = np.asarray(None)
    if array.dtype.kind in "iuf" and array.shape == shape:
        return array.astype(np.float64)
    found = f"shape {array.shape}" if array.dtype.kind in "iuf" else "something else"
    reporter.error(
        f"{field}: {'is missing' if value is None else f'numbers of shape {shape} were expected, not {found}'}"
    )
    return None


def _box(value: Any, field: str, reporter: Reporter) -> Box:
    array = _array(value, (4,), field, reporter)
    if array is None:
        return NO_BOX
    x0, y0, x1, y1 = (float(v) for v in array)
    if 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1:
        return x0, y0, x1, y1
    reporter.error(
        f"{field}: {[x0, y0, x1, y1]} is no box", "relative [x0, y0, x1, y1] with 0 <= x0 < x1 <= 1, y likewise"
    )
    return NO_BOX


def _keypoints(value: Any, field: str, reporter: Reporter) -> np.ndarray:
    array = _array(value, (len(KEYPOINTS), 3), field, reporter)
    if array is None:
        return absent()
    if wrong := misplaced(array):
        reporter.error(f"{field}: {wrong}", "x and y are relative, from 0 to 1; visibility 0 marks an absent keypoint")
        return absent()
    if not np.isin(array[:, 2], (0, 1, 2)).all():
        reporter.error(f"{field}: the visibility must be 0 (absent), 1 (occluded) or 2 (visible)")
        return absent()
    return array.astype(np.float32)


def write(triplets: Sequence[Triplet], folder: Path) -> None:
    """Write triplets as a native folder, pictures copied in. Doing it again, after an interruption too, is harmless.

    Raises:
        InputError: a picture cannot be read, or the folder holds other triplets.
    """
    if (folder / METADATA).exists():
        if data_hash(t for t, _ in read(folder)) == data_hash(triplets):
            return
        raise InputError(f"{folder}: other triplets lie here already; choose another folder, or remove this one")
    stems = [triplet.id.replace("/", "-") for triplet in triplets]
    if len(set(stems)) < len(stems):
        raise ValueError(f"triplets: ids must differ, also as file names: {stems}")
    write_jsonl(folder / METADATA, [_row(folder, stem, t) for stem, t in zip(stems, triplets, strict=True)])


def _row(folder: Path, stem: str, triplet: Triplet) -> dict[str, Any]:
    return {
        "file_name": _copy(triplet.target, folder, stem),
        "text": triplet.prompt,
        "predicate": triplet.predicate,
        "objects": [
            {
                "name": thing.name,
                "role": thing.role,
                "image": _copy(thing.image, folder, f"images/{stem}-{k}"),
                "mask": thing.mask and _copy(thing.mask, folder, f"masks/{stem}-{k}"),
                "box": list(thing.box),
                "target_keypoints": _plain(thing.target_keypoints),
                "image_keypoints": _plain(thing.image_keypoints),
            }
            for k, thing in enumerate(triplet.objects)
        ],
    }


def _copy(source: Path, folder: Path, stem: str) -> str:
    """Copy a picture: its bytes under the suffix that fits them, or losslessly as PNG. Returns the relative path."""
    image = read_image(source)
    with open_image(source) as opened:
        suffix = _SUFFIXES.get(opened.format or "")
    name = f"{stem}{suffix or '.png'}"
    if suffix:
        write_bytes(folder / name, source.read_bytes())
    else:
        write_png(folder / name, image)
    return name


def _plain(keypoints: np.ndarray) -> list[list[float]]:
    """(17, 3) float32 as the shortest decimal numbers that read back the same."""
    return [[float(str(x)), float(str(y)), int(v)] for x, y, v in keypoints.astype(np.float32)]
