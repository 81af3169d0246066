"""The native form: a folder with ``metadata.jsonl`` (Hugging Face imagefolder), one triplet a line.

::

    {"file_name": "0.png", "text": "A lion and a polar bear hug.", "predicate": "hug", "objects": [
        {"name": "lion", "role": "subject", "image": "images/0-0.png", "mask": "masks/0-0.png",
         "box": [0.21, 0.09, 0.58, 0.92], "target_keypoints": [[x, y, visibility], ...], "image_keypoints": [...]}]}

Paths are relative to the folder. ``mask`` may be null; a missing ``predicate`` is an empty one. Foreign columns
are left out. ``datasets`` decodes pictures only in columns of their own; there those of the objects stand again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import numpy as np
from annotated_types import Len, MinLen

from rbctl import formats
from rbctl.errors import InputError, nearest
from rbctl.files import numbered_lines, read_image, write_bytes, write_jsonl, write_png, write_text
from rbctl.formats import Fault, Words
from rbctl.images import open_image
from rbctl.parsing import parse_json
from rbctl.paths import flattened, inside
from rbctl.relations import Box
from rbctl.triplets.keypoints import KEYPOINTS, misplaced
from rbctl.triplets.problem import NOWHERE, Reporter, Sink, refuse
from rbctl.triplets.triplet import Triplet, TripletObject, data_hash

METADATA = "metadata.jsonl"
EXPORTED = "triplets.jsonl"  # of the same form; `rbctl data export` writes it beside a trainer's own files
CARD = "README.md"
_PICTURES = {"image_prompts_file_names": "image", "masks_file_names": "mask"}  # column of datasets: field of an object

_CARD = """---
task_categories:
- text-to-image
tags:
- rbctl
- relation
- imagefolder
---

# Triplets of a relation

{count} triplets for `rbctl finetune`: a target picture, an image prompt of each individual in it, and a text.
Relation: {predicates}. State here where the pictures come from, and their licence.

| column | |
|---|---|
| `image` | the target |
| `text`, `predicate` | its caption, and the words of it that say the relation |
| `image_prompts` | a picture of each individual alone |
| `masks` | where each individual is in the target; without those whose `mask` in `objects` is null |
| `objects` | name, role, box (relative xyxy) and keypoints (relative x, y, visibility) of each individual |
"""

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
    foreign: set[str] = set()
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
        _tell_foreign(content, reporter, foreign)
        row, faults = formats.examine(_Row, content, ignore_others=True)
        for told in _once_a_field(faults):
            reporter.error(told)
        if reporter.triplet in seen:
            reporter.error("file_name: a line above has the same one", "give each triplet its own target")
        seen.add(reporter.triplet)
        if row:
            yield _triplet(folder, row, reporter, predicate, follow_outside), reporter


def _once_a_field(faults: Sequence[Fault]) -> list[str]:
    """The first fault of every field: 51 numbers where 17 points were expected are one mistake."""
    by_field: dict[tuple[str | int, ...], list[Fault]] = {}
    for fault in faults:
        by_field.setdefault(fault.steps[:3], []).append(fault)
    return [str(alike[0]) + (f" (and {len(alike) - 1} more there)" if alike[1:] else "") for alike in by_field.values()]


def _tell_foreign(content: Any, reporter: Reporter, warned: set[str]) -> None:
    """Tell what is none of our fields: a warning, once a set; an error where it looks like one that is missing."""
    rows: list[tuple[type, tuple[str | int, ...], Any]] = [(_Row, (), content)] if isinstance(content, dict) else []
    objects = content.get("objects") if rows else None
    entries = enumerate(objects) if isinstance(objects, list) else ()
    rows += [(_ObjectRow, ("objects", k), entry) for k, entry in entries if isinstance(entry, dict)]
    for kind, where, row in rows:
        known = {field.name for field in dataclasses.fields(kind)}
        for name in sorted(row.keys() - known - _PICTURES.keys()):
            if meant := nearest(name, known - row.keys()):
                reporter.error(str(Fault((*where, name), f"no such key{meant}")))
            elif name not in warned:
                warned.add(name)
                reporter.warning(str(Fault((*where, name), "no such key; it is left out")))


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
    stems = [flattened(triplet.id) for triplet in triplets]
    if len(set(stems)) < len(stems):
        raise ValueError(f"triplets: ids must differ: {stems}")
    rows = [_row(folder, stem, triplet) for stem, triplet in zip(stems, triplets, strict=True)]
    write_card(folder, rows)
    write_jsonl(folder / METADATA, rows)


def with_pictures(row: Mapping[str, Any]) -> dict[str, Any]:
    """A line of metadata.jsonl with the pictures of its objects in columns that ``datasets`` decodes.

    A mask that is null is left out: ``datasets`` takes no null among pictures.
    """
    columns = {name: [entry[key] for entry in row["objects"] if entry[key]] for name, key in _PICTURES.items()}
    return {**row, **columns}


def write_card(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the dataset card that the hub shows, unless the folder has a README.md already."""
    if not (folder / CARD).exists():
        predicates = ", ".join(sorted({row["predicate"] for row in rows} - {""})) or "not stated"
        write_text(folder / CARD, _CARD.format(count=len(rows), predicates=predicates))


def _row(folder: Path, stem: str, triplet: Triplet) -> dict[str, Any]:
    return as_row(
        triplet,
        _copy(triplet.target, folder, stem),
        [_copy(entry.image, folder, f"images/{stem}-{k}") for k, entry in enumerate(triplet.objects)],
        [
            _copy(entry.mask, folder, f"masks/{stem}-{k}") if entry.mask else None
            for k, entry in enumerate(triplet.objects)
        ],
    )


def as_row(triplet: Triplet, target: str, images: Sequence[str], masks: Sequence[str | None]) -> dict[str, Any]:
    """A line of metadata.jsonl.

    Args:
        target: path of the target picture, relative to the folder.
        images: the same of each object's image prompt.
        masks: the same of each object's mask; None where it has none.
    """
    row = {
        "file_name": target,
        "text": triplet.prompt,
        "predicate": triplet.predicate,
        "objects": [
            {
                "name": entry.name,
                "role": entry.role,
                "image": image,
                "mask": mask,
                "box": list(entry.box),
                "target_keypoints": _plain(entry.target_keypoints),
                "image_keypoints": _plain(entry.image_keypoints),
            }
            for entry, image, mask in zip(triplet.objects, images, masks, strict=True)
        ],
    }
    return with_pictures(row)


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
