"""The individuals of a target beside their image prompts: who is who, and how far each pose has changed."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial import procrustes

from rbctl.triplets.keypoints import KEYPOINTS, VISIBLE

_LEAST = 4  # keypoints that two poses are compared by

# The index of every keypoint's counterpart on the other side.
OTHER_SIDE = [
    KEYPOINTS.index(name.replace("left", "right") if name.startswith("left") else name.replace("right", "left"))
    for name in KEYPOINTS
]


def match(similarity: np.ndarray) -> tuple[np.ndarray, float]:
    """Assign N image prompts to K >= N individuals so that the sum of similarities is largest.

    Args:
        similarity: (N, K) cosines.

    Returns:
        (N,) which individual each image prompt shows; and the margin: how much higher the mean similarity is than that
        of the best other assignment, 1 without any other.
    """
    prompts, individuals = linear_sum_assignment(similarity, maximize=True)
    best, others = similarity[prompts, individuals].sum(), []
    for pair in zip(prompts, individuals, strict=True):  # the best other assignment lacks at least one of the pairs
        barred = similarity.copy()
        barred[pair] = -np.inf
        try:
            others.append(barred[linear_sum_assignment(barred, maximize=True)].sum())
        except ValueError:  # no assignment is left
            continue
    return individuals, float(best - max(others)) / len(individuals) if others else 1.0


def pose_change(target: np.ndarray, image_prompt: np.ndarray) -> float | None:
    """How far a pose is from another, whatever their place, size, turn and mirroring; 0 is the same.

    One is laid over the other by Procrustes' analysis; the change is the median distance of their keypoints, in units
    of the root-mean-square distance of all keypoints from their middle. The median bears a few that were found wrong. A
    mirrored animal may have its sides named either way; the better one counts.

    Args:
        target, image_prompt: (17, 3) x, y, visibility; x and y in the same unit, as pixels.

    Returns:
        None where fewer than four keypoints are visible in both.
    """
    changes = []
    for other in (image_prompt, image_prompt[OTHER_SIDE]):
        both = (target[:, 2] == VISIBLE) & (other[:, 2] == VISIBLE)
        if both.sum() < _LEAST:
            continue
        try:
            pose, laid, _ = procrustes(target[both, :2].astype(np.float64), other[both, :2].astype(np.float64))
        except ValueError:  # all keypoints in one place
            continue
        changes.append(float(np.median(np.linalg.norm(pose - laid, axis=1)) * np.sqrt(both.sum())))
    return min(changes) if changes else None
