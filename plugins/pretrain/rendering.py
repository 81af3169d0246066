"""Parts ``renders`` and ``pictures``: scenes and portraits are drawn as shards, and some of them written as PNG files.

What is in a shard is a function of (seed, its kind and number) alone, so processes share the work without a word, and a
killed run goes on with the shards that are missing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from rbctl.errors import InputError
from rbctl.files import read_json, write_json, write_png
from rbctl.menagerie import BACKGROUNDS, Individual, Scene, compose, draw_individual, portrait, render
from rbctl.menagerie.drawing import paint
from rbctl.menagerie.faults import deserted, left_out, merged, parted, twice
from rbctl.menagerie.oracle import ATTRIBUTES, MASK_SIZE, look
from rbctl.menagerie.oracle_training import UNKNOWN
from rbctl.plugins.pretrain import renders
from rbctl.plugins.pretrain.config import MOST, PretrainConfig
from rbctl.plugins.pretrain.renders import ABOUT, NOBODY, SIZE
from rbctl.processes import world
from rbctl.progress import progress
from rbctl.relations import Relation, load_relation

_STREAMS = {"pool": 0, "easy": 1, "all": 2, "portraits": 3, "held_out": 4, "faults": 5}
_HELD_OUT_SCENES = 256
_FAULTY = 3  # scenes of all relations for each one with a fault
_GOLDEN = (5**0.5 - 1) / 2
_PNGS = 4096  # at most so many portraits, and so many scenes


def write_renders(config: PretrainConfig, device: torch.device) -> str:
    """Part ``renders``: render the shards that are missing.

    Raises:
        InputError: the folder holds renders of another plan.
    """
    folder = config.work / "renders"
    rank = world().rank if config.render_rank is None else config.render_rank
    size = world().size if config.render_world is None else config.render_world
    about = _about(config)
    if world().first and not (folder / ABOUT).is_file():
        write_json(folder / ABOUT, about)
    world().wait()
    if read_json(folder / ABOUT) != about:
        raise InputError(f"{folder}: holds renders of other relations, individuals or seed; choose another --work")
    # Kinds in turn, by their share of the whole: a training that starts early finds some of each.
    shards = sorted(
        ((number + 1) * config.shard / count, kind, number)
        for kind, count in _counts(config).items()
        for number in range(-(-count // config.shard))
    )
    places = [folder / kind / f"{number:05d}" for _, kind, number in shards[rank::size]]
    places = [place for place in places if renders.make_room(place, renders.made_from(about, place))]
    people = pool(config)
    with progress(len(places), "rendering", unit="shard") as bar:
        for place in places:
            _write_shard(place, config, people, device)
            bar.update()
    return str(folder)


def write_pngs(config: PretrainConfig) -> str:
    """Part ``pictures``: portraits and scenes for ``rbctl distill --data``, evenly taken; those that are missing.

    Raises:
        InputError: there are no renders yet.
    """
    folder, source = config.work / "pictures", config.work / "renders"
    for kind, shards in (("portrait", renders.portraits(source)), ("scene", renders.scenes(source, "all"))):
        taken = np.unique(np.linspace(0, len(shards) - 1, _PNGS).astype(int)).tolist()
        missing = {row: path for row in taken if not (path := folder / f"{kind}-{row:05d}.png").is_file()}
        with progress(len(missing), f"{kind}s as PNG", unit="picture") as bar:
            for row, path in missing.items():
                write_png(path, Image.fromarray(shards.pictures[row].transpose(1, 2, 0)))
                bar.update()
    return str(folder)


def pool(config: PretrainConfig) -> list[Individual]:
    """The individuals of pretraining."""
    return [draw_individual(_rng(config.seed, "pool", number)) for number in range(config.individuals)]


def _relations(names: Sequence[str]) -> list[Relation]:
    """Relations by name.

    Raises:
        InputError: one has more roles than a scene of pretraining has individuals.
    """
    relations = [load_relation(name) for name in names]
    for relation in relations:
        if len(relation.roles) > MOST:
            raise InputError(f"relation {relation.name!r}: {len(relation.roles)} roles; {MOST} at most are taught")
    return relations


def _about(config: PretrainConfig) -> dict[str, Any]:
    names = ("seed", "easy", "held_out", "shares", "individuals", "portraits", "shard")
    return json.loads(json.dumps({name: getattr(config, name) for name in names}))  # tuples become lists, as in a file


def _counts(config: PretrainConfig) -> dict[str, int]:
    """How many rows of each kind there shall be; the kinds in the order they are rendered."""
    return {
        "held_out": min(_HELD_OUT_SCENES, config.all_scenes),
        "portraits": config.individuals * config.portraits,
        "easy": config.easy_scenes,
        "all": config.all_scenes,
        "faults": -(-config.all_scenes // _FAULTY),
    }


def _rng(seed: int, stream: str, number: int) -> np.random.Generator:
    return np.random.default_rng((seed, _STREAMS[stream], number))


class _Row(NamedTuple):
    """What a row of a shard is before it is a picture; in scenes of held-out individuals with their portraits."""

    scene: Scene
    people: list[int]
    relation: str | None = None
    portraits: Sequence[Scene] = ()
    merged: bool = False  # the first two are one body


def _draw(
    config: PretrainConfig, kind: str, number: int, people: Sequence[Individual], relations: Sequence[Relation]
) -> _Row:
    rng = _rng(config.seed, kind, number)
    if kind == "portraits":
        person = number // config.portraits
        return _Row(portrait(people[person], rng), [person])
    relation = scene_relation(number, relations, config.shares)
    count = len(relation.roles)
    if kind == "held_out":
        individuals = [draw_individual(rng, held_out=True) for _ in range(count)]
        portraits = [portrait(individual, rng) for individual in individuals]
        return _Row(compose(relation, individuals, rng), [-1] * count, relation.name, portraits)
    group = rng.choice(len(people), count, replace=False).tolist()
    scene = compose(relation, [people[k] for k in group], rng)
    return _faulty(scene, group, rng) if kind == "faults" else _Row(scene, group, relation.name)


def _faulty(scene: Scene, people: list[int], rng: np.random.Generator) -> _Row:
    """The scene with a fault, and the relation where it still holds."""
    count = len(people)
    faults = ["deserted"] + ["twice"] * (count < MOST) + ["merged", "left_out", "parted"] * (count > 1)
    fault, who = rng.choice(faults), int(rng.integers(count))
    if fault == "twice":
        return _Row(twice(scene, who), [*people, people[who]], scene.relation)
    if fault == "left_out":
        return _Row(left_out(scene, who), people[:who] + people[who + 1 :])
    change = {"deserted": deserted, "merged": merged, "parted": parted}[fault]
    return _Row(change(scene), people, merged=fault == "merged")


def scene_relation(number: int, relations: Sequence[Relation], shares: Sequence[float]) -> Relation:
    """The relation of a scene: multiples of the golden ratio visit each as often as its share says, evenly."""
    counts = [len(relation.roles) for relation in relations]
    weights = np.array([shares[count - 1] / counts.count(count) for count in counts])
    ends = np.cumsum(weights) / weights.sum()
    return relations[int(np.searchsorted(ends, (number + 0.5) * _GOLDEN % 1, side="right"))]


def _rendered(
    scenes: Sequence[Scene], config: PretrainConfig, device: torch.device, most: int = 1
) -> dict[str, np.ndarray]:
    """Fields of scenes of one to ``most`` individuals; those that a scene lacks are zeros."""
    made: dict[str, np.ndarray] = {}
    for count in range(1, most + 1):  # as many individuals as each other are drawn together
        rows = [row for row, scene in enumerate(scenes) if len(scene.individuals) == count]
        for first in range(0, len(rows), config.render_batch):
            lot = rows[first : first + config.render_batch]
            # A compiled painter is of one size: a short lot is filled up with its first scene.
            filled = [*lot, *lot[:1] * (config.render_batch - len(lot))] if config.compile else lot
            with torch.inference_mode():
                drawn = render([scenes[row] for row in filled], SIZE, device, _painter(config.compile))
                visible = torch.nn.functional.avg_pool2d(drawn.visible.float(), SIZE // MASK_SIZE)
            fields = {
                "boxes": drawn.boxes.float(),
                "keypoints": drawn.keypoints.float(),
                "mask32": (visible * 255).round().to(torch.uint8),
            }
            for name, tensor in fields.items():
                array = tensor[: len(lot)].cpu().numpy()
                made.setdefault(name, np.zeros((len(scenes), most, *array.shape[2:]), array.dtype))[lot, :count] = array
            array = drawn.pictures[: len(lot)].cpu().numpy()
            made.setdefault("pictures", np.zeros((len(scenes), *array.shape[1:]), array.dtype))[lot] = array
    return made


def as_one_body(row: dict[str, np.ndarray]) -> None:
    """Change what a row says of its individuals: the first two are one body, which looks like whoever shows more.

    The second one goes behind all others, without look and mask. It keeps its keypoints: its head is there.

    Args:
        row: boxes, keypoints, mask32, individuals and person of R individuals, changed in place.
    """
    masks = row["mask32"]
    if masks[1].sum(dtype=np.int64) > masks[0].sum(dtype=np.int64):
        for name in ("individuals", "person"):
            row[name][0] = row[name][1]
    masks[0] = np.minimum(masks[0].astype(np.int64) + masks[1], 255)
    masks[1], row["individuals"][1], row["person"][1] = 0, NOBODY, NOBODY
    for name in ("boxes", "keypoints", "mask32", "individuals", "person"):
        row[name][1:] = np.roll(row[name][1:], -1, axis=0)


def _filled(rows: Sequence[Sequence[Any]], absent: Any, kind: type[np.integer]) -> np.ndarray:
    """Rows of one to ``MOST`` values as an array (n, ``MOST``, ...), with ``absent`` for what is not there."""
    return np.array([[*row, *[absent] * (MOST - len(row))] for row in rows], kind)


@cache
def _painter(compiled: bool) -> Any:
    return torch.compile(paint, dynamic=False) if compiled else paint


def _write_shard(place: Path, config: PretrainConfig, people: Sequence[Individual], device: torch.device) -> None:
    """Draw, render and write the shard of a kind and number that its path names."""
    kind, first = place.parent.name, int(place.name) * config.shard
    numbers = range(first, min(first + config.shard, _counts(config)[kind]))
    names = [*config.easy, *config.held_out]
    relations = _relations(config.easy if kind == "easy" else names)
    rows = [_draw(config, kind, number, people, relations) for number in numbers]
    scenes = [row.scene for row in rows]
    arrays = _rendered(scenes, config, device, MOST)
    nobody = [NOBODY] * len(ATTRIBUTES)
    arrays["individuals"] = _filled([[look(i) for i in scene.individuals] for scene in scenes], nobody, np.int16)
    arrays["person"] = _filled([row.people for row in rows], NOBODY, np.int32)
    for number, row in enumerate(rows):
        if row.merged:
            as_one_body({name: array[number] for name, array in arrays.items()})
    if kind == "portraits":  # one individual: no axis for it
        arrays = {name: array if name == "pictures" else array[:, 0] for name, array in arrays.items()}
    else:
        numbers_of = {name: number for number, name in enumerate(names)} | {None: UNKNOWN}
        arrays["relation"] = np.array([numbers_of[row.relation] for row in rows], np.int16)
        arrays["background"] = np.array([BACKGROUNDS.index(scene.background) for scene in scenes], np.int16)
    if portraits := [scene for row in rows for scene in row.portraits]:
        pictures = iter(_rendered(portraits, config, device)["pictures"])
        arrays["portraits"] = np.zeros((len(rows), MOST, 3, SIZE, SIZE), np.uint8)
        for number, row in enumerate(rows):
            for role in range(len(row.portraits)):
                arrays["portraits"][number, role] = next(pictures)
    captions = [scene.caption for scene in scenes]
    renders.write_shard(place, arrays, renders.made_from(_about(config), place), captions)
