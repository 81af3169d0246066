"""From a relation's pose rules and individuals to a scene: posed figures, placed in the frame, nothing drawn yet.

The rules are the ``scene`` mapping of a relation's YAML (docs/formats.md): one entry of ``figures`` per role, limbs
that ``reach`` for places on the other figure or ``meet`` each other, and the order of painting.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files as package_files
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Interval, MinLen

from rbctl.errors import InputError, abridged, nearest, shortlist
from rbctl.files import read_yaml
from rbctl.formats import Check, read
from rbctl.menagerie.figure import JOINTS, LIMBS, SPOTS, Figure, Pose, build, keypoints, reach
from rbctl.menagerie.individuals import SPECIES, Individual
from rbctl.relations import Relation

PLACES = {
    "day": "in a meadow",
    "night": "at night",
    "sand": "in the desert",
    "snow": "in the snow",
    "sunset": "at sunset",
}
BACKGROUNDS: tuple[str, ...] = tuple(PLACES)
STUDIO = "studio"  # of portraits
_POINTS = (*SPOTS, *JOINTS)
_LARGEST_UNIT = 0.44  # of the picture's side, for one unit of the anatomy


@dataclass
class Scene:
    """Posed figures in picture coordinates: x to the right, y DOWN, both in [0, 1].

    Attributes:
        individuals: in the order of the relation's roles.
        relation: its name; None in a portrait.
        background: one of ``BACKGROUNDS``, or "studio".
        caption: what a prompt would say: species, relation and perhaps the background.
        figures: posed and placed; their points have y UP from the frame's bottom (drawing turns it).
        order: role numbers from back to front.
        straddle: the front figure's far limbs lie behind the other figure.
        embrace: the back figure's near front limb lies over the front figure.
        air: height of the lowest figure over the ground, where all of them are in the air.
        horizon, hills, sun: its height, the phases of its two waves, and where the sun or moon stands.
    """

    individuals: tuple[Individual, ...]
    relation: str | None
    background: str
    caption: str
    figures: tuple[Figure, ...]
    order: tuple[int, ...]
    straddle: bool = False
    embrace: bool = False
    air: float = 0.0
    horizon: float = 0.35
    hills: tuple[float, float] = (0.0, 0.0)
    sun: tuple[float, float] = (0.7, 0.85)

    def keypoints(self) -> np.ndarray:
        """(N, 17, 2) with y down, in [0, 1] where they lie in the frame."""
        points = np.stack([keypoints(figure)[0] for figure in self.figures])
        return np.stack((points[..., 0], 1 - points[..., 1]), axis=-1)


@cache
def poses() -> dict[str, Pose]:
    """The poses of recipes/menagerie/poses.yaml by name."""
    path = Path(str(package_files("rbctl.recipes") / "menagerie" / "poses.yaml"))
    by_name = {}
    for name, content in read_yaml(path).items():
        limbs = {key: tuple(value) for key, value in content.items() if key in LIMBS}
        by_name[name] = Pose(**{**content, **limbs})
    return by_name


def _known(kind: str, names: Sequence[str], value: str) -> str:
    if value not in names:
        raise ValueError(f"no {kind} {abridged(value)}{nearest(value, names) or '; there are ' + shortlist(names)}")
    return value


def _of_role(kind: str, names: Sequence[str], value: str) -> str:
    """A role's number, a dot and one of ``names``, as it stands."""
    role, _, name = value.partition(".")
    if not re.fullmatch("[0-9]{1,2}", role):
        raise ValueError(f"{abridged(value)} must be a role's number, a dot and a {kind}, as in '1.{names[0]}'")
    _known(kind, names, name)
    return value


def _one_or_more(value: Any) -> Any:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


def _ordered(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError(f"a range was expected, the lower number first, not {list(pair)}")
    return pair


_Pose = Annotated[str, Check(lambda name: _known("pose", tuple(poses()), name))]
_Point = Annotated[str, Check(functools.partial(_known, "point", _POINTS))]
_PointOf = Annotated[str, Check(functools.partial(_of_role, "point", _POINTS))]
_LimbOf = Annotated[str, Check(functools.partial(_of_role, "limb", LIMBS))]
_Length = Annotated[float, Interval(ge=-10, le=10)]
_Pair = tuple[_Length, _Length]
_Range = Annotated[_Pair, Check(_ordered)]


@dataclass(frozen=True, kw_only=True)
class FigureRule:
    """How one role stands: lengths in units of the anatomy.

    Attributes:
        pose: names of recipes/menagerie/poses.yaml; one is drawn.
        facing: right, left or either, before the whole scene may be mirrored.
        size: factor on the figure.
        lift: range of its height over the ground.
        gap: range of the free width between the other figure's right edge and this one's left edge. The other figure
            is the one before; of the first figure, the one after.
        apart: range of the distance from the other's shoulders to this one's, to the right.
        pin: a point of this figure, put at ``to`` plus ``offset`` (x, y). ``to`` is a point of another role, or several
            points: the middle between them. x counts towards where the (first) other figure faces.
    """

    pose: Annotated[tuple[_Pose, ...], MinLen(1), Check(_one_or_more, before=True)]
    facing: Literal["right", "left", "either"] = "right"
    size: Annotated[float, Interval(ge=0.1, le=10)] = 1.0
    lift: _Range = (0.0, 0.0)
    gap: _Range | None = None
    apart: _Range | None = None
    pin: _Point | None = None
    to: Annotated[tuple[_PointOf, ...], Check(_one_or_more, before=True)] = ()
    offset: _Pair = (0.0, 0.0)

    def __post_init__(self) -> None:
        if (self.pin is None) != (not self.to):
            raise ValueError("pin and to belong together: a point of this figure, and one of the other, '1.back'")


@dataclass(frozen=True, kw_only=True)
class SceneRule:
    """A relation's ``scene``: how its roles are posed.

    Attributes:
        figures: one per role.
        reach: pairs (limb, point) as ("0.near_front", "1.back").
        meet: limbs of two roles that meet half-way, with an (x, y) offset from the middle of their roots.
        front: the role painted in front, or None for either.
        contacts: pairs of points that touch, ("0.hips", "1.back"); scored by the oracle.
    """

    figures: tuple[FigureRule, ...]
    reach: tuple[tuple[_LimbOf, _PointOf], ...] = ()
    meet: tuple[tuple[_LimbOf, _LimbOf, _Pair], ...] = ()
    front: Annotated[int, Interval(ge=0, le=99)] | None = None
    straddle: bool = False
    embrace: bool = False
    contacts: tuple[tuple[_PointOf, _PointOf], ...] = ()

    def __post_init__(self) -> None:
        rows = (*self.reach, *self.meet, *self.contacts)
        places = [place for row in rows for place in row if isinstance(place, str)]
        places += [place for rule in self.figures for place in rule.to]
        roles = [int(place.partition(".")[0]) for place in places] + ([] if self.front is None else [self.front])
        for role in roles:
            if role >= len(self.figures):
                raise ValueError(f"no role {role}; a role's number, 0 to {len(self.figures) - 1}, was expected")


def scene_rule(relation: Relation) -> SceneRule:
    """The pose rules of a relation.

    Raises:
        InputError: it has none, or one of them cannot be understood; the key is named.
    """
    if relation.scene is None:
        raise InputError(f"relation {relation.name!r}: nothing says how to draw it; add 'scene:' to its YAML")
    where, roles = f"relation {relation.name!r}: scene", len(relation.roles)
    if roles > len(SPECIES):  # each role takes another one
        raise InputError(f"{where}: {roles} roles, but only {len(SPECIES)} species can be drawn; leave some out")
    rule = read(SceneRule, relation.scene, where)
    if len(rule.figures) != roles:
        raise InputError(f"{where}: {len(rule.figures)} figures for {roles} roles")
    return rule


def compose(
    relation: Relation, individuals: Sequence[Individual], rng: np.random.Generator, background: str | None = None
) -> Scene:
    """A scene of a relation, with random pose jitter, side, size, place, background and caption template.

    Args:
        individuals: one per role, in the roles' order.
        background: one of ``BACKGROUNDS``; drawn where it is None.

    Raises:
        InputError: the relation has no pose rules, or they are wrong.
    """
    rule = scene_rule(relation)
    if len(individuals) != len(rule.figures):
        raise InputError(f"relation {relation.name!r}: {len(individuals)} individuals for {len(rule.figures)} roles")
    figures = _posed(rule, individuals, rng)
    lowest = min(figure.lowest() for figure in figures)
    if rng.random() < 0.5:
        for figure in figures:
            figure.mirror()
    background = background or str(rng.choice(BACKGROUNDS))
    template = int(rng.integers(len(relation.prompts)))
    caption = relation.prompt([i.species for i in individuals], template)
    if rng.random() < 0.5:
        caption = f"{caption.rstrip('.')} {PLACES[background]}."
    front = rule.front if rule.front is not None else int(rng.integers(len(figures)))
    order = (*(k for k in range(len(figures)) if k != front), front)
    unit = figures[0].scale
    bottom = _fit(figures, rng)
    return Scene(
        individuals=tuple(individuals),
        relation=relation.name,
        background=background,
        caption=caption,
        figures=tuple(figures),
        order=order,
        straddle=rule.straddle,
        embrace=rule.embrace,
        air=max(lowest, 0.0) * figures[0].scale / unit,
        horizon=bottom + float(rng.uniform(0.10, 0.24)),
        hills=(float(rng.uniform(0, 6.28)), float(rng.uniform(0, 6.28))),
        sun=(float(rng.uniform(0.12, 0.88)), float(rng.uniform(0.84, 0.92))),
    )


def portrait(individual: Individual, rng: np.random.Generator) -> Scene:
    """One individual in a neutral pose on a plain light background, facing either way."""
    name = str(rng.choice(["stand", "stand", "walk", "sit"]))
    figure = build(individual, poses()[name], rng)
    if rng.random() < 0.5:
        figure.mirror()
    _fit([figure], rng, fill=0.90, centred=True)
    return Scene((individual,), None, STUDIO, individual.description, (figure,), (0,))


def _posed(rule: SceneRule, individuals: Sequence[Individual], rng: np.random.Generator) -> list[Figure]:
    figures: list[Figure] = []

    def place(text: str) -> tuple[Figure, str]:
        role, _, name = text.partition(".")
        return figures[int(role)], name

    for part, individual in zip(rule.figures, individuals, strict=True):
        pose = poses()[str(rng.choice(part.pose))]
        figure = build(individual, pose, rng)
        if part.size != 1:
            figure.grow(part.size)
        if part.facing == "left" or (part.facing == "either" and rng.random() < 0.5):
            figure.mirror()
        figure.move((0.0, float(rng.uniform(*part.lift)) - figure.lowest()))
        figures.append(figure)
    for number, part in enumerate(rule.figures):
        figure, other = figures[number], figures[number - 1 if number else min(1, len(figures) - 1)]
        if part.gap is not None:
            figure.move((other.bounds()[2] + float(rng.uniform(*part.gap)) - figure.bounds()[0], 0.0))
        if part.apart is not None:
            distance = float(rng.uniform(*part.apart)) * (figure.scale + other.scale) / 2
            figure.move((other.points["shoulders"][0] + distance - figure.points["shoulders"][0], 0.0))
    for number, part in enumerate(rule.figures):
        if part.pin is not None:
            figure, others = figures[number], [place(text) for text in part.to]
            middle = sum((other.point(name) for other, name in others), np.zeros(2)) / len(others)
            offset = np.array(part.offset) * np.array([others[0][0].facing * others[0][0].scale, figure.scale])
            figure.move(middle + offset + rng.uniform(-0.03, 0.03, 2) - figure.point(part.pin))

    for limb, target in rule.reach:
        figure, name = place(limb)
        other, point = place(target)
        reach(figure, name, other.point(point) + rng.uniform(-0.03, 0.03, 2))
    for first, second, offset in rule.meet:
        (a, limb_a), (b, limb_b) = place(first), place(second)
        middle = (a.points[f"{limb_a}_root"] + b.points[f"{limb_b}_root"]) / 2
        target = middle + np.array(offset) * (a.scale + b.scale) / 2 + rng.uniform(-0.03, 0.03, 2)
        reach(a, limb_a, target)
        reach(b, limb_b, target)
    return figures


def _fit(figures: Sequence[Figure], rng: np.random.Generator, fill: float = 0.94, centred: bool = False) -> float:
    """Scale and shift all figures into the unit frame; returns the ground's height over the frame's bottom."""
    bounds = np.array([figure.bounds() for figure in figures])
    x0, y0 = bounds[:, :2].min(0)
    x1, y1 = bounds[:, 2:].max(0)
    y0 = min(y0, 0.0)
    scale = min(fill / (x1 - x0), 0.86 / (y1 - y0), _LARGEST_UNIT) * float(rng.uniform(0.90, 1.0))
    width, height = (x1 - x0) * scale, (y1 - y0) * scale
    left = float(rng.uniform(0.02, max(0.98 - width, 0.0201)))
    low = float(rng.uniform(0.05, max(min(0.20, 0.94 - height), 0.0501)))
    if centred:
        left, low = (1 - width) / 2, (1 - height) / 2
    offset = np.array([left - x0 * scale, low - y0 * scale])
    for figure in figures:
        figure.grow(scale)
        figure.move(offset)
    return low
