"""What the steps found, put together: a triplet's row of the native format, its masks, and its report."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rbctl.errors import InputError, abridged
from rbctl.files import write_png
from rbctl.paths import flattened
from rbctl.plugins.annotate.comparison import match, pose_change
from rbctl.plugins.annotate.pictures import Picture, PictureTriplet
from rbctl.plugins.annotate.predictions import Predictions
from rbctl.plugins.annotate.reports import Gate, ObjectReport, Report
from rbctl.relations import Box, Relation, load_relation, shipped
from rbctl.roles import find_relation, read_roles, roles_by_height
from rbctl.triplets.keypoints import ABSENT, OCCLUDED, VISIBLE
from rbctl.triplets.masks import box_of, read_mask
from rbctl.triplets.raw import RAW

SURE_OF_ROLES = 0.03  # of roles_by_height: from which a picture tells who has which role
_ROLES = ("subject", "object", *(f"object {k}" for k in range(2, 10)))


class _Incomplete(Exception):
    """A triplet that cannot be annotated, and why."""


@dataclass(frozen=True)
class AnnotatedTriplet:
    """One triplet.

    Attributes:
        row: its line of metadata.jsonl, None where it cannot be annotated.
        masks: (H, W) bool by their files.
    """

    report: Report
    row: dict[str, Any] | None
    masks: Mapping[Path, np.ndarray]

    def write_masks(self) -> None:
        """Write the masks; those that are there already stay."""
        for path, mask in self.masks.items():
            try:
                if path.is_file() and np.array_equal(read_mask(path), mask):
                    continue
            except InputError:
                pass  # damaged: written anew
            write_png(path, Image.fromarray(mask.astype(np.uint8) * 255))


@dataclass(frozen=True, eq=False)
class _Individual:
    """Somebody in a picture: mask (H, W), keypoints (17, 3) with confidences, look (D,), score of the box."""

    mask: np.ndarray
    keypoints: np.ndarray
    look: np.ndarray
    score: float


def assemble(
    folder: Path, triplet: PictureTriplet, predictions: Predictions, relation: Relation | None
) -> AnnotatedTriplet:
    """One triplet of the results of all steps.

    Args:
        relation: what the set shows, where that is known.
    """
    target, config = triplet.target, predictions.config
    file_name = target.path.relative_to(folder).as_posix()
    backends = {step: backend.name for step, backend in predictions.backends.items()}
    gates: dict[str, Gate] = {}
    try:
        gates["present"] = _present(triplet, predictions)
        everyone = _individuals(predictions, target)
        portraits = [_individuals(predictions, picture)[0] for picture in triplet.image_prompts]
        similarity = np.stack([portrait.look for portrait in portraits]) @ np.stack([one.look for one in everyone]).T
        assigned, margin = match(similarity)
        words = _words(triplet, predictions, relation, [box_of(everyone[k].mask) for k in assigned])
    except _Incomplete as error:
        report = Report(file_name=file_name, problem=str(error), backends=backends, gates=gates, kept=False)
        return AnnotatedTriplet(report, None, {})
    similarities = similarity[np.arange(len(assigned)), assigned]
    keypoints, identity = predictions.backends["keypoints"], predictions.backends["identity"]
    limits = keypoints.limit(config, "present_from", 0.1), keypoints.limit(config, "visible_from", 0.3)
    objects, reports, masks = [], [], dict[Path, np.ndarray]()
    visible, changes = list[int](), list[float]()
    for k, (raw, image_prompt, portrait) in enumerate(
        zip(triplet.raw.objects, triplet.image_prompts, portraits, strict=True)
    ):
        individual = everyone[assigned[k]]
        here, there = (_visibility(one.keypoints, *limits) for one in (individual, portrait))
        visible += [int((points[:, 2] == VISIBLE).sum()) for points in (here, there)]
        change = pose_change(here * (*target.size, 1), there * (*image_prompt.size, 1))
        changes += [] if change is None else [change]
        mask = folder / "masks" / f"{flattened(triplet.raw.id)}-{k}.png"
        masks[mask] = individual.mask
        objects.append(
            {
                "name": raw.name,
                "role": words.roles[k],
                "image": raw.image.relative_to(folder).as_posix(),
                "mask": mask.relative_to(folder).as_posix(),
                "box": list(box_of(individual.mask)),
                "target_keypoints": _plain(here),
                "image_keypoints": _plain(there),
            }
        )
        reports.append(
            ObjectReport(
                name=raw.name,
                found=int(assigned[k]),
                similarity=round(float(similarities[k]), 4),
                box_score=round(individual.score, 4),
                image_box_score=round(portrait.score, 4),
                image_box=tuple(round(v, 5) for v in box_of(portrait.mask)),
                pose_change=None if change is None else round(change, 4),
                target_confidence=tuple(round(float(v), 3) for v in individual.keypoints[:, 2]),
                image_confidence=tuple(round(float(v), 3) for v in portrait.keypoints[:, 2]),
            )
        )
    gates |= {
        "same": Gate.at_least(float(similarities.min()), identity.limit(config, "min_similarity", 0.6)),
        "told_apart": Gate.at_least(margin, config.min_margin),
        "pose": Gate.at_least(max(changes, default=None), config.min_pose_change),
        "keypoints": Gate.at_least(min(visible), config.min_keypoints),
        "roles": Gate.at_least(words.sure, SURE_OF_ROLES),
    }
    report = Report(
        file_name=file_name,
        backends=backends,
        gates=gates,
        margin=round(margin, 4),
        roles_from=words.roles_from,
        objects=tuple(reports),
        kept=not config.drop_failed or all(gate.passed for gate in gates.values()),
    )
    row = {"file_name": file_name, "text": words.text, "predicate": words.predicate, "objects": objects}
    return AnnotatedTriplet(report, row, masks)


def _present(triplet: PictureTriplet, predictions: Predictions) -> Gate:
    """The gate that everybody is there.

    Raises:
        _Incomplete: a picture cannot be read, somebody is missing, or there are more than image prompts.
    """
    if problems := [predictions.problems[p] for p in triplet.pictures if p in predictions.problems]:
        raise _Incomplete("; ".join(problems))
    for picture in triplet.pictures:
        selection = predictions.individuals(picture)
        if selection is None:
            raise _Incomplete(f"{picture.path}: not annotated yet; run the same command again")
        count, surplus, expected = len(selection[0].boxes), selection[1], len(picture.names)
        if count < expected:
            what = "nobody was found" if not count else f"{count} of {expected} individuals were found"
            raise _Incomplete(f"{picture.path}: {what} ({', '.join(picture.names)})")
        if surplus:
            where = f"for {expected} image prompts" if picture is triplet.target else "where one was expected"
            raise _Incomplete(f"{picture.path}: {count + surplus} individuals were found {where}")
    return Gate.at_least(len(triplet.image_prompts), len(triplet.image_prompts))


def _individuals(predictions: Predictions, picture: Picture) -> list[_Individual]:
    selection = predictions.individuals(picture)
    masks, keypoints, looks = (predictions.load(step, picture) for step in ("masks", "keypoints", "identity"))
    if masks is not None and not masks["masks"].any((1, 2)).all():
        raise _Incomplete(f"{picture.path}: the mask of somebody in it is empty")
    if selection is None or masks is None or keypoints is None or looks is None:
        raise _Incomplete(f"{picture.path}: not annotated yet; run the same command again")
    return [
        _Individual(masks["masks"][k], keypoints["keypoints"][k], looks["identity"][k], float(score))
        for k, score in enumerate(selection[0].scores)
    ]


@dataclass(frozen=True)
class _Words:
    """Caption and predicate of a triplet, the role of each individual, and how surely and by what they are told."""

    text: str
    predicate: str
    roles: tuple[str, ...]
    roles_from: str
    sure: float


def _words(
    triplet: PictureTriplet, predictions: Predictions, relation: Relation | None, boxes: Sequence[Box]
) -> _Words:
    """What is said of a triplet.

    Args:
        boxes: of the individuals in the target, in the order of their image prompts.

    Raises:
        _Incomplete: something cannot be told.
    """
    where, names, text = triplet.target.path, triplet.target.names, triplet.raw.text
    if not text and "captions" in predictions.backends and (caption := predictions.load("captions", triplet.target)):
        text = str(caption["text"])
    fitting = relation is not None and len(relation.roles) == len(names)
    if not text and not fitting:
        raise _Incomplete(f"{where}: has no text; state the relation with --relation, or caption it")
    for name in names if text else ():
        if not re.search(rf"(?<!\w){re.escape(name)}(e?s)?(?!\w)", text, re.IGNORECASE):
            raise _Incomplete(f"{where}: {abridged(name)} does not stand in its text {abridged(text)}")
    relation = relation or find_relation(text, [load_relation(name) for name in shipped()], names)
    individuals, roles_from, sure = _individuals_by_role(triplet, text, relation, boxes)
    if not text and relation is not None:
        if roles_from == "their order":
            asked = f"which of {', '.join(names)} is the {relation.roles[0].name}"
            mend = f"give each object its role in {RAW}, or a text that says who does what"
            raise _Incomplete(f"{where}: neither words nor picture tell {asked}; {mend}")
        text = relation.prompt([names[k] for k in individuals])
    predicate = triplet.raw.predicate or (read_roles(text, names, relation).words if relation else "")
    predicate = predicate or (relation.predicate if relation else "")
    if not predicate:
        raise _Incomplete(f"{where}: its text {abridged(text)} says no known relation; state one with --relation")
    roles = [role.name for role in relation.roles] if relation and len(relation.roles) == len(names) else _ROLES
    by_individual = dict(zip(individuals, roles, strict=False))
    by_individual |= {k: raw.role for k, raw in enumerate(triplet.raw.objects) if raw.role}
    return _Words(text, predicate, tuple(by_individual[k] for k in range(len(names))), roles_from, sure)


def _individuals_by_role(
    triplet: PictureTriplet, text: str, relation: Relation | None, boxes: Sequence[Box]
) -> tuple[tuple[int, ...], str, float]:
    """The individual of each role, what tells so, and how surely: by the given roles, the text, or the picture."""
    objects = triplet.raw.objects
    order = tuple(range(len(objects)))
    if relation is None or len(relation.roles) != len(objects) or relation.symmetric or len(objects) == 1:
        return order, "their order is free" if relation and relation.symmetric else "their order", 1.0
    given, known = [entry.role for entry in objects], [role.name for role in relation.roles]
    if all(given):
        return tuple(map(given.index, known)) if set(given) == set(known) else order, RAW, 1.0
    if text and (individuals := read_roles(text, triplet.target.names, relation).individuals):
        return individuals, "text", 1.0
    sure = roles_by_height(boxes, relation) if len(boxes) == 2 else 0.0
    if abs(sure) >= SURE_OF_ROLES:
        return order if sure > 0 else (1, 0), "picture", abs(sure)
    return order, "their order", 0.0


def _visibility(keypoints: np.ndarray, present_from: float, visible_from: float) -> np.ndarray:
    """(17, 3) x, y, confidence -> x, y, visibility; outside the picture and absent are zeros."""
    xy, confidence = keypoints[:, :2], keypoints[:, 2]
    present = ((xy >= 0) & (xy <= 1)).all(1) & (confidence >= present_from)
    points = np.column_stack((xy.round(5), np.where(confidence >= visible_from, VISIBLE, OCCLUDED)))
    return np.where(present[:, None], points, ABSENT).astype(np.float64)


def _plain(keypoints: np.ndarray) -> list[list[float]]:
    return [[float(x), float(y), int(v)] for x, y, v in keypoints]
