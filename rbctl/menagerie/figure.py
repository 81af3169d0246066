"""One posed animal: joints by forward and inverse kinematics, then the rounded parts it is drawn with.

Lengths are in units of about one body, y points up, and a figure faces right until ``mirror`` turns it. Facing right
shows its right side: "near" limbs are the right ones, and the left ones once it is mirrored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rbctl.menagerie.individuals import ANATOMY, Anatomy, Individual

LIMBS = ("near_front", "far_front", "near_hind", "far_hind")
JOINTS = (
    *("hips", "shoulders", "neck", "head", "up", "nose", "near_eye", "far_eye", "tail", "tail_middle", "tail_tip"),
    *(f"{limb}_{part}" for limb in LIMBS for part in ("root", "joint", "paw")),
)
SPOTS = ("middle", "back", "belly", "chest", "rump", "withers", "crown")  # on the body, from the joints
# Painter's layers of one figure, from back to front.
LAYERS = ("far", "tail", "body", "hind", "crown", "head", "front")
PARTS = 4  # most parts in one layer
TRUNK = 0.74  # from hips to shoulders; all other lengths are in units of a body of 1
_STRETCH = 1.6  # how far a cartoon limb stretches to reach something


@dataclass(frozen=True, kw_only=True)
class Pose:
    """Absolute angles in degrees (0 right, 90 up, -90 down) of a figure that faces right.

    Attributes:
        trunk: from hips to shoulders.
        neck, gaze: of the neck, and where the nose points.
        tail: added to the species' own angle.
        near_front, far_front, near_hind, far_hind: (upper, lower) bone of each limb.
        jitter: spread of random changes of every angle.
    """

    trunk: float = 0.0
    neck: float = 55.0
    gaze: float = 0.0
    tail: float = 0.0
    near_front: tuple[float, float] = (-90.0, -90.0)
    far_front: tuple[float, float] = (-80.0, -90.0)
    near_hind: tuple[float, float] = (-95.0, -90.0)
    far_hind: tuple[float, float] = (-85.0, -90.0)
    jitter: float = 5.0


@dataclass
class Figure:
    """A posed animal.

    Attributes:
        points: joints by name (``JOINTS``; "up" is over the head), each (2,).
        facing: 1 faces right, -1 left.
        scale: length of one unit of the anatomy.
    """

    individual: Individual
    anatomy: Anatomy
    points: dict[str, np.ndarray]
    facing: int = 1
    scale: float = 1.0

    def move(self, offset: Sequence[float] | np.ndarray) -> None:
        """Shift every joint."""
        self.points = {name: p + np.asarray(offset) for name, p in self.points.items()}

    def grow(self, factor: float) -> None:
        """Scale about (0, 0)."""
        self.scale *= factor
        self.points = {name: p * factor for name, p in self.points.items()}

    def mirror(self) -> None:
        """Turn to face the other way, about x = 0."""
        self.facing = -self.facing
        self.points = {name: p * np.array([-1.0, 1.0]) for name, p in self.points.items()}

    def point(self, name: str) -> np.ndarray:
        """A joint, or one of ``SPOTS`` on the body.

        Raises:
            KeyError: there is no such point.
        """
        if name in self.points:
            return self.points[name]
        hips, shoulders = self.points["hips"], self.points["shoulders"]
        along = (shoulders - hips) / max(float(np.linalg.norm(shoulders - hips)), 1e-6)
        up = np.array([-along[1], along[0]]) * self.facing  # towards the spine
        girth = self.scale * (self.anatomy.rump + self.anatomy.chest) / 2
        middle = (hips + shoulders) / 2
        places = {
            "middle": middle,
            "back": middle + up * girth,
            "belly": middle - up * girth,
            "chest": shoulders - up * girth * 0.9,
            "rump": hips - along * self.scale * self.anatomy.rump,
            "withers": shoulders + up * girth * 0.9,
            "crown": self.points["head"] + np.array([0.0, self.scale * self.anatomy.head]),
        }
        return places[name]

    def lowest(self) -> float:
        """The lowest y of the drawn figure."""
        return self.bounds()[1]

    def bounds(self) -> tuple[float, float, float, float]:
        """x0, y0, x1, y1 around all parts (y up)."""
        parts = [part for layer in shapes(self).values() for part in layer]
        ends = np.array([[*a, ra] for a, _, ra, _ in parts] + [[*b, rb] for _, b, _, rb in parts])
        low, high = ends[:, :2] - ends[:, 2:], ends[:, :2] + ends[:, 2:]
        return (*low.min(0), *high.max(0))


def _direction(degrees: float) -> np.ndarray:
    radians = math.radians(degrees)
    return np.array([math.cos(radians), math.sin(radians)])


def _proportioned(individual: Individual) -> Anatomy:
    base = ANATOMY[individual.species]
    legs, girth, head = individual.proportions
    return replace(base, leg=base.leg * legs, rump=base.rump * girth, chest=base.chest * girth, head=base.head * head)


def build(individual: Individual, pose: Pose, rng: np.random.Generator) -> Figure:
    """A figure in a pose, with the pose's jitter, its hips at (0, 0), facing right."""
    anatomy = _proportioned(individual)

    def shake() -> float:
        return float(rng.uniform(-pose.jitter, pose.jitter))

    trunk = _direction(pose.trunk + shake())
    down = np.array([trunk[1], -trunk[0]])  # from the spine towards the belly
    points: dict[str, np.ndarray] = {"hips": np.zeros(2), "shoulders": trunk * TRUNK}
    neck = _direction(pose.neck + shake())
    points["neck"] = points["shoulders"] + neck * (0.35 * anatomy.chest)
    gaze_angle = pose.gaze + shake()
    points["head"] = points["shoulders"] + neck * (0.5 * anatomy.chest + anatomy.neck + 0.55 * anatomy.head)
    gaze, up = _direction(gaze_angle), _direction(gaze_angle + 90)
    r = anatomy.head
    points["nose"] = points["head"] + gaze * (0.7 * r + anatomy.snout) - up * 0.3 * r
    points["near_eye"] = points["head"] + gaze * 0.12 * r + up * 0.24 * r
    points["far_eye"] = points["head"] + gaze * 0.72 * r + up * 0.30 * r
    points["up"] = points["head"] + up  # the head's own upright direction
    points["tail"] = points["hips"] - trunk * anatomy.rump * 0.85 - down * anatomy.rump * 0.3
    tail = _direction(pose.trunk + 180 - anatomy.tail_angle - pose.tail + 2 * shake())
    bent = _direction(pose.trunk + 180 - anatomy.tail_angle - pose.tail - 25 + 2 * shake())
    points["tail_middle"] = points["tail"] + tail * anatomy.tail * 0.5
    points["tail_tip"] = points["tail_middle"] + bent * anatomy.tail * 0.5
    for limb in LIMBS:
        upper, lower = getattr(pose, limb)
        root = points["shoulders"] - trunk * 0.04 if "front" in limb else points["hips"] + trunk * 0.02
        root = root + trunk * (0.08 if "far" in limb else -0.04) + down * 0.35 * anatomy.chest
        points[f"{limb}_root"] = root
        points[f"{limb}_joint"] = root + _direction(upper + shake()) * anatomy.leg * 0.5
        points[f"{limb}_paw"] = points[f"{limb}_joint"] + _direction(lower + shake()) * anatomy.leg * 0.5
    figure = Figure(individual, anatomy, points)
    figure.grow(anatomy.size)
    return figure


def reach(figure: Figure, limb: str, target: np.ndarray) -> None:
    """Bring a paw to a place by two-bone inverse kinematics; a limb too short stretches by up to 60 %."""
    root = figure.points[f"{limb}_root"]
    bone = figure.anatomy.leg * figure.scale * 0.5
    way = np.asarray(target) - root
    distance = max(float(np.linalg.norm(way)), 1e-6)
    bone *= min(max(distance / (2 * bone), 1.0), _STRETCH)
    distance_reached = min(distance, 2 * bone)
    direction = way / distance
    height = math.sqrt(max(bone**2 - (distance_reached / 2) ** 2, 0.0))
    # Elbows bend down and back, knees down and forward: whichever lies lower reads as a limb at rest.
    normal = np.array([-direction[1], direction[0]])
    if normal[1] > 0 or (abs(normal[1]) < 1e-3 and normal[0] * figure.facing > 0):
        normal = -normal
    figure.points[f"{limb}_joint"] = root + direction * distance_reached / 2 + normal * height
    figure.points[f"{limb}_paw"] = root + direction * distance_reached


def shapes(figure: Figure) -> dict[str, list[tuple[np.ndarray, np.ndarray, float, float]]]:
    """The rounded parts of each layer: (end a, end b, radius at a, radius at b), at most ``PARTS`` a layer."""
    a, p, s = figure.anatomy, figure.points, figure.scale
    head, up = p["head"], (p["up"] - p["head"]) / s
    gaze = np.array([up[1], -up[0]]) * figure.facing
    r = a.head

    def limb(name: str) -> list[tuple[np.ndarray, np.ndarray, float, float]]:
        thigh = 1.45 if "hind" in name else 1.2
        return [
            (p[f"{name}_root"], p[f"{name}_joint"], a.leg_radius * thigh * s, a.leg_radius * s),
            (p[f"{name}_joint"], p[f"{name}_paw"], a.leg_radius * s, a.leg_radius * 0.95 * s),
        ]

    def foot(name: str) -> list[tuple[np.ndarray, np.ndarray, float, float]]:
        if "front" in name:
            return []
        paw = p[f"{name}_paw"]
        return [(paw, paw + np.array([0.07 * s * figure.facing, 0.0]), a.leg_radius * s, a.leg_radius * 0.9 * s)]

    tail_a, tail_b = (radius * s for radius in a.tail_radius)
    layers = {
        "far": limb("far_hind") + limb("far_front"),
        "tail": [
            (p["tail"], p["tail_middle"], tail_a, (tail_a + tail_b) / 2),
            (p["tail_middle"], p["tail_tip"], (tail_a + tail_b) / 2, tail_b),
        ],
        "body": [
            (p["hips"], p["shoulders"], a.rump * s, a.chest * s),
            (p["shoulders"], head, a.neck_radius * 1.25 * s, a.neck_radius * s),
        ],
        "hind": limb("near_hind") + foot("near_hind"),
        "crown": [],
        "head": [
            (head, head, r * s, r * s),
            (head + gaze * 0.35 * r * s - up * 0.22 * r * s, p["nose"], a.snout_radius * 1.15 * s, a.snout_radius * s),
        ],
        "front": limb("near_front"),
    }
    size = a.ear_size * s
    top = head + up * 0.72 * r * s
    if a.ears == "pointed":
        for shift, width in ((-0.55, 0.17), (0.38, 0.15)):
            base = top + gaze * shift * r * s - up * 0.12 * r * s
            layers["crown"].append((base, base + up * size + gaze * shift * 0.2 * s, width * s, 0.015 * s))
    elif a.ears == "round":
        for shift in (-0.85, 0.55):
            base = top + gaze * shift * r * s + up * size * 0.35
            layers["crown"].append((base, base, size, size))
    elif a.ears == "long":
        for shift, lean in ((-0.5, -0.22), (0.2, 0.0)):
            base = top + gaze * shift * r * s
            layers["crown"].append((base, base + up * size + gaze * lean * s, 0.09 * s, 0.105 * s))
    elif a.ears == "floppy":
        base = top - gaze * 0.8 * r * s - up * 0.2 * r * s
        layers["head"].append((base, base - up * size - gaze * 0.1 * s, 0.07 * s, 0.115 * s))
        layers["crown"].append(
            (top + gaze * 0.4 * r * s, top + gaze * 0.55 * r * s + up * 0.04 * s, 0.08 * s, 0.07 * s)
        )
    elif a.ears == "fan":
        base = head - gaze * 0.95 * r * s + up * 0.1 * r * s
        layers["crown"].append((base, base - up * 0.16 * s, size, size * 0.8))
    elif a.ears == "horns":
        for shift in (-0.4, 0.25):
            base = top + gaze * shift * r * s
            layers["crown"].append((base, base + up * size, 0.035 * s, 0.06 * s))
    if a.mane:
        layers["crown"].append(
            (head - gaze * 0.22 * r * s, head - gaze * 0.3 * r * s - up * 0.3 * r * s, r * 1.5 * s, r * 1.4 * s)
        )
    if a.trunk:
        knee = p["nose"] + (gaze * 0.18 - up * 0.75) * a.trunk * s
        layers["head"] += [
            (p["nose"], knee, a.snout_radius * 0.85 * s, 0.1 * s),
            (knee, knee + (gaze * 0.4 - up * 0.1) * a.trunk * s, 0.1 * s, 0.08 * s),
        ]
    return layers


def face(figure: Figure) -> list[tuple[np.ndarray, float]]:
    """Five discs (centre, radius): whites of the far and the near eye, their pupils, the nose."""
    a, p, s = figure.anatomy, figure.points, figure.scale
    up = (p["up"] - p["head"]) / s
    gaze = np.array([up[1], -up[0]]) * figure.facing
    white, pupil = 0.30 * a.head * s, 0.165 * a.head * s
    white, pupil = max(white, 0.1 * s), max(pupil, 0.055 * s)
    look = gaze * 0.085 * a.head * s
    tip = p["nose"] + gaze * (a.snout_radius - a.nose * 0.5) * s
    return [
        (p["far_eye"], white * 0.92),
        (p["near_eye"], white),
        (p["far_eye"] + look, pupil),
        (p["near_eye"] + look, pupil),
        (tip + up * 0.02 * s, a.nose * s),
    ]


def keypoints(figure: Figure) -> tuple[np.ndarray, np.ndarray]:
    """The 17 keypoints in AP-10K order, (17, 2) with y up, and which of them lie on the far side, (17,) bool."""
    near, far = ("right", "left") if figure.facing > 0 else ("left", "right")
    side = {near: "near", far: "far"}
    order = [f"{side['left']}_eye", f"{side['right']}_eye", "nose", "neck", "tail"]
    for end in ("front", "hind"):
        for hand in ("left", "right"):
            order += [f"{side[hand]}_{end}_{part}" for part in ("root", "joint", "paw")]
    is_far = np.array([name.startswith("far") and "eye" not in name for name in order])
    return np.stack([figure.points[name] for name in order]), is_far
