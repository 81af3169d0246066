"""Features of pictures, parts of pictures and texts, kept on disk by content: nothing is encoded twice."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from rbctl import kept
from rbctl.errors import InputError
from rbctl.files import PARTIAL, read_image, sha256
from rbctl.plugins.eval.case import Part
from rbctl.plugins.eval.encoders import Encoder, as_array
from rbctl.processes import World
from rbctl.progress import progress
from rbctl.relations import Box

_STALE = 600.0  # seconds after which nobody writes a partial file any more: evaluations share the folder
_KEPT_EVERY = 512  # items between two files: what an interrupted run may lose
Item = tuple[Path, Part | None]  # a picture, or a part of it


@dataclass
class Digests:
    """SHA-256 of pictures by path, each taken once."""

    known: dict[Path, str] = field(default_factory=dict)

    def __call__(self, path: Path) -> str:
        if path not in self.known:
            self.known[path] = sha256(path)
        return self.known[path]


@dataclass
class FeatureStore:
    """Features of one encoder.

    Files lie under ``folder`` / the encoder's hash. They are added, and removed only where they are no features of this
    encoder, so that several processes may write there.

    Attributes:
        batch_size: items encoded at once.
        world: the processes that share the encoding.
    """

    folder: Path
    encoder: Encoder
    digests: Digests
    batch_size: int = 16
    world: World = field(default_factory=World)
    _known: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    _read: set[Path] = field(default_factory=set, repr=False)

    def images(self, items: Iterable[Item]) -> list[np.ndarray]:
        """(D,) of every item, in their order.

        Raises:
            InputError: pictures cannot be read; how many is told. What was encoded stays.
        """
        listed = list(items)
        keys = [self._key(item) for item in listed]
        waiting = dict(zip(keys, listed, strict=True))
        self._fill(waiting, self._encode_images)
        return [self._known[key] for key in keys]

    def texts(self, lines: Sequence[str]) -> list[np.ndarray]:
        """(D,) of every text, in their order."""
        keys = ["text:" + hashlib.sha256(line.encode()).hexdigest() for line in lines]
        self._fill(dict(zip(keys, lines, strict=True)), self._encode_texts)
        return [self._known[key] for key in keys]

    def _key(self, item: Item) -> str:
        path, part = item
        if part is None:
            return self.digests(path)
        inside = self.digests(part) if isinstance(part, Path) else ",".join(f"{v:.5f}" for v in part)
        return f"{self.digests(path)}:{inside}"

    @property
    def _place(self) -> Path:
        return self.folder / self.encoder.hash[:20]

    @property
    def _facts(self) -> dict[str, str]:
        return {"encoder": self.encoder.hash}

    def _load(self) -> None:
        for partial in self._place.glob(f".*{PARTIAL}"):
            with contextlib.suppress(OSError):  # another process may have been quicker
                if time.time() - partial.stat().st_mtime > _STALE:
                    partial.unlink()
        for path in sorted(self._place.glob("*.safetensors")):
            if path not in self._read:
                self._read.add(path)
                tensors = kept.load(path, self._facts, self._are_features)
                if tensors is None:
                    path.unlink(missing_ok=True)  # another process may have been quicker
                    continue
                self._known.update({key: tensor.numpy() for key, tensor in tensors.items()})

    def _are_features(self, tensors: dict[str, torch.Tensor]) -> bool:
        """Whether all are (D,) float32, of one D: that of what is known already."""
        plain = all(tensor.ndim == 1 and tensor.dtype == torch.float32 for tensor in tensors.values())
        widths = {len(vector) for vector in self._known.values()} | {tensor.numel() for tensor in tensors.values()}
        return plain and len(widths) == 1

    def _fill(self, wanted: dict[str, Any], encode: Callable[[list[Any]], list[np.ndarray]]) -> None:
        if self._known.keys() >= wanted.keys():
            return
        self._load()
        self.world.wait()  # all see the same files before one of them adds any
        # Parts of all, not of what is missing: a run that was stopped keeps the same files as one that was not.
        if keys := [key for key in self.world.part(sorted(wanted)) if key not in self._known]:
            self._encode(keys, wanted, encode)
        if self.world.size > 1:
            self.world.wait()
            self._load()

    def _encode(self, keys: list[str], wanted: dict[str, Any], encode: Callable[[list[Any]], list[np.ndarray]]) -> None:
        fresh: dict[str, np.ndarray] = {}
        damaged: list[str] = []
        with progress(len(keys), self.encoder.name, unit="item") as bar:
            for first in range(0, len(keys), self.batch_size):
                batch = keys[first : first + self.batch_size]
                items = [wanted[key] for key in batch]
                try:
                    features = encode(items)
                except _Unreadable as error:
                    damaged += error.args[0]
                    continue
                fresh.update(zip(batch, features, strict=True))
                bar.update(len(batch))
                if len(fresh) >= _KEPT_EVERY:
                    self._keep(fresh)
                    fresh = {}
        self._keep(fresh)
        if damaged:
            raise InputError(f"{len(damaged)} pictures cannot be read: {'; '.join(sorted(damaged))}")

    def _keep(self, fresh: dict[str, np.ndarray]) -> None:
        if not fresh:
            return
        if self._known and next(iter(self._known.values())).shape != next(iter(fresh.values())).shape:
            raise InputError(f"{self._place}: holds features of another width; remove the folder")
        self._known.update(fresh)
        name = hashlib.sha256("".join(sorted(fresh)).encode()).hexdigest()[:16]
        path = self._place / f"{name}.safetensors"
        kept.save(path, {key: torch.from_numpy(value.copy()) for key, value in fresh.items()}, self._facts)
        self._read.add(path)

    @torch.no_grad()
    def _encode_images(self, items: list[Item]) -> list[np.ndarray]:
        pictures, damaged = [], []
        for path, part in items:
            try:
                image = read_image(path)
                if isinstance(part, Path):
                    image, part = masked(image, part)
            except InputError as error:
                damaged.append(str(error))
                continue
            pictures.append(self.encoder.prepare(image if part is None else crop(image, part)))
        if damaged:
            raise _Unreadable(damaged)
        return list(as_array(self.encoder.images(torch.stack(pictures).to(self.encoder.device))))

    @torch.no_grad()
    def _encode_texts(self, lines: list[str]) -> list[np.ndarray]:
        assert self.encoder.texts is not None
        return list(as_array(self.encoder.texts(lines)))


class _Unreadable(Exception):
    """Pictures of a batch that cannot be read: their messages."""


def masked(image: Image.Image, path: Path) -> tuple[Image.Image, Box]:
    """The picture, white where a mask is dark, and the box around what is left.

    Raises:
        InputError: the mask cannot be read, is of another size, or dark everywhere.
    """
    mask = read_image(path, "L").point(lambda value: 255 if value > 127 else 0)
    if mask.size != image.size:
        raise InputError(f"{path}: {mask.width} x {mask.height}, its picture {image.width} x {image.height}")
    if (box := mask.getbbox()) is None:
        raise InputError(f"{path}: dark everywhere; leave the place of a missing object empty")
    x0, y0, x1, y1 = box
    width, height = image.size
    white = Image.new("RGB", image.size, "white")
    return Image.composite(image, white, mask), (x0 / width, y0 / height, x1 / width, y1 / height)


def crop(image: Image.Image, box: Box) -> Image.Image:
    """The smallest square that holds a box, moved into the frame (a long box is cut at the frame's shorter side)."""
    x0, y0, x1, y1 = (v * side for v, side in zip(box, (*image.size, *image.size), strict=True))
    side = min(max(x1 - x0, y1 - y0, 1.0), *image.size)
    left = min(max((x0 + x1 - side) / 2, 0.0), image.width - side)
    top = min(max((y0 + y1 - side) / 2, 0.0), image.height - side)
    corner = round(left), round(top)
    length = max(round(side), 1)
    return image.crop((*corner, corner[0] + length, corner[1] + length))
