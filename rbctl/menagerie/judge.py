"""The judge: what an oracle says of pictures of cases, one verdict a picture."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from torch.nn.functional import max_pool2d

from rbctl.menagerie import Individual, oracle_scores
from rbctl.menagerie.cases import DrawnCase, candidates
from rbctl.menagerie.oracle import ATTRIBUTES, Oracle, Reading, look
from rbctl.menagerie.oracle_extension import extend
from rbctl.relations import Box, Relation

# Two roles are one body where their keypoints lie this near each other, or one of them covers this little.
# Of true scenes of two none is read so, of scenes with one animal taken out 95 of 100 are (100 scenes of five
# relations). Three are smaller: in 48 true scenes of each of nine relations, the nearest lie 0.11 apart, and the
# smallest cover 0.02.
_ONE_BODY = {1: 0.11, 2: 0.11, 3: 0.07}  # of the picture's side, by how many individuals there should be
_LEAST_AREA = {1: 0.05, 2: 0.05, 3: 0.02}
_FACE = 0.4  # how surely a face is one; of two such cells within _NEAR of each other the surer is
_NEAR = 2  # cells
_SPARE = 0.1
_SURE = 3.0  # nats by which one individual must fit better than the other before anything is said


@dataclass(frozen=True)
class Verdict:
    """What the oracle says of one picture of one to three individuals.

    Attributes:
        relation: the relation asked for is the likeliest.
        probability: what it gives that relation.
        direction: each individual plays its own role; None where the relation is symmetric.
        contact: distance in picture widths of what must touch; None where nothing must.
        touching: that is as near as in 95 of 100 true scenes; None likewise.
        identity: share of the individuals told from 15 others, wherever they stand.
        role_identity: the same, in the role that was asked for.
        identified: per individual, whether it is told from 15 others, wherever it stands.
        species, coat, second, pattern: share of the individuals that have the right one, wherever they stand.
        missing: per individual, whether no body looks more like it than like another one.
        duplicate: two bodies look like the same individual.
        extra: there are more bodies than individuals.
        merged: there are fewer bodies than individuals, though the looks or the faces of all are there.
        extra_head: there are more faces than bodies; None where the oracle tells of no faces.
        swapped: two wear each other's coat; None where their coats or species do not tell, and of one individual.
        boxes: per individual, where it was found.
    """

    relation: bool
    probability: float
    direction: bool | None
    contact: float | None
    touching: bool | None
    identity: float
    role_identity: float
    identified: tuple[bool, ...]
    species: float
    coat: float
    second: float
    pattern: float
    missing: tuple[bool, ...]
    duplicate: bool
    extra: bool
    merged: bool
    extra_head: bool | None
    swapped: bool | None
    boxes: tuple[Box | None, ...]

    @property
    def complete(self) -> bool:
        """Every individual is there once, with a body of its own, and nobody else is."""
        return not (any(self.missing) or self.duplicate or self.extra or self.merged)

    @property
    def directed(self) -> bool:
        """The relation is right, and the right way round where that matters."""
        return self.relation and self.direction is not False


@dataclass
class Judge:
    """Asks an oracle about pictures of cases; relations that it does not know it learns first."""

    oracle: Oracle
    _limits: dict[str, float] = field(default_factory=dict, repr=False)
    _taught: dict[str, Oracle] = field(default_factory=dict, repr=False)  # what judges each relation

    def __call__(self, images: Sequence[Image.Image], cases: Sequence[DrawnCase]) -> list[Verdict]:
        """Verdicts on as many pictures as cases, in their order."""
        verdicts: dict[int, Verdict] = {}
        for name in dict.fromkeys(case.relation.name for case in cases):
            rows = [k for k, case in enumerate(cases) if case.relation.name == name]
            verdicts.update(zip(rows, self._of_one([images[k] for k in rows], [cases[k] for k in rows]), strict=True))
        return [verdicts[k] for k in range(len(cases))]

    def _of_one(self, images: list[Image.Image], cases: Sequence[DrawnCase]) -> list[Verdict]:
        """Verdicts on pictures of one relation."""
        relation = cases[0].relation
        oracle, limit = self._expert(relation)
        reading = oracle.read(images).map(lambda tensor: tensor.cpu())
        groups = [case.individuals for case in cases]
        score = oracle_scores.relation_score(reading, relation, groups)
        identity, role_identity = (_identified(reading, slots, cases) for slots in (score.slots, score.asked))
        column = reading.relations.index(oracle_scores.known_as(relation, reading.relations))
        directed = not relation.symmetric and len(relation.roles) > 1
        return [
            Verdict(
                relation=bool(score.relation[k]),
                probability=float(reading.relation[k, column].exp()),
                direction=bool(score.direction[k]) if directed else None,
                contact=None if score.contact[k].isnan() else float(score.contact[k]),
                touching=None if score.contact[k].isnan() else float(score.contact[k]) <= limit,
                identity=float(identity[k].mean()),
                role_identity=float(role_identity[k].mean()),
                identified=tuple(bool(right) for right in identity[k]),
                species=float(score.species[k].float().mean()),
                coat=float(score.coat[k].float().mean()),
                second=float(score.second[k].float().mean()),
                pattern=float(score.pattern[k].float().mean()),
                **_bodies(reading, k, groups[k], score.slots[k]),
            )
            for k in range(len(cases))
        ]

    def _expert(self, relation: Relation) -> tuple[Oracle, float]:
        """What reads pictures of a relation, and how far apart touching places may lie there."""
        name = relation.name
        if name not in self._taught:
            known = {name, relation.inverse} & set(self.oracle.relations)
            self._taught[name] = self.oracle if known else extend(self.oracle, relation)
            self._limits[name] = oracle_scores.contact_limit(relation, self._taught[name])
        return self._taught[name], self._limits[name]


def _identified(reading: Reading, slots: torch.Tensor, cases: Sequence[DrawnCase]) -> np.ndarray:
    """(n, N), 1 where individual k is preferred to 15 others in role ``slots[:, k]``, else 0."""
    right = []
    for role in range(slots.shape[1]):
        lineups, places = zip(*(candidates(case, role) for case in cases), strict=True)
        right.append(oracle_scores.identify(reading, slots[:, role], list(lineups)) == torch.tensor(places))
    return torch.stack(right, dim=1).float().numpy()


def _bodies(reading: Reading, k: int, group: Sequence[Individual], slots: torch.Tensor) -> dict[str, Any]:
    """Who of a group is to be seen in picture k, as fields of ``Verdict``."""
    # (individual, role), whole looks and their parts
    table = {
        name: getattr(reading, name)[k][:, [look(one)[at] for one in group]].T for at, name in enumerate(ATTRIBUTES)
    }
    areas, least, near = reading.areas[k].tolist(), _LEAST_AREA[len(group)], _ONE_BODY[len(group)]
    bodies = [role for role, area in enumerate(areas) if area >= least / 2]
    likes = _likes(torch.stack(list(table.values())).clamp(min=oracle_scores.LEAST).sum(0), bodies)
    missing = [not any(others.isdisjoint({who}) for others in likes.values()) for who in range(len(group))]
    if not any(missing):  # next to nothing is there, whatever it looks like
        missing = [areas[int(slot)] < least / 2 for slot in slots]
    apart = {
        (a, b): float((reading.keypoints[k, a, :, :2] - reading.keypoints[k, b, :, :2]).norm(dim=-1).mean())
        for a, b in itertools.combinations(range(reading.roles), 2)
    }
    separate = {ends for ends, way in apart.items() if way >= near}
    parted = {ends for ends in separate if min(areas[end] for end in ends) >= least}
    same = [ends for ends in apart if set(ends) <= set(bodies) and len(group) > 1 and _alike(likes, ends, len(group))]
    boxes = [_box(reading.maps[k, int(slot)]) for slot in slots]
    faces = None if reading.faces is None else _count_faces(reading.faces[k])
    all_faces = faces is not None and faces >= len(group)
    count = len(_separate(bodies, parted))
    one_body = len(_separate(slots.tolist(), separate)) < len(group)
    fewer = one_body or (any(missing) and count < len(group))
    return {
        "missing": tuple(missing),
        "duplicate": any(ends in parted for ends in same),
        "extra": count > len(group),
        "merged": len(group) > 1 and fewer and (all_faces or not any(missing)),
        "extra_head": None if faces is None else faces > max(len(bodies), len(group)),
        "swapped": None if any(missing) else _swapped(table, slots),
        "boxes": tuple(None if gone else box for gone, box in zip(missing, boxes, strict=True)),
    }


def _likes(whole: torch.Tensor, bodies: Sequence[int]) -> dict[int, set[int]]:
    """Per body the individuals that it is surely not: another one fits its look better by ``_SURE``.

    Args:
        whole: (individual, role) log-likelihoods.
    """
    best = whole.max(0).values
    return {role: {who for who in range(len(whole)) if best[role] - whole[who, role] > _SURE} for role in bodies}


def _alike(likes: dict[int, set[int]], ends: tuple[int, int], count: int) -> bool:
    """Whether two bodies surely look like the same one of ``count`` individuals."""
    left = [set(range(count)) - likes[role] for role in ends]
    return len(left[0]) == 1 and left[0] == left[1]


def _separate(roles: Sequence[int], parted: Collection[tuple[int, int]]) -> list[int]:
    """Of some roles those that are bodies of their own: each is parted from all before it."""
    separate: list[int] = []
    for role in roles:
        if all((min(role, other), max(role, other)) in parted for other in separate):
            separate.append(role)
    return separate


def _count_faces(seen: torch.Tensor) -> int:
    """Hills of a map (n, n) that are as high as ``_FACE``, no two within ``_NEAR`` cells."""
    highest = max_pool2d(seen[None, None], 2 * _NEAR + 1, stride=1, padding=_NEAR)[0, 0]
    return int(((seen == highest) & (seen >= _FACE)).sum())


def _swapped(table: dict[str, torch.Tensor], slots: torch.Tensor) -> bool | None:
    """Whether two individuals fit each other's place by their coats and their own by species, or the other way round.

    None where either does not tell of any two, and of one individual.
    """
    coats = table["coat"] + table["second"] + table["pattern"]
    crossed = []
    for a, b in itertools.combinations(range(len(slots)), 2):
        margins = [
            float(t[a, slots[a]] + t[b, slots[b]] - t[a, slots[b]] - t[b, slots[a]]) for t in (table["species"], coats)
        ]
        if min(abs(m) for m in margins) >= _SURE:
            crossed.append(margins[0] * margins[1] < 0)
    return any(crossed) if crossed else None


def _box(seen: torch.Tensor) -> Box | None:
    """Box around the largest region where a map (n, n) is over a half, with a tenth to spare on every side.

    A map may have stray cells on somebody else.
    """
    regions, count = ndimage.label(seen.cpu().numpy() > 0.5)
    if not count:
        return None
    largest = torch.from_numpy(regions == 1 + np.bincount(regions.ravel())[1:].argmax())
    rows, columns = (torch.nonzero(largest.any(dim=d)).flatten() / len(seen) for d in (1, 0))
    ends = [(float(line[0]), float(line[-1]) + 1 / len(seen)) for line in (columns, rows)]
    (x0, x1), (y0, y1) = [(max(a - _SPARE * (b - a), 0.0), min(b + _SPARE * (b - a), 1.0)) for a, b in ends]
    return x0, y0, x1, y1
