"""Masks: boolean (H, W) arrays, and the boxes around them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image

from rbctl.files import read_image
from rbctl.images import open_image
from rbctl.relations import Box
from rbctl.triplets.problem import NO_BOX

_PIXELS = 1.5  # how far a box may be from its mask


def read_mask(path: Path) -> np.ndarray:
    """(H, W) bool: the pixels of 128 and brighter; of a picture that is transparent somewhere, the opaque ones.

    Raises:
        InputError: the file is missing or no picture.
    """
    with open_image(path) as opened:
        transparent = opened.has_transparency_data
    if transparent and not (alpha := np.asarray(read_image(path, "RGBA"))[..., 3] >= 128).all():
        return alpha
    return np.asarray(read_image(path, "L")) >= 128


def box_of(mask: np.ndarray) -> Box:
    """Relative xyxy box around a (H, W) mask: from the first pixel's near edge to the last one's far edge.

    An empty mask has the box ``NO_BOX``, all zeros.
    """
    if not mask.any():
        return NO_BOX
    height, width = mask.shape
    (columns,), (rows,) = np.nonzero(mask.any(axis=0)), np.nonzero(mask.any(axis=1))
    return (
        float(columns[0] / width),
        float(rows[0] / height),
        float((columns[-1] + 1) / width),
        float((rows[-1] + 1) / height),
    )


def apart(box: Box, other: Box, mask: np.ndarray) -> bool:
    """Whether two relative boxes in a (H, W) picture differ by more than a pixel and a half."""
    height, width = mask.shape
    return bool((np.abs(np.subtract(box, other)) * (width, height, width, height)).max() > _PIXELS)


def filled(box: Box, width: int, height: int) -> np.ndarray:
    """(height, width) bool: every pixel that a relative box touches."""
    # Rounded first: 0.3 * 10 is a little more than 3 and must not touch the next pixel.
    x0, y0, x1, y1 = (round(v * size, 6) for v, size in zip(box, (width, height) * 2, strict=True))
    mask = np.zeros((height, width), bool)
    mask[math.floor(y0) : math.ceil(y1), math.floor(x0) : math.ceil(x1)] = True
    return mask


def resized(mask: np.ndarray, width: int, height: int) -> np.ndarray:
    """(height, width) bool: the pixels that are at least half covered; something never shrinks to nothing."""
    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    covered = np.asarray(picture.resize((width, height), Image.Resampling.BOX))
    return covered >= max(1, min(128, int(covered.max())))
