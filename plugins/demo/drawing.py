"""Cartoon animals drawn from their 17 keypoints, so that keypoints, masks and boxes are known exactly.

A creature stands upright and faces the viewer: its left is on the viewer's right. Poses are in its own frame: the unit
is about its height, the origin lies between the hips, y goes down.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from rbctl.triplets.keypoints import KEYPOINTS, OCCLUDED, VISIBLE

Colour = tuple[int, int, int]

SIDE = 256  # pixels of every picture
_FINE = 4  # drawn this many times larger, then averaged down

COLOURS: dict[str, Colour] = {
    "red": (214, 69, 65),
    "orange": (240, 140, 50),
    "yellow": (244, 208, 63),
    "green": (88, 174, 96),
    "blue": (72, 118, 214),
    "purple": (142, 90, 190),
    "pink": (240, 130, 170),
    "brown": (140, 92, 58),
    "grey": (140, 145, 150),
    "white": (236, 236, 232),
}
_BACKGROUNDS = ((226, 240, 250), (246, 236, 218), (228, 244, 226), (240, 228, 244), (250, 240, 210))
_INK = (35, 30, 30)

_NEUTRAL = {
    "left eye": (0.08, -0.82),
    "nose": (0.0, -0.73),
    "neck": (0.0, -0.57),
    "root of tail": (0.0, -0.10),
    "left shoulder": (0.17, -0.50),
    "left elbow": (0.27, -0.36),
    "left front paw": (0.29, -0.20),
    "left hip": (0.11, -0.10),
    "left knee": (0.13, 0.04),
    "left back paw": (0.14, 0.18),
}
# Of the creature on the viewer's left: its left arm goes round the other one, its right arm across its own chest.
_HUG = {
    "left elbow": (0.36, -0.44),
    "left front paw": (0.54, -0.40),
    "right elbow": (-0.12, -0.34),
    "right front paw": (0.10, -0.30),
}


@dataclass(frozen=True)
class Creature:
    """``name`` is what prompts call it: "red cat"."""

    colour: str
    species: str

    @property
    def name(self) -> str:
        return f"{self.colour} {self.species}"


@dataclass(frozen=True)
class Drawing:
    """A picture of SIDE x SIDE pixels and what is where in it, one entry per creature.

    Attributes:
        masks: (SIDE, SIDE) bool, its visible pixels.
        boxes: of the masks, relative xyxy.
        keypoints: (17, 3) x, y, visibility; relative.
    """

    picture: Image.Image
    masks: tuple[np.ndarray, ...]
    boxes: tuple[tuple[float, float, float, float], ...]
    keypoints: tuple[np.ndarray, ...]


def _other_side(name: str) -> str:
    first, _, rest = name.partition(" ")
    return {"left": "right ", "right": "left "}.get(first, first + " " if rest else first) + rest


def _mirrored(pose: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """Seen in a mirror: what was left is right."""
    return {_other_side(name): (-x, y) for name, (x, y) in pose.items()}


def neutral_pose() -> np.ndarray:
    """(17, 2) standing, arms down."""
    return _points(_NEUTRAL | _mirrored(_NEUTRAL))


def hugging_pose(mirrored: bool, reach: float, lean: float) -> np.ndarray:
    """(17, 2) arms round the one beside it.

    Args:
        mirrored: False for the one on the viewer's left.
        reach: how much further the arm goes round, -0.05 to 0.05.
        lean: how far the head goes towards the other, 0 to 0.1.
    """
    pose = _NEUTRAL | _mirrored(_NEUTRAL) | _HUG
    elbow, paw = pose["left elbow"], pose["left front paw"]
    pose |= {"left elbow": (elbow[0], elbow[1] + reach), "left front paw": (paw[0] + reach, paw[1] + 2 * reach)}
    for name, (x, y) in pose.items():
        if name in ("left eye", "right eye", "nose"):
            pose[name] = (x + lean, y + lean / 4)
    return _points(_mirrored(pose) if mirrored else pose)


def _points(pose: dict[str, tuple[float, float]]) -> np.ndarray:
    return np.array([pose[name] for name in KEYPOINTS], np.float64)


class _Canvas:
    """A colour picture and, stroke by stroke, whose pixel each one is."""

    def __init__(self, background: Colour) -> None:
        side = SIDE * _FINE
        self.picture = Image.new("RGB", (side, side), background)
        self.owner = Image.new("L", (side, side), 0)
        self.brushes = ImageDraw.Draw(self.picture), ImageDraw.Draw(self.owner)

    def _loaded(self, colour: Colour, owner: int) -> Iterator[tuple[ImageDraw.ImageDraw, Any]]:
        """Each brush with what it paints: the colour, and the owner's number."""
        return zip(self.brushes, (colour, owner), strict=True)

    def disc(self, owner: int, colour: Colour, centre: np.ndarray, radius: np.ndarray) -> None:
        box = [*(centre - radius), *(centre + radius)]
        for brush, paint in self._loaded(colour, owner):
            brush.ellipse(box, fill=paint)

    def stroke(self, owner: int, colour: Colour, points: Sequence[np.ndarray], width: float) -> None:
        for a, b in itertools.pairwise(points):
            for brush, paint in self._loaded(colour, owner):
                brush.line([*a, *b], fill=paint, width=round(width))
        for point in points:
            self.disc(owner, colour, point, np.full(2, width / 2))

    def polygon(self, owner: int, colour: Colour, points: Sequence[np.ndarray]) -> None:
        for brush, paint in self._loaded(colour, owner):
            brush.polygon([tuple(p) for p in points], fill=paint)


def _towards(colour: Colour, other: Colour, share: float) -> Colour:
    r, g, b = (round((1 - share) * c + share * o) for c, o in zip(colour, other, strict=True))
    return r, g, b


def _paint(canvas: _Canvas, owner: int, who: Creature, points: np.ndarray, unit: float, part: str) -> None:
    """Draw one creature's ``body`` or its ``arms``, which may lie over another one.

    Args:
        points: (17, 2) keypoints in pixels of the fine canvas.
        unit: pixels per unit of the pose's frame.
    """
    at = dict(zip(KEYPOINTS, points, strict=True))
    coat = COLOURS[who.colour]
    limb, pale = _towards(coat, _INK, 0.15), _towards(coat, (250, 250, 250), 0.5)

    def off(x: float, y: float) -> np.ndarray:
        return np.array((x, y)) * unit

    if part == "arms":
        for side in ("left", "right"):
            arm = [at[f"{side} {joint}"] for joint in ("shoulder", "elbow", "front paw")]
            canvas.stroke(owner, limb, arm, 0.11 * unit)
            canvas.disc(owner, pale, arm[-1], off(0.045, 0.045))
        return
    tail = {"cat": ((0.2, -0.02), (0.3, -0.16)), "dog": ((0.18, -0.08), (0.24, -0.2))}.get(who.species, ((0.1, 0.0),))
    canvas.stroke(owner, limb, [at["root of tail"], *(at["root of tail"] + off(*t) for t in tail)], 0.08 * unit)
    for side in ("left", "right"):
        leg = [at[f"{side} {joint}"] for joint in ("hip", "knee", "back paw")]
        canvas.stroke(owner, limb, leg, 0.14 * unit)
        canvas.disc(owner, pale, leg[-1] + off(0, 0.02), off(0.085, 0.05))
    middle = (at["neck"] + at["root of tail"]) / 2
    canvas.disc(owner, coat, middle, off(0.21, 0.28))
    canvas.disc(owner, pale, middle + off(0, 0.04), off(0.12, 0.18))
    head = (at["left eye"] + at["right eye"]) / 2 + off(0, 0.04)
    for sign in (-1, 1):
        if who.species == "cat":
            ear = [head + off(sign * x, y) for x, y in ((0.19, -0.08), (0.17, -0.32), (0.04, -0.19))]
            canvas.polygon(owner, coat, ear)
        elif who.species == "rabbit":
            canvas.stroke(owner, coat, [head + off(sign * 0.09, -0.15), head + off(sign * 0.12, -0.38)], 0.1 * unit)
        elif who.species == "dog":
            canvas.stroke(owner, limb, [head + off(sign * 0.17, -0.12), head + off(sign * 0.25, 0.06)], 0.11 * unit)
        else:
            canvas.disc(owner, coat, head + off(sign * 0.16, -0.16), off(0.08, 0.08))
    canvas.disc(owner, coat, head, off(0.22, 0.21))
    canvas.disc(owner, pale, at["nose"] + off(0, 0.02), off(0.1, 0.07))
    canvas.disc(owner, _INK, at["nose"], off(0.028, 0.02))
    for eye in (at["left eye"], at["right eye"]):
        canvas.disc(owner, _INK, eye, off(0.028, 0.036))


def _draw(
    creatures: Sequence[Creature],
    poses: Sequence[np.ndarray],
    origins: Sequence[Sequence[float]],
    unit: float,
    paper: int,
) -> Drawing:
    """Creatures in their poses; ``origins`` and ``unit`` are relative to the picture's side."""
    side = SIDE * _FINE
    canvas = _Canvas(_BACKGROUNDS[paper % len(_BACKGROUNDS)])
    points = [(np.array(o) + unit * pose) * side for pose, o in zip(poses, origins, strict=True)]
    for part in ("body", "arms"):
        for owner, (who, where) in enumerate(zip(creatures, points, strict=True), 1):
            _paint(canvas, owner, who, where, unit * side, part)
    owners = np.asarray(canvas.owner)
    masks: list[np.ndarray] = []
    boxes: list[tuple[float, float, float, float]] = []
    keypoints: list[np.ndarray] = []
    for owner, where in enumerate(points, 1):
        covered = (owners == owner).reshape(SIDE, _FINE, SIDE, _FINE).mean(axis=(1, 3))
        mask = covered > 0.5
        rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
        edges = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        masks.append(mask)
        x0, y0, x1, y1 = (float(edge) / SIDE for edge in edges)
        boxes.append((x0, y0, x1, y1))
        cells = where.astype(int)
        seen = owners[cells[:, 1], cells[:, 0]] == owner
        seen[KEYPOINTS.index("root of tail")] = False  # at its back
        keypoints.append(np.column_stack([where / side, np.where(seen, VISIBLE, OCCLUDED)]))
    picture = canvas.picture.resize((SIDE, SIDE), Image.Resampling.BOX)
    return Drawing(picture, tuple(masks), tuple(boxes), tuple(keypoints))


def draw_alone(creature: Creature, paper: int) -> Drawing:
    """One creature in its neutral pose: an image prompt. ``paper`` is the number of the background."""
    return _draw([creature], [neutral_pose()], [(0.5, 0.76)], 0.56, paper)


def draw_hug(left: Creature, right: Creature, number: int) -> Drawing:
    """Two creatures hugging; ``number`` varies size, distance, arms and background, always in the same way."""
    chance = random.Random(number)
    unit = chance.uniform(0.5, 0.58)
    apart = chance.uniform(0.4, 0.46) * unit
    poses = [
        hugging_pose(mirrored, chance.uniform(-0.04, 0.04), chance.uniform(0.02, 0.07)) for mirrored in (False, True)
    ]
    ground = chance.uniform(0.72, 0.78)
    middle = chance.uniform(0.46, 0.54)
    return _draw(
        [left, right], poses, [(middle - apart / 2 - 0.05, ground), (middle + apart / 2 + 0.05, ground)], unit, number
    )
