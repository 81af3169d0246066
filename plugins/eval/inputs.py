"""Pictures of any origin: a folder's metadata.jsonl, metadata.csv or file names -> pictures, each with its case."""

from __future__ import annotations

import csv
import hashlib
import io
import os.path
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rbctl.errors import InputError, abridged, nearest, reason, shortlist
from rbctl.files import read_jsonl, read_text
from rbctl.paths import inside
from rbctl.plugins.eval.case import Case, CaseObject, Part, Picture
from rbctl.plugins.eval.features import Digests
from rbctl.plugins.eval.kinds.kind import pictures_in
from rbctl.prompts.weights import read_weights
from rbctl.relations import check_box

_COLUMNS = {
    "file_name": "the picture",
    "text": "the prompt",
    "image_prompts": "pictures of the subjects, ';' between",
    "names": "what the prompt calls them, ';' between",
    "boxes": "where they were found, 'x0 y0 x1 y1', ';' between, nothing or '-' for one that is missing",
    "masks": "instead: pictures that are white where they were found, ';' between, likewise",
    "predicate": "words of the relation",
    "relation": "its name",
    "case": "the benchmark's case",
    "seed": "of the sampling",
}
_SEED = re.compile(r"-?[0-9]{1,19}")
_SAME = {"image": "file_name", "prompt": "text"}


@dataclass(frozen=True)
class Row:
    """One line of a folder's metadata.

    Attributes:
        objects: (name, image prompt) pairs.
        boxes: per object a box, or the path of its mask; None where it was not found.
        detected: the boxes tell where objects are, not where they were asked for.
    """

    file: Path
    text: str
    objects: tuple[tuple[str, Path], ...] = ()
    boxes: tuple[Part | None, ...] | None = None
    detected: bool = False
    predicate: str = ""
    relation: str = ""
    case: str = ""
    seed: int | None = None


def read_rows(folder: Path, follow_outside: bool = False, pairs: Path | None = None) -> list[Row]:
    """The pictures of a folder (metadata.jsonl, metadata.csv, else by name) or of a CSV file; all of them are there.

    Args:
        follow_outside: the list may name pictures outside of its own folder. The report shows them, and it is shared.
        pairs: a CSV that lists the pictures of any such folder, instead of the folder's own list. ``file_name`` is
            relative to the folder, all else to the CSV.

    Raises:
        InputError: there is neither list nor picture, a line is wrong or names a picture outside, or pictures are
            missing (how many, and the first).
    """
    table = folder if folder.suffix.lower() == ".csv" else folder / "metadata.csv"
    listed = folder / "metadata.jsonl"
    if pairs is not None:
        rows = _from_csv(pairs, follow_outside, folder)
    elif listed.is_file():
        rows = [_from_record(listed, number, row, follow_outside) for number, row in enumerate(read_jsonl(listed), 1)]
    elif table.is_file():
        rows = _from_csv(table, follow_outside)
    elif rows := [_from_name(path) for path in pictures_in(folder)]:
        for row in rows:
            inside(folder, row.file.name, str(folder), follow_outside)
    else:
        raise InputError(
            f"{folder}: no metadata.jsonl, metadata.csv or pictures; write a CSV with file_name,text,image_prompts"
        )
    if not rows:
        raise InputError(f"{folder}: lists no picture")
    needed: dict[Path, None] = {}
    for row in rows:
        masks = [part for part in row.boxes or () if isinstance(part, Path)]
        needed |= dict.fromkeys((row.file, *(image for _, image in row.objects), *masks))
    if missing := [str(path) for path in needed if not path.is_file()]:
        raise InputError(f"{folder}: {len(missing)} pictures are missing: {shortlist(missing)}")
    return rows


def _from_record(path: Path, number: int, row: Mapping[str, Any], follow_outside: bool) -> Row:
    where = f"{path}:{number}"
    seed = row.get("seed")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise InputError(f"{where}: seed: {abridged(seed)} is not a whole number")
    try:
        individuals = row.get("objects") or ()
        boxes = [individual.get("box") for individual in individuals]
        detected = "boxes_from" not in row
        has_boxes = any("box" in individual for individual in individuals) if detected else any(boxes)
        return Row(
            file=inside(path.parent, str(row["file_name"]), f"{where}: file_name", follow_outside),
            text=read_weights(str(row["text"]), f"{where}: text", "prompt_weighting" in row).words,
            objects=tuple(
                (
                    str(individual["name"]),
                    _near(path.parent, str(individual["image"]), f"{where}: image", follow_outside),
                )
                for individual in individuals
            ),
            boxes=tuple(None if box is None else check_box(box) for box in boxes) if has_boxes else None,
            detected=detected,
            predicate="" if "fingerprint" in row else str(row.get("predicate") or ""),
            relation=str(row.get("relation") or ""),
            case=str(row.get("case") or ""),
            seed=seed,
        )
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{where}: not a picture's record ({reason(error)}); docs/eval.md shows the form") from error


def _from_name(path: Path) -> Row:
    """The stem is the benchmark's case; its words, without a number at the end, are the prompt."""
    words = path.stem.replace("_", " ").replace("-", " ").split()
    return Row(path, " ".join(words[:-1] if words[-1:] and words[-1].isdigit() else words), case=path.stem)


def _near(folder: Path, name: str, where: str, follow_outside: bool) -> Path:
    """A path relative to the folder of its list; where the list is trusted, also as it stands."""
    path = inside(folder, name, where, follow_outside)
    return Path(name) if follow_outside and os.path.isfile(name) and not os.path.isfile(path) else path


def _from_csv(path: Path, follow_outside: bool, pictures: Path | None = None) -> list[Row]:
    reader = csv.DictReader(io.StringIO(read_text(path)), restkey="", restval="")
    names = [_SAME.get(name.strip(), name.strip()) for name in reader.fieldnames or ()]
    for name in names:
        if name not in _COLUMNS:
            raise InputError(
                f"{path}: no column {abridged(name)}{nearest(name, _COLUMNS) or '; columns: ' + ', '.join(_COLUMNS)}"
            )
    if not {"file_name", "text"} <= set(names):
        raise InputError(f"{path}: the columns file_name and text were expected in its first line")
    reader.fieldnames = names
    rows = []
    for row in _table(path, reader):
        where = f"{path}:{reader.line_num}"

        def near(name: str, column: str, where: str = where) -> Path:
            return _near(path.parent, name, f"{where}: {column}", follow_outside)

        images = _split(row.get("image_prompts"))
        called = _split(row.get("names")) or [""] * len(images)
        if len(called) != len(images):
            raise InputError(f"{where}: {len(called)} names for {len(images)} image prompts")
        boxes = _parts(where, "boxes", row.get("boxes"), len(images), lambda part: check_box(part.split()))
        masks = _parts(where, "masks", row.get("masks"), len(images), lambda part: near(part, "masks"))
        seed = str(row.get("seed") or "").strip()
        if seed and not _SEED.fullmatch(seed):
            raise InputError(f"{where}: seed: {abridged(seed)} is not a whole number")
        rows.append(
            Row(
                file=inside(pictures or path.parent, row["file_name"].strip(), f"{where}: file_name", follow_outside),
                text=row["text"].strip(),
                objects=tuple((n, near(image, "image_prompts")) for n, image in zip(called, images, strict=True)),
                boxes=masks or boxes,
                detected=True,
                predicate=(row.get("predicate") or "").strip(),
                relation=(row.get("relation") or "").strip(),
                case=(row.get("case") or "").strip(),
                seed=int(seed) if seed else None,
            )
        )
    return rows


def _table(path: Path, reader: csv.DictReader[str]) -> Iterator[dict[str, str]]:
    try:
        yield from reader
    except csv.Error as error:  # a field of more than 131,072 characters, a NUL
        raise InputError(f"{path}:{reader.line_num}: not a line of CSV ({error})") from error


def _split(value: str | None) -> list[str]:
    return [part.strip() for part in value.split(";")] if value and value.strip() else []


def _parts(
    where: str, column: str, value: str | None, count: int, read: Callable[[str], Part]
) -> tuple[Part | None, ...] | None:
    if not value or not value.strip():
        return None
    try:
        parts = tuple(None if part.strip() in ("", "-") else read(part.strip()) for part in value.split(";"))
    except ValueError as error:
        raise InputError(f"{where}: {column}: {error}") from error
    if len(parts) != count:
        raise InputError(f"{where}: {len(parts)} {column} for {count} image prompts; leave a missing one's place empty")
    return parts


def as_cases(run: str, rows: Sequence[Row], digests: Digests) -> list[Picture]:
    """Pictures whose cases are their own prompts: the same text and image prompts are the same case in every run.

    Raises:
        InputError: pictures have neither prompt nor image prompts; how many, and the first are named.
    """
    if silent := [str(row.file) for row in rows if not (row.text or row.objects)]:
        raise InputError(
            f"{shortlist(silent)}: neither name nor list says a prompt; write a metadata.csv with file_name,text"
        )
    pictures = dict[tuple[Path, str], Picture]()  # one that is listed twice is one
    for row in rows:
        objects = tuple(
            CaseObject(name=name, image=image, references=(image,), subject=digests(image))
            for name, image in row.objects
        )
        case = Case(
            id=_key(row.text, [image for _, image in row.objects], digests)[:12],
            text=row.text,
            objects=objects,
            predicate=row.predicate,
            relation=row.relation,
            group=row.relation,
        )
        picture = Picture(run, row.file, case, row.boxes, row.detected, row.seed)
        pictures.setdefault((row.file, case.id), picture)
    return list(pictures.values())


def of_cases(
    run: str, rows: Sequence[Row], cases: Sequence[Case], digests: Digests, where: Path, partial: bool
) -> tuple[list[Picture], int]:
    """Pictures of a benchmark's cases, found by the column ``case``, else by prompt and image prompts.

    Returns:
        The pictures in the order of the cases, and how many cases have none.

    Raises:
        InputError: a picture belongs to no case, or (unless ``partial``) cases have no picture; they are counted.
    """
    by_id = {case.id: case for case in cases}
    by_key = {_key(case.text, [individual.image for individual in case.objects], digests): case for case in cases}
    pictures: dict[str, list[Picture]] = {}
    strange = []
    for row in rows:
        named = by_id.get(row.case)
        case = named if row.case else by_key.get(_key(row.text, [image for _, image in row.objects], digests))
        if case is None:
            strange.append(row.file.name)
            continue
        boxes = row.boxes if row.boxes is None or len(row.boxes) == len(case.objects) else None
        pictures.setdefault(case.id, []).append(Picture(run, row.file, case, boxes, row.detected, row.seed))
    if strange and not partial:
        raise InputError(
            f"{where}: {len(strange)} pictures belong to no case of the benchmark: {shortlist(strange)}; name it "
            "in the column 'case', or leave them out with --partial"
        )
    without = [case.id for case in cases if case.id not in pictures]
    if without and not partial:
        raise InputError(
            f"{where}: pictures of {len(without)} cases are missing: {shortlist(without)}; make them, or leave these "
            "cases out with --partial"
        )
    return [picture for case in cases for picture in pictures.get(case.id, ())], len(without)


def _key(text: str, images: Sequence[Path], digests: Digests) -> str:
    return hashlib.sha256("\0".join([" ".join(text.split()), *map(digests, images)]).encode()).hexdigest()
