"""The steps of annotation: what a backend of each is called with and what it returns.

A backend is a callable. It gets a batch of B pictures of one size, as PIL RGB, and a list of B further inputs; it
returns a list of B results. Coordinates are relative to the picture, x and y in [0, 1], boxes xyxy. K counts the
individuals in a picture, in the order in which the step ``boxes`` found them.

A backend may have attributes: ``present_from`` and ``visible_from`` (keypoints: confidences from which a keypoint is
taken as occluded, as visible), ``min_similarity`` (identity: from which two pictures are taken to show the same one).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image

from rbctl.triplets.keypoints import KEYPOINTS


@dataclass(frozen=True, eq=False)
class Found:
    """Boxes of a picture, the surest first.

    Attributes:
        boxes: (K, 4) float64.
        scores: (K,) in [0, 1].
    """

    boxes: np.ndarray
    scores: np.ndarray


class Boxes(Protocol):
    """Step ``boxes``: where the individuals with these names are."""

    def __call__(self, images: Sequence[Image.Image], names: Sequence[Sequence[str]]) -> list[Found]: ...


class Masks(Protocol):
    """Step ``masks``: what the individual in each of (K, 4) boxes covers, (K, H, W) bool."""

    def __call__(self, images: Sequence[Image.Image], boxes: Sequence[np.ndarray]) -> list[np.ndarray]: ...


class Keypoints(Protocol):
    """Step ``keypoints``: (K, 17, 3) x, y, confidence in [0, 1], in AP-10K's order, for (K, 4) boxes."""

    def __call__(self, images: Sequence[Image.Image], boxes: Sequence[np.ndarray]) -> list[np.ndarray]: ...


class Identity(Protocol):
    """Step ``identity``: what each individual looks like, (K, D) unit vectors, for (K, H, W) bool masks."""

    def __call__(self, images: Sequence[Image.Image], masks: Sequence[np.ndarray]) -> list[np.ndarray]: ...


class Captions(Protocol):
    """Step ``captions``: one sentence a picture, in which all the names stand."""

    def __call__(self, images: Sequence[Image.Image], names: Sequence[Sequence[str]]) -> list[str]: ...


# The arrays that a step's result is kept as, and their types.
FIELDS: Mapping[str, Mapping[str, type]] = {
    "boxes": {"boxes": np.float64, "scores": np.float64},
    "masks": {"masks": np.bool_},
    "keypoints": {"keypoints": np.float32},
    "identity": {"identity": np.float32},
    "captions": {"text": np.str_},
}


def misfit(step: str, arrays: Mapping[str, np.ndarray], count: int, size: tuple[int, int]) -> str:
    """How a result differs from the form above; "" where it has that form.

    Args:
        arrays: as they are kept, see ``FIELDS``.
        count: individuals that the step was asked about; of ``boxes`` and ``captions`` it is no matter.
        size: of the picture, width and height.
    """
    if step == "captions":
        return _no_sentence(arrays["text"])
    array = arrays[step]
    if step == "boxes" and arrays["scores"].shape != array.shape[:1]:
        return "not one score a box"
    shape = {
        "boxes": (*array.shape[:1], 4),
        "masks": (count, size[1], size[0]),
        "keypoints": (count, len(KEYPOINTS), 3),
        "identity": (count, array.shape[-1] if array.ndim else 0),
    }[step]
    if array.shape != shape:
        return f"an array of shape {array.shape}, not {shape}"
    if step != "masks" and not all(np.isfinite(values).all() for values in arrays.values()):
        return "values that are no numbers"
    if step == "boxes" and not _all_in_unit(array, arrays["scores"]):
        return "boxes or scores outside [0, 1]"
    if step == "boxes" and not (array[:, :2] < array[:, 2:]).all():
        return "boxes without an area"
    if step == "keypoints" and not _all_in_unit(array[..., 2]):
        return "confidences outside [0, 1]"
    if step == "identity" and not np.allclose(np.linalg.norm(array, axis=-1), 1, rtol=0, atol=0.01):
        return "vectors whose length is not 1"
    return ""


def _no_sentence(text: np.ndarray) -> str:
    if text.shape != ():
        return f"an array of shape {text.shape}, not words"
    try:
        str(text).encode()
    except ValueError:  # halves of characters, as no file can hold them
        return "words with characters that are none"
    return ""


def _all_in_unit(*arrays: np.ndarray) -> bool:
    return all(((array >= 0) & (array <= 1)).all() for array in arrays)


def distinct(found: Found, overlap: float) -> Found:
    """Leave out boxes whose intersection over union with a surer one is more than ``overlap``."""
    kept: list[int] = []
    for k in np.argsort(-found.scores, kind="stable"):
        if all(intersection_over_union(found.boxes[k], found.boxes[j]) <= overlap for j in kept):
            kept.append(int(k))
    return Found(found.boxes[kept], found.scores[kept])


def intersection_over_union(a: np.ndarray, b: np.ndarray) -> float:
    """Of two boxes (4,)."""
    width, height = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = max(width, 0) * max(height, 0)
    whole = np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - shared
    return float(shared / whole) if whole > 0 else 0.0


SURPLUS = 0.75  # of the score of the last individual that is wanted: one more that is so sure is one too many


def wanted(found: Found, count: int) -> tuple[Found, int]:
    """The ``count`` surest, and how many more there are that are nearly as sure."""
    more = found.scores[count:]
    surplus = int((more >= SURPLUS * found.scores[count - 1]).sum()) if len(more) else 0
    return Found(found.boxes[:count], found.scores[:count]), surplus


def clipped(boxes: np.ndarray) -> np.ndarray:
    """Boxes (K, 4) inside [0, 1]; those without an area left get zeros."""
    boxes = np.clip(np.asarray(boxes, np.float64).reshape(-1, 4), 0, 1)
    empty = (boxes[:, 2] <= boxes[:, 0]) | (boxes[:, 3] <= boxes[:, 1])
    return np.where(empty[:, None], 0, boxes)


def corners(boxes: np.ndarray) -> np.ndarray:
    """Boxes (..., 4) as centre and size -> xyxy."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return np.concatenate((centre - half, centre + half), axis=-1)
