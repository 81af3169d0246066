"""The data of pretraining: drawn scenes and portraits, rendered once and kept as memory-mapped arrays.

A shard is a folder of .npy files, sealed by their hashes. What is in it is a function of (seed, its kind and number)
alone, so processes share the work without a word, and a killed run goes on with the shards that are missing.
"""

from __future__ import annotations

import io
import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from rbctl import kept
from rbctl.errors import InputError
from rbctl.files import read_json, read_jsonl, write_bytes, write_json, write_jsonl
from rbctl.menagerie import (
    BACKGROUNDS,
    COATS,
    PATTERNS,
    SPECIES,
    Individual,
    Scene,
    compose,
    draw_individual,
    portrait,
    render,
)
from rbctl.menagerie.drawing import paint
from rbctl.plugins.pretrain.config import PretrainConfig
from rbctl.plugins.pretrain.loop import rank, world_size
from rbctl.progress import progress
from rbctl.relations import load_relation

SIZE = 128  # side of a picture in pixels
MASK_SIZE = 32
_STREAMS = {"pool": 0, "easy": 1, "all": 2, "portraits": 3, "held_out": 4}
_HELD_OUT_SCENES = 256


class Rows:
    """One field of all shards, read as one array: ``rows[17]``, ``rows[[3, 5]]``, ``rows[2:9]``, ``rows.all()``."""

    def __init__(self, shards: Sequence[np.ndarray]) -> None:
        self._shards = shards
        self._starts = np.cumsum([0, *(len(shard) for shard in shards)])
        self.shape = (int(self._starts[-1]), *shards[0].shape[1:])
        self.dtype = shards[0].dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int | slice | Sequence[int] | np.ndarray) -> np.ndarray:
        if isinstance(index, slice):
            index = np.arange(*index.indices(len(self)))
        numbers = np.asarray(index)
        flat = np.atleast_1d(numbers).reshape(-1) % len(self)  # -1 is the last
        shards = np.searchsorted(self._starts, flat, side="right") - 1
        rows = np.empty((len(flat), *self.shape[1:]), self.dtype)
        for at, (shard, number) in enumerate(zip(shards, flat, strict=True)):
            rows[at] = self._shards[shard][number - self._starts[shard]]
        return rows[0] if numbers.ndim == 0 else rows.reshape(*numbers.shape, *self.shape[1:])

    def all(self) -> np.ndarray:
        """The whole field in memory."""
        return np.concatenate(self._shards)


@dataclass(frozen=True)
class _Shards:
    folders: tuple[Path, ...]

    def _rows(self, name: str) -> Rows:
        return Rows([np.load(folder / f"{name}.npy", mmap_mode="r") for folder in self.folders])

    @cached_property
    def pictures(self) -> Rows:
        """uint8 (n, 3, 128, 128)."""
        return self._rows("pictures")

    @cached_property
    def boxes(self) -> Rows:
        """float32 (n, [2,] 4) relative xyxy of the whole silhouette."""
        return self._rows("boxes")

    @cached_property
    def keypoints(self) -> Rows:
        """float32 (n, [2,] 17, 3): x, y in [0, 1] and visibility 0, 1, 2."""
        return self._rows("keypoints")

    @cached_property
    def mask32(self) -> Rows:
        """uint8 (n, [2,] 32, 32): share of each cell that shows the individual, times 255."""
        return self._rows("mask32")

    @cached_property
    def individuals(self) -> Rows:
        """int16 (n, [2,] 4): indices of species, coat, second coat and pattern in menagerie's tables."""
        return self._rows("individuals")

    @cached_property
    def person(self) -> Rows:
        """int32 (n, [2]): number in the pool; -1 for held-out individuals."""
        return self._rows("person")

    def __len__(self) -> int:
        return len(self.pictures)


@dataclass(frozen=True)
class Portraits(_Shards):
    """Portrait j of individual k is row k * per_person + j."""

    per_person: int = field(kw_only=True)

    @cached_property
    def people(self) -> int:
        """How many individuals of the pool have all their portraits."""
        return len(self) // self.per_person


@dataclass(frozen=True)
class Scenes(_Shards):
    """Two individuals in one relation, the roles in the order of the individuals."""

    @cached_property
    def relation(self) -> Rows:
        """int16 (n,): index in ``relations`` (easy + held out)."""
        return self._rows("relation")

    @cached_property
    def background(self) -> Rows:
        """int16 (n,): index in menagerie's ``BACKGROUNDS``."""
        return self._rows("background")

    @cached_property
    def portraits(self) -> Rows:
        """uint8 (n, 2, 3, 128, 128): a portrait of each; kind "held_out" alone has them."""
        return self._rows("portraits")

    @cached_property
    def captions(self) -> list[str]:
        return [row["caption"] for folder in self.folders for row in read_jsonl(folder / "captions.jsonl")]


def _folders(folder: Path, kind: str) -> tuple[Path, ...]:
    found = tuple(sorted(path for path in (folder / kind).glob("[0-9]*") if path.is_dir()))
    if not found:
        raise InputError(f"{folder / kind}: no renders yet; make them with 'rbctl pretrain renders'")
    about = read_json(folder / "about.json")
    for path in found:
        try:
            kept.check(path, made_from(about, path))
        except InputError as error:
            raise InputError(f"{error}; 'rbctl pretrain renders' makes it anew") from error
    return found


def made_from(about: Any, shard: Path) -> dict[str, Any]:
    """What a shard's content depends on: the plan that about.json holds, its kind and its number."""
    return {"about": about, "kind": shard.parent.name, "number": shard.name}


def scenes(folder: Path, kind: str) -> Scenes:
    """The scenes that are there: kind "easy", "all" (all relations) or "held_out" (individuals of no training).

    Raises:
        InputError: there are none yet, or one was changed.
    """
    return Scenes(_folders(folder, kind))


def portraits(folder: Path) -> Portraits:
    """The pool's portraits, as many as follow one another from the first.

    Raises:
        InputError: there are none yet, or one was changed.
    """
    there = _folders(folder, "portraits")
    whole = tuple(path for number, path in enumerate(there) if int(path.name) == number)
    if not whole:
        raise InputError(f"{folder / 'portraits'}: the first shard is missing; go on with 'rbctl pretrain renders'")
    return Portraits(whole, per_person=int(read_json(folder / "about.json")["portraits"]))


def relations(folder: Path) -> list[str]:
    """Names of the relations that ``Scenes.relation`` counts, easy ones first."""
    about = read_json(folder / "about.json")
    return [*about["easy"], *about["held_out"]]


def pool(config: PretrainConfig) -> list[Individual]:
    """The individuals of pretraining."""
    return [draw_individual(_rng(config.seed, "pool", number)) for number in range(config.individuals)]


def indices(individual: Individual) -> list[int]:
    """Its row of ``individuals``."""
    coats = list(COATS)
    return [
        SPECIES.index(individual.species),
        coats.index(individual.coat),
        coats.index(individual.second),
        PATTERNS.index(individual.pattern),
    ]


def _rng(seed: int, stream: str, number: int) -> np.random.Generator:
    return np.random.default_rng((seed, _STREAMS[stream], number))


@dataclass(frozen=True)
class _Drawn:
    """What a shard's rows are before they are pictures; ``extra`` scenes are portraits that go with row i // 2."""

    scenes: list[Scene]
    people: list[list[int]]
    relations: list[int]
    extra: list[Scene]


def _draw(config: PretrainConfig, kind: str, numbers: Iterable[int], people: Sequence[Individual]) -> _Drawn:
    every = [*config.easy, *config.held_out]
    names = list(config.easy) if kind == "easy" else every
    loaded = [load_relation(name) for name in names] if kind != "portraits" else []
    drawn = _Drawn([], [], [], [])
    for number in numbers:
        rng = _rng(config.seed, kind, number)
        if kind == "portraits":
            person = number // config.portraits
            drawn.scenes.append(portrait(people[person], rng))
            drawn.people.append([person])
            continue
        relation = loaded[number % len(loaded)]
        if kind == "held_out":
            pair, chosen = [-1, -1], [draw_individual(rng, held_out=True) for _ in range(2)]
            drawn.extra.extend(portrait(individual, rng) for individual in chosen)
        else:
            pair = [int(k) for k in rng.choice(len(people), 2, replace=False)]
            chosen = [people[k] for k in pair]
        drawn.scenes.append(compose(relation, chosen, rng))
        drawn.people.append(pair)
        drawn.relations.append(every.index(relation.name))
    return drawn


def _rendered(drawn: Sequence[Scene], config: PretrainConfig, device: torch.device) -> dict[str, np.ndarray]:
    batch, painter = config.render_batch, _painter(config.compile)
    parts: dict[str, list[torch.Tensor]] = {"pictures": [], "boxes": [], "keypoints": [], "mask32": []}
    for first in range(0, len(drawn), batch):
        with torch.inference_mode():
            rendering = render(drawn[first : first + batch], SIZE, device, painter)
            visible = torch.nn.functional.avg_pool2d(rendering.visible.float(), SIZE // MASK_SIZE)
        parts["pictures"].append(rendering.pictures.cpu())
        parts["boxes"].append(rendering.boxes.float().cpu())
        parts["keypoints"].append(rendering.keypoints.float().cpu())
        parts["mask32"].append((visible * 255).round().to(torch.uint8).cpu())
    return {name: torch.cat(rows).numpy() for name, rows in parts.items()}


@cache
def _painter(compiled: bool) -> Any:
    return torch.compile(paint, dynamic=False) if compiled else paint


def write_shard(
    folder: Path, config: PretrainConfig, kind: str, number: int, people: Sequence[Individual], device: torch.device
) -> None:
    """Draw, render and write shard ``number`` of a kind."""
    numbers = range(number * config.shard, min((number + 1) * config.shard, counts(config)[kind]))
    drawn = _draw(config, kind, numbers, people)
    arrays = _rendered(drawn.scenes, config, device)
    arrays["individuals"] = np.array([[indices(i) for i in scene.individuals] for scene in drawn.scenes], np.int16)
    arrays["person"] = np.array(drawn.people, np.int32)
    if kind == "portraits":  # one individual: no axis for it
        arrays = {name: array if name == "pictures" else array[:, 0] for name, array in arrays.items()}
    else:
        arrays["relation"] = np.array(drawn.relations, np.int16)
        arrays["background"] = np.array([BACKGROUNDS.index(scene.background) for scene in drawn.scenes], np.int16)
    if drawn.extra:
        pictures = _rendered(drawn.extra, config, device)["pictures"]
        arrays["portraits"] = pictures.reshape(-1, 2, *pictures.shape[1:])
    captions = [{"caption": scene.caption} for scene in drawn.scenes]
    place = folder / kind / f"{number:05d}"
    write_arrays(place, arrays, made_from(_about(config), place), captions)


def write_arrays(
    place: Path,
    arrays: Mapping[str, np.ndarray],
    facts: kept.Facts,
    captions: Sequence[Mapping[str, Any]] | None = None,
) -> None:
    """Write a shard: a folder of .npy files that is there whole or not at all.

    Args:
        facts: what it was made from.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name}.") as name:
        staged = Path(name) / place.name
        for field_name, array in arrays.items():
            content = io.BytesIO()
            np.save(content, array)
            write_bytes(staged / f"{field_name}.npy", content.getvalue())
        if captions is not None:
            write_jsonl(staged / "captions.jsonl", [dict(row) for row in captions])
        kept.seal(staged, facts)
        try:
            staged.rename(place)
        except OSError:  # another process was quicker; what it wrote is the same
            if not place.is_dir():
                raise


def fits(place: Path, facts: kept.Facts) -> bool:
    """Whether a shard is there, made from these facts and unchanged since."""
    try:
        kept.check(place, facts)
    except InputError:
        return False
    return True


def missing(place: Path, facts: kept.Facts) -> bool:
    """Whether a shard has to be made; what is there instead of one that fits is removed, with a line."""
    if not place.is_dir():
        return True
    try:
        kept.check(place, facts)
    except InputError as error:
        click.echo(f"{error}; made anew", err=True)
        if place.is_symlink():
            place.unlink()
        else:
            shutil.rmtree(place, ignore_errors=True)
        return True
    return False


def counts(config: PretrainConfig) -> dict[str, int]:
    """How many rows of each kind there shall be; the kinds in the order they are rendered."""
    return {
        "held_out": min(_HELD_OUT_SCENES, config.all_scenes),
        "portraits": config.individuals * config.portraits,
        "easy": config.easy_scenes,
        "all": config.all_scenes,
    }


def run(config: PretrainConfig, device: torch.device) -> str:
    """Render what is missing.

    Raises:
        InputError: the folder holds renders of another plan.
    """
    folder = config.work / "renders"
    mine = rank() if config.render_rank is None else config.render_rank
    world = world_size() if config.render_world is None else config.render_world
    about = _about(config)
    if (folder / "about.json").is_file():
        if read_json(folder / "about.json") != about:
            raise InputError(f"{folder}: holds renders of other relations, individuals or seed; choose another --work")
    else:
        write_json(folder / "about.json", about)
    # Kinds in turn, by their share of the whole: a training that starts early finds some of each.
    shards = [
        ((number + 1) * config.shard / count, kind, number)
        for kind, count in counts(config).items()
        for number in range(-(-count // config.shard))
    ]
    wanted = [(kind, number) for _, kind, number in sorted(shards)][mine::world]
    places = [folder / kind / f"{number:05d}" for kind, number in wanted]
    wanted = [shard for shard, place in zip(wanted, places, strict=True) if missing(place, made_from(about, place))]
    people = pool(config)
    with progress(len(wanted), "rendering", unit="shard") as bar:
        for kind, number in wanted:
            write_shard(folder, config, kind, number, people, device)
            bar.update()
    return str(folder)


def _about(config: PretrainConfig) -> dict[str, Any]:
    names = ("seed", "easy", "held_out", "individuals", "portraits", "shard")
    about = {name: getattr(config, name) for name in names}
    return json.loads(json.dumps(about))  # tuples become lists, as they will be read
