"""What is wrong with masks and keypoints as a whole: they contradict each other. And what would make them agree.

Visible keypoints of an individual lie in its own mask, most of them: in good sets, among them the authors' hug, a
share of 0.41 or more of each individual's. Where they do not, somebody's coordinates are (y, x), relative to a crop, or
another's; or the mask is white outside of the individual. `check` tells it, `mended` puts it right.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rbctl.triplets.geometry import Annotated
from rbctl.triplets.keypoints import VISIBLE
from rbctl.triplets.triplet import Triplet, TripletObject

Kind = Literal["exchanged", "swapped", "crop", "inverted", "outside"]

_LEAST = 0.3  # share of an individual's keypoints in its own mask; good ones have 0.41 and more, faults about 0.2
_OF_SET = 0.41  # the same over a whole set
_GAIN = 0.2  # so much more of the keypoints lie in masks and boxes when two individuals are exchanged
_BETTER = 0.25  # the same for another reading of the coordinates
_SWAPPED = 0.15  # and of a whole set as (y, x), where good sets lose 0.1 and more
_FEW = 4  # keypoints that tell nothing
_FRAME = 0.9  # share of the picture's border that a mask covers which is white outside of its object


@dataclass(frozen=True)
class Fault:
    """Something that is wrong with a triplet.

    Attributes:
        objects: the numbers of those concerned.
        certain: else it only looks so.
        what: for a person.
    """

    triplet: str
    kind: Kind
    objects: tuple[int, ...]
    certain: bool
    what: str


@dataclass(frozen=True, eq=False)
class Evidence:
    """How the keypoints of a triplet's N individuals lie in masks and boxes of its target.

    Attributes:
        present: (N,) visible keypoints; who is behind somebody has others, rightly outside of the own mask.
        inside: (N, N) how many of i's lie in the mask of j.
        in_box: (N, N) the same for boxes.
        swapped, of_crop: (N,) how many would lie in their own mask if x and y were exchanged; if they were relative to
            the individual's box.
        frame: (N,) share of the picture's border that each mask covers.
        full: (N,) whether a mask is white all over.
    """

    names: tuple[str, ...]
    present: np.ndarray
    inside: np.ndarray
    in_box: np.ndarray
    swapped: np.ndarray
    of_crop: np.ndarray
    frame: np.ndarray
    full: np.ndarray

    @classmethod
    def of(cls, triplet: Triplet, target: Annotated) -> Evidence:
        """The evidence of a triplet and its whole target."""
        masks, boxes = target.masks, target.boxes
        points = [entry.target_keypoints[entry.target_keypoints[:, 2] == VISIBLE, :2] for entry in triplet.objects]
        own = range(len(points))
        border = [np.concatenate((mask[0], mask[-1], mask[:, 0], mask[:, -1])) for mask in masks]
        return cls(
            names=tuple(entry.name for entry in triplet.objects),
            present=np.array([len(p) for p in points]),
            inside=np.array([[_inside(points[i], masks[j]) for j in own] for i in own]),
            in_box=np.array([[_in_box(points[i], boxes[j]) for j in own] for i in own]),
            swapped=np.array([_inside(points[i][:, ::-1], masks[i]) for i in own]),
            of_crop=np.array([_inside(_from_crop(points[i], boxes[i]), masks[i]) for i in own]),
            frame=np.array([line.mean() for line in border]),
            full=np.array([mask.all() for mask in masks]),
        )


def diagnose(evidence: Mapping[str, Evidence]) -> list[Fault]:
    """The faults of a set, by the ids of its triplets; each individual has one at most."""
    everything = list(evidence.items())
    faults = [fault for name, own in everything for fault in _inverted(name, own) or _exchanged(name, own)]
    faulty = {fault.triplet for fault in faults}
    left = [(name, own) for name, own in everything if name not in faulty]
    return faults + _misread(left)


def _inverted(name: str, own: Evidence) -> list[Fault]:
    """Masks that are white outside of their object: along the whole border, and not where the keypoints are."""
    around = (own.frame > _FRAME) & ~own.full
    lost = (own.present >= _FEW) & (np.diag(own.inside) < _LEAST * own.present)
    everyone = len(around) > 1 and bool(around.all())  # who has no keypoints: no two individuals fill one border
    wrong = around & (lost | (everyone & (own.present < _FEW)))
    what = "the mask is white where the object is not: it covers the whole border of the picture"
    return [Fault(name, "inverted", (int(k),), True, f"{own.names[k]}: {what}") for k in np.nonzero(wrong)[0]]


def _exchanged(name: str, own: Evidence) -> list[Fault]:
    """Pairs that seem to have each other's keypoints in the target."""
    faults = []
    for i, j in itertools.combinations(range(len(own.names)), 2):
        present = own.present[i] + own.present[j]
        gains = [table[i, j] + table[j, i] - table[i, i] - table[j, j] for table in (own.inside, own.in_box)]
        if present and sum(gains) / 2 > _GAIN * present:
            certain = own.inside[i, i] + own.inside[j, j] < _LEAST * present
            pair = f"the target keypoints of {own.names[i]} and {own.names[j]}"
            what = f"{pair} look exchanged: each fits the other's mask and box better"
            faults.append(Fault(name, "exchanged", (i, j), bool(certain), what))
    return faults


def _misread(evidence: list[tuple[str, Evidence]]) -> list[Fault]:
    """Coordinates that are (y, x) or relative to a crop, which a whole set shows; and what lies outside of its mask."""
    present = max(1, sum(own.present.sum() for _, own in evidence))
    as_is = sum(np.diag(own.inside).sum() for _, own in evidence) / present
    swapped, of_crop = (sum(getattr(own, key).sum() for _, own in evidence) / present for key in ("swapped", "of_crop"))
    faults: list[Fault] = []
    for name, own in evidence:
        inside = np.diag(own.inside)
        kind: Kind | None = None
        if swapped > as_is + _SWAPPED:
            kind, what = "swapped", "the target keypoints look like (y, x): they fit the masks when exchanged"
        elif as_is < _OF_SET and of_crop > as_is + _BETTER:
            kind, what = "crop", "the target keypoints look relative to the object's box instead of the picture"
        if kind:
            faults.append(Fault(name, kind, tuple(range(len(own.names))), True, what))
            continue
        for k in np.nonzero((own.present >= _FEW) & (inside < _LEAST * own.present))[0]:
            share = f"{inside[k]} of {own.present[k]} target keypoints lie in its mask"
            faults.append(Fault(name, "outside", (int(k),), True, f"{own.names[k]}: only {share}"))
    return faults


def mended(triplet: Triplet, target: Annotated, faults: Iterable[Fault]) -> tuple[Triplet, dict[int, np.ndarray]]:
    """A triplet with what can be put right; its pictures stay.

    Args:
        target: its whole target.

    Returns:
        The triplet, and by its number the mask (H, W) of each object whose mask must be written anew.
    """
    objects, masks = list(triplet.objects), dict[int, np.ndarray]()
    for fault in faults:
        if fault.kind == "exchanged":
            i, j = fault.objects
            points = objects[i].target_keypoints, objects[j].target_keypoints
            objects[i], objects[j] = (_with(objects[k], p) for k, p in zip((i, j), reversed(points), strict=True))
        for k in fault.objects:
            points_of_k = objects[k].target_keypoints
            if fault.kind == "swapped":
                objects[k] = _with(objects[k], points_of_k[:, [1, 0, 2]])
            elif fault.kind == "crop":
                xy = _from_crop(points_of_k[:, :2], target.boxes[k])
                whole = np.column_stack((xy, points_of_k[:, 2])).astype(np.float32)
                objects[k] = _with(objects[k], np.where(points_of_k[:, 2:] > 0, whole, 0))
            elif fault.kind == "inverted":
                masks[k] = ~target.masks[k]
    return dataclasses.replace(triplet, objects=tuple(objects)), masks


def _with(entry: TripletObject, keypoints: np.ndarray) -> TripletObject:
    return dataclasses.replace(entry, target_keypoints=keypoints)


def _inside(points: np.ndarray, mask: np.ndarray) -> int:
    """How many of (K, 2) relative points lie in a (H, W) mask."""
    height, width = mask.shape
    pixels = np.floor(points * (width, height)).astype(int)
    within = ((points >= 0) & (points <= 1)).all(axis=1)
    x, y = np.clip(pixels, 0, (width - 1, height - 1)).T
    return int((mask[y, x] & within).sum())


def _in_box(points: np.ndarray, box: np.ndarray) -> int:
    return int(((points >= box[:2]) & (points <= box[2:])).all(axis=1).sum())


def _from_crop(points: np.ndarray, box: np.ndarray) -> np.ndarray:
    return np.asarray(box[:2] + points * (box[2:] - box[:2]))
