"""Results kept on the disk to be taken up again: each says what it was made from and what it holds.

What does not fit is never taken up: not of other data or options, changed since, damaged, or of NaN.
"""

from __future__ import annotations

import contextlib
import hashlib
import os.path
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rbctl.errors import InputError, abridged
from rbctl.files import content_hash, read_json, read_metadata, read_safetensors, sha256, write_json, write_safetensors

if TYPE_CHECKING:
    import torch

SEAL = "kept.json"  # of a folder

Facts = Mapping[str, Any]  # what a result depends on, as JSON has it


def save(
    path: Path, tensors: Mapping[str, torch.Tensor], made_from: Facts, metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors with their hash and that of what they were made from, atomically.

    Args:
        metadata: what else the file says, to other readers.

    Raises:
        InputError: a tensor is not finite, or the disk is full.
    """
    seals = {"made_from": content_hash(made_from), "content": digest_of(tensors)}
    write_safetensors(path, tensors, {**(metadata or {}), **seals})


def read(path: Path, made_from: Facts) -> dict[str, torch.Tensor]:
    """The tensors that :func:`save` wrote, on the CPU.

    Raises:
        InputError: the file is missing or damaged, made from something else, changed since, or not finite.
    """
    tensors, metadata = read_safetensors(path)
    _compare(path, metadata.get("made_from"), made_from)
    if metadata.get("content") != digest_of(tensors):
        raise InputError(f"{path}: was changed since it was written")
    if (name := not_finite(tensors)) is not None:
        raise InputError(f"{path}: {name} holds NaN or infinite numbers")
    return tensors


def load(
    path: Path, made_from: Facts, fits: Callable[[dict[str, torch.Tensor]], bool] = lambda tensors: True
) -> dict[str, torch.Tensor] | None:
    """As :func:`read`; None where there is no such file, or none to take up, which is told in a line.

    Args:
        fits: whether names, shapes and types are those that are needed.
    """
    if not path.is_file():
        return None
    try:
        tensors = read(path, made_from)
        if not fits(tensors):
            raise InputError(f"{path}: holds tensors of other names, shapes or types")
        return tensors
    except InputError as error:
        click.echo(f"{error}; computed again", err=True)
        return None


def twin(paths: Iterable[Path], made_from: Facts) -> Path | None:
    """The first file that says it was made from the same; those that cannot be read are passed over."""
    wanted = content_hash(made_from)
    for path in paths:
        with contextlib.suppress(InputError):
            if read_metadata(path).get("made_from") == wanted:
                return path
    return None


def seal(folder: Path, made_from: Facts) -> None:
    """Note in a folder the hashes of its files and of what they were made from."""
    write_json(folder / SEAL, {"made_from": content_hash(made_from), "files": digests(folder)})


def check(folder: Path, made_from: Facts) -> None:
    """Compare a folder with its seal.

    Raises:
        InputError: it has none, was made from something else, or a file is missing or was changed since.
    """
    sealed = read_json(folder / SEAL)
    if not isinstance(sealed, dict):
        raise InputError(f"{folder / SEAL}: a JSON object was expected")
    _compare(folder, sealed.get("made_from"), made_from)
    compare_files(folder, sealed.get("files"))


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder by its path, without hidden ones and the seal."""
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: sha256(path) for name, path in paths.items() if path.name != SEAL and not path.name.startswith(".")}


def compare_files(folder: Path, files: object) -> None:
    """Compare files with what :func:`digests` told of them; others in the folder are not looked at.

    Raises:
        InputError: one is missing or was changed since, or nothing is told of any.
    """
    if not isinstance(files, dict) or not files:
        raise InputError(f"{folder}: does not record the hashes of its files")
    for name, digest in files.items():
        if not os.path.isfile(folder / name):  # Path.is_file fails where the name is too long
            raise InputError(f"{folder}: has no file {abridged(name)}")
        if sha256(folder / name) != digest:
            raise InputError(f"{folder / name}: was changed since it was written")


def not_finite(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """Name of the first tensor that holds NaN or infinite numbers; None where there is none."""
    return next((name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())), None)


def _compare(path: Path, named: object, made_from: Facts) -> None:
    if named is None:
        raise InputError(f"{path}: does not say what it was made from")
    if named != content_hash(made_from):
        raise InputError(f"{path}: was made from other data or options")


def digest_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        numbers: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        digest.update(numbers)
    return digest.hexdigest()
