"""Where pictures come from: a folder, COCO, or WebDataset shards; and in which order they are seen.

A picture that cannot be read is replaced by the next one of the order, and its name is told.
"""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
import os
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image

from rbctl.draws import generator
from rbctl.errors import InputError, reason
from rbctl.files import read_image, read_json
from rbctl.images import SUFFIXES, list_pictures
from rbctl.paths import inside
from rbctl.plugins.distill.grid import Box
from rbctl.shards import refuse_address, samples

_COCO_LIMIT = 600 << 20  # bytes; instances_train2017.json has 470 million
_IN_A_ROW = 100  # unreadable pictures, after which nothing in the data can be one


@dataclass(frozen=True)
class Sample:
    """A picture of the order, and those before it that could not be read: their names and why."""

    name: str
    image: Image.Image
    unreadable: tuple[tuple[str, str], ...] = ()


class Order(Protocol):
    """Which picture is sample ``number``."""

    @property
    def count(self) -> int | None:
        """Pictures of an epoch; None where nobody counted them."""

    def at(self, number: int) -> Sample: ...

    def fingerprint(self) -> str: ...


@dataclass(frozen=True)
class Regions:
    """Boxes of a picture, relative, and the number of each one's label."""

    boxes: tuple[Box, ...] = ()
    labels: tuple[int, ...] = ()


@dataclass(frozen=True)
class Pictures:
    """Pictures on a disk.

    Attributes:
        files: relative to ``folder``.
        regions: by file, where the data has boxes and labels; ``label_names`` are their words.
    """

    folder: Path
    files: tuple[str, ...]
    regions: Mapping[str, Regions] = field(default_factory=dict)
    label_names: tuple[str, ...] = ()

    def read(self, index: int) -> Image.Image:
        """Picture ``index``.

        Raises:
            InputError: it cannot be read.
        """
        return read_image(self.folder / self.files[index])

    def fingerprint(self) -> str:
        """Tells data apart by the pictures' names."""
        return hashlib.sha256("\n".join(self.files).encode()).hexdigest()


def find_pictures(folder: Path, annotations: Path | None = None, follow_outside: bool = False) -> Pictures:
    """All pictures below a folder, or those that a COCO json names.

    Args:
        follow_outside: also those outside of the folder, that the json or symbolic links name.

    Raises:
        InputError: there is no folder or no picture, the json is not COCO's, or a name or link leaves the folder.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of pictures")
    if annotations is not None:
        return _coco(folder, annotations, follow_outside)
    files = sorted(str(path.relative_to(folder)) for path in list_pictures(folder, below=True))
    for name in files:
        if (folder / name).is_symlink():
            inside(folder, name, str(folder), follow_outside)
    if not files:
        raise InputError(f"{folder}: no pictures in it ({', '.join(SUFFIXES)})")
    return Pictures(folder, tuple(files))


def _coco(folder: Path, annotations: Path, follow_outside: bool) -> Pictures:
    content = read_json(annotations, _COCO_LIMIT)
    try:
        categories = {category["id"]: number for number, category in enumerate(content.get("categories", ()))}
        names = tuple(str(category["name"]) for category in content.get("categories", ()))
        pictures = {picture["file_name"]: picture for picture in content["images"]}
        boxes: dict[Any, list[Any]] = defaultdict(list)
        for annotation in content.get("annotations", ()):
            boxes[annotation["image_id"]].append(annotation)
        regions = {name: _regions(picture, boxes[picture["id"]], categories) for name, picture in pictures.items()}
        for name in pictures:
            inside(folder, name, f"{annotations}: images: file_name", follow_outside)
    except (KeyError, TypeError, AttributeError, ValueError, ZeroDivisionError, OverflowError) as error:
        raise InputError(f"{annotations}: not a COCO json of pictures and boxes ({reason(error)})") from error
    if not pictures:
        raise InputError(f"{annotations}: names no pictures")
    first = min(pictures)
    if not (folder / first).is_file():
        raise InputError(f"{annotations}: names {first!r}, which is not in {folder}")
    return Pictures(folder, tuple(sorted(pictures)), regions, names)


def _regions(picture: Mapping[str, Any], annotations: Any, categories: Mapping[int, int]) -> Regions:
    width, height = picture["width"], picture["height"]
    boxes, labels = [], []
    for annotation in annotations:
        if "bbox" not in annotation or annotation.get("iscrowd"):
            continue
        x, y, w, h = annotation["bbox"]
        x0, y0, x1, y1 = x / width, y / height, (x + w) / width, (y + h) / height
        box = max(x0, 0.0), max(y0, 0.0), min(x1, 1.0), min(y1, 1.0)
        if w >= 1 and h >= 1 and box[0] < box[2] and box[1] < box[3]:
            boxes.append(box)
            labels.append(categories[annotation["category_id"]])
    return Regions(tuple(boxes), tuple(labels))


def split(pictures: Pictures, held_out: int, seed: int) -> tuple[list[int], list[int]]:
    """Indices to train on and to evaluate on, drawn by the seed.

    Raises:
        InputError: too few pictures for both.
    """
    count = len(pictures.files)
    if count <= held_out:
        raise InputError(
            f"{pictures.folder}: {count} pictures, of which --held-out {held_out} leaves none to train on; lower it"
        )
    order = permutation(seed, "held-out", 0, count).tolist()
    return sorted(order[held_out:]), sorted(order[:held_out])


@functools.lru_cache(maxsize=2)  # of an epoch and the next
def permutation(seed: int, key: str, epoch: int, count: int) -> torch.Tensor:
    """A random order of ``count`` items in an epoch."""
    return torch.randperm(count, generator=generator(seed, key, epoch))


def _first_readable(candidates: Iterable[tuple[str, Callable[[], Image.Image]]]) -> Sample:
    """The first of a hundred pictures in a row that can be read.

    Raises:
        InputError: none of them can.
    """
    unreadable: list[tuple[str, str]] = []
    for name, read in itertools.islice(candidates, _IN_A_ROW):
        try:
            return Sample(name, read(), tuple(unreadable))
        except InputError as error:
            unreadable.append((name, str(error)))
    raise InputError(f"{len(unreadable)} pictures in a row cannot be read, the first: {unreadable[0][1]}")


@dataclass
class FolderOrder:
    """Every epoch a new permutation of the pictures."""

    pictures: Pictures
    indices: list[int]
    seed: int

    @property
    def count(self) -> int:
        return len(self.indices)

    def at(self, number: int) -> Sample:
        """Sample ``number``.

        Raises:
            InputError: a hundred pictures in a row cannot be read, or none at all.
        """
        indices = map(self._index, range(number, number + self.count))
        return _first_readable((self.pictures.files[i], functools.partial(self.pictures.read, i)) for i in indices)

    def _index(self, number: int) -> int:
        epoch, position = divmod(number, self.count)
        return self.indices[int(permutation(self.seed, "order", epoch, self.count)[position])]

    def fingerprint(self) -> str:
        return self.pictures.fingerprint()


def find_shards(data: str) -> list[str] | None:
    """The shards that ``--data`` names, or None where it names a folder of pictures.

    Raises:
        InputError: a pattern that names no shard.
    """
    folder = Path(data)
    if folder.is_dir():
        return sorted(str(path) for path in folder.glob("*.tar")) or None
    if ".tar" not in data:
        return None
    refuse_address(data, f"--data {data}")
    try:
        from braceexpand import braceexpand
    except ImportError as error:
        raise InputError("--data: shards need braceexpand; pip install 'rbctl[distill]'") from error
    try:
        shards = list(braceexpand(data))
    except ValueError as error:
        raise InputError(f"--data {data}: {reason(error)}") from error
    for shard in shards:
        if not os.path.isfile(shard):
            raise InputError(f"--data: no such shard {shard}")
    if not shards:
        raise InputError(f"--data {data}: names no shard")
    return shards


@dataclass
class ShardOrder:
    """Shards, dealt anew to a fixed number of streams at every epoch; sample n is in stream n % streams.

    Within a shard the order is the shard's own. A stream is read forwards only, in the process that asks: what lies
    between two samples asked for is passed over undecoded, and so is what a run taken up again has seen already.
    """

    shards: list[str]
    seed: int
    streams: int
    _open: dict[int, _Stream] = field(default_factory=dict, repr=False)

    @property
    def count(self) -> None:
        return None

    def at(self, number: int) -> Sample:
        """Sample ``number``; of one stream, never one before the last.

        Raises:
            InputError: a shard cannot be read, or a hundred pictures in a row cannot.
        """
        stream, position = number % self.streams, number // self.streams
        if stream not in self._open or self._open[stream].position > position:
            self._open[stream] = _Stream(self._samples(stream))
        self._open[stream].advance(position)
        ahead = map(self._open[stream].peek, itertools.count())
        return _first_readable(
            (name, functools.partial(read_image, io.BytesIO(content), where=name)) for name, content in ahead
        )

    def _samples(self, stream: int) -> Iterator[tuple[str, bytes]]:
        """Name and bytes of every picture of a stream, epoch after epoch."""
        epoch = 0
        while True:
            dealt = permutation(self.seed, "shards", epoch, len(self.shards))[stream :: self.streams].tolist()
            empty = True
            for shard in (self.shards[index] for index in dealt):
                for key, parts in samples(Path(shard)):
                    for suffix, content in parts.items():
                        if f".{suffix}" in SUFFIXES:
                            empty = False
                            yield f"{shard}/{key}.{suffix}", content
            if empty:
                raise InputError(f"{self.shards[dealt[0]]}: no pictures in the shards of its stream")
            epoch += 1

    def fingerprint(self) -> str:
        names = [os.path.basename(shard) for shard in self.shards]
        return hashlib.sha256("\n".join([*names, str(self.streams)]).encode()).hexdigest()


class _Stream:
    """A stream's samples from a position on; those looked at ahead are kept until their turn comes."""

    def __init__(self, samples: Iterator[tuple[str, bytes]]) -> None:
        self.samples, self.position, self.ahead = samples, 0, deque[tuple[str, bytes]]()

    def advance(self, position: int) -> None:
        while self.position < position:
            if self.ahead:
                self.ahead.popleft()
            else:
                next(self.samples)
            self.position += 1

    def peek(self, further: int) -> tuple[str, bytes]:
        while len(self.ahead) <= further:
            self.ahead.append(next(self.samples))
        return self.ahead[further]


def shard_order(shards: list[str], seed: int, batch_size: int) -> ShardOrder:
    """As many streams as pictures in a batch, or the next smaller divisor of it that the shards suffice for."""
    streams = max(n for n in range(1, batch_size + 1) if batch_size % n == 0 and n <= len(shards))
    return ShardOrder(shards, seed, streams)
