"""What the oracle says of pictures of cases, as figures per picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from bench.gates.cases import Case, candidates
from rbctl.menagerie import oracle_scores
from rbctl.menagerie.oracle import ATTRIBUTES, Reading
from rbctl.menagerie.oracle_extension import extend
from rbctl.relations import load_relation

EACH = ("species", "coat", "second", "pattern", "identity", "role_identity")  # of each of two individuals


@dataclass(frozen=True)
class Verdicts:
    """What a judge says of n pictures of two; columns in the order of the case's individuals.

    Attributes:
        relation: bool (n,), the relation asked for is the likeliest.
        direction: float (n,), 1 where each individual plays its own role, 0 where they are swapped; NaN where the
            relation is symmetric, so that there is none.
        contact: float (n,), distance in picture widths of what must touch; NaN where nothing must.
        touching: float (n,), 1 where that is as near as in 95 of 100 true scenes; NaN likewise.
        species, coat, second, pattern: bool (n, 2), individuals assigned by best matching, whatever their roles.
        identity: bool (n, 2), preferred to all 15 distractors; assigned likewise.
        role_identity: bool (n, 2), the same in the role that was asked for.
    """

    relation: np.ndarray
    direction: np.ndarray
    contact: np.ndarray
    touching: np.ndarray
    species: np.ndarray
    coat: np.ndarray
    second: np.ndarray
    pattern: np.ndarray
    identity: np.ndarray
    role_identity: np.ndarray

    @property
    def directed(self) -> np.ndarray:
        """bool (n,): relation right, and the right way round where that matters."""
        return self.relation & (np.isnan(self.direction) | (self.direction == 1))


@dataclass
class Judge:
    """Scores pictures by an oracle.

    Attributes:
        oracle: a :class:`rbctl.menagerie.oracle.Oracle`, or what reads pictures alike.
    """

    oracle: Any
    _limits: dict[str, float] = field(default_factory=dict, repr=False)

    def __call__(self, pictures: np.ndarray, cases: Sequence[Case]) -> Verdicts:
        """Judge uint8 (n, 3, H, W) of as many cases."""
        reading = self.oracle.read(torch.from_numpy(pictures)).map(lambda tensor: tensor.cpu())
        names = np.array([case.relation.name for case in cases])
        found: dict[str, np.ndarray] = {}
        for name in dict.fromkeys(names):
            at = np.flatnonzero(names == name)
            rows = self._of_one(reading.map(lambda tensor, at=at: tensor[torch.from_numpy(at)]), [cases[k] for k in at])
            for metric, values in dataclasses.asdict(rows).items():
                found.setdefault(metric, np.zeros((len(cases), *values.shape[1:]), values.dtype))[at] = values
        return Verdicts(**found)

    def extended(self, spoken_to: str) -> Judge:
        """A judge that tells one relation more."""
        return Judge(extend(self.oracle, load_relation(spoken_to)))

    def _of_one(self, reading: Reading, cases: Sequence[Case]) -> Verdicts:
        """Of cases of one relation."""
        relation, groups = cases[0].relation, [case.individuals for case in cases]
        score = oracle_scores.relation_score(reading, relation, groups)
        asked = score.slots if relation.symmetric else torch.arange(2).expand(len(cases), 2)
        if relation.name not in self._limits:
            self._limits[relation.name] = oracle_scores.contact_limit(relation, self.oracle)
        contact = score.contact.double().numpy()
        touching = np.where(np.isnan(contact), np.nan, contact <= self._limits[relation.name])
        direction = score.direction.double().numpy()
        return Verdicts(
            relation=score.relation.numpy(),
            direction=np.full_like(direction, np.nan) if relation.symmetric else direction,
            contact=contact,
            touching=touching,
            **{name: getattr(score, name).numpy() for name in ATTRIBUTES},
            identity=_identified(reading, score.slots, cases),
            role_identity=_identified(reading, asked, cases),
        )


def _identified(reading: Reading, slots: torch.Tensor, cases: Sequence[Case]) -> np.ndarray:
    """bool (n, 2): individual k is preferred to the others in role ``slots[:, k]``."""
    found = []
    for k in range(2):
        rows, places = zip(*(candidates(case, k) for case in cases), strict=True)
        found.append(oracle_scores.identify(reading, slots[:, k], list(rows)) == torch.tensor(places))
    return torch.stack(found, dim=1).numpy()
