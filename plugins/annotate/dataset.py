"""What the steps found, put together: rows of the native format, masks, and the report."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rbctl.errors import InputError, abridged
from rbctl.images import write_png
from rbctl.plugins.annotate import gates
from rbctl.plugins.annotate.identity import match
from rbctl.plugins.annotate.pictures import Picture
from rbctl.plugins.annotate.work import Work, shown
from rbctl.relations import Relation, find_relation, load_relation, shipped
from rbctl.triplets.keypoints import ABSENT, OCCLUDED, VISIBLE
from rbctl.triplets.masks import box_of, read_mask
from rbctl.triplets.raw import RawTriplet

MASKS = "masks"


class _Incomplete(Exception):
    """A triplet that cannot be annotated, and why."""


@dataclass(frozen=True)
class Result:
    """One triplet.

    Attributes:
        report: its line of annotations.jsonl.
        row: its line of metadata.jsonl, None where it cannot be annotated.
        masks: files and what they hold.
    """

    report: dict[str, Any]
    row: dict[str, Any] | None
    masks: Mapping[Path, np.ndarray]

    @property
    def passed(self) -> bool:
        """Whether it is complete and fails no gate."""
        return self.row is not None and all(gate["passed"] for gate in self.report["gates"].values())


@dataclass(frozen=True, eq=False)
class _Individual:
    """Somebody in a picture: mask (H, W), keypoints (17, 3) with confidences, look (D,), score of the box."""

    mask: np.ndarray
    keypoints: np.ndarray
    look: np.ndarray
    score: float


@dataclass(frozen=True)
class Limits:
    """From which confidences on a keypoint is present and visible, and two individuals are the same."""

    present_from: float
    visible_from: float
    min_similarity: float

    def keypoints(self, found: np.ndarray) -> np.ndarray:
        """(17, 3) x, y, confidence -> x, y, visibility; outside the picture and absent are zeros."""
        xy, confidence = found[:, :2], found[:, 2]
        seen = np.where(confidence >= self.visible_from, VISIBLE, OCCLUDED)
        inside = ((xy >= 0) & (xy <= 1)).all(1) & (confidence >= self.present_from)
        points = np.column_stack((xy.round(5), seen))
        return np.where(inside[:, None], points, ABSENT).astype(np.float64)


def put_together(
    folder: Path,
    raw: RawTriplet,
    pictures: Mapping[tuple[Path, tuple[str, ...]], Picture],
    work: Work,
    limits: Limits,
    relation: Relation | None,
) -> Result:
    """One triplet of the results of all steps."""
    names = tuple(thing.name for thing in raw.objects)
    target = pictures[raw.target, names]
    alone = [pictures[thing.image, (thing.name,)] for thing in raw.objects]
    report: dict[str, Any] = {
        "file_name": shown(raw.target, folder),
        "problem": None,
        "backends": {step: chosen.name for step, chosen in work.backends.items()},
        "gates": {},
    }
    try:
        told = [work.problems[picture] for picture in (target, *alone) if picture in work.problems]
        if told:
            raise _Incomplete("; ".join(told))
        report["gates"]["present"] = _present(work, target, alone)
        text, predicate, roles = _words(raw, target, work, relation)
        everyone = _individuals(work, target)
        portraits = [_individuals(work, picture)[0] for picture in alone]
        similarity = np.stack([one.look for one in portraits]) @ np.stack([one.look for one in everyone]).T
        matched = match(similarity)
        report["margin"] = round(matched.margin, 4)
        report["objects"], objects, masks, changes, points = [], [], {}, [], []
        sizes = [picture.size for picture in (target, *alone)]
        for k, (thing, portrait) in enumerate(zip(raw.objects, portraits, strict=True)):
            one = everyone[matched.found[k]]
            mask = folder / MASKS / f"{raw.id.replace('/', '-')}-{k}.png"
            masks[mask] = one.mask
            here, there = limits.keypoints(one.keypoints), limits.keypoints(portrait.keypoints)
            change = gates.pose_change(here * (*sizes[0], 1), there * (*sizes[k + 1], 1))
            changes.append(change)
            points += [here, there]
            objects.append(
                {
                    "name": thing.name,
                    "role": thing.role or roles[k],
                    "image": shown(thing.image, folder),
                    "mask": shown(mask, folder),
                    "box": list(box_of(one.mask)),
                    "target_keypoints": _plain(here),
                    "image_keypoints": _plain(there),
                }
            )
            report["objects"].append(
                {
                    "name": thing.name,
                    "found": int(matched.found[k]),
                    "similarity": round(float(matched.similarity[k]), 4),
                    "box_score": round(one.score, 4),
                    "image_box_score": round(portrait.score, 4),
                    "image_box": [round(v, 5) for v in box_of(portrait.mask)],
                    "pose_change": None if change is None else round(change, 4),
                    "target_confidence": [round(float(v), 3) for v in one.keypoints[:, 2]],
                    "image_confidence": [round(float(v), 3) for v in portrait.keypoints[:, 2]],
                }
            )
        told_changes = [change for change in changes if change is not None]
        report["gates"] |= {
            "same": gates.at_least(float(matched.similarity.min()), limits.min_similarity),
            "told_apart": gates.at_least(matched.margin, work.config.min_margin),
            "pose": gates.at_least(max(told_changes, default=None), work.config.min_pose_change),
            "keypoints": gates.at_least(gates.visible(points), work.config.min_keypoints),
        }
        row = {"file_name": report["file_name"], "text": text, "predicate": predicate, "objects": objects}
        return Result(report, row, masks)
    except _Incomplete as error:
        report["problem"] = str(error)
        return Result(report, None, {})


def write_masks(result: Result) -> None:
    """Write the masks of a triplet; those that are there already stay."""
    for path, mask in result.masks.items():
        try:
            if path.is_file() and np.array_equal(read_mask(path), mask):
                continue
        except InputError:
            pass  # damaged: written anew
        write_png(path, Image.fromarray(mask.astype(np.uint8) * 255))


def _present(work: Work, target: Picture, alone: list[Picture]) -> dict[str, Any]:
    """The gate that everybody is there.

    Raises:
        _Incomplete: somebody is missing, or there are more than image prompts.
    """
    for picture in (target, *alone):
        expected = len(picture.names)
        found = work.found(picture)
        if found is None:
            raise _Incomplete(f"{picture.path}: not annotated yet; run the same command again")
        count, surplus = len(found[0].boxes), found[1]
        if count < expected:
            told = "nobody was found" if not count else f"{count} of {expected} individuals were found"
            raise _Incomplete(f"{picture.path}: {told} ({', '.join(picture.names)})")
        if surplus and picture is target:
            raise _Incomplete(f"{picture.path}: {count + surplus} individuals were found for {expected} image prompts")
        if surplus:
            raise _Incomplete(f"{picture.path}: {count + surplus} individuals were found where one was expected")
    return gates.at_least(len(target.names), len(target.names))


def _individuals(work: Work, picture: Picture) -> list[_Individual]:
    found = work.found(picture)
    masks, keypoints, looks = (work.load(step, picture) for step in ("masks", "keypoints", "identity"))
    if masks is not None and not masks["masks"].any((1, 2)).all():
        raise _Incomplete(f"{picture.path}: the mask of somebody in it is empty")
    if found is None or masks is None or keypoints is None or looks is None:
        raise _Incomplete(f"{picture.path}: not annotated yet; run the same command again")
    return [
        _Individual(masks["masks"][k], keypoints["keypoints"][k], looks["identity"][k], float(score))
        for k, score in enumerate(found[0].scores)
    ]


def _words(raw: RawTriplet, target: Picture, work: Work, relation: Relation | None) -> tuple[str, str, list[str]]:
    """Caption, predicate and roles.

    Raises:
        _Incomplete: one cannot be told.
    """
    names = [thing.name for thing in raw.objects]
    text = raw.text
    if not text and "captions" in work.backends:
        content = work.load("captions", target)
        text = "" if content is None else str(content["text"])
    fits = relation is not None and len(relation.roles) == len(names)
    if not text and relation is not None and fits:
        text = relation.prompt(names)
    if not text:
        raise _Incomplete(f"{target.path}: has no text; state the relation with --relation, or caption it")
    for name in names:
        if not re.search(rf"(?<!\w){re.escape(name)}(e?s)?(?!\w)", text, re.IGNORECASE):
            raise _Incomplete(f"{target.path}: {abridged(name)} does not stand in its text {abridged(text)}")
    known = relation or find_relation(text, [load_relation(name) for name in shipped()])
    predicate = raw.predicate or ("" if known is None else _spoken(known, text))
    if not predicate:
        raise _Incomplete(f"{target.path}: its text {abridged(text)} says no known relation; state one with --relation")
    if known is not None and len(known.roles) == len(names):
        return text, predicate, [role.name for role in known.roles]
    return text, predicate, ["subject", "object", *(f"object {k}" for k in range(2, len(names)))][: len(names)]


def _spoken(relation: Relation, text: str) -> str:
    """The words of a text that say the relation."""
    from rbctl.menagerie.triplets import spoken

    return spoken(relation, text)


def _plain(keypoints: np.ndarray) -> list[list[float]]:
    return [[float(x), float(y), int(v)] for x, y, v in keypoints]
