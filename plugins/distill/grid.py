"""Geometry of the pictures: cells of a random grid, the student's padded square, the teacher's crops.

Pixel sizes are rounded as the official data set does, so that its pictures come out the same. All that is random is a
function of (seed, sample number): processes and resuming change nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from rbctl.draws import generator

Box = tuple[float, float, float, float]  # xyxy


@functools.cache
def grids(max_split: int) -> tuple[tuple[int, int], ...]:
    """Every grid (rows M, columns N) that a picture may be cut into: ceil(M / 2) <= N <= min(2 M, max_split)."""
    return tuple(
        (rows, columns)
        for rows in range(1, max_split + 1)
        for columns in range((rows + 1) // 2, min(2 * rows, max_split) + 1)
    )


def random_grid(seed: int, number: object, max_split: int, max_cells: int) -> tuple[int, int, list[int]]:
    """Rows, columns, and which cells are kept (row by row counted, shuffled) of sample ``number``."""
    chance = generator(seed, "grid", number)
    choices = grids(max_split)
    rows, columns = choices[int(torch.randint(len(choices), (), generator=chance))]
    return rows, columns, torch.randperm(rows * columns, generator=chance)[:max_cells].tolist()


def random_size(seed: int, step: int, sizes: tuple[int, ...], otherwise: int) -> int:
    """Side of the student's pictures at a step, the same in all processes."""
    if not sizes:
        return otherwise
    return sizes[int(torch.randint(len(sizes), (), generator=generator(seed, "size", step)))]


def cells(rows: int, columns: int) -> list[Box]:
    """Relative boxes of a grid, row by row."""
    return [(x / columns, y / rows, (x + 1) / columns, (y + 1) / rows) for y in range(rows) for x in range(columns)]


def in_square(boxes: Sequence[Box], width: int, height: int) -> torch.Tensor:
    """Relative boxes of a picture (width x height pixels), relative to its padded square; (K, 4)."""
    longer = max(width, height)
    scale = torch.tensor([width, height, width, height], dtype=torch.float64) / longer
    return (torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4) * scale).float()


def enlarged(box: Box, scale: float) -> Box:
    """A relative box, ``scale`` times as wide and high around its centre, cut off at the picture's edge."""
    if scale <= 1:
        return box
    x0, y0, x1, y1 = box
    dx, dy = (x1 - x0) * (scale - 1) / 2, (y1 - y0) * (scale - 1) / 2
    return max(x0 - dx, 0.0), max(y0 - dy, 0.0), min(x1 + dx, 1.0), min(y1 + dy, 1.0)


def crop(image: Image.Image, box: Box) -> Image.Image:
    """The part of a picture in a relative box; one pixel at least."""
    w, h = image.size
    left, top, right, bottom = round(box[0] * w), round(box[1] * h), round(box[2] * w), round(box[3] * h)
    left, top = min(left, w - 1), min(top, h - 1)
    return image.crop((left, top, max(right, left + 1), max(bottom, top + 1)))


def fit(image: Image.Image, size: int, centred: bool) -> torch.Tensor:
    """Scale the longer side to ``size`` (bicubic) and pad with black: uint8 (3, size, size).

    Args:
        centred: pad on both sides (the teacher's crops, an odd pixel right and below), or right and below only.
    """
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    resized = torch.from_numpy(np.array(image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)))
    left, top = ((size - width) // 2, (size - height) // 2) if centred else (0, 0)
    square = torch.zeros(3, size, size, dtype=torch.uint8)
    square[:, top : top + height, left : left + width] = resized.permute(2, 0, 1)
    return square
