"""What is measured on: scenes of held-out individuals with their truth, drawn from fixed seeds."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rbctl.files import read_json, write_json
from rbctl.images import write_png
from rbctl.menagerie import Individual, Scene, compose, draw_individual, portrait, render
from rbctl.menagerie.triplets import draw_group
from rbctl.relations import Box, Relation

SIZE = 128  # pixels of renders and portraits
CANDIDATES = 16
_STREAM = 0x6A7E5  # keeps these draws apart from every other use of the same small seeds
_FIRST_SEED = 1000  # of the sampled pictures
_BATCH = 8


@dataclass(frozen=True)
class Case:
    """A scene of held-out individuals: what is asked for, and how the world itself draws it.

    Attributes:
        spoken_to: the relation as ``rbctl`` is told of it, a name or a YAML's path.
        portraits: picture of each individual, the image prompts.
        boxes: true boxes, of the whole silhouettes.
        seed: of the sampled picture.
    """

    relation: Relation
    spoken_to: str
    scene: Scene
    portraits: tuple[Path, ...]
    boxes: tuple[Box, ...]
    seed: int

    @property
    def individuals(self) -> tuple[Individual, ...]:
        return self.scene.individuals


@dataclass(frozen=True)
class CaseSet:
    """Cases and their renders.

    Attributes:
        pictures: uint8 (n, 3, SIZE, SIZE).
        keypoints: float32 (n, N, 17, 3), x and y in [0, 1], visibility.
    """

    cases: tuple[Case, ...]
    pictures: np.ndarray
    keypoints: np.ndarray

    def __len__(self) -> int:
        return len(self.cases)

    def first(self, count: int) -> CaseSet:
        """The first so many."""
        return CaseSet(self.cases[:count], self.pictures[:count], self.keypoints[:count])


def join(sets: Sequence[CaseSet]) -> CaseSet:
    """Several sets as one."""
    return CaseSet(
        tuple(case for one in sets for case in one.cases),
        np.concatenate([one.pictures for one in sets]),
        np.concatenate([one.keypoints for one in sets]),
    )


def draw_cases(relation: Relation, count: int, folder: Path, spoken_to: str = "") -> CaseSet:
    """``count`` scenes of one relation; the first of many are those of few.

    Args:
        folder: where the portraits are kept as PNGs.
    """
    rngs = [np.random.default_rng((_STREAM, zlib.crc32(relation.name.encode()), k)) for k in range(count)]
    scenes, faces = [], []
    for rng in rngs:
        group = draw_group(relation, rng, held_out=True)
        faces.append([portrait(one, rng) for one in group])
        scenes.append(compose(relation, group, rng))
    drawn = [render(scenes[k : k + _BATCH], SIZE) for k in range(0, count, _BATCH)]
    boxes = np.concatenate([d.boxes.numpy() for d in drawn]).round(4)
    files = [f"{relation.name}-{k}-{role}.png" for k in range(count) for role in range(len(faces[k]))]
    _write_portraits([scene for row in faces for scene in row], [folder / name for name in files], relation.name)
    paths = iter(folder / name for name in files)
    cases = [
        Case(
            relation=relation,
            spoken_to=spoken_to or relation.name,
            scene=scene,
            portraits=tuple(next(paths) for _ in scene.individuals),
            boxes=tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in boxes[k]),
            seed=_FIRST_SEED + k,
        )
        for k, scene in enumerate(scenes)
    ]
    return CaseSet(
        tuple(cases),
        np.concatenate([d.pictures.numpy() for d in drawn]),
        np.concatenate([d.keypoints.numpy() for d in drawn]),
    )


def _write_portraits(scenes: Sequence[Scene], paths: Sequence[Path], name: str) -> None:
    """Render those that are not there, or were drawn by another state of the world."""
    known = paths[0].parent / f"{name}.json"
    facts = {p.name: json.dumps([s.individuals[0].to_json(), *_numbers(s)]) for p, s in zip(paths, scenes, strict=True)}
    before = read_json(known) if known.is_file() else {}
    missing = [k for k, p in enumerate(paths) if not p.is_file() or before.get(p.name) != facts[p.name]]
    for first in range(0, len(missing), _BATCH):
        chunk = missing[first : first + _BATCH]
        for k, pixels in zip(chunk, render([scenes[k] for k in chunk], SIZE).pictures, strict=True):
            write_png(paths[k], image(pixels.numpy()))
    if missing:
        write_json(known, {**before, **facts})


def _numbers(scene: Scene) -> list[float]:
    return [round(float(v), 4) for v in scene.keypoints().ravel()]


def candidates(case: Case, role: int, count: int = CANDIDATES) -> tuple[list[Individual], int]:
    """``count`` held-out individuals, all different, one of them the case's own in that role; and which.

    Its place is drawn too: an oracle that knows nothing and names the first must not be right.
    """
    rng = np.random.default_rng((_STREAM, zlib.crc32(case.relation.name.encode()), case.seed, role))
    own = case.individuals[role]
    found: dict[tuple[str, ...], Individual] = {}
    while len(found) < count - 1:
        one = draw_individual(rng, held_out=True)
        if look(one) != look(own):
            found.setdefault(look(one), one)
    place = int(rng.integers(count))
    others = list(found.values())
    return [*others[:place], own, *others[place:]], place


def look(individual: Individual) -> tuple[str, ...]:
    """What tells individuals apart."""
    return individual.species, individual.coat, individual.second, individual.pattern


def image(pixels: Any) -> Image.Image:
    """(3, H, W) uint8 as a picture."""
    return Image.fromarray(np.ascontiguousarray(np.asarray(pixels).transpose(1, 2, 0)))
