"""What each step found in each picture, kept in FOLDER/.annotate until its picture, model or settings change.

The folder may come from a stranger, or from a broken disk: what does not fit is dropped, to be made anew.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.lib import format as npy

from rbctl.errors import InputError, reason
from rbctl.files import PARTIAL, atomic_write
from rbctl.plugins.annotate.steps import FIELDS

KEPT = ".annotate"
_SEAL = "seal"  # the field that holds the digest of the others and of what made them
_SMALL = 16 << 20  # bytes that hold any result but masks

Arrays = dict[str, np.ndarray]


def key(*facts: Any) -> str:
    """Names what a result depends on."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:20]


class Store:
    """Results as one file each, written whole or not at all.

    Raises:
        InputError: the place of the results, or of those of a step, is a link.
    """

    def __init__(self, folder: Path) -> None:
        self.root = folder / KEPT
        for place in (self.root, *(self.root / step for step in FIELDS)):
            if place.is_symlink():
                raise InputError(f"{place}: is a link, so nothing is kept there; put a folder in its place")

    def clean(self) -> None:
        """Drop what a kill left half written."""
        for step in FIELDS:
            for left in (self.root / step).glob(f".*{PARTIAL}"):
                left.unlink(missing_ok=True)

    def path(self, step: str, picture: Path, name: str) -> Path:
        return self.root / step / f"{picture.stem}-{name}.npz"

    def save(self, step: str, picture: Path, name: str, arrays: Arrays) -> None:
        """Write one result."""
        arrays = {field: np.asarray(array, order="C") for field, array in arrays.items()}
        with atomic_write(self.path(step, picture, name)) as temporary, temporary.open("wb") as file:
            seal = np.array(_seal(step, name, arrays))
            np.savez_compressed(file, **arrays, **{_SEAL: seal})  # type: ignore[arg-type]

    def load(
        self, step: str, picture: Path, name: str, misfit: Callable[[Arrays], str], more: int = 0
    ) -> Arrays | None:
        """Read one result; None where there is none, or it does not fit (then it is dropped, and that is told).

        Args:
            misfit: says what of the arrays has not the step's form; "" where all has.
            more: bytes that they may take beyond what any but masks takes.
        """
        path = self.path(step, picture, name)
        if not path.is_file():
            return None
        try:
            arrays = _read(path, FIELDS[step], _SMALL + more)
            seal = arrays.pop(_SEAL)
            what = misfit(arrays) if str(seal) == _seal(step, name, arrays) else "changed since, or of something else"
        except Exception as error:  # whatever zip, decompression and NumPy raise on a file that may be anything
            what = reason(error)
        if not what:
            return arrays
        click.echo(f"{path}: not what was kept here ({what}); made anew", err=True)
        path.unlink()
        return None


def _seal(step: str, name: str, arrays: Mapping[str, np.ndarray]) -> str:
    """Digest of arrays and of what made them, which their name stands for."""
    digest = hashlib.sha256(f"{step} {name}".encode())
    for field, array in sorted(arrays.items()):
        digest.update(f"\n{field} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _read(path: Path, fields: Mapping[str, type], limit: int) -> Arrays:
    """The arrays of an .npz, of these types and their seal, read without taking more than some of ``limit`` bytes.

    Raises:
        Exception: of any kind, where the file is damaged or holds something else.
    """
    types = {**fields, _SEAL: np.str_}
    if path.stat().st_size > limit:
        raise ValueError("too large")
    with zipfile.ZipFile(path) as archive:
        parts = {part.filename.removesuffix(".npy"): part for part in archive.infolist()}
        if set(parts) != set(types) or len(archive.infolist()) != len(types):
            raise ValueError(f"other arrays than {', '.join(types)}")
        if sum(part.file_size for part in parts.values()) > limit:
            raise ValueError("too large")
        if any(part.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for part in parts.values()):
            raise ValueError("compressed in another way")  # LZMA takes as much memory as the file says
        return {field: _array(archive.read(part), types[field]) for field, part in parts.items()}


def _array(content: bytes, kind: type) -> np.ndarray:
    """An array of an .npy file's bytes; its shape is held to them before memory is taken."""
    file = io.BytesIO(content)
    if npy.read_magic(file) != (1, 0):
        raise ValueError("another version of .npy")
    shape, _, dtype = npy.read_array_header_1_0(file)
    if dtype.type is not kind:
        raise ValueError(f"an array of {dtype}")
    array = np.frombuffer(content, dtype, offset=file.tell()).reshape(shape)
    if kind is np.bool_ and (array.view(np.uint8) > 1).any():
        raise ValueError("masks of more than two values")
    return array.copy()
