"""Backend ``oracle``: pictures of the embedded world, read from their pixels by the oracle of a bundle.

It is a small network, no ground truth: masks come from its 32 x 32 maps and are a few pixels off at the edges,
keypoints by one to two hundredths of the picture. It always reads a pair; in a picture of one individual (one name)
both of its readings are taken for that one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from scipy.optimize import linear_sum_assignment
from torch.nn.functional import interpolate

from rbctl.menagerie.oracle import ATTRIBUTES, ROLES, SIZE, Reading, by_side, load_oracle
from rbctl.plugins.annotate.config import AnnotateConfig
from rbctl.plugins.annotate.steps import Found, intersection_over_union
from rbctl.triplets.masks import box_of

_SEEN = 0.004  # an individual covers at least this share of the picture
_SAME = 0.6  # maps that share more of the smaller one show one individual

# How a portrait is shown: its size, where it lies from left (0) to right (1), and whether mirrored.
_VIEWS = tuple((scale, left, flip) for scale, left in ((0.8, 0.5), (0.65, 0.0), (0.65, 1.0)) for flip in (False, True))


class _Reader:
    def __init__(self, folder: Path, config: AnnotateConfig, device: torch.device) -> None:
        self.oracle = load_oracle(folder, device)

    def read(self, images: Sequence[Image.Image]) -> Reading:
        return self.oracle.read(images).map(lambda tensor: tensor.cpu())

    def alone(self, image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
        """Read a picture of one individual: keypoints (17, 3) and probabilities of its looks (D,).

        Portraits are larger than anybody in the scenes that the oracle learnt from, so it sees this one smaller, in
        several places, mirrored too. Of the keypoints the median counts, of the looks the mean.
        """
        reading = self.read([_framed(image, *view) for view in _VIEWS])
        views, roles = torch.arange(len(_VIEWS)), reading.maps.sum((2, 3)).argmax(1)  # the role seen over a larger part
        points = reading.keypoints[views, roles]
        scale, left, mirrored = (torch.tensor(column) for column in zip(*_VIEWS, strict=True))
        corner = torch.stack((left * (1 - scale), (1 - scale) / 2), dim=-1)[:, None]
        xy = (points[..., :2] - corner) / scale[:, None, None]
        points = by_side(torch.cat((xy, points[..., 2:]), dim=-1))
        flipped = torch.cat((1 - points[..., :1], points[..., 1:]), dim=-1)
        points = by_side(torch.where(mirrored[:, None, None], flipped, points))
        return np.median(points.numpy(), axis=0), _probabilities(reading)[views, roles].mean(0).numpy()


class Boxes(_Reader):
    """See :class:`rbctl.plugins.annotate.steps.Boxes`."""

    def __call__(self, images: Sequence[Image.Image], names: Sequence[Sequence[str]]) -> list[Found]:
        reading = self.read(images)
        found = []
        for at, (image, wanted) in enumerate(zip(images, names, strict=True)):
            maps = _maps(reading, at, image.size)
            maps = maps.max(0, keepdims=True) if len(wanted) == 1 or _one(maps) else maps
            masks = _masks(maps)
            rows = [(box_of(mask), float(maps[k][mask].mean())) for k, mask in enumerate(masks) if mask.mean() >= _SEEN]
            rows.sort(key=lambda row: -row[1])
            boxes = np.array([box for box, _ in rows], np.float64).reshape(-1, 4)
            found.append(Found(boxes, np.array([score for _, score in rows])))
        return found


class Masks(_Reader):
    """See :class:`rbctl.plugins.annotate.steps.Masks`."""

    def __call__(self, images: Sequence[Image.Image], boxes: Sequence[np.ndarray]) -> list[np.ndarray]:
        reading = self.read(images)
        masks = []
        for at, (image, rows) in enumerate(zip(images, boxes, strict=True)):
            maps = _maps(reading, at, image.size)
            if len(rows) == 1:
                masks.append(_masks(maps.max(0, keepdims=True)))
            else:
                masks.append(_masks(maps)[_roles_of_boxes(_masks(maps), rows)])
        return masks


class Keypoints(_Reader):
    """See :class:`rbctl.plugins.annotate.steps.Keypoints`; the confidence is how surely a keypoint is seen.

    Hidden ones are guessed, so none is absent.
    """

    present_from, visible_from = 0.0, 0.5

    def __call__(self, images: Sequence[Image.Image], boxes: Sequence[np.ndarray]) -> list[np.ndarray]:
        reading = self.read(images)
        found = []
        for at, (image, rows) in enumerate(zip(images, boxes, strict=True)):
            if len(rows) == 1:
                found.append(self.alone(image)[0][None])
            else:
                roles = _roles_of_boxes(_masks(_maps(reading, at, image.size)), rows)
                found.append(reading.keypoints[at].numpy()[roles])
        return found


class Identity(_Reader):
    """See :class:`rbctl.plugins.annotate.steps.Identity`.

    The vector holds the square roots of the probabilities of every species, coat, second colour and pattern, so that
    the product of two is the mean Bhattacharyya coefficient of what is read of both.
    """

    min_similarity = 0.6

    def __call__(self, images: Sequence[Image.Image], masks: Sequence[np.ndarray]) -> list[np.ndarray]:
        reading = self.read(images)
        found = []
        for at, (image, rows) in enumerate(zip(images, masks, strict=True)):
            if len(rows) == 1:
                probabilities = self.alone(image)[1][None]
            else:
                roles = _roles_of_masks(_masks(_maps(reading, at, image.size)), rows)
                probabilities = _probabilities(reading)[at].numpy()[roles]
            found.append(np.sqrt(probabilities / len(ATTRIBUTES)).astype(np.float32))
        return found


def _framed(image: Image.Image, scale: float, left: float, mirrored: bool) -> Image.Image:
    """A picture made smaller, on a ground of its edge's colour."""
    inner = round(SIZE * scale)
    pixels = np.asarray(image)
    edge = np.concatenate((pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]))
    red, green, blue = (int(value) for value in np.median(edge, axis=0))
    frame = Image.new("RGB", (SIZE, SIZE), (red, green, blue))
    shown = ImageOps.mirror(image) if mirrored else image
    corner = round(left * (SIZE - inner)), round((SIZE - inner) / 2)
    frame.paste(shown.resize((inner, inner), Image.Resampling.LANCZOS), corner)
    return frame


def _maps(reading: Reading, at: int, size: tuple[int, int]) -> np.ndarray:
    """Where each role is seen, (2, H, W) in [0, 1], at the size of the picture."""
    width, height = size
    return interpolate(reading.maps[at][None], (height, width), mode="bilinear")[0].numpy()


def _masks(maps: np.ndarray) -> np.ndarray:
    """Maps (K, H, W) as masks that share no pixel."""
    return (maps >= 0.5) & (maps == maps.max(0))


def _one(maps: np.ndarray) -> bool:
    """Whether both maps show the same individual."""
    first, second = maps >= 0.5
    smaller = min(first.sum(), second.sum())
    return bool(smaller and (first & second).sum() / smaller > _SAME)


def _roles_of_boxes(masks: np.ndarray, boxes: np.ndarray) -> list[int]:
    """The role that each of K boxes is of."""
    return _assigned([[intersection_over_union(np.array(box_of(mask)), box) for mask in masks] for box in boxes])


def _roles_of_masks(own: np.ndarray, masks: np.ndarray) -> list[int]:
    """The role that each of K masks is of."""
    return _assigned([[(mask & one).sum() / max((mask | one).sum(), 1) for one in own] for mask in masks])


def _assigned(scores: Sequence[Sequence[float]]) -> list[int]:
    rows, roles = linear_sum_assignment(np.array(scores), maximize=True)
    of = dict(zip(rows.tolist(), roles.tolist(), strict=True))
    return [of.get(k, k % ROLES) for k in range(len(scores))]  # it knows no third individual


def _probabilities(reading: Reading) -> torch.Tensor:
    """(B, 2, D), of every species, coat, second colour and pattern; each kind sums to 1."""
    return torch.cat([getattr(reading, name).exp() for name in ATTRIBUTES], dim=-1)
