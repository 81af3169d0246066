"""Backend ``oracle``: pictures of the embedded world, read from their pixels by the oracle of a bundle.

It is a small network, no ground truth: masks come from its 32 x 32 maps and are a few pixels off at the edges,
keypoints by one to two hundredths of the picture. In a picture of one individual (one name) all of its readings are
taken for that one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from scipy.optimize import linear_sum_assignment
from torch.nn.functional import interpolate
from torchvision.ops import box_iou

from rbctl.menagerie.oracle import ATTRIBUTES, SIZE, Reading, by_side, load_oracle
from rbctl.plugins.annotate.config import AnnotateConfig
from rbctl.plugins.annotate.steps import Detections
from rbctl.triplets.masks import box_of

_LEAST_AREA, _MOST_AREA = 0.004, 0.5  # shares of the picture that an individual covers; more is an empty ground
_LEAST_CONTRAST = 8.0  # of 255, standard deviation: everybody has eyes and an outline, a blank ground has none
_SAME = 0.6  # maps that share more of the smaller one show one individual

# How a portrait is shown: its size, where it lies from left (0) to right (1), and whether mirrored.
_VIEWS = tuple((scale, left, flip) for scale, left in ((0.8, 0.5), (0.65, 0.0), (0.65, 1.0)) for flip in (False, True))


@dataclass(frozen=True, eq=False)
class _Roles:
    """What the oracle reads of one picture, by its R roles.

    Attributes:
        maps: (R, H, W) in [0, 1], where each role is seen.
        keypoints: (R, 17, 3) x, y, confidence.
        looks: (R, D) probabilities of every species, coat, second colour and pattern; each kind sums to 1.
    """

    maps: np.ndarray
    keypoints: np.ndarray
    looks: np.ndarray


class _Reader:
    def __init__(self, folder: Path, config: AnnotateConfig, device: torch.device) -> None:
        self.oracle = load_oracle(folder, device)

    def read(self, images: Sequence[Image.Image]) -> Reading:
        return self.oracle.read(images).map(lambda tensor: tensor.cpu())

    def roles(self, images: Sequence[Image.Image]) -> Iterator[_Roles]:
        reading = self.read(images)
        looks = _looks(reading).numpy()
        for k, image in enumerate(images):
            maps = interpolate(reading.maps[k][None], (image.height, image.width), mode="bilinear")[0].numpy()
            yield _Roles(maps, reading.keypoints[k].numpy(), looks[k])

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
        return np.median(points.numpy(), axis=0), _looks(reading)[views, roles].mean(0).numpy()


class Boxes(_Reader):
    def __call__(self, images: Sequence[Image.Image], names: Sequence[Sequence[str]]) -> list[Detections]:
        detections = []
        for image, roles, individuals in zip(images, self.roles(images), names, strict=True):
            maps = roles.maps.max(0, keepdims=True) if len(individuals) == 1 else _united(roles.maps)
            seen = [(k, mask) for k, mask in enumerate(_masks(maps)) if _is_somebody(image, mask)]
            scored = sorted(((box_of(mask), float(maps[k][mask].mean())) for k, mask in seen), key=lambda row: -row[1])
            boxes = np.array([box for box, _ in scored], np.float64).reshape(-1, 4)
            detections.append(Detections(boxes, np.array([score for _, score in scored])))
        return detections


class Masks(_Reader):
    def __call__(self, images: Sequence[Image.Image], boxes: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [
            _masks(roles.maps.max(0, keepdims=True))
            if len(rows) == 1
            else _masks(roles.maps)[_roles_of_boxes(roles.maps, rows)]
            for roles, rows in zip(self.roles(images), boxes, strict=True)
        ]


class Keypoints(_Reader):
    """The confidence is how surely a keypoint is seen.

    Hidden ones are guessed, so none is absent.
    """

    present_from, visible_from = 0.0, 0.5

    def __call__(self, images: Sequence[Image.Image], boxes: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [
            self.alone(image)[0][None] if len(rows) == 1 else roles.keypoints[_roles_of_boxes(roles.maps, rows)]
            for image, roles, rows in zip(images, self.roles(images), boxes, strict=True)
        ]


class Identity(_Reader):
    """The vector holds the square roots of the probabilities of every species, coat, second colour and pattern, so that
    the product of two is the mean Bhattacharyya coefficient of what is read of both.
    """

    min_similarity = 0.6

    def __call__(self, images: Sequence[Image.Image], masks: Sequence[np.ndarray]) -> list[np.ndarray]:
        vectors = []
        for image, roles, rows in zip(images, self.roles(images), masks, strict=True):
            looks = self.alone(image)[1][None] if len(rows) == 1 else roles.looks[_roles_of_masks(roles.maps, rows)]
            vectors.append(np.sqrt(looks / len(ATTRIBUTES)).astype(np.float32))
        return vectors


def _is_somebody(image: Image.Image, mask: np.ndarray) -> bool:
    """Whether a region (H, W) of a picture may be an individual, by its size and its contrast."""
    if not _LEAST_AREA <= mask.mean() <= _MOST_AREA:
        return False
    return float(np.asarray(image.convert("RGB"))[mask].std(axis=0).max()) >= _LEAST_CONTRAST


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


def _looks(reading: Reading) -> torch.Tensor:
    """(B, R, D) probabilities of every attribute's values."""
    return torch.cat([getattr(reading, name).exp() for name in ATTRIBUTES], dim=-1)


def _masks(maps: np.ndarray) -> np.ndarray:
    """Maps (K, H, W) as masks that share no pixel."""
    return (maps >= 0.5) & (maps == maps.max(0))


def _united(maps: np.ndarray) -> np.ndarray:
    """Maps (R, H, W) with those that show the same individual made one."""
    united: list[np.ndarray] = []
    for own in maps:
        for place, other in enumerate(united):
            shared, smaller = ((own >= 0.5) & (other >= 0.5)).sum(), min((own >= 0.5).sum(), (other >= 0.5).sum())
            if smaller and shared / smaller > _SAME:
                united[place] = np.maximum(own, other)
                break
        else:
            united.append(own)
    return np.stack(united)


def _roles_of_boxes(maps: np.ndarray, boxes: np.ndarray) -> list[int]:
    """The role that each of K boxes is of."""
    own = torch.tensor([box_of(mask) for mask in _masks(maps)], dtype=torch.float64)
    return _assigned(box_iou(torch.from_numpy(boxes), own).numpy())


def _roles_of_masks(maps: np.ndarray, masks: np.ndarray) -> list[int]:
    """The role that each of K masks is of."""
    masks, own = masks[:, None], _masks(maps)
    return _assigned((masks & own).sum((2, 3)) / np.maximum((masks | own).sum((2, 3)), 1))


def _assigned(scores: np.ndarray) -> list[int]:
    """The role of each row of (K, R) scores."""
    rows, roles = linear_sum_assignment(scores, maximize=True)
    role_of = dict(zip(rows.tolist(), roles.tolist(), strict=True))
    return [role_of.get(k, k % scores.shape[1]) for k in range(len(scores))]  # of more individuals it knows nothing
