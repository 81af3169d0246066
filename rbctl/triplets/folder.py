"""The native form: a folder with ``metadata.jsonl`` (Hugging Face imagefolder), one triplet a line.

::

    {"file_name": "0.png", "text": "A lion and a polar bear hug.", "predicate": "hug", "objects": [
        {"name": "lion", "role": "subject", "image": "images/0-0.png", "mask": "masks/0-0.png",
         "box": [0.21, 0.09, 0.58, 0.92], "target_keypoints": [[x, y, visibility], ...], "image_keypoints": [...]}]}

Paths are relative to the folder. ``mask`` may be null; a missing ``predicate`` is an empty one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import numpy as np
from annotated_types import Len, MinLen

from rbctl import formats
from rbctl.errors import InputError
from rbctl.files import numbered_lines, write_bytes, write_jsonl
from rbctl.formats import Words
from rbctl.images import open_image, read_image, write_png
from rbctl.parsing import parse_json
from rbctl.paths import inside
from rbctl.relations import Box
from rbctl.triplets.keypoints import KEYPOINTS, misplaced
from rbctl.triplets.problem import NOWHERE, Reporter, Sink, refuse
from rbctl.triplets.triplet import Triplet, TripletObject, data_hash

METADATA = "metadata.jsonl"

_SUFFIXES = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp"}  # what every reader of imagefolder knows


def _check_keypoints(rows: tuple[tuple[float, float, float], ...]) -> tuple[tuple[float, float, float], ...]:
    if wrong := misplaced(np.array(rows)):
        raise ValueError(f"{wrong}; x and y are relative, from 0 to 1; visibility 0 marks an absent keypoint")
    if any(visibility not in (0, 1, 2) for *_, visibility in rows):
        raise ValueError("the visibility must be 0 (absent), 1 (occluded) or 2 (visible)")
    return rows


_Keypoints = Annotated[
    tuple[tuple[float, float, float], ...],
    Len(len(KEYPOINTS), len(KEYPOINTS)),
    formats.Check(_check_keypoints),
]


@dataclass(frozen=True, kw_only=True)
class _ObjectRow:
    name: Words
    role: Words
    image: Words
    mask: Words | None = None
    box: Box
    target_keypoints: _Keypoints
    image_keypoints: _Keypoints


@dataclass(frozen=True, kw_only=True)
class _Row:
    file_name: Words
    text: Words
    predicate: str = ""
    objects: Annotated[tuple[_ObjectRow, ...], MinLen(1)]


def read(
    folder: Path, sink: Sink = refuse, predicate: str = "", follow_outside: bool = False, table: str = METADATA
) -> Iterator[tuple[Triplet, Reporter]]:
    """Read the triplets of a folder one by one, each with who tells of its problems.

    Args:
        folder: holds ``metadata.jsonl``.
        sink: is told each problem; a sink that returns gets triplets with holes (see ``problem``), and none of a line
            whose fields are wrong.
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
            content = parse_json(line, reporter.file, finite=False)  # so that the field of a NaN is named
        except InputError as error:
            reporter.failed(error, Path(reporter.file))
            continue
        name = content.get("file_name") if isinstance(content, dict) else None
        if isinstance(name, str) and name.strip("./"):
            reporter = Reporter(PurePosixPath(name).with_suffix("").as_posix(), reporter.file, sink)
        row, faults = formats.examine(_Row, content)
        for fault in faults:
            reporter.error(str(fault))
        if reporter.triplet in seen:
            reporter.error("file_name: a line above has the same one", "give each triplet its own target")
        seen.add(reporter.triplet)
        if row:
            yield _triplet(folder, row, reporter, predicate, follow_outside), reporter


def _triplet(folder: Path, row: _Row, reporter: Reporter, predicate: str, follow_outside: bool) -> Triplet:
    def picture(name: str, field: str) -> Path:
        try:
            path = inside(folder, name, field, follow_outside)
        except InputError as error:
            reporter.error(str(error))
            return NOWHERE
        if path.is_file():
            return path
        reporter.error(f"{field}: no such file: {path}")
        return NOWHERE

    return Triplet(
        id=reporter.triplet,
        target=picture(row.file_name, "file_name"),
        prompt=row.text,
        predicate=row.predicate.strip() or predicate,
        objects=tuple(
            TripletObject(
                name=entry.name,
                role=entry.role,
                image=picture(entry.image, f"objects[{k}].image"),
                mask=picture(entry.mask, f"objects[{k}].mask") if entry.mask else None,
                box=entry.box,
                target_keypoints=np.array(entry.target_keypoints, np.float32),
                image_keypoints=np.array(entry.image_keypoints, np.float32),
            )
            for k, entry in enumerate(row.objects)
        ),
    )


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
                "name": entry.name,
                "role": entry.role,
                "image": _copy(entry.image, folder, f"images/{stem}-{k}"),
                "mask": entry.mask and _copy(entry.mask, folder, f"masks/{stem}-{k}"),
                "box": list(entry.box),
                "target_keypoints": _plain(entry.target_keypoints),
                "image_keypoints": _plain(entry.image_keypoints),
            }
            for k, entry in enumerate(triplet.objects)
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
