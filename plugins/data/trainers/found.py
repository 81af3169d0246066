"""A training set that has lost its ``triplets.jsonl``, or never had one: its pictures, captions and roles.

That is a raw set: ``rbctl annotate`` finds masks, boxes and keypoints anew.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import MinLen

from rbctl import formats
from rbctl.errors import InputError, abridged
from rbctl.files import numbered_lines, read_json, read_text, write_bytes
from rbctl.images import SUFFIXES, open_image
from rbctl.parsing import parse_json
from rbctl.paths import inside
from rbctl.plugins.data.trainers import TRAINERS
from rbctl.plugins.data.trainers.diffsynth import METADATA as DIFFSYNTH
from rbctl.plugins.data.trainers.diffusers import FOLDER, METADATA
from rbctl.plugins.data.trainers.instruction import read_instruction
from rbctl.plugins.data.trainers.layout import ORIGINALS, Layout
from rbctl.relations import Relation, load_relation, shipped
from rbctl.roles import find_relation, read_roles
from rbctl.triplets.raw import RawObject, RawTriplet, write_origin, write_raw


@dataclass(frozen=True)
class Found:
    """An example as it lies in a training set.

    Attributes:
        references: control pictures, in their order.
        where: file of the caption, for errors.
    """

    stem: str
    target: Path
    references: tuple[Path, ...]
    caption: str
    where: str


@dataclass(frozen=True, kw_only=True)
class _DiffsynthRow:
    image: formats.Words
    prompt: formats.Words
    edit_image: tuple[formats.Words, ...] = ()
    kontext_images: tuple[formats.Words, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _DiffusersRow:
    file_name: formats.Words
    condition_file_name: formats.Words
    text: formats.Words


@dataclass(frozen=True, kw_only=True)
class _Rows:
    rows: Annotated[tuple[_DiffsynthRow, ...], MinLen(1)]


def trainer_of(folder: Path) -> str | None:
    """Whose training set a folder holds, by the trainer's own file; None where it is nobody's."""
    return next((name for name, layout in TRAINERS.items() if (folder / layout.sign).is_file()), None)


def find_examples(folder: Path, trainer: str) -> list[Found]:
    """The examples of a training set.

    Args:
        trainer: of ``TRAINERS``.

    Raises:
        InputError: a list of the trainer is damaged, a file is missing, or the layout has no pictures of individuals.
    """
    if not TRAINERS[trainer].reference:
        raise InputError(f"{folder}: a set for {trainer} has no pictures of the individuals; import needs them")
    examples = list(_examples(folder, trainer))
    if not examples:
        raise InputError(f"{folder}: holds no targets of a training set for {trainer}")
    return examples


def write_raw_set(examples: Sequence[Found], folder: Path, dest: Path) -> None:
    """Copy the examples of a training set to a raw set, with the roles that the captions tell.

    Args:
        folder: of the training set.

    Raises:
        InputError: a caption does not say who is in which reference.
    """
    known = [load_relation(name) for name in shipped()]
    parts = [_raw_triplet(found, folder, dest, known) for found in examples]
    relations = {relation.name if relation else "" for _, relation in parts}
    write_origin(dest, "import", relations.pop() if len(relations) == 1 else "")
    write_raw(dest, [triplet for triplet, _ in parts])


def _raw_triplet(
    found: Found, folder: Path, dest: Path, known: Sequence[Relation]
) -> tuple[RawTriplet, Relation | None]:
    text, mentions = read_instruction(found.caption)
    references = found.references
    if len(references) == 1:  # perhaps with panels; then the pictures lie beside
        references = _originals(folder, found, len(mentions)) or references
    if [mention.reference for mention in mentions] != list(range(len(references))):
        raise InputError(
            f"{found.where}: {abridged(found.caption)} does not say who is in each of {len(references)} references; "
            "write it as in 'The cat of image 1 rides the dog of image 2.'"
        )
    names = [mention.name for mention in mentions]
    relation = find_relation(text, known, names)
    reading = read_roles(text, names, relation) if relation else None
    order = reading.individuals if reading and reading.individuals else tuple(range(len(names)))
    objects = []
    for number, k in enumerate(order):
        image = dest / "images" / f"{found.stem}-{number}{references[k].suffix}"
        write_bytes(image, references[k].read_bytes())
        objects.append(RawObject(name=names[k], role=reading.role_of(k) if reading else "", image=image))
    target = dest / f"{found.stem}{found.target.suffix}"
    write_bytes(target, found.target.read_bytes())
    predicate = reading.words if reading else ""
    triplet = RawTriplet(id=found.stem, target=target, text=text, predicate=predicate, objects=tuple(objects))
    return triplet, relation


def _examples(folder: Path, trainer: str) -> Iterator[Found]:
    if trainer == "diffsynth":
        yield from _of_diffsynth(folder)
    elif trainer == "diffusers":
        yield from _of_diffusers(folder)
    else:
        yield from _by_names(folder, TRAINERS[trainer])


def _of_diffsynth(folder: Path) -> Iterator[Found]:
    where = str(folder / DIFFSYNTH)
    rows = formats.read(_Rows, {"rows": read_json(folder / DIFFSYNTH)}, where, ignore_others=True).rows
    for number, row in enumerate(rows):
        at = f"{where}: rows[{number}]"
        references = tuple(_picture(folder, name, at) for name in row.edit_image or row.kontext_images)
        target = _picture(folder, row.image, at)
        yield Found(target.stem, target, references, row.prompt, at)


def _of_diffusers(folder: Path) -> Iterator[Found]:
    for number, line in numbered_lines(folder / METADATA):
        where = f"{folder / METADATA}:{number}"
        row = formats.read(_DiffusersRow, parse_json(line, where), where, ignore_others=True)
        target = _picture(folder / FOLDER, row.file_name, where)
        condition = _picture(folder / FOLDER, row.condition_file_name, where)
        yield Found(target.stem, target, (condition,), row.text, where)


def _by_names(folder: Path, layout: Layout) -> Iterator[Found]:
    """Of a layout whose files tell by their names what belongs together."""
    for place in sorted(folder.glob(_filled(layout.target, stem="*", count="*") + ".*")):
        name = place.relative_to(folder).as_posix()
        if place.suffix.lower() not in SUFFIXES:
            continue
        count = re.match(r"of-(\d+)/", name)
        stem, number = place.stem, count[1] if count else ""
        caption = _filled(layout.caption, stem, number)
        text = " ".join(read_text(inside(folder, caption, str(folder / caption))).split())
        references = list[Path]()
        while beside := _beside(folder, _filled(layout.reference, stem, number, len(references))):
            references.append(_picture(folder, beside, str(place)))
        yield Found(stem, _picture(folder, name, str(place)), tuple(references), text, str(folder / caption))


def _filled(pattern: str, stem: str, count: str = "", index: int = 0) -> str:
    return pattern.format(stem=stem, count=count, index=index, number=index + 1)


def _beside(folder: Path, path: str) -> str | None:
    """The picture of a path that lacks its suffix."""
    return next((path + suffix for suffix in SUFFIXES if (folder / (path + suffix)).is_file()), None)


def _originals(folder: Path, found: Found, count: int) -> tuple[Path, ...]:
    """The pictures of so many individuals out of ``originals/``; none where the only reference is the only one's.

    Raises:
        InputError: some are missing.
    """
    names = [_beside(folder, f"{ORIGINALS}/{found.stem}-{k}") for k in range(count)]
    pictures = tuple(_picture(folder, name, found.where) for name in names if name)
    if len(pictures) < count and count > 1:
        missing = f"{ORIGINALS}/{found.stem}-{names.index(None)}"
        raise InputError(f"{found.where}: {missing} is missing; the references stand in one picture, which is not cut")
    return pictures


def _picture(folder: Path, name: str, where: str) -> Path:
    """A picture that data names, inside of its folder.

    Raises:
        InputError: it lies elsewhere, is missing, or no picture.
    """
    path = inside(folder, name, where)
    with open_image(path):
        return path
