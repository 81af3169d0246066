"""Atomic writes, and readers whose failures are one clear line. Files are data, never code."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import io
import json
import os
import pickle
import shutil
import stat
import struct
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from rbctl.errors import NO_ROOM, InputError, abridged, reason
from rbctl.images import converted, open_image
from rbctl.parsing import JSON_LIMIT, parse_json, parse_yaml

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

_MOST_LAYERS = 1000
PARTIAL = ".partial"  # suffix of what is being written, a file or a folder; a kill leaves one behind
LOCK = ".lock"  # of a folder that a run writes in

_NO_ROOM_SIGNS = (
    "No space left on device",
    "os error 28",
    "File too large",
    "os error 27",
    "PytorchStreamWriter failed",
    "unexpected pos",  # torch again, as it closes the file that it could not write
)
_NO_PLACE = {
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.ELOOP,
}


# What torch's unpickler raises on damaged files, by trial.
_DAMAGED = (
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    OverflowError,
    struct.error,
)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn what the user can mend about writing ``path`` into one line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # the writers of safetensors and torch have errors of their own for a full disk
        number = error.errno if isinstance(error, OSError) else None
        if number in NO_ROOM or any(sign in str(error) for sign in _NO_ROOM_SIGNS):
            raise InputError(f"{path}: no space left on the disk; free some and run the same command again") from error
        if number in _NO_PLACE and isinstance(error, OSError):
            raise InputError(f"{path}: cannot be written ({error.strerror}); choose another --output") from error
        raise


_claimed: list[Path] = []  # folders that this process writes in, absolute


@contextlib.contextmanager
def writing_in(folder: Path) -> Iterator[None]:
    """While the block lasts, nothing below ``folder`` is written through a symbolic link that lies in it.

    The folder may be data of a stranger, whose ``masks/`` is a link to somewhere else. It may be a link itself: that
    one the user named.
    """
    _claimed.append(folder.absolute())
    try:
        yield
    finally:
        _claimed.pop()


def _refuse_links(path: Path) -> None:
    for folder in _claimed:
        if path.absolute().is_relative_to(folder):
            below = path.absolute().relative_to(folder).parents
            for parent in [folder / part for part in below if part.parts]:
                if parent.is_symlink():
                    raise InputError(f"{parent}: is a link, so nothing is written there; put a folder in its place")


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; when the block ends well it replaces ``path`` in one step.

    On any failure, a kill included, what ``path`` held before stays as it was. A link at ``path`` is replaced, never
    followed. The umask decides who may read the file.

    Raises:
        InputError: the disk is full, or the folder cannot be written or is a link (see :func:`writing_in`).
    """
    with _writing(path):
        _refuse_links(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}{PARTIAL}")
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        try:
            yield temporary
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def check_writable(folder: Path, option: str) -> None:
    """Make a folder that results will go to, before hours of work for them.

    Args:
        option: that names it, "--cache".

    Raises:
        InputError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise InputError(f"{option} {folder}: cannot be written ({error.strerror}); choose another folder") from error


@contextlib.contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """Yield a new folder in ``folder``, for files that shall come to their places together; the block moves them."""
    staged = folder / f".{os.urandom(4).hex()}{PARTIAL}"
    staged.mkdir(parents=True)
    try:
        yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what killed writers left half written in ``folder``; nobody else may write there meanwhile.

    Links are not followed, and folders of other runs, which have locks of their own, stay as they are.
    """
    for place, folders, names in os.walk(folder):
        if LOCK in names and Path(place) != folder:
            folders.clear()
            continue
        for name in [name for name in folders if name.startswith(".") and name.endswith(PARTIAL)]:
            folders.remove(name)
            if not Path(place, name).is_symlink():
                shutil.rmtree(Path(place, name), ignore_errors=True)
        for name in names:
            if name.startswith(".") and name.endswith(PARTIAL):
                Path(place, name).unlink(missing_ok=True)


def drop_partial(path: Path) -> None:
    """Remove what killed writers of one file left beside it: for commands that claim no folder."""
    for partial in path.parent.glob(f".{glob.escape(path.name)}.*{PARTIAL}"):
        partial.unlink(missing_ok=True)


def append_line(path: Path, line: str) -> None:
    """Append one line. A kill can leave a part of it, so readers of such a file must bear a torn last line.

    Raises:
        InputError: the disk is full, or the file cannot be written or is a link.
    """
    with _writing(path):
        _refuse_links(path)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        with os.fdopen(os.open(path, flags, 0o666), "a", encoding="utf-8") as file:
            file.write(line + "\n")


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` atomically."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write ``content`` atomically as UTF-8."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` atomically as indented JSON."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write one JSON object a line, atomically."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_png(path: Path, image: Image.Image) -> None:
    """Write a picture as PNG, atomically; for one that networks made there is :func:`rbctl.pictures.save_png`."""
    write_bytes(path, png_bytes(image))


def png_bytes(image: Image.Image, chunks: PngInfo | None = None) -> bytes:
    """A picture as PNG in memory: PIL, writing to a disk, does not always tell that it is full."""
    encoded = io.BytesIO()
    image.save(encoded, format="PNG", pnginfo=chunks)
    return encoded.getvalue()


def write_safetensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write named tensors with string metadata, atomically.

    Raises:
        InputError: a tensor holds NaN or infinite numbers; what ``path`` held stays. Or the disk is full.
    """
    from safetensors.torch import save

    if broken := [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]:
        raise InputError(f"{path}: not written: {broken[0]} holds NaN or infinite numbers")
    raw = save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, dict(metadata))
    # The library writes the metadata in random order; sorted, the same content is the same file.
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.write(memoryview(raw)[8 + length :])


def read_text(path: Path, limit: int = JSON_LIMIT) -> str:
    """Read UTF-8 text of at most ``limit`` bytes.

    Raises:
        InputError: the file is missing, unreadable, too large, no plain file, or not UTF-8.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path}: cannot be read as text (it is no file)")
        if status.st_size > limit:
            raise InputError(f"{path}: larger than {limit >> 20} MB of text; split it")
        return Path(path).read_text(encoding="utf-8-sig")  # some editors begin a file with a byte order mark
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: cannot be read as text; save it as UTF-8") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as text ({reason(error)})") from error


def read_json(path: Path, limit: int = JSON_LIMIT) -> Any:
    """Read JSON of at most ``limit`` bytes.

    Raises:
        InputError: the file is missing, too large or not JSON; the line is named.
    """
    return parse_json(read_text(path, limit), str(path), limit)


def read_object(path: Path) -> dict[str, Any]:
    """Read JSON whose outermost value is an object.

    Raises:
        InputError: the file is missing, too large, not JSON or no object.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: a JSON object was expected")
    return content


def read_network_config(path: Path) -> dict[str, Any]:
    """Read config.json of a network.

    Raises:
        InputError: it is no JSON object, or names more layers than any network has: to build them takes for ever.
    """
    content = read_object(path)
    waiting: list[Any] = [content]
    while waiting:
        part = waiting.pop()
        for key, value in part.items() if isinstance(part, dict) else enumerate(part):
            counts = value if isinstance(value, list) else [value]
            if "layers" in str(key) and any(isinstance(n, int | float) and n > _MOST_LAYERS for n in counts):
                raise InputError(f"{path}: {abridged(key)}: {abridged(value)}; {_MOST_LAYERS} layers are the most")
            if isinstance(value, dict | list):
                waiting.append(value)
    return content


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a JSONL file that are not empty, with their numbers from 1.

    Raises:
        InputError: the file cannot be read as text.
    """
    # Not splitlines(), which also splits at U+2028 and its like, and those may stand inside a JSON string.
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            yield number, line


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read one JSON object a line; empty lines are skipped.

    Raises:
        InputError: the file is missing, or a line is not a JSON object.
    """
    rows = []
    for number, line in numbered_lines(path):
        row = parse_json(line, f"{path}:{number}")
        if not isinstance(row, dict):
            raise InputError(f"{path}:{number}: a JSON object was expected, not {abridged(row)}")
        rows.append(row)
    return rows


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping (an empty file is an empty mapping).

    Raises:
        InputError: the file is missing, not YAML, or not a mapping.
    """
    content = parse_yaml(read_text(path), str(path))
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError(f"{path}: a mapping of keys to values was expected")
    return content


@contextlib.contextmanager
def _opened_safetensors(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    if not os.path.isfile(path):
        raise InputError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as archive:
            yield archive
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({reason(error)})") from error


def read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read all tensors (on the CPU) and the metadata of a safetensors file.

    Raises:
        InputError: the file is missing or not safetensors.
    """
    with _opened_safetensors(path) as archive:
        return {key: archive.get_tensor(key) for key in archive.keys()}, archive.metadata() or {}  # noqa: SIM118


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file, by its header alone.

    Raises:
        InputError: the file is missing or not safetensors.
    """
    with _opened_safetensors(path) as archive:
        return archive.metadata() or {}


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a safetensors file, by its header alone.

    Raises:
        InputError: the file is missing or not safetensors.
    """
    with _opened_safetensors(path) as archive:
        return {key: tuple(archive.get_slice(key).get_shape()) for key in archive.keys()}  # noqa: SIM118


def read_torch(path: Path, limit: int | None = None) -> Any:
    """Read a .pth, .pt or .bin file of tensors, of at most ``limit`` bytes. Code inside is refused, never run.

    Raises:
        InputError: the file is missing, too large, damaged, compressed, or holds anything but plain containers and
            dense tensors whose numbers it stores one by one (1.5 kB can stand for a tensor of 16 GB otherwise).
    """
    import zipfile

    import torch

    if not os.path.isfile(path):
        raise InputError(f"{path}: no such file")
    if limit is not None and os.path.getsize(path) > limit:
        raise InputError(f"{path}: {os.path.getsize(path):,} bytes are more than such a file has; check what it is")
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
                    raise InputError(f"{path}: refused, it is compressed, as PyTorch's files never are")
        with warnings.catch_warnings():  # torch warns of what it is about to refuse; the error says it in one line
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
        _check_tensors(path, content)
        return content
    except pickle.UnpicklingError as error:
        raise InputError(f"{path}: refused, it holds more than tensors (a pickle can run code)") from error
    except (*_DAMAGED, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not a readable PyTorch file ({reason(error)})") from error


def _check_tensors(path: Path, content: Any) -> None:
    import torch

    waiting, seen = [content], set[int]()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, list | tuple | set | frozenset):
            waiting += value
        elif isinstance(value, torch.Tensor):
            if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
                raise InputError(f"{path}: refused, a tensor in it is sparse, quantised or without numbers")
            if value.numel() * value.element_size() > value.untyped_storage().nbytes():
                raise InputError(
                    f"{path}: refused, a tensor of shape {abridged(tuple(value.shape))} stores fewer numbers"
                )


def read_image(source: Path | BinaryIO, mode: str = "RGB", where: str = "") -> Image.Image:
    """Read a picture in sRGB, turned as its EXIF orientation says; alpha is laid over white, 16 bits become 8.

    Args:
        source: a path, or a file that holds the picture's bytes.
        mode: Pillow's, of what is returned.
        where: what errors begin with. [default: the path]

    Raises:
        InputError: what :func:`rbctl.images.open_image` raises, or its pixels have no range known to be 0 to 1.
    """
    with open_image(source, where) as opened:
        return converted(opened, mode)


def content_hash(content: Any) -> str:
    """Hexadecimal SHA-256 of plain data as JSON has it; the order of keys is no matter."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
