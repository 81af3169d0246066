"""Resize, crop and flip a picture together with its masks, boxes and keypoints.

Coordinates are continuous: relative x is pixel x * W, so pixel 0 spans 0 to 1 and has its centre at 0.5. An x or y of
exactly 1 is the far edge of the last pixel. Boxes are always those of the masks, so that a crop tightens them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from rbctl.errors import InputError
from rbctl.files import read_image
from rbctl.triplets.keypoints import ABSENT
from rbctl.triplets.masks import box_of, filled, read_mask, resized
from rbctl.triplets.triplet import Triplet, TripletObject

WHITE = (255, 255, 255)


@dataclass(frozen=True, kw_only=True, eq=False)
class Annotated:
    """A picture and what is known of the N objects in it.

    Attributes:
        image: RGB, H x W.
        masks: (N, H, W) bool.
        boxes: (N, 4) float64, relative xyxy; all zeros where an object is not in the picture.
        keypoints: (N, 17, 3) float32, relative x, y, visibility; all zeros where a keypoint is absent.
    """

    image: Image.Image
    masks: np.ndarray
    boxes: np.ndarray
    keypoints: np.ndarray


def target(triplet: Triplet) -> Annotated:
    """Load the target of a triplet with its objects. An object without a mask is taken to fill its box.

    Raises:
        InputError: a picture cannot be read, or a mask has another size than the target.
    """
    image = read_image(triplet.target)
    masks = []
    for individual in triplet.objects:
        mask = filled(individual.box, *image.size) if individual.mask is None else read_mask(individual.mask)
        if mask.shape != (image.height, image.width):
            size = f"{mask.shape[1]} x {mask.shape[0]}"
            raise InputError(f"{individual.mask}: the mask is {size}, the target {image.width} x {image.height}")
        masks.append(mask)
    return _annotated(image, np.stack(masks), np.stack([individual.target_keypoints for individual in triplet.objects]))


def image_prompt(individual: TripletObject) -> Annotated:
    """Load the picture of one individual (N = 1); it is taken to fill its picture.

    Raises:
        InputError: the picture cannot be read.
    """
    image = read_image(individual.image)
    return _annotated(image, np.ones((1, image.height, image.width), bool), individual.image_keypoints[None])


def resize(a: Annotated, width: int, height: int) -> Annotated:
    """Resize to ``width`` x ``height`` pixels, the aspect ratio not kept."""
    if a.image.size == (width, height):
        return a
    image = a.image.resize((width, height), Image.Resampling.LANCZOS)
    return _annotated(image, np.stack([resized(mask, width, height) for mask in a.masks]), a.keypoints)


def crop(a: Annotated, left: int, top: int, width: int, height: int, fill: tuple[int, int, int] = WHITE) -> Annotated:
    """Cut out a window, given in pixels; what reaches beyond the picture is padding of the colour ``fill``.

    Keypoints outside the window become absent, an object wholly outside gets a box of zeros.

    Raises:
        ValueError: the window is empty.
    """
    if width < 1 or height < 1:
        raise ValueError(f"width, height: a window of {width} x {height} pixels is empty")
    image = Image.new("RGB", (width, height), fill)
    image.paste(a.image, (-left, -top))
    masks = np.zeros((len(a.masks), height, width), bool)
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = max(min(left + width, a.image.width), x0), max(min(top + height, a.image.height), y0)
    masks[:, y0 - top : y1 - top, x0 - left : x1 - left] = a.masks[:, y0:y1, x0:x1]
    keypoints = a.keypoints.astype(np.float64)
    keypoints[..., 0] = (keypoints[..., 0] * a.image.width - left) / width
    keypoints[..., 1] = (keypoints[..., 1] * a.image.height - top) / height
    return _annotated(image, masks, keypoints)


def bucket(size: tuple[int, int], resolution: int, multiple: int = 8) -> tuple[int, int]:
    """Width and height to train a picture at: near its own aspect ratio, and about ``resolution`` squared pixels.

    A square picture is trained at ``resolution`` x ``resolution``. Sides are multiples of a sixteenth of it (64 pixels
    at 1024, as kohya's scripts have it), and none is longer than twice the resolution.

    Args:
        size: of the picture, width and height.
        resolution: a multiple of ``multiple``, as the sides are.
    """
    step = max(multiple, min(64, resolution // 16 // multiple * multiple))
    sides = {(resolution, resolution)}
    for side in range(resolution // 2 // step * step or step, 2 * resolution + 1, step):
        other = resolution**2 // side // step * step
        sides |= {(side, other), (other, side)}
    aspect = math.log(size[0] / size[1])
    return min(sides, key=lambda wh: (round(abs(math.log(wh[0] / wh[1]) - aspect), 6), -wh[0] * wh[1]))


def flip(a: Annotated) -> Annotated:
    """Mirror left and right.

    Each keypoint stays on its pixel and keeps its name: the left paw of a mirrored animal looks like a right one but is
    not renamed. Keypoint matching compares the same spot of the same individual in two pictures, and renaming would
    pair one paw with the other.
    """
    keypoints = a.keypoints.copy()
    keypoints[..., 0] = 1 - keypoints[..., 0]
    return _annotated(a.image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), a.masks[:, :, ::-1].copy(), keypoints)


def cover(
    a: Annotated, width: int, height: int, zoom: float = 1.0, anchor: tuple[float, float] = (0.5, 0.5)
) -> Annotated:
    """Resize so that ``width`` x ``height`` is just covered, the aspect ratio kept, and cut off the rest.

    Args:
        zoom: 1 or more; 2 shows half of what 1 shows, twice as large.
        anchor: where the window lies in what is left over, (0, 0) top left, (1, 1) bottom right.

    Raises:
        ValueError: zoom or anchor is out of range.
    """
    if zoom < 1 or not all(0 <= v <= 1 for v in anchor):
        raise ValueError(f"zoom must be 1 or more and anchor in [0, 1], not {zoom} and {anchor}")
    scale = zoom * max(width / a.image.width, height / a.image.height)
    wide, high = max(width, round(a.image.width * scale)), max(height, round(a.image.height * scale))
    left, top = round((wide - width) * anchor[0]), round((high - height) * anchor[1])
    return crop(resize(a, wide, high), left, top, width, height)


def contain(a: Annotated, width: int, height: int, fill: tuple[int, int, int] = WHITE) -> Annotated:
    """Resize so that all of the picture fits ``width`` x ``height``, the aspect ratio kept, and pad around it."""
    scale = min(width / a.image.width, height / a.image.height)
    wide, high = (max(1, min(size, round(v * scale))) for v, size in zip(a.image.size, (width, height), strict=True))
    return crop(resize(a, wide, high), -((width - wide) // 2), -((height - high) // 2), width, height, fill)


def _annotated(image: Image.Image, masks: np.ndarray, keypoints: np.ndarray) -> Annotated:
    """Put the parts together: boxes from the masks, keypoints that are absent or outside as zeros."""
    xy = keypoints[..., :2]
    present = (keypoints[..., 2] != ABSENT) & ((xy >= 0) & (xy <= 1)).all(axis=-1)  # (N, 17)
    keypoints = np.where(present[..., None], keypoints, 0).astype(np.float32)
    boxes = np.array([box_of(mask) for mask in masks], np.float64).reshape(-1, 4)
    return Annotated(image=image, masks=masks, boxes=boxes, keypoints=keypoints)
