"""What each step found in each picture, kept in FOLDER/.annotate until its picture, model or settings change.

The folder may come from a stranger, or from a broken disk: what does not fit is dropped, to be made anew.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import click
import numpy as np

from rbctl.errors import InputError, reason
from rbctl.files import PARTIAL, atomic_write
from rbctl.plugins.annotate.steps import FIELDS

PLACE = ".annotate"
_SEAL = "seal"  # the field that holds the digest of the others and of what made them
_SMALL = 16 << 20  # bytes that hold any result but masks

Arrays = dict[str, np.ndarray]


class Cache:
    """Results as one file each, written whole or not at all.

    Raises:
        InputError: the place of the results, or of those of a step, is a link.
    """

    def __init__(self, folder: Path) -> None:
        self.root = folder / PLACE
        for place in (self.root, *(self.root / step for step in FIELDS)):
            if place.is_symlink():
                raise InputError(f"{place}: is a link, so nothing is kept there; put a folder in its place")

    def clean(self) -> None:
        """Drop what a kill left half written."""
        for partial in self.root.glob(f"*/.*{PARTIAL}"):
            partial.unlink(missing_ok=True)

    def path(self, step: str, picture: Path, key: str) -> Path:
        return self.root / step / f"{picture.stem}-{key}.npz"

    def save(self, step: str, picture: Path, key: str, arrays: Arrays) -> None:
        """Write one result."""
        arrays = {field: np.asarray(array, order="C") for field, array in arrays.items()}
        with atomic_write(self.path(step, picture, key)) as temporary, temporary.open("wb") as file:
            seal = np.array(_seal(step, key, arrays))
            np.savez_compressed(file, **arrays, **{_SEAL: seal})  # type: ignore[arg-type]

    def load(self, step: str, picture: Path, key: str, misfit: Callable[[Arrays], str], more: int = 0) -> Arrays | None:
        """Read one result; None where there is none, or it does not fit (then it is dropped, and that is told).

        Args:
            misfit: says what of the arrays has not the step's form; "" where all has.
            more: bytes that they may take beyond what any but masks takes.
        """
        path = self.path(step, picture, key)
        if not path.is_file():
            return None
        try:
            arrays = _read(path, {**FIELDS[step], _SEAL: np.str_}, _SMALL + more)
            seal = str(arrays.pop(_SEAL))
            problem = misfit(arrays) if seal == _seal(step, key, arrays) else "changed since, or of something else"
        except Exception as error:  # whatever zip, decompression and NumPy raise on a file that may be anything
            problem = reason(error)
        if not problem:
            return arrays
        click.echo(f"{path}: not what was kept here ({problem}); computed again", err=True)
        path.unlink()
        return None


def _seal(step: str, key: str, arrays: Mapping[str, np.ndarray]) -> str:
    """Digest of arrays and of what made them, which their key stands for."""
    digest = hashlib.sha256(f"{step} {key}".encode())
    for field, array in sorted(arrays.items()):
        digest.update(f"\n{field} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _read(path: Path, types: Mapping[str, type], limit: int) -> Arrays:
    """The arrays of an .npz, read without taking more than some of ``limit`` bytes.

    Raises:
        Exception: of any kind, where the file is damaged or holds other arrays.
    """
    if path.stat().st_size > limit:
        raise ValueError("too large")
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
    if sum(part.file_size for part in parts) > limit:
        raise ValueError("too large")
    if any(part.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for part in parts):
        raise ValueError("compressed in another way")  # LZMA takes as much memory as the file says
    with np.load(path, allow_pickle=False) as content:  # a shape that its bytes do not fill takes no memory
        arrays = {field: content[field] for field in content.files}
    if {field: array.dtype.type for field, array in arrays.items()} != types:
        raise ValueError(f"other arrays than {', '.join(types)}")
    if any((array.view(np.uint8) > 1).any() for array in arrays.values() if array.dtype == bool):
        raise ValueError("masks of more than two values")
    return arrays
