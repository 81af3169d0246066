"""The data of pretraining as parts read it: shards of drawn scenes and portraits, memory-mapped.

A shard is a folder of .npy files, sealed by their hashes; :mod:`rbctl.plugins.pretrain.rendering` makes them.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from rbctl import kept
from rbctl.errors import InputError
from rbctl.files import read_json, read_jsonl, sha256, staging, write_bytes, write_jsonl
from rbctl.processes import world
from rbctl.progress import progress

SIZE = 128  # side of a picture in pixels
NOBODY = -1  # in the place of an individual that a scene lacks
ABOUT = "about.json"


class Rows:
    """One field of all shards, read as one array: ``rows[17]``, ``rows[[3, 5]]``, ``rows[2:9]``, ``rows.all()``."""

    def __init__(self, shards: Sequence[np.ndarray]) -> None:
        self._shards = shards
        self._starts = np.cumsum([0, *(len(shard) for shard in shards)])
        self.shape = (int(self._starts[-1]), *shards[0].shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int | slice | Sequence[int] | np.ndarray) -> np.ndarray:
        if isinstance(index, slice):
            index = np.arange(*index.indices(len(self)))
        numbers = np.asarray(index)
        flat = numbers.reshape(-1) % len(self)  # -1 is the last
        shards = np.searchsorted(self._starts, flat, side="right") - 1
        rows = np.empty((len(flat), *self.shape[1:]), self._shards[0].dtype)
        for at, (shard, number) in enumerate(zip(shards, flat, strict=True)):
            rows[at] = self._shards[shard][number - self._starts[shard]]
        return rows.reshape((*numbers.shape, *self.shape[1:]))

    def all(self) -> np.ndarray:
        """The whole field in memory."""
        return np.concatenate(self._shards)


def rows(folders: Sequence[Path], name: str) -> Rows:
    """A field of shards."""
    return Rows([np.load(folder / f"{name}.npy", mmap_mode="r") for folder in folders])


def _field(name: str) -> cached_property[Rows]:
    return cached_property(lambda shards: rows(shards.folders, name))


@dataclass(frozen=True)
class Shards:
    """What scenes and portraits have in common; portraits have no axis over individuals."""

    folders: tuple[Path, ...]

    pictures = _field("pictures")  # uint8 (n, 3, 128, 128)
    boxes = _field("boxes")  # float32 (n, [3,] 4), relative xyxy of the whole silhouette
    keypoints = _field("keypoints")  # float32 (n, [3,] 17, 3): x, y in [0, 1] and visibility 0, 1, 2
    mask32 = _field("mask32")  # uint8 (n, [3,] 32, 32): share of each cell that shows the individual, times 255
    individuals = _field("individuals")  # int16 (n, [3,] 4): indices of species, coat, second coat and pattern
    person = _field("person")  # int32 (n, [3]): number in the pool; NOBODY for held-out individuals

    def __len__(self) -> int:
        return len(self.pictures)


@dataclass(frozen=True)
class Portraits(Shards):
    """Portrait j of individual k is row k * per_person + j."""

    per_person: int = field(kw_only=True)

    @property
    def people(self) -> int:
        """How many individuals of the pool have all their portraits."""
        return len(self) // self.per_person


@dataclass(frozen=True)
class Scenes(Shards):
    """One to three individuals in one relation, in the order of its roles.

    Of those that a scene lacks, boxes, masks and keypoints are zeros; looks and persons are ``NOBODY``.
    """

    relation = _field("relation")  # int16 (n,): index in ``relations`` (easy + held out); ``UNKNOWN`` after a fault
    background = _field("background")  # int16 (n,): index in menagerie's ``BACKGROUNDS``
    portraits = _field("portraits")  # uint8 (n, 3, 3, 128, 128), one of each individual; of kind "held_out" alone

    @cached_property
    def counts(self) -> np.ndarray:
        """(n,) how many individuals each scene has."""
        return (self.individuals.all()[..., 0] != NOBODY).sum(1)

    @cached_property
    def captions(self) -> list[str]:
        return [row["caption"] for folder in self.folders for row in read_jsonl(folder / "captions.jsonl")]


def scenes(folder: Path, *kinds: str) -> Scenes:
    """The scenes that are there, of one kind or several.

    Args:
        kinds: "easy", "all" (all relations), "faults" (all relations, spoilt by
            :mod:`rbctl.menagerie.faults`) or "held_out" (individuals of no training).

    Raises:
        InputError: there are none yet, or one was changed.
    """
    return Scenes(tuple(shard for kind in kinds for shard in _folders(folder, kind)))


def portraits(folder: Path) -> Portraits:
    """The pool's portraits, as many as follow one another from the first.

    Raises:
        InputError: there are none yet, or one was changed.
    """
    whole = tuple(path for number, path in enumerate(_folders(folder, "portraits")) if int(path.name) == number)
    if not whole:
        raise InputError(f"{folder / 'portraits'}: the first shard is missing; go on with 'rbctl pretrain renders'")
    return Portraits(whole, per_person=int(read_json(folder / ABOUT)["portraits"]))


def _folders(folder: Path, kind: str) -> tuple[Path, ...]:
    shards = tuple(sorted(path for path in (folder / kind).glob("[0-9]*") if path.is_dir()))
    if not shards:
        raise InputError(f"{folder / kind}: no renders yet; make them with 'rbctl pretrain renders'")
    about = read_json(folder / ABOUT)
    for shard in shards:
        try:
            kept.check(shard, made_from(about, shard))
        except InputError as error:
            raise InputError(f"{error}; 'rbctl pretrain renders' makes it again") from error
    return shards


def usable(scenes: Scenes, portraits: Portraits, folder: Path, most: int) -> np.ndarray:
    """Rows of the scenes of at most so many individuals, all of whom have their portraits.

    Args:
        folder: of the renders, for the error.

    Raises:
        InputError: there is none yet.
    """
    rows = np.flatnonzero((scenes.person.all() < portraits.people).all(1) & (scenes.counts <= most))
    if not len(rows):
        raise InputError(f"{folder}: no scene has all portraits yet; go on with 'rbctl pretrain renders'")
    return rows


def relations(folder: Path) -> list[str]:
    """Names of the relations that ``Scenes.relation`` counts, easy ones first."""
    about = read_json(folder / ABOUT)
    return [*about["easy"], *about["held_out"]]


def pixels(pictures: np.ndarray, device: torch.device | None = None) -> torch.Tensor:
    """Pictures (uint8) as float in [-1, 1]."""
    return torch.from_numpy(pictures).to(device).float() / 127.5 - 1


def lots(count: int, size: int = 32) -> list[slice]:
    """So many rows, ``size`` at a time."""
    return [slice(first, min(first + size, count)) for first in range(0, count, size)]


def made_from(about: Any, shard: Path) -> dict[str, Any]:
    """What a shard's content depends on: the plan that about.json holds, its kind and its number."""
    return {"about": about, "kind": shard.parent.name, "number": shard.name}


def write_shard(
    place: Path, arrays: Mapping[str, np.ndarray], facts: kept.Facts, captions: Sequence[str] | None = None
) -> None:
    """Write a shard, which is there whole or not at all.

    Args:
        facts: what it was made from.
    """
    with staging(place.parent) as folder:
        staged = folder / place.name
        for field_name, array in arrays.items():
            content = io.BytesIO()
            np.save(content, array)
            write_bytes(staged / f"{field_name}.npy", content.getvalue())
        if captions is not None:
            write_jsonl(staged / "captions.jsonl", [{"caption": caption} for caption in captions])
        kept.seal(staged, facts)
        try:
            staged.rename(place)
        except OSError:  # another process was quicker; what it wrote is the same
            if not place.is_dir():
                raise


def make_room(place: Path, facts: kept.Facts) -> bool:
    """Whether a shard has to be made; what is there instead of one that fits is removed, with a line."""
    try:
        kept.check(place, facts)
        return False
    except InputError as error:
        if place.is_dir():
            click.echo(f"{error}; made again", err=True)
            if place.is_symlink():
                place.unlink()
            else:
                shutil.rmtree(place, ignore_errors=True)
        return True


def encoded(
    folder: Path, shards: Shards, encode: Callable[[np.ndarray], dict[str, torch.Tensor]], label: str
) -> dict[str, Rows]:
    """What ``encode`` makes of the pictures of each shard, computed once; processes share the shards.

    Args:
        folder: named by what encodes.
    """
    here = world()
    places = {shard: folder / shard.name for shard in shards.folders}
    facts = {shard: {"by": folder.name, "shard": sha256(shard / kept.SEAL)} for shard in places}
    mine = list(places)[here.rank :: here.size]
    missing = [shard for shard in mine if make_room(places[shard], facts[shard])]
    with progress(len(missing), label, unit="shard") as bar:
        for shard in missing:
            pictures = rows([shard], "pictures")
            parts = [encode(pictures[lot]) for lot in lots(len(pictures))]
            arrays = {name: torch.cat([part[name] for part in parts]).half().cpu().numpy() for name in parts[0]}
            write_shard(places[shard], arrays, facts[shard])
            bar.update()
    here.wait()
    names = sorted(path.stem for path in next(iter(places.values())).glob("*.npy"))
    return {name: rows(list(places.values()), name) for name in names}
