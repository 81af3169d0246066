"""Cut-outs: from a transparent picture or plain ground, and pasted where a relation's boxes lie. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps
from scipy import ndimage

from rbctl.relations import Box

_PLAIN = 4.0  # standard deviations of the ground's colour: what is further from it is no ground
_EDGE, _LIGHT = 1 / 32, 0.5  # of the sides: what counts as edge; lightness counts half, for shadows
_TOUCH = 0.02  # share of the smaller one that two cover both where they touch
_GAP = 0.1  # of the frame's side, where they are apart


@dataclass(frozen=True, eq=False)
class Pasted:
    """A cut-out and where it is: RGBA, and its corner in pixels of a square picture."""

    cutout: Image.Image
    left: int
    top: int

    def mask(self, size: int) -> np.ndarray:
        """(size, size) bool: all that it covers, hidden or not."""
        canvas = Image.new("L", (size, size))
        canvas.paste(self.cutout.getchannel("A"), (self.left, self.top))
        return np.asarray(canvas) >= 128


def trimmed(image: Image.Image) -> Image.Image:
    """An RGBA picture without its transparent borders."""
    return image.crop(image.getchannel("A").point(lambda alpha: 255 * (alpha >= 128)).getbbox())


def off_plain_ground(image: Image.Image) -> np.ndarray | None:
    """(H, W) bool of what stands on plain ground: the largest patch of colours that the picture's edges do not have.

    The lower edge does not count, for there somebody may stand. None where the ground is not plain: the patch touches
    the left, upper or right edge, is tiny, or nearly all.
    """
    lab: np.ndarray = np.asarray(image.convert("LAB")).astype(float)
    lab[..., 1:] = (lab[..., 1:] + 128) % 256
    lab *= (_LIGHT, 1, 1)
    lab = ndimage.gaussian_filter(lab, (1, 1, 0))
    wide = max(2, round(min(image.size) * _EDGE))
    edge = np.zeros(lab.shape[:2], bool)
    edge[:wide] = edge[:, :wide] = edge[:, -wide:] = True
    ground = lab[edge]
    near = ground[_distance(ground, ground, 4) <= np.quantile(_distance(ground, ground, 4), 0.8)]
    other = ndimage.binary_opening(_distance(lab, near, 9) > _PLAIN, iterations=2)
    patches, count = ndimage.label(other)
    if not count:
        return None
    largest = patches == 1 + int(np.argmax(ndimage.sum(other, patches, range(1, count + 1))))
    closed = ndimage.binary_closing(np.pad(largest, 8), iterations=4)
    mask = np.asarray(ndimage.binary_fill_holes(closed))[8:-8, 8:-8]
    cut = mask[0].any() or mask[:, 0].any() or mask[:, -1].any()
    return None if cut or not 0.01 < mask.mean() < 0.8 else mask


def _distance(colours: np.ndarray, ground: np.ndarray, least: float) -> np.ndarray:
    """(...) standard deviations of colours (..., 3) from those of a ground (N, 3), each of ``least`` variance."""
    middle = np.median(ground, 0)
    inverse = np.linalg.inv(np.cov((ground - middle).T) + least * np.eye(3))
    return np.asarray(np.sqrt(np.einsum("...i,ij,...j->...", colours - middle, inverse, colours - middle)))


def in_boxes(cutouts: Sequence[Image.Image], boxes: Sequence[Box], size: int) -> list[Pasted]:
    """Each as large as its box allows, in its middle, on its lower edge.

    Args:
        boxes: relative xyxy.
    """
    return [_standing(cutout, box, size) for cutout, box in zip(cutouts, boxes, strict=True)]


def _standing(cutout: Image.Image, box: Box, size: int) -> Pasted:
    x0, y0, x1, y1 = (v * size for v in box)
    scale = min((x1 - x0) / cutout.width, (y1 - y0) / cutout.height)
    own = cutout.resize((max(round(cutout.width * scale), 1), max(round(cutout.height * scale), 1)))
    return Pasted(own, round((x0 + x1 - own.width) / 2), round(y1 - own.height))


def moved(pair: Sequence[Pasted], size: int, apart: bool) -> list[Pasted]:
    """The first of two, moved along the line to the other one until they just touch, or until there is a gap."""
    first, second = pair
    across = first.left - second.left + (first.cutout.width - second.cutout.width) / 2
    down = first.top - second.top + (first.cutout.height - second.cutout.height) / 2
    length = max(float(np.hypot(across, down)), 1.0)
    # On a canvas twice as large, for they may leave the frame meanwhile.
    middle = size // 2
    still = Pasted(second.cutout, second.left + middle, second.top + middle).mask(2 * size)
    near = ndimage.distance_transform_edt(~still) < _GAP * size if apart else still
    allowed = 0 if apart else _TOUCH * min(still.sum(), (np.asarray(first.cutout.getchannel("A")) >= 128).sum())
    for far in range(0, size, 2):  # from one on the other outwards
        left = round(first.left + across * (far / length - 1))
        top = round(first.top + down * (far / length - 1))
        if (Pasted(first.cutout, left + middle, top + middle).mask(2 * size) & near).sum() <= allowed:
            return [Pasted(first.cutout, left, top), second]
    return [first, second]


def framed(pasted: Sequence[Pasted], frame: Box, size: int) -> list[Pasted]:
    """All together, made smaller where they must be, standing in the middle of a frame's lower edge.

    Args:
        frame: relative xyxy.
    """
    x0, y0 = min(own.left for own in pasted), min(own.top for own in pasted)
    x1 = max(own.left + own.cutout.width for own in pasted)
    y1 = max(own.top + own.cutout.height for own in pasted)
    fx0, fy0, fx1, fy1 = (v * size for v in frame)
    scale = min((fx1 - fx0) / (x1 - x0), (fy1 - fy0) / (y1 - y0), 1.0)
    left, top = (fx0 + fx1 - scale * (x1 - x0)) / 2, fy1 - scale * (y1 - y0)
    placed = []
    for own in pasted:
        wide, high = max(round(own.cutout.width * scale), 1), max(round(own.cutout.height * scale), 1)
        cutout = own.cutout.resize((wide, high))
        placed.append(Pasted(cutout, round(left + scale * (own.left - x0)), round(top + scale * (own.top - y0))))
    return placed


def beside(own: Pasted, frame: Box, size: int) -> Pasted:
    """A second one like it, mirrored, in a frame of its own."""
    again = Pasted(ImageOps.mirror(own.cutout), 0, 0)
    return framed([again], frame, size)[0]


def painted(scene: Image.Image, pasted: Sequence[Pasted], size: int) -> Image.Image:
    """A square of a photograph with all pasted in, the last ones first: the first is in front."""
    picture = ImageOps.fit(scene, (size, size))
    for own in reversed(pasted):
        picture.paste(own.cutout, (own.left, own.top), own.cutout.getchannel("A"))
    return picture
