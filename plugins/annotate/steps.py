"""The steps of annotation: what a backend of each is called with and what it returns.

A backend is a callable. It gets a batch of pictures of one size, as PIL RGB, and a list with one more input for each;
it returns a list with one result for each. ::

    step       input                           result
    boxes      names of the individuals        Detections: where they are
    masks      (K, 4) boxes                    (K, H, W) bool: what the individual in each box covers
    keypoints  (K, 4) boxes                    (K, 17, 3) x, y, confidence in [0, 1], in AP-10K's order
    identity   (K, H, W) bool masks            (K, D) unit vectors: what each individual looks like
    captions   names of the individuals        one sentence, in which all the names stand

Coordinates are relative to the picture, x and y in [0, 1], boxes xyxy. K counts the individuals in a picture, in the
order in which the step ``boxes`` found them.

A backend may have attributes: ``present_from`` and ``visible_from`` (keypoints: confidences from which a keypoint is
taken as occluded, as visible), ``min_similarity`` (identity: from which two pictures are taken to show the same one).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torchvision.ops import nms

from rbctl.detectors import Detections as Detections  # backends of other packages import it from here
from rbctl.triplets.keypoints import KEYPOINTS

# The arrays that a step's result is kept as, and their types.
FIELDS: Mapping[str, Mapping[str, type]] = {
    "boxes": {"boxes": np.float64, "scores": np.float64},
    "masks": {"masks": np.bool_},
    "keypoints": {"keypoints": np.float32},
    "identity": {"identity": np.float32},
    "captions": {"text": np.str_},
}


def as_arrays(step: str, result: Any) -> dict[str, np.ndarray]:
    """What a backend returned for one picture as the arrays of ``FIELDS``; boxes clipped, the surest first."""
    if step == "captions":
        return {"text": np.array(str(result).strip())}
    if step != "boxes":
        return {step: np.asarray(result).astype(FIELDS[step][step])}
    boxes = np.clip(np.asarray(result.boxes, np.float64).reshape(-1, 4), 0, 1)
    scores = np.asarray(result.scores, np.float64)
    if scores.shape != boxes.shape[:1]:
        return {"boxes": boxes, "scores": scores}
    order = np.argsort(-scores, kind="stable")
    order = order[~(boxes[order, 2:] <= boxes[order, :2]).any(1)]
    return {"boxes": boxes[order], "scores": scores[order]}


def misfit(step: str, arrays: Mapping[str, np.ndarray], count: int, size: tuple[int, int]) -> str:
    """How a result differs from the form above; "" where it has that form.

    Args:
        arrays: as they are kept, see ``FIELDS``.
        count: individuals that the step was asked about; of ``boxes`` and ``captions`` it is no matter.
        size: of the picture, width and height.
    """
    if step == "captions":
        text = arrays["text"]
        whole = not text.shape and str(text) == str(text).encode(errors="replace").decode()
        return "" if whole else "words that no file can hold"  # halves of characters, or several texts
    array = arrays[step]
    if step == "boxes" and arrays["scores"].shape != array.shape[:1]:
        return f"{len(array)} boxes with {arrays['scores'].size} scores"
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


def _all_in_unit(*arrays: np.ndarray) -> bool:
    return all(((array >= 0) & (array <= 1)).all() for array in arrays)


SURPLUS = 0.75  # of the score of the last individual that is wanted: one more that is so sure is one too many


def select(detections: Detections, count: int, overlap: float) -> tuple[Detections, int]:
    """The ``count`` surest individuals, and how many more there are that are nearly as sure.

    Args:
        overlap: two boxes with a larger intersection over union are one individual; the surer one is taken.
    """
    boxes, scores = detections.boxes, detections.scores
    kept = nms(torch.from_numpy(boxes), torch.from_numpy(scores), overlap).numpy()
    boxes, scores = boxes[kept], scores[kept]
    more = scores[count:]
    surplus = int((more >= SURPLUS * scores[count - 1]).sum()) if len(more) else 0
    return Detections(boxes[:count], scores[:count]), surplus
