"""Quality gates: what a triplet must be to teach a relation. Each is a value, a limit, and whether it was passed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.spatial import procrustes

from rbctl.triplets.keypoints import KEYPOINTS, VISIBLE

_LEAST = 4  # keypoints that two poses are compared by

# The index of every keypoint's counterpart on the other side.
_OTHER_SIDE = [
    KEYPOINTS.index(name.replace("left", "right") if name.startswith("left") else name.replace("right", "left"))
    for name in KEYPOINTS
]


def pose_change(target: np.ndarray, image_prompt: np.ndarray) -> float | None:
    """How far a pose is from another, whatever their place, size, turn and mirroring; 0 is the same.

    One is laid over the other by Procrustes' analysis; told is the median distance of their keypoints, in units of the
    root-mean-square distance of all keypoints from their middle. The median bears a few that were found wrong. A
    mirrored animal may have its sides named either way; the better one counts.

    Args:
        target, image_prompt: (17, 3) x, y, visibility; x and y in the same unit, as pixels.

    Returns:
        None where fewer than four keypoints are visible in both.
    """
    changes = []
    for other in (image_prompt, image_prompt[_OTHER_SIDE]):
        both = (target[:, 2] == VISIBLE) & (other[:, 2] == VISIBLE)
        if both.sum() < _LEAST:
            continue
        try:
            one, laid, _ = procrustes(target[both, :2].astype(np.float64), other[both, :2].astype(np.float64))
        except ValueError:  # all keypoints in one place
            continue
        changes.append(float(np.median(np.linalg.norm(one - laid, axis=1)) * np.sqrt(both.sum())))
    return min(changes) if changes else None


def at_least(value: float | None, limit: float) -> dict[str, Any]:
    """A gate that a value of at least ``limit`` passes; one that cannot be told (None) fails."""
    shown = None if value is None else round(value, 4)
    return {"passed": value is not None and value >= limit, "value": shown, "limit": limit}


def visible(keypoints: Sequence[np.ndarray]) -> int:
    """The least number of keypoints visible in any of (17, 3) arrays."""
    return min(int((points[:, 2] == VISIBLE).sum()) for points in keypoints)
