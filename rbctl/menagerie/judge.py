"""The judge: what an oracle says of pictures of cases, one verdict a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from rbctl.menagerie import Individual, oracle_scores
from rbctl.menagerie.cases import DrawnCase, candidates
from rbctl.menagerie.oracle import ATTRIBUTES, ROLES, Oracle, Reading, look
from rbctl.menagerie.oracle_extension import extend
from rbctl.relations import Box, Relation

# A picture's two roles are one body where their keypoints lie this near each other, or one of them covers this little.
# Of true scenes none is read so, of scenes with one animal taken out 95 of 100 are (100 scenes of five relations).
_ONE_BODY = 0.11  # of the picture's side
_LEAST_AREA = 0.05
_SPARE = 0.1
_SURE = 3.0  # nats by which one individual must fit better than the other before anything is said


@dataclass(frozen=True)
class Verdict:
    """What the oracle says of one picture of two.

    Attributes:
        relation: the relation asked for is the likeliest.
        probability: what it gives that relation.
        direction: each individual plays its own role; None where the relation is symmetric.
        contact: distance in picture widths of what must touch; None where nothing must.
        touching: that is as near as in 95 of 100 true scenes; None likewise.
        identity: share of the individuals told from 15 others, wherever they stand.
        role_identity: the same, in the role that was asked for.
        species, coat, second, pattern: share of the individuals that have the right one, wherever they stand.
        missing: per individual, whether no body looks more like it than like the other one.
        duplicate: two bodies look like the same individual.
        swapped: each wears the other's coat; None where their coats or species do not tell.
        boxes: per individual, where it was found.
    """

    relation: bool
    probability: float
    direction: bool | None
    contact: float | None
    touching: bool | None
    identity: float
    role_identity: float
    species: float
    coat: float
    second: float
    pattern: float
    missing: tuple[bool, ...]
    duplicate: bool
    swapped: bool | None
    boxes: tuple[Box | None, ...]

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
        asked = score.slots if relation.symmetric else torch.arange(ROLES).expand(len(cases), ROLES)
        identity, role_identity = (_identified(reading, slots, cases) for slots in (score.slots, asked))
        column = reading.relations.index(relation.name)
        return [
            Verdict(
                relation=bool(score.relation[k]),
                probability=float(reading.relation[k, column].exp()),
                direction=None if relation.symmetric else bool(score.direction[k]),
                contact=None if score.contact[k].isnan() else float(score.contact[k]),
                touching=None if score.contact[k].isnan() else float(score.contact[k]) <= limit,
                identity=float(identity[k].mean()),
                role_identity=float(role_identity[k].mean()),
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
            self._taught[name] = self.oracle if name in self.oracle.relations else extend(self.oracle, relation)
            self._limits[name] = oracle_scores.contact_limit(relation, self._taught[name])
        return self._taught[name], self._limits[name]


def _identified(reading: Reading, slots: torch.Tensor, cases: Sequence[DrawnCase]) -> np.ndarray:
    """(n, 2), 1 where individual k is preferred to 15 others in role ``slots[:, k]``, else 0."""
    right = []
    for role in range(ROLES):
        lineups, places = zip(*(candidates(case, role) for case in cases), strict=True)
        right.append(oracle_scores.identify(reading, slots[:, role], list(lineups)) == torch.tensor(places))
    return torch.stack(right, dim=1).float().numpy()


def _bodies(reading: Reading, k: int, pair: Sequence[Individual], slots: torch.Tensor) -> dict[str, Any]:
    """Who of a pair is to be seen in picture k, as fields of ``Verdict``."""
    # (individual, role), whole looks and their two halves
    table = {
        name: getattr(reading, name)[k][:, [look(one)[at] for one in pair]].T for at, name in enumerate(ATTRIBUTES)
    }
    whole = torch.stack(list(table.values())).sum(0)
    prefers = whole[1] - whole[0]  # per role; above 0: it looks like the second of the pair
    points, maps = reading.keypoints[k, :, :, :2], reading.maps[k]
    apart = float((points[0] - points[1]).norm(dim=-1).mean())
    areas = (maps > 0.5).float().mean(dim=(1, 2))
    small = int(areas.argmin())
    one_body = apart < _ONE_BODY or float(areas[small]) < _LEAST_AREA
    alike = bool((prefers > _SURE).all() or (prefers < -_SURE).all())
    missing = [False, False]
    if alike:
        missing[0 if float(prefers[0]) > 0 else 1] = True
    elif float(areas[small]) < _LEAST_AREA / 2:  # next to nothing is there, whatever it looks like
        missing[int(slots[1] == small)] = True
    boxes = [_box(maps[int(slots[who])]) for who in range(ROLES)]
    return {
        "missing": tuple(missing),
        "duplicate": alike and not one_body,
        "swapped": None if any(missing) else _swapped(table),
        "boxes": tuple(None if gone else box for gone, box in zip(missing, boxes, strict=True)),
    }


def _swapped(table: dict[str, torch.Tensor]) -> bool | None:
    """Whether the best match by coats is the other way round than that by species; None where either cannot tell."""
    coats = table["coat"] + table["second"] + table["pattern"]
    species = table["species"]
    margins = [float(t[0, 0] + t[1, 1] - t[0, 1] - t[1, 0]) for t in (species, coats)]
    if min(abs(m) for m in margins) < _SURE:
        return None
    return margins[0] * margins[1] < 0


def _box(seen: torch.Tensor) -> Box | None:
    """Box around where a map (n, n) is over a half, with a tenth to spare on every side, as in portraits."""
    rows, columns = (torch.nonzero((seen > 0.5).any(dim=d)).flatten() / len(seen) for d in (1, 0))
    if not len(rows):
        return None
    ends = [(float(line[0]), float(line[-1]) + 1 / len(seen)) for line in (columns, rows)]
    (x0, x1), (y0, y1) = [(max(a - _SPARE * (b - a), 0.0), min(b + _SPARE * (b - a), 1.0)) for a, b in ends]
    return x0, y0, x1, y1
