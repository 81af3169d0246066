"""The layout of the official implementation.

::

    prompts.json                {"0": {"prompt": ..., "entities": ["lion", "polar bear"], "predicate": ["hug"]}, ...}
    videos/<id>/motion.png      the target; may be WebP in truth
    videos/<id>/motion_keyposes.pth (N, 17, 2)
    videos/<id>/concept0.png    concept_keyposes_one.pth (1, 17, 2)    masks/<id>/motion0.png    the first object
    videos/<id>/concept1.png    concept_keyposes_two.pth               masks/<id>/motion1.png    the second; and so on

A single object is called ``entity``, with ``concept.png``, ``concept_keyposes.pth`` and ``masks/<id>/motion.png``.
There are neither boxes (they come from the masks) nor visibilities (all keypoints count as visible).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from annotated_types import Len

from rbctl import formats
from rbctl.errors import InputError, abridged
from rbctl.files import read_object, read_torch
from rbctl.paths import inside
from rbctl.relations import Box
from rbctl.triplets.keypoints import KEYPOINTS, VISIBLE, absent, misplaced
from rbctl.triplets.masks import box_of, read_mask
from rbctl.triplets.problem import NO_BOX, NOWHERE, Problem, Reporter, Sink, refuse
from rbctl.triplets.triplet import Triplet, TripletObject

PROMPTS = "prompts.json"
VIDEOS = "videos"
MASKS = "masks"

_KEYPOINTS_LIMIT = 1 << 20  # bytes; the official files have some 2,000

_NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

_Listed = formats.Check(
    lambda value: (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value,
    before=True,
)
_Entities = Annotated[tuple[formats.Words, ...], Len(1, len(_NUMBERS)), _Listed]
_Predicate = Annotated[tuple[str, ...], _Listed]
T = TypeVar("T")


@dataclass(frozen=True)
class _Files:
    """The files of one object."""

    concept: Path
    keypoints: Path
    mask: Path


def read(
    folder: Path, sink: Sink = refuse, predicate: str = "", follow_outside: bool = False
) -> Iterator[tuple[Triplet, Reporter]]:
    """Read the triplets of an official folder one by one; arguments and errors are those of ``folder.read``."""
    path = folder / PROMPTS
    prompts = read_object(path)
    for name, entry in prompts.items():
        reporter = Reporter(name, str(path), sink)
        if not name.strip(".") or "/" in name or "\\" in name:
            reporter.error("is no folder's name")
        elif not isinstance(entry, dict):
            reporter.error(f"a mapping of prompt, entities and predicate was expected, not {abridged(entry)}")
        elif not follow_outside and (leaving := _leaves(folder, name)):
            reporter.error(leaving)
        else:
            yield _triplet(folder, name, entry, reporter, predicate), reporter
    for video in sorted((folder / VIDEOS).iterdir()):
        if video.is_dir() and video.name not in prompts:
            what, mend = f"{PROMPTS} does not name this folder, so it is left out", "add its prompt, or remove it"
            sink(Problem(triplet=video.name, file=str(video), what=what, mend=mend, level="warning"))


def _leaves(folder: Path, name: str) -> str:
    """What is wrong with the first of a triplet's files that is a link out of the folder; empty where none is."""
    try:
        for part in (VIDEOS, MASKS):
            inside(folder, f"{part}/{name}", "its files")
            for path in sorted((folder / part / name).glob("*")):
                inside(folder, f"{part}/{name}/{path.name}", "its files")
    except InputError as error:
        return str(error)
    return ""


def _triplet(folder: Path, name: str, entry: dict[str, Any], reporter: Reporter, predicate: str) -> Triplet:
    video, masks = folder / VIDEOS / name, folder / MASKS / name
    names = _field(_Entities, "entities", entry.get("entities", entry.get("entity")), reporter)
    if names is None:
        count = len(list(video.glob("concept*.png")))
        names = ("",) * max(1, min(count, len(_NUMBERS)))
    words = _field(_Predicate, "predicate", entry.get("predicate") or [], reporter)
    files = [_files(video, masks, number, len(names)) for number in range(len(names))]
    _leftovers(video, masks, files, reporter)
    targets = _keypoints(video / "motion_keyposes.pth", names, reporter)
    return Triplet(
        id=name,
        target=_picture(video / "motion.png", reporter),
        prompt=_field(formats.Words, "prompt", entry.get("prompt"), reporter) or "",
        predicate=" ".join(words or ()).strip() or predicate,
        objects=tuple(_object(own, k, files[k], targets[k], reporter) for k, own in enumerate(names)),
    )


def _object(name: str, number: int, files: _Files, target_keypoints: np.ndarray, reporter: Reporter) -> TripletObject:
    mask, box = _mask(files.mask, reporter)
    return TripletObject(
        name=name,
        role=("subject", "object")[number] if number < 2 else f"object{number}",
        image=_picture(files.concept, reporter),
        mask=mask,
        box=box,
        target_keypoints=target_keypoints,
        image_keypoints=_keypoints(files.keypoints, [name], reporter)[0],
    )


def _files(video: Path, masks: Path, number: int, count: int) -> _Files:
    """Where the files of an object lie; those of a single one may be numbered or not."""
    tags = [(str(number), f"_{_NUMBERS[number]}")]
    if count == 1:
        tags.insert(0, ("", ""))
    choices = [
        (video / f"concept{tag}.png", video / f"concept_keyposes{word}.pth", masks / f"motion{tag}.png")
        for tag, word in tags
    ]
    return _Files(*(next(filter(Path.exists, paths), paths[0]) for paths in zip(*choices, strict=True)))


def _leftovers(video: Path, masks: Path, files: list[_Files], reporter: Reporter) -> None:
    """Tell files that belong to no entity: the counts do not agree."""
    used = {path for own in files for path in (own.concept, own.keypoints, own.mask)}
    for path in sorted({*video.glob("concept*.png"), *video.glob("concept_keyposes*.pth"), *masks.glob("motion*.png")}):
        if path not in used:
            named = "1 entity" if len(files) == 1 else f"{len(files)} entities"
            reporter.error(f"belongs to none of the {named}", f"name its entity in {PROMPTS}, or remove it", file=path)


def _field(kind: type[T], name: str, value: Any, reporter: Reporter) -> T | None:
    """The value of a field; None, which is told, where it is missing or not what the field takes."""
    checked, faults = formats.examine(kind, value)
    for fault in faults:
        text = "is missing" if value is None else fault.text
        reporter.error(str(formats.Fault((name, *fault.steps), text)))
    return checked


def _picture(path: Path, reporter: Reporter) -> Path:
    if path.is_file():
        return path
    reporter.error("no such file", file=path)
    return NOWHERE


def _mask(path: Path, reporter: Reporter) -> tuple[Path, Box]:
    try:
        box = box_of(read_mask(path))
    except InputError as error:
        reporter.failed(error, path)
        return NOWHERE, NO_BOX
    if box == NO_BOX:
        reporter.error("the mask is empty: no pixel is 128 or brighter", "paint the object white", file=path)
        return NOWHERE, NO_BOX
    return path, box


def _keypoints(path: Path, names: Sequence[str], reporter: Reporter) -> np.ndarray:
    """(N, 17, 3) float32, a row per name; a row that cannot be used is absent."""
    holes = np.stack([absent() for _ in names])
    try:
        content = read_torch(path, limit=_KEYPOINTS_LIMIT)
    except InputError as error:
        reporter.failed(error, path)
        return holes
    if not hasattr(content, "detach"):
        reporter.error(f"a tensor was expected, not {type(content).__name__}", file=path)
        return holes
    expected = (len(names), len(KEYPOINTS), 2)
    if tuple(content.shape) not in (expected, expected[1:]) or content.is_complex():
        shape = abridged(tuple(content.shape))
        reporter.error(f"shape {shape}, but {expected} was expected: entities, keypoints, x and y", file=path)
        return holes
    points = content.detach().float().numpy().reshape(-1, *expected[1:])
    if len(points) != len(names):
        reporter.error(f"one set of keypoints for {len(names)} entities", file=path)
        return holes
    keypoints = np.concatenate([points, np.full((*points.shape[:2], 1), VISIBLE)], axis=2).astype(np.float32)
    for k, name in enumerate(names):
        if wrong := misplaced(keypoints[k]):
            reporter.error(f"{name or f'object {k}'}: {wrong}", "x and y are relative, from 0 to 1", file=path)
            keypoints[k] = absent()
    return keypoints
