"""The embedded world as a benchmark: scenes of held-out individuals, and what its oracle says of pictures of them."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from rbctl.files import write_jsonl
from rbctl.images import write_png
from rbctl.menagerie import Individual, Scene, compose, draw_individual, portrait, scoring
from rbctl.menagerie.extension import extend
from rbctl.menagerie.oracle import ATTRIBUTES, ROLES, Oracle, Reading, look
from rbctl.menagerie.triplets import check_drawable, draw_group, pictures
from rbctl.plugins.eval.case import Case, CaseObject, Truth
from rbctl.progress import progress
from rbctl.relations import Box, Relation

SIZE = 128  # pixels
PORTRAITS = 2  # of an individual: the image prompt, and another real picture for ceilings
CANDIDATES = 16
_STREAM = 0xE7A1  # keeps these draws apart from every other use of the same small seeds
_BATCH = 8

# A picture's two roles are one body where their keypoints lie this near each other, or one of them covers this little.
# Of true scenes none is read so, of scenes with one animal taken out 95 of 100 are (100 scenes of five relations).
_ONE_BODY = 0.11  # of the picture's side
_LEAST_AREA = 0.05
_SPARE = 0.1
_SURE = 3.0  # nats by which one individual must fit better than the other before anything is said


def draw_cases(
    relations: Sequence[Relation], count: int, seed: int, folder: Path, spoken_to: Sequence[str]
) -> tuple[Case, ...]:
    """``count`` cases of every relation, the first of many those of few; portraits and true scenes lie in ``folder``.

    A file's name holds a hash of what it shows, so pictures drawn before stay and others are never taken for them.

    Args:
        spoken_to: per relation, what other stages are told: its name or its YAML's path.

    Raises:
        InputError: the world has no rules to draw a relation by.
    """
    for relation in relations:
        check_drawable(relation)
    drawings: dict[Path, Scene] = {}
    cases = []
    for relation, spoken in zip(relations, spoken_to, strict=True):
        for number in range(count):
            rng = np.random.default_rng((_STREAM, zlib.crc32(relation.name.encode()), seed, number))
            group = draw_group(relation, rng, held_out=True)
            faces = [[portrait(one, rng) for _ in range(PORTRAITS)] for one in group]
            scene = compose(relation, group, rng)
            name = f"{relation.name}-{number:03}"
            truth = _file(folder / "truth", name, scene)
            drawings[truth] = scene
            objects = []
            for role, (one, drawn) in enumerate(zip(group, faces, strict=True)):
                paths = [_file(folder / "portraits", f"{name}-{role}-{k}", face) for k, face in enumerate(drawn)]
                drawings.update(zip(paths, drawn, strict=True))
                objects.append(
                    CaseObject(
                        name=one.species,
                        image=paths[0],
                        references=tuple(paths),
                        subject="|".join(map(str, (*look(one), one.proportions))),
                        role=relation.roles[role].name,
                    )
                )
            cases.append(
                Case(
                    id=name,
                    text=scene.caption,
                    objects=tuple(objects),
                    relation=relation.name,
                    spoken_to=spoken,
                    group=relation.name,
                    seed=1000 + number,
                    truth=Truth(tuple(group), truth),
                )
            )
    _render(drawings)
    rows = [{"file_name": case.truth.picture.name, "text": case.text, "case": case.id} for case in cases if case.truth]
    write_jsonl(folder / "truth" / "metadata.jsonl", rows)
    return tuple(cases)


def _file(folder: Path, name: str, scene: Scene) -> Path:
    facts = [
        [one.to_json() for one in scene.individuals],
        scene.background,
        [round(float(v), 4) for v in scene.keypoints().ravel()],
    ]
    return folder / f"{name}-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:8]}.png"


def _render(drawings: dict[Path, Scene]) -> None:
    waiting = [path for path in drawings if not path.is_file()]
    if not waiting:
        return
    # Scenes with as many figures as each other are drawn together.
    waiting.sort(key=lambda path: len(drawings[path].figures))
    with progress(len(waiting), "drawing the benchmark", unit="picture") as bar:
        for count in sorted({len(drawings[path].figures) for path in waiting}):
            same = [path for path in waiting if len(drawings[path].figures) == count]
            for first in range(0, len(same), _BATCH):
                batch = same[first : first + _BATCH]
                for path, image in zip(batch, pictures([drawings[p] for p in batch], SIZE), strict=True):
                    write_png(path, image)
                bar.update(len(batch))


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
        coat: share of the individuals whose main colour is right.
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
    coat: float
    missing: tuple[bool, ...]
    duplicate: bool
    swapped: bool | None
    boxes: tuple[Box | None, ...]


@dataclass
class Judge:
    """Asks an oracle about pictures of cases; relations that it does not know it learns first."""

    oracle: Oracle
    _limits: dict[str, float] = field(default_factory=dict, repr=False)
    _taught: dict[str, Oracle] = field(default_factory=dict, repr=False)  # what judges each relation

    def __call__(self, images: Sequence[Image.Image], cases: Sequence[Case], relation: Relation) -> list[Verdict]:
        """Verdicts on as many pictures as cases, all of one relation."""
        if relation.name not in self._taught:
            known = relation.name in self.oracle.relations
            self._taught[relation.name] = self.oracle if known else extend(self.oracle, relation)
        oracle = self._taught[relation.name]
        reading = oracle.read(list(images)).map(lambda tensor: tensor.cpu())
        groups = [case.truth.individuals for case in cases if case.truth]
        score = scoring.relation_score(reading, relation, groups)
        if relation.name not in self._limits:
            self._limits[relation.name] = scoring.contact_limit(relation, oracle)
        identified = _identified(reading, score.slots, cases, groups)
        column = reading.relations.index(relation.name)
        return [
            Verdict(
                relation=bool(score.relation[k]),
                probability=float(reading.relation[k, column].exp()),
                direction=None if relation.symmetric else bool(score.direction[k]),
                contact=_number(score.contact[k]),
                touching=_touching(_number(score.contact[k]), self._limits[relation.name]),
                identity=float(identified[k].mean()),
                coat=float(score.coat[k].float().mean()),
                **_bodies(reading, k, groups[k], score.slots[k]),
            )
            for k in range(len(cases))
        ]


def _number(value: torch.Tensor) -> float | None:
    return None if bool(value.isnan()) else float(value)


def _touching(contact: float | None, limit: float) -> bool | None:
    return None if contact is None else contact <= limit


def _identified(
    reading: Reading, slots: torch.Tensor, cases: Sequence[Case], groups: Sequence[Sequence[Individual]]
) -> np.ndarray:
    """bool (n, 2): individual k is preferred to 15 others of the held-out ones, where it stands."""
    found = []
    for role in range(ROLES):
        rows, places = zip(
            *(_candidates(case, group[role], role) for case, group in zip(cases, groups, strict=True)), strict=True
        )
        found.append(scoring.identify(reading, slots[:, role], list(rows)) == torch.tensor(places))
    return torch.stack(found, dim=1).float().numpy()


def _candidates(case: Case, own: Individual, role: int) -> tuple[list[Individual], int]:
    """Individuals of different looks, one of them the case's own, and its place, which is drawn too."""
    rng = np.random.default_rng((_STREAM, zlib.crc32(case.id.encode()), role))
    others: dict[tuple[int, ...], Individual] = {}
    while len(others) < CANDIDATES - 1:
        one = draw_individual(rng, held_out=True)
        if look(one) != look(own):
            others.setdefault(look(one), one)
    place, listed = int(rng.integers(CANDIDATES)), list(others.values())
    return [*listed[:place], own, *listed[place:]], place


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
