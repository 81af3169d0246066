"""Fresh renders with what they show: what an oracle is taught on, and measured against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import avg_pool2d

from rbctl.menagerie.drawing import render
from rbctl.menagerie.individuals import Individual, draw_individual
from rbctl.menagerie.oracle import ATTRIBUTES, KEYPOINTS, MASK_SIZE, SIZE, look
from rbctl.menagerie.scenes import compose
from rbctl.relations import Relation


@dataclass(frozen=True)
class Examples:
    """Fresh renders with what they show.

    Attributes:
        pictures: uint8 (n, 3, 128, 128).
        masks: float (n, R, 32, 32) in [0, 1], what is seen of each; zeros where a scene has fewer than others.
        keypoints: (n, R, 17, 3) in AP-10K's order: x, y in [0, 1] and visibility 0, 1, 2; zeros likewise.
        looks: (n, R, 4) indices of species, coat, second coat and pattern; zeros likewise.
        relations: n names.
        individuals: n groups, in the order of the roles.
    """

    pictures: torch.Tensor
    masks: torch.Tensor
    keypoints: torch.Tensor
    looks: torch.Tensor
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
    most = max(len(relation.roles) for relation in relations)
    pictures = torch.zeros(len(scenes), 3, SIZE, SIZE, dtype=torch.uint8)
    masks = torch.zeros(len(scenes), most, MASK_SIZE, MASK_SIZE)
    keypoints = torch.zeros(len(scenes), most, KEYPOINTS, 3)
    looks = torch.zeros(len(scenes), most, len(ATTRIBUTES), dtype=torch.long)
    for count in range(1, most + 1):  # as many individuals as each other are drawn together
        rows = [row for row, scene in enumerate(scenes) if len(scene.individuals) == count]
        for first in range(0, len(rows), batch):
            lot = rows[first : first + batch]
            drawn = render([scenes[row] for row in lot], SIZE)
            pictures[lot] = drawn.pictures
            masks[lot, :count] = avg_pool2d(drawn.visible.float(), SIZE // MASK_SIZE)
            keypoints[lot, :count] = drawn.keypoints.float()
            looks[lot, :count] = torch.tensor([[look(one) for one in scenes[row].individuals] for row in lot])
    return Examples(
        pictures=pictures,
        masks=masks,
        keypoints=keypoints,
        looks=looks,
        relations=tuple(names),
        individuals=tuple(scene.individuals for scene in scenes),
    )
