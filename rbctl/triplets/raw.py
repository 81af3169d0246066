"""Raw triplets: a target picture and a picture of each individual in it, not annotated yet.

A raw set is a folder with ``raw.jsonl``, one triplet a line, and ``set.json``, which says where the set comes from::

    {"file_name": "0.png", "text": "A red cat is hugging a blue bear.", "predicate": "is hugging", "objects": [
        {"name": "red cat", "role": "left", "image": "images/0-0.png"}, ...]}

Paths are relative to the folder. ``text``, ``predicate`` and ``role`` may be empty or left out. Without ``raw.jsonl``
the names of the pictures tell: ``3.jpg`` is a target, ``3-cat.jpg`` and ``3-polar_bear.jpg`` a cat and a bear in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from annotated_types import MinLen

from rbctl import formats
from rbctl.errors import InputError, abridged, shortlist
from rbctl.files import numbered_lines, read_object, write_json, write_jsonl
from rbctl.images import SUFFIXES, list_pictures
from rbctl.parsing import parse_json
from rbctl.paths import inside, leaves, nameable

RAW = "raw.jsonl"
SET = "set.json"


def _check_picture(path: Path) -> Path:
    if not nameable(str(path)):
        raise ValueError(f"{abridged(str(path))} is no file's name")
    if leaves(str(path)):
        raise ValueError(f"{abridged(str(path))} leaves the folder; paths are relative and stay inside")
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{abridged(str(path))} is no picture's name; known are {', '.join(SUFFIXES)}")
    return path


_Picture = Annotated[Path, formats.Check(_check_picture)]
_MaybeWords = Annotated[
    str, formats.Check(str.strip), formats.Check(lambda value: "" if value is None else value, before=True)
]


@dataclass(frozen=True, kw_only=True)
class RawObject:
    """One individual of a raw triplet.

    Attributes:
        name: the words for it, "polar bear"; no two of a triplet have the same.
        role: its part in the relation, "rider"; empty where nobody has told.
        image: a picture of it alone.
    """

    name: Annotated[formats.Words, formats.Check(str.strip)]
    role: _MaybeWords = ""
    image: _Picture


@dataclass(frozen=True, kw_only=True)
class RawTriplet:
    """A target picture and the pictures of the individuals in it.

    Attributes:
        id: its name in the set, the target's path in the folder without the suffix.
        target: the picture that shows the relation.
        text: its caption; empty where nobody has told.
        predicate: the words of the caption that say the relation; empty where nobody has told.
        objects: one or more; in the order of the relation's roles where those are told.
    """

    id: str
    target: Path
    text: str = ""
    predicate: str = ""
    objects: tuple[RawObject, ...]

    @property
    def pictures(self) -> tuple[Path, ...]:
        """The target and the pictures of its individuals."""
        return self.target, *(individual.image for individual in self.objects)


@dataclass(frozen=True, kw_only=True)
class _Row:
    file_name: _Picture
    text: _MaybeWords = ""
    predicate: _MaybeWords = ""
    objects: Annotated[tuple[RawObject, ...], MinLen(1)]


@dataclass(frozen=True)
class _Origin:
    origin: str = ""
    relation: str = ""


def read_raw(folder: Path, follow_outside: bool = False) -> tuple[RawTriplet, ...]:
    """Read a raw set: by its ``raw.jsonl``, or by the names of its pictures. Pictures are looked for, not opened.

    Args:
        follow_outside: links to pictures outside of the folder are followed. (Names stay inside even so: results lie
            beside the pictures.)

    Raises:
        InputError: there is no such folder or nothing in it; a line is wrong (FILE:LINE and field are named); two
            objects of a triplet have the same name; a name or link leaves the folder; pictures are missing (they are
            counted).
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of raw triplets")
    triplets = _listed(folder) if (folder / RAW).exists() else _named(folder)
    if not follow_outside:
        for path in {path for triplet in triplets for path in triplet.pictures}:
            inside(folder, path.relative_to(folder).as_posix(), str(folder))
    if not triplets:
        raise InputError(
            f"{folder}: holds no raw triplet; a line of {RAW} makes one, or pictures named 3.jpg, 3-cat.jpg, 3-bear.jpg"
        )
    return triplets


def write_raw(folder: Path, triplets: Iterable[RawTriplet]) -> None:
    """Write ``raw.jsonl`` anew, atomically. The pictures lie in the folder already and stay as they are.

    Raises:
        InputError: the folder cannot be written.
        ValueError: a picture lies outside of the folder.
    """
    rows = [
        {
            "file_name": triplet.target.relative_to(folder).as_posix(),
            "text": triplet.text,
            "predicate": triplet.predicate,
            "objects": [
                {"name": entry.name, "role": entry.role, "image": entry.image.relative_to(folder).as_posix()}
                for entry in triplet.objects
            ],
        }
        for triplet in triplets
    ]
    write_jsonl(folder / RAW, rows)


def read_origin(folder: Path) -> dict[str, Any]:
    """What ``set.json`` says: ``origin`` (the engine, "miniature"), ``relation`` (its name), facts of that engine.

    Returns:
        an empty dictionary where there is no such file, as in a folder of one's own pictures.

    Raises:
        InputError: the file is damaged.
    """
    path = folder / SET
    if not path.exists():
        return {}
    facts = read_object(path)
    formats.read(_Origin, facts, str(path), ignore_others=True)
    return facts


def write_origin(folder: Path, origin: str, relation: str, **facts: Any) -> None:
    """Write ``set.json``, atomically; ``facts`` are what else the engine tells of the set, as JSON can hold it."""
    write_json(folder / SET, {"origin": origin, "relation": relation, **facts})


def _listed(folder: Path) -> tuple[RawTriplet, ...]:
    """The triplets of ``raw.jsonl``."""
    path, triplets, missing = folder / RAW, dict[str, RawTriplet](), list[str]()
    for number, line in numbered_lines(path):
        where = f"{path}:{number}"
        triplet = _triplet(folder, formats.read(_Row, parse_json(line, where), where))
        if triplet.id in triplets:
            raise InputError(
                f"{where}: file_name: a line above has {abridged(triplet.id)} too; give each its own target"
            )
        _check_names(triplet, where)
        missing += [f"{path.relative_to(folder)} (line {number})" for path in triplet.pictures if not path.is_file()]
        triplets[triplet.id] = triplet
    if missing:
        raise InputError(f"{path}: missing pictures: {shortlist(missing)}; bring them, or drop the lines")
    return tuple(triplets.values())


def _triplet(folder: Path, row: _Row) -> RawTriplet:
    return RawTriplet(
        id=row.file_name.with_suffix("").as_posix(),
        target=folder / row.file_name,
        text=row.text,
        predicate=row.predicate,
        objects=tuple(replace(entry, image=folder / entry.image) for entry in row.objects),
    )


def _named(folder: Path) -> tuple[RawTriplet, ...]:
    """The triplets that the names of the pictures tell.

    The target of a picture is the shortest other name that begins it: ``3-cat`` has ``3``, and so has ``3-cat-b``.
    """
    pictures = sorted(list_pictures(folder), key=lambda path: _natural(path.name))
    for path in pictures:
        if not path.name.isprintable():  # among them those that are not UTF-8, which no list of ours could hold
            raise InputError(f"{folder}: {abridged(path.name)}: is no name for a list; rename the picture")
    stems = {path.stem for path in pictures}
    targets: list[Path] = []
    parts: dict[str, list[RawObject]] = {}
    for path in pictures:
        starts = (path.stem[: hyphen.start()] for hyphen in re.finditer("-", path.stem))
        target = next((start for start in starts if start in stems), None)
        if target is None:
            targets.append(path)
            continue
        name = path.stem[len(target) + 1 :].replace("_", " ").strip()
        if not name:
            raise InputError(f"{path}: a name was expected behind the hyphen, as in {target}-cat{path.suffix}")
        parts.setdefault(target, []).append(RawObject(name=name, image=path))
    seen: dict[str, Path] = {}
    for path in targets:
        if (other := seen.setdefault(path.stem, path)) is not path:
            raise InputError(f"{folder}: two targets {path.stem!r}: {other.name} and {path.name}; remove or rename one")
    if alone := [path.name for path in targets if path.stem not in parts]:
        raise InputError(
            f"{folder}: no picture of an individual goes with {shortlist(alone)}; a target 3.jpg needs 3-cat.jpg or "
            "the like, a 3-cat.jpg needs its target 3.jpg; other pictures belong elsewhere"
        )
    triplets = tuple(RawTriplet(id=path.stem, target=path, objects=tuple(parts[path.stem])) for path in targets)
    for triplet in triplets:
        _check_names(triplet, str(triplet.target))
    return triplets


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts 2.jpg before 10.jpg."""
    return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in re.split(r"(\d+)", name.lower())]


def _check_names(triplet: RawTriplet, where: str) -> None:
    """Raises InputError when two objects of a triplet have the same name; both pictures are named."""
    seen: dict[str, RawObject] = {}
    for entry in triplet.objects:
        other = seen.setdefault(" ".join(entry.name.lower().split()), entry)
        if other is not entry:
            raise InputError(
                f"{where}: two objects are called {abridged(entry.name)}, {other.image.name} and {entry.image.name}; "
                "give each a name of its own, as 'red cat' and 'blue cat'"
            )
