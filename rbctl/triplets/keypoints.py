"""The 17 keypoints of AP-10K: their order, the bones between them, what they tell, and what makes them unusable."""

from __future__ import annotations

import numpy as np

KEYPOINTS = (
    "left eye",
    "right eye",
    "nose",
    "neck",
    "root of tail",
    "left shoulder",
    "left elbow",
    "left front paw",
    "right shoulder",
    "right elbow",
    "right front paw",
    "left hip",
    "left knee",
    "left back paw",
    "right hip",
    "right knee",
    "right back paw",
)

# The bones of AP-10K, as indices into KEYPOINTS.
SKELETON = (
    *((0, 1), (0, 2), (1, 2), (2, 3), (3, 4)),  # head, spine
    *((3, 5), (5, 6), (6, 7)),  # left front leg
    *((3, 8), (8, 9), (9, 10)),  # right front leg
    *((4, 11), (11, 12), (12, 13)),  # left back leg
    *((4, 14), (14, 15), (15, 16)),  # right back leg
)

FACE = [KEYPOINTS.index(name) for name in ("left eye", "right eye", "nose")]
_BACK = [KEYPOINTS.index(name) for name in ("neck", "root of tail")]

ABSENT, OCCLUDED, VISIBLE = 0, 1, 2


def absent() -> np.ndarray:
    """(17, 3) float32 zeros: no keypoint is known."""
    return np.zeros((len(KEYPOINTS), 3), np.float32)


def faces_left(keypoints: np.ndarray) -> bool | None:
    """Whether an individual looks to the left: its eyes and nose lie left of its neck and the root of its tail.

    Args:
        keypoints: (17, 3) x, y, visibility.

    Returns:
        None where no keypoint of the face, or none of the back, is known.
    """
    face, back = ([x for x, _, seen in keypoints[part] if seen != ABSENT] for part in (FACE, _BACK))
    return bool(np.mean(face) < np.mean(back)) if face and back else None


def misplaced(keypoints: np.ndarray) -> str:
    """Which keypoints lie outside the picture or are no numbers, in words; empty where none is.

    Args:
        keypoints: (17, 3) x, y, visibility, relative; where the visibility is 0, only numbers are asked for.
    """
    numbers = np.isfinite(keypoints).all(axis=1)
    outside = ((keypoints[:, :2] < 0) | (keypoints[:, :2] > 1)).any(axis=1) & (keypoints[:, 2] != ABSENT)
    wrong = [
        f"{KEYPOINTS[k]} ({keypoints[k, 0]:.4g}, {keypoints[k, 1]:.4g})" for k in np.nonzero(~numbers | outside)[0]
    ]
    if not wrong:
        return ""
    more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    kind = "outside the picture" if numbers.all() else "outside the picture or not a number"
    return f"{kind}: {', '.join(wrong[:3])}{more}"
