"""Scenes with a fault that was planted: what generated pictures get wrong, with the truth known."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np

from rbctl.menagerie.figure import Figure
from rbctl.menagerie.individuals import Individual, draw_individual
from rbctl.menagerie.scenes import Scene, compose
from rbctl.relations import Relation

_FILL = 0.94  # of the picture's width, at most
_APART = 0.18  # of its width, between the outlines of figures that do not touch
_TRIES = 24
_OUTSIDE = 9.0  # picture widths


def merged(scene: Scene) -> Scene:
    """The second figure's trunk drawn on the first one's; their heads look to different sides."""
    grown = copy.deepcopy(scene)
    first, second = grown.figures[:2]
    if first.facing == second.facing:
        second.mirror()
    second.move(first.point("middle") - second.point("middle"))
    return grown


def left_out(scene: Scene, who: int) -> Scene:
    """Individual ``who`` is not there; ground and shadows of the others stay."""
    kept = [k for k in range(len(scene.figures)) if k != who]
    floor = min(figure.lowest() for figure in scene.figures) - scene.air
    figures = tuple(copy.deepcopy(scene.figures[k]) for k in kept)
    return dataclasses.replace(
        scene,
        individuals=tuple(scene.individuals[k] for k in kept),
        figures=figures,
        order=tuple(kept.index(k) for k in scene.order if k != who),
        air=min(figure.lowest() for figure in figures) - floor,
    )


def deserted(scene: Scene) -> Scene:
    """The ground alone: everybody stands outside of the frame."""
    empty = copy.deepcopy(scene)
    for figure in empty.figures:
        figure.move((_OUTSIDE, 0.0))
    return empty


def twice(scene: Scene, who: int) -> Scene:
    """A second individual like ``who``, its mirror image, stands beside all others."""
    more = copy.deepcopy(scene)
    second = copy.deepcopy(more.figures[who])
    second.mirror()
    figures = (*more.figures, second)
    _side_by_side([more.figures, (second,)])
    individuals = (*more.individuals, more.individuals[who])
    return dataclasses.replace(more, figures=figures, individuals=individuals, order=(*more.order, len(figures) - 1))


def parted(scene: Scene) -> Scene:
    """The same poses, but nobody touches anybody: all stand side by side, in their order from left to right."""
    alone = copy.deepcopy(scene)
    _side_by_side(sorted(((figure,) for figure in alone.figures), key=lambda group: group[0].bounds()[0]))
    return alone


def exchanged(scene: Scene, relation: Relation, roles: tuple[int, int], rng: np.random.Generator) -> Scene:
    """The relation with two roles exchanged, drawn anew; individuals stay in the order that they had."""
    a, b = roles
    order = [{a: b, b: a}.get(k, k) for k in range(len(scene.individuals))]
    drawn = compose(relation, [scene.individuals[k] for k in order], rng, scene.background)
    return dataclasses.replace(
        drawn,
        individuals=scene.individuals,
        figures=tuple(drawn.figures[k] for k in order),
        order=tuple(order[k] for k in drawn.order),
    )


def of_relation(scene: Scene, other: Relation, rng: np.random.Generator) -> Scene:
    """The same individuals in another relation; of several drawings the one whose boxes are most like the scene's."""
    drawings = [compose(other, scene.individuals, rng, scene.background) for _ in range(_TRIES)]
    boxes = _boxes(scene)
    return min(drawings, key=lambda drawn: float(np.abs(_boxes(drawn) - boxes).sum()))


def stranger(scene: Scene, who: int, rng: np.random.Generator) -> Scene:
    """Another individual of the same species, in other colours, in the place of ``who``."""
    own = scene.individuals[who]
    other = own
    while other.coat == own.coat or other.second == own.second:
        drawn = draw_individual(rng, held_out=True)
        other = dataclasses.replace(own, coat=drawn.coat, second=drawn.second, pattern=drawn.pattern)
    changed = copy.deepcopy(scene)
    changed.figures[who].individual = other
    return dataclasses.replace(changed, individuals=_with(scene.individuals, who, other))


def posed_as(scene: Scene, who: int, portrait: Scene) -> Scene:
    """Individual ``who`` stands in its place exactly as on its portrait, as large as it was."""
    copied = copy.deepcopy(scene)
    own, pasted = copied.figures[who], copy.deepcopy(portrait.figures[0])
    pasted.grow(own.scale / pasted.scale)
    x0, y0, x1, _ = own.bounds()
    left, low, right, _ = pasted.bounds()
    pasted.move(((x0 + x1 - left - right) / 2, y0 - low))
    return dataclasses.replace(copied, figures=_with(copied.figures, who, pasted))


def _with(values: tuple, who: int, value: Figure | Individual) -> tuple:
    return (*values[:who], value, *values[who + 1 :])


def _boxes(scene: Scene) -> np.ndarray:
    return np.array([figure.bounds() for figure in scene.figures])


def _side_by_side(groups: list[tuple[Figure, ...]]) -> None:
    """Put groups of figures in a row, left to right and each on its own height, made smaller where they need room."""
    low = min(figure.lowest() for group in groups for figure in group)
    ends = [(min(f.bounds()[0] for f in group), max(f.bounds()[2] for f in group)) for group in groups]
    room = _FILL - _APART * (len(groups) - 1)
    factor = min(1.0, room / sum(right - left for left, right in ends))
    widths = [(right - left) * factor for left, right in ends]
    at = (1 - sum(widths) - _APART * (len(groups) - 1)) / 2
    for group, (left, _), width in zip(groups, ends, widths, strict=True):
        for figure in group:
            figure.grow(factor)
            figure.move((at - left * factor, low * (1 - factor)))
        at += width + _APART
