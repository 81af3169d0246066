"""What pictures of the embedded world are judged on: scenes of held-out individuals, with portraits and truth."""

from __future__ import annotations

import hashlib
import itertools
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rbctl.files import write_jsonl, write_png
from rbctl.menagerie import Individual, Scene, compose, draw_individual, portrait, render
from rbctl.menagerie.oracle import look
from rbctl.menagerie.triplets import check_drawable, draw_group, pictures
from rbctl.progress import progress
from rbctl.relations import Box, Relation

SIZE = 128  # pixels
CANDIDATES = 16
_FIRST_SEED = 1000  # of the sampled pictures
_BATCH = 8


@dataclass(frozen=True)
class Stream:
    """Which scenes are drawn. Small seeds have other uses, so every use draws from a stream of its own.

    Attributes:
        number: names the use.
        seeds: others draw other scenes for the same use.
        portraits: of an individual: the image prompt, and other real pictures to compare it with.
    """

    number: int
    seeds: tuple[int, ...] = ()
    portraits: int = 1


@dataclass(frozen=True)
class DrawnCase:
    """A scene of held-out individuals: what is asked for, and how the world itself draws it.

    Attributes:
        picture: the world's own drawing.
        portraits: per individual its real pictures; the first is the image prompt.
        seed: of the sampled picture.
        lineup: seed of the candidates that its individuals must be told from.
        faces: per individual what its image prompt shows.
    """

    id: str
    relation: Relation
    scene: Scene = field(compare=False)
    picture: Path
    portraits: tuple[tuple[Path, ...], ...]
    seed: int
    lineup: tuple[int, ...]
    faces: tuple[Scene, ...] = field(default=(), compare=False)

    @property
    def individuals(self) -> tuple[Individual, ...]:
        """In the order of the relation's roles."""
        return self.scene.individuals


def draw_cases(relations: Sequence[Relation], count: int, folder: Path, stream: Stream) -> tuple[DrawnCase, ...]:
    """``count`` cases of every relation, the first of many those of few; portraits and true scenes lie in ``folder``.

    A file's name holds a hash of what it shows, so pictures drawn before stay and others are never taken for them.

    Raises:
        InputError: the world has no rules to draw a relation by.
    """
    for relation in relations:
        check_drawable(relation)
    drawings: dict[Path, Scene] = {}
    cases = []
    for relation in relations:
        code = zlib.crc32(relation.name.encode())
        for number in range(count):
            rng = np.random.default_rng((stream.number, code, *stream.seeds, number))
            group = draw_group(relation, rng, held_out=True)
            faces = [[portrait(individual, rng) for _ in range(stream.portraits)] for individual in group]
            scene = compose(relation, group, rng)
            name, seed = f"{relation.name}-{number:03}", _FIRST_SEED + number
            picture = file_of(folder / "truth", name, scene)
            paths = tuple(
                tuple(file_of(folder / "portraits", f"{name}-{role}-{k}", face) for k, face in enumerate(own))
                for role, own in enumerate(faces)
            )
            drawings[picture] = scene
            for own_paths, own in zip(paths, faces, strict=True):
                drawings.update(zip(own_paths, own, strict=True))
            # As each stream has always drawn them; other candidates would give other figures.
            lineup = (zlib.crc32(name.encode()),) if stream.seeds else (code, seed)
            shown = tuple(own[0] for own in faces)
            cases.append(DrawnCase(name, relation, scene, picture, paths, seed, (stream.number, *lineup), shown))
    _render(drawings)
    rows = [{"file_name": case.picture.name, "text": case.scene.caption, "case": case.id} for case in cases]
    write_jsonl(folder / "truth" / "metadata.jsonl", rows)
    return tuple(cases)


def true_boxes(cases: Sequence[DrawnCase]) -> list[tuple[Box, ...]]:
    """Per scene the boxes of the whole silhouettes, in the order of the roles."""
    boxes: list[tuple[Box, ...]] = []
    for _, alike in itertools.groupby(cases, lambda case: len(case.individuals)):
        own = list(alike)
        for first in range(0, len(own), _BATCH):
            drawn = render([case.scene for case in own[first : first + _BATCH]], SIZE).boxes.numpy().round(4)
            boxes += [tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in rows) for rows in drawn]
    return boxes


def candidates(case: DrawnCase, role: int, count: int = CANDIDATES) -> tuple[list[Individual], int]:
    """``count`` held-out individuals of different looks, one of them the case's own in that role; and its place.

    The place is drawn too: an oracle that knows nothing and names the first must not be right.
    """
    rng = np.random.default_rng((*case.lineup, role))
    own = case.individuals[role]
    others: dict[tuple[int, ...], Individual] = {}
    while len(others) < count - 1:
        drawn = draw_individual(rng, held_out=True)
        if look(drawn) != look(own):
            others.setdefault(look(drawn), drawn)
    place, listed = int(rng.integers(count)), list(others.values())
    return [*listed[:place], own, *listed[place:]], place


def file_of(folder: Path, name: str, scene: Scene) -> Path:
    """Where a drawing of a scene lies; its name holds a hash of what it shows."""
    facts = [
        [individual.to_json() for individual in scene.individuals],
        scene.background,
        [round(float(v), 4) for v in scene.keypoints().ravel()],
    ]
    return folder / f"{name}-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:8]}.png"


def _render(drawings: dict[Path, Scene]) -> None:
    """Draw the files that are not there."""
    waiting = sorted((path for path in drawings if not path.is_file()), key=lambda path: len(drawings[path].figures))
    if not waiting:
        return
    with progress(len(waiting), "drawing the benchmark", unit="picture") as bar:
        # Scenes with as many figures as each other are drawn together.
        for _, alike in itertools.groupby(waiting, lambda path: len(drawings[path].figures)):
            paths = list(alike)
            for first in range(0, len(paths), _BATCH):
                batch = paths[first : first + _BATCH]
                for path, image in zip(batch, pictures([drawings[p] for p in batch], SIZE), strict=True):
                    write_png(path, image)
                bar.update(len(batch))
