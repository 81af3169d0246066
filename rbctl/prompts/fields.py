"""``Prompt``, and how the value of each of its fields is checked, wherever it was written."""

from __future__ import annotations

import dataclasses
import math
import os.path
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rbctl.errors import InputError, abridged, nearest
from rbctl.relations import Box, check_box, load_relation


@dataclasses.dataclass(frozen=True)
class PromptObject:
    """One individual to be shown.

    Attributes:
        name: the words for it in the prompt, "plush bear".
        image: its picture.
        box: where it goes, relative xyxy; None: the layout decides.
        subject_scale: weight of its own image tokens; None: the common scale.
    """

    name: str
    image: Path
    box: Box | None = None
    subject_scale: float | None = None


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One prompt. None stands for "not given"; the stage's defaults fill it in.

    Attributes:
        text: the prompt with the objects' names in place.
        objects: N objects; either all have a box or none has.
        width, height: pixels, multiples of 8.
        relation: a shipped relation's name, or the path of a relation file.
        lora: paths of LoRAs with commas between. ``lora_weight``: of these, or of the one the stage finds.
        embedding: learned embeddings, PATH[:TOKEN] with commas between.
        scale: weight of the image branch (gamma).
        images: number of pictures, with seeds from ``seed`` on.
        source: where it stands, "folder/prompts.txt:3".
    """

    text: str
    objects: tuple[PromptObject, ...] = ()
    negative_prompt: str | None = None
    width: int | None = None
    height: int | None = None
    seed: int | None = None
    guidance_scale: float | None = None
    steps: int | None = None
    relation: str | None = None
    lora: str | None = None
    lora_weight: float | None = None
    embedding: str | None = None
    scale: float | None = None
    images: int | None = None
    source: str = ""


def _whole(low: int, high: int, multiple: int = 1) -> Callable[[Any], int]:
    wanted = f"a whole number from {low} to {high}" + (f", a multiple of {multiple}" if multiple > 1 else "")

    def check(value: Any) -> int:
        try:
            number = int(value) if isinstance(value, str) else value
        except ValueError:
            number = None
        if isinstance(number, bool) or not isinstance(number, int) or not low <= number <= high or number % multiple:
            raise ValueError(f"{abridged(value)} is not {wanted}")
        return number

    return check


def _real(low: float, high: float) -> Callable[[Any], float]:
    def check(value: Any) -> float:
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not low <= number <= high:  # nan too
            raise ValueError(f"{abridged(value)} is not a number from {low:g} to {high:g}")
        return number

    return check


def words(value: Any) -> str:
    """A string, empty or not.

    Raises:
        ValueError: it is none, or no file could hold it.
    """
    if not isinstance(value, str):
        raise ValueError(f"words were expected, not {abridged(value)}")
    if any("\ud800" <= char <= "\udfff" for char in value):  # YAML's "\ud83d"; no file could hold it
        raise ValueError(f"{abridged(value)} is not valid Unicode")
    return value


def _filled(value: Any) -> str:
    if not words(value).strip():
        raise ValueError("no value is given")
    return value


_scale = _real(0, 10)

# How the value of each field is checked, whether it comes as text from a line or as a value from YAML.
CHECKS: dict[str, Callable[[Any], Any]] = {
    "negative_prompt": words,
    "width": _whole(64, 8192, 8),
    "height": _whole(64, 8192, 8),
    "seed": _whole(0, 2**63 - 10_001),  # the seeds of further images count up
    "guidance_scale": _real(0, 100),
    "steps": _whole(1, 1000),
    "relation": _filled,
    "lora": _filled,
    "lora_weight": _real(-10, 10),
    "embedding": _filled,
    "scale": _scale,
    "images": _whole(1, 10_000),
}


def build(
    text: str,
    objects: Sequence[Mapping[str, Any]],
    values: Mapping[str, Any],
    folder: Path,
    where: str,
    shown: Mapping[str, str],
) -> Prompt:
    """A checked prompt.

    Args:
        objects: name, image and, from YAML, box and subject_scale.
        values: unchecked fields; ``boxes`` and ``subject_scale`` are lists over the objects.
        shown: a field's name as the user wrote it.

    Raises:
        InputError: a field is wrong, or a picture or relation is missing.
    """
    if not text:
        raise InputError(f"{where}: the prompt is empty; write what the picture shows")
    checked = {
        key: check_field(CHECKS[key], v, where, shown.get(key, key)) for key, v in values.items() if key in CHECKS
    }
    for field in ("lora", "embedding", "relation"):
        if field in checked:
            checked[field] = _near(folder, checked[field])
    if "relation" in checked:
        try:
            relation = load_relation(checked["relation"])
        except InputError as error:
            raise InputError(f"{where}: {shown.get('relation', 'relation')}: {error}") from error
        if not os.path.isfile(checked["relation"]):
            checked["relation"] = relation.name
    boxes = _per_object("box", "boxes", objects, values, where, shown, check_box)
    if any(box is None for box in boxes) and any(box is not None for box in boxes):
        raise InputError(f"{where}: some objects have a box and some have none; give one for each, or none")
    scales = _per_object("subject_scale", "subject_scale", objects, values, where, shown, _scale)
    built = tuple(
        PromptObject(
            name=check_field(_filled, entry["name"], where, "name").strip(),
            image=_picture(check_field(_filled, entry["image"], where, "image"), folder, where, entry["name"]),
            box=box,
            subject_scale=scale,
        )
        for entry, box, scale in zip(objects, boxes, scales, strict=True)
    )
    return Prompt(text=text, objects=built, source=where, **checked)


def _near(folder: Path, given: str) -> str:
    """Paths with commas between, those of files in ``folder`` made whole; a token's ":<name>" stays."""
    if os.path.isfile(folder / given):
        return str(folder / given)

    def whole(part: str) -> str:
        path = part.partition(":<")[0]
        return str(folder / path) + part[len(path) :] if os.path.isfile(folder / path) else part

    return ",".join(whole(part.strip()) for part in given.split(","))


def _per_object(
    key: str,
    field: str,
    objects: Sequence[Mapping[str, Any]],
    values: Mapping[str, Any],
    where: str,
    shown: Mapping[str, str],
    check: Callable[[Any], Any],
) -> list[Any]:
    """The checked values of the objects: each one's own ``key``, or the prompt's list ``field``, but not both."""
    own = [entry.get(key) for entry in objects]
    listed = values.get(field)
    name = key if listed is None else shown.get(field, field)
    if listed is not None:
        count = len(listed) if isinstance(listed, list) else abridged(listed)
        if count != len(objects):
            raise InputError(f"{where}: {name}: {count} given, {len(objects)} expected; give one per object, or none")
        if any(value is not None for value in own):
            raise InputError(f"{where}: {name}: given here and at the objects; leave one out")
    given = own if listed is None else listed
    return [None if value is None else check_field(check, value, where, name) for value in given]


def check_field(check: Callable[[Any], Any], value: Any, where: str, name: str) -> Any:
    """The checked value.

    Raises:
        InputError: in place of the check's ValueError; place and field are named.
    """
    try:
        return check(value)
    except ValueError as error:
        raise InputError(f"{where}: {name}: {error}") from error


def _picture(given: str, folder: Path, where: str, name: str) -> Path:
    path = folder / given
    if not os.path.isfile(path):
        what = f"no picture {str(path)[:500]}; paths are relative to the prompts file"
        raise InputError(f"{where}: {name[:60]}: {what}")
    return path


def known_keys(where: str, content: Mapping[Any, Any], known: Iterable[str]) -> None:
    """Every key is one of those known.

    Raises:
        InputError: one is not; the nearest is named.
    """
    known = list(known)
    for key in content:
        if key not in known:
            mend = nearest(str(key), known) or f"; keys: {', '.join(known)}"
            raise InputError(f"{where}: no key {abridged(key)}{mend}")
