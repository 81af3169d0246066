"""Fresh renders with what they show: what an oracle is taught on, and measured against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import avg_pool2d

from rbctl.menagerie.drawing import render
from rbctl.menagerie.individuals import Individual, draw_individual
from rbctl.menagerie.oracle import MASK_SIZE, SIZE
from rbctl.menagerie.scenes import compose
from rbctl.relations import Relation


@dataclass(frozen=True)
class Examples:
    """Fresh renders with what they show.

    Attributes:
        pictures: uint8 (n, 3, 128, 128).
        masks: float (n, 2, 32, 32) in [0, 1], what is seen of each.
        keypoints: (n, 2, 17, 3) in AP-10K's order: x, y in [0, 1] and visibility 0, 1, 2.
        relations: n names.
        individuals: n pairs, in the order of the roles.
    """

    pictures: torch.Tensor
    masks: torch.Tensor
    keypoints: torch.Tensor
    relations: tuple[str, ...]
    individuals: tuple[tuple[Individual, ...], ...]


def draw_examples(
    relations: Sequence[Relation], each: int, seed: int = 0, held_out: bool = False, batch: int = 16
) -> Examples:
    """``each`` renders of every relation, of individuals drawn anew (with ``held_out``: such as no training shows)."""
    scenes, names = [], []
    for at, relation in enumerate(relations):
        rng = np.random.default_rng((seed, at))
        for _ in range(each):
            scenes.append(compose(relation, [draw_individual(rng, held_out) for _ in relation.roles], rng))
            names.append(relation.name)
    drawn = [render(scenes[first : first + batch], SIZE) for first in range(0, len(scenes), batch)]
    return Examples(
        pictures=torch.cat([lot.pictures for lot in drawn]),
        masks=torch.cat([avg_pool2d(lot.visible.float(), SIZE // MASK_SIZE) for lot in drawn]),
        keypoints=torch.cat([lot.keypoints.float() for lot in drawn]),
        relations=tuple(names),
        individuals=tuple(scene.individuals for scene in scenes),
    )
