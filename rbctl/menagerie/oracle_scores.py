"""Scores of pictures of the embedded world: pure functions of what the oracle read."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rbctl.errors import InputError
from rbctl.menagerie.examples import draw_examples
from rbctl.menagerie.figure import TRUNK
from rbctl.menagerie.individuals import ANATOMY, SPECIES, Individual
from rbctl.menagerie.oracle import ATTRIBUTES, NECK, NOSE, POINTS, Oracle, Reading, by_side, look
from rbctl.menagerie.scenes import scene_rule
from rbctl.relations import Relation, load_relation

LEAST = -4.0  # log-probability of a part of a look, at least: how wrong a wrong one is tells nothing
_SHOWN = 0.01  # of the picture: a role that covers less is hardly there
_NOWHERE = 1e-8  # a role that is not there fits worse than one in which all of the look is wrong


@dataclass(frozen=True)
class RelationScore:
    """How well pictures show what they should.

    Attributes:
        relation: (B,) bool, the relation that was wanted is the likeliest.
        direction: (B,) bool, who is subject and who is object fits what was wanted; true where there is no telling
            (symmetric relations, individuals of the same look).
        slots: (B, N), the role of the oracle in which each of the N individuals was found.
        asked: (B, N), the role in which it should be; where roles may change places, that in which it was found.
        species, coat, second, pattern: (B, N) bool, per individual in the order they were given.
        contact: (B,) distance in picture widths between what must touch; nan where nothing must.
    """

    relation: torch.Tensor
    direction: torch.Tensor
    slots: torch.Tensor
    asked: torch.Tensor
    species: torch.Tensor
    coat: torch.Tensor
    second: torch.Tensor
    pattern: torch.Tensor
    contact: torch.Tensor

    @property
    def right(self) -> torch.Tensor:
        """(B,) bool: relation and direction."""
        return self.relation & self.direction


Groups = Sequence[Individual] | Sequence[Sequence[Individual]]


def relation_score(reading: Reading, relation: Relation | str, individuals: Groups) -> RelationScore:
    """Score pictures against the relation and the individuals they should show.

    Args:
        individuals: in the order of the relation's roles, the same in every picture or one group per picture.

    Raises:
        InputError: the oracle does not know the relation.
    """
    wanted = load_relation(relation) if isinstance(relation, str) else relation
    groups = _groups(reading, individuals)
    slots = find_slots(reading, individuals)
    known = known_as(wanted, reading.relations)
    orders = [order if known == wanted.name else order[::-1] for order in wanted.orders()]
    right_ways = [(slots == torch.tensor(order, device=slots.device)).all(1) for order in orders]
    direction = torch.stack(right_ways).any(0) | wanted.symmetric
    correct = {}
    for at, name in enumerate(ATTRIBUTES):
        read = getattr(reading, name).argmax(-1).gather(1, slots)
        correct[name] = read == torch.tensor([[look(one)[at] for one in group] for group in groups], device=read.device)
    return RelationScore(
        relation=reading.relation.argmax(1) == reading.relations.index(known),
        direction=direction,
        slots=slots,
        asked=torch.where(direction[:, None], slots, torch.tensor(orders[0], device=slots.device)),
        contact=contact_distance(reading, wanted, individuals),
        **correct,
    )


def known_as(relation: Relation, known: Sequence[str]) -> str:
    """The name by which an oracle knows a relation: its own, or that of the one that says the same turned round.

    Raises:
        InputError: it knows neither.
    """
    for name in (relation.name, relation.inverse):
        if name is not None and name in known:
            return name
    names = ", ".join(known)
    raise InputError(f"relation {relation.name!r}: the oracle does not know it; extend it first (it knows {names})")


def find_slots(reading: Reading, individuals: Groups) -> torch.Tensor:
    """The roles in which N individuals are found, (B, N), all different: those that fit their looks best.

    A role that is nowhere to be seen fits nobody.
    """
    groups = _groups(reading, individuals)
    count = len(groups[0])
    scores = torch.stack([_log_likelihood(reading, [group[k] for group in groups]) for k in range(count)], dim=1)
    scores = scores + (reading.areas / _SHOWN).clamp(_NOWHERE, 1).log()[:, None]  # (B, individual, role)
    orders = torch.tensor(list(itertools.permutations(range(reading.roles), count)), device=scores.device)
    totals = scores[:, torch.arange(count, device=scores.device), orders].sum(-1)  # (B, orders)
    totals[:, 0] += 1e-6  # where nothing tells, each has its own
    return orders[totals.argmax(1)]


def identify(
    reading: Reading, role: int | torch.Tensor, candidates: Sequence[Individual] | Sequence[Sequence[Individual]]
) -> torch.Tensor:
    """Which candidate is seen in a role, (B,) index: the one whose look is likeliest.

    Args:
        role: of every picture, or (B,) one of each. In a symmetric relation 0 is the left one; ``find_slots`` tells.
        candidates: the same for every picture, or a list per picture (of equal lengths).
    """
    rows = [candidates] * len(reading) if isinstance(candidates[0], Individual) else candidates
    roles = torch.as_tensor(role, device=reading.relation.device).expand(len(reading))
    looks = torch.tensor([[look(one) for one in row] for row in rows], device=roles.device)  # type: ignore[arg-type,union-attr]
    numbers = torch.arange(len(reading), device=roles.device)
    scores: Any = 0
    for at, name in enumerate(ATTRIBUTES):
        scores = scores + getattr(reading, name)[numbers, roles].gather(1, looks[..., at])
    return scores.argmax(1)


def contact_distance(reading: Reading, relation: Relation, individuals: Groups | None = None) -> torch.Tensor:
    """Mean distance in picture widths between the places that the relation says must touch, (B,); nan without any.

    Where it is no matter who is who (roles that may change places), the best way round counts.

    Args:
        individuals: whose bodies they are; None takes the species that the oracle reads.
    """
    contacts = scene_rule(relation).contacts if relation.scene is not None else ()
    result = torch.full((len(reading),), torch.nan)
    if not contacts:
        return result
    points = by_side(reading.keypoints)[..., :2].cpu().numpy()
    species = reading.species.argmax(-1).cpu()
    if individuals is not None:
        groups, slots = _groups(reading, individuals), find_slots(reading, individuals).cpu()
        named = torch.tensor([[SPECIES.index(one.species) for one in group] for group in groups])
        species = species.scatter(1, slots, named)
    turned = relation.name not in reading.relations and relation.inverse in reading.relations
    for number in range(len(reading)):
        bodies = [(points[number, role], SPECIES[int(species[number, role])]) for role in range(len(relation.roles))]
        if turned:
            bodies.reverse()
        ways = [[bodies[role] for role in order] for order in relation.orders()]
        result[number] = min(_distance(way, contacts) for way in ways)
    return result


def _distance(bodies: Sequence[tuple[np.ndarray, str]], contacts: Sequence[tuple[str, str]]) -> float:
    def at(text: str) -> np.ndarray:
        role, _, name = text.partition(".")
        return place(*bodies[int(role)], name)

    return float(np.mean([np.linalg.norm(at(a) - at(b)) for a, b in contacts]))


def place(points: np.ndarray, species: str, name: str) -> np.ndarray:
    """A point of a figure as ``Figure.point`` has it, from the keypoints and the species' anatomy.

    Args:
        points: (17, 2), x and y (down), in the order of ``POINTS``.

    Returns:
        (2,), x and y down.

    Raises:
        InputError: no such point can be told from keypoints.
    """
    if name in POINTS:
        return points[POINTS.index(name)]
    known = ("hips", "shoulders", "middle", "back", "belly", "chest", "rump", "withers")
    if name not in known:
        raise InputError(f"contacts: {name!r} cannot be told from keypoints; points: {', '.join((*POINTS, *known))}")
    anatomy = ANATOMY[species]
    up_right = points * np.array([1.0, -1.0])  # y up, as figures are built
    facing = 1.0 if points[NOSE, 0] > points[NECK, 0] else -1.0
    front, hind = (
        (up_right[POINTS.index(f"near_{end}_root")] + up_right[POINTS.index(f"far_{end}_root")]) / 2
        for end in ("front", "hind")
    )
    # figure.build roots the limbs a little below the spine's ends, the far ones shifted forward.
    length = max(float(np.linalg.norm(front - hind)), 1e-6)
    along, unit = (front - hind) / length, length / (TRUNK - 0.06)
    up = np.array([-along[1], along[0]]) * facing
    hips = hind - along * 0.04 * unit + up * 0.35 * anatomy.chest * unit
    shoulders = hips + along * TRUNK * unit
    middle, girth = (hips + shoulders) / 2, unit * (anatomy.rump + anatomy.chest) / 2
    spot = {
        "hips": hips,
        "shoulders": shoulders,
        "middle": middle,
        "back": middle + up * girth,
        "belly": middle - up * girth,
        "chest": shoulders - up * girth * 0.9,
        "rump": hips - along * unit * anatomy.rump,
        "withers": shoulders + up * girth * 0.9,
    }[name]
    return spot * np.array([1.0, -1.0])


def contact_limit(relation: Relation, oracle: Oracle, share: float = 0.95, count: int = 64, seed: int = 0) -> float:
    """How far apart an oracle sees what touches in true scenes: in ``share`` of ``count`` renders it is nearer.

    A generated picture whose ``contact_distance`` is larger does not touch. nan where nothing must.
    """
    if not scene_rule(relation).contacts:
        return float("nan")
    drawn = draw_examples([relation], count, seed)
    reading = oracle.read(drawn.pictures).map(lambda tensor: tensor.cpu())
    return float(contact_distance(reading, relation, drawn.individuals).quantile(share))


def _groups(reading: Reading, individuals: Groups) -> list[Sequence[Individual]]:
    rows: Any = [individuals] * len(reading) if isinstance(individuals[0], Individual) else list(individuals)
    if len(rows) != len(reading) or any(len(row) != len(rows[0]) or len(row) > reading.roles for row in rows):
        most = f"one to {reading.roles}, as many as in the others,"
        raise ValueError(f"individuals: {most} for each of {len(reading)} pictures were expected")
    return rows


def _log_likelihood(reading: Reading, individuals: Sequence[Individual]) -> torch.Tensor:
    """Log-probability of one individual per picture in each role, (B, R)."""
    looks = torch.tensor([look(one) for one in individuals], device=reading.relation.device)
    total: Any = 0
    for at, name in enumerate(ATTRIBUTES):
        values: torch.Tensor = getattr(reading, name)
        own = values.gather(2, looks[:, at, None, None].expand(-1, reading.roles, 1))[..., 0]
        total = total + own.clamp(min=LEAST)
    return total
