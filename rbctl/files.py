"""Atomic writes, and readers whose failures are one clear line. Files are data, never code."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import pickle
import struct
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rbctl.errors import InputError

if TYPE_CHECKING:
    import torch
    from PIL import Image

PARTIAL = ".partial"  # suffix of a file being written; a kill leaves one behind

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_PLACE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG}


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


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turn what the user can mend about writing ``path`` into one line."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise InputError(f"{path}: no space left on the disk; free some and run the same command again") from error
        if error.errno in _NO_PLACE:
            raise InputError(f"{path}: cannot be written ({error.strerror}); choose another --output") from error
        raise


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; when the block ends well it replaces ``path`` in one step.

    On any failure, a kill included, what ``path`` held before stays as it was.

    Raises:
        InputError: the disk is full, or the folder cannot be written.
    """
    with _told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def append_line(path: Path, line: str) -> None:
    """Append one line. A kill can leave a part of it, so readers of such a file must bear a torn last line.

    Raises:
        InputError: the disk is full, or the file cannot be written.
    """
    with _told(path), path.open("a", encoding="utf-8") as file:
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
    """Write a picture as PNG, atomically. PIL does not always tell that the disk is full, so it writes to memory."""
    encoded = io.BytesIO()
    image.save(encoded, format="PNG")
    write_bytes(path, encoded.getvalue())


def write_safetensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write named tensors with string metadata, atomically."""
    from safetensors.torch import save

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


def read_text(path: Path) -> str:
    """Read UTF-8 text.

    Raises:
        InputError: the file is missing, unreadable or not UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")  # some editors begin a file with a byte order mark
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as text ({error})") from error


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        InputError: the file is missing or not JSON; the line is named.
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not valid JSON ({error.msg})") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; thousands of brackets
        raise InputError(f"{path}: cannot be read as JSON ({_first_line(error)})") from error


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read one JSON object a line; empty lines are skipped.

    Raises:
        InputError: the file is missing, or a line is not a JSON object.
    """
    rows = []
    # Not splitlines(), which also splits at U+2028 and its like, and those may stand inside a JSON string.
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", None) or _first_line(error)
            raise InputError(f"{path}:{number}: not valid JSON ({reason})") from error
        if not isinstance(row, dict):
            raise InputError(f"{path}:{number}: a JSON object was expected")
        rows.append(row)
    return rows


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping (an empty file is an empty mapping).

    Raises:
        InputError: the file is missing, not YAML, or not a mapping.
    """
    import yaml  # here, for a quick start: no --help needs it

    try:
        content = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        reason = getattr(error, "problem", None) or _first_line(error)
        raise InputError(f"{where}: not valid YAML ({reason})") from error
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        # PyYAML's constructors: a date of month 99, "!!int x" and the like.
        raise InputError(f"{path}: a value is not of its YAML type ({_first_line(error)}); quote it") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError(f"{path}: a mapping of keys to values was expected")
    return content


def read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read all tensors (on the CPU) and the metadata of a safetensors file.

    Raises:
        InputError: the file is missing or not safetensors.
    """
    from safetensors import SafetensorError, safe_open

    if not os.path.isfile(path):
        raise InputError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as archive:
            return {key: archive.get_tensor(key) for key in archive.keys()}, archive.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error})") from error


def read_torch(path: Path) -> Any:
    """Read a .pth, .pt or .bin file of tensors. Code inside is refused, never run.

    Raises:
        InputError: the file is missing, damaged, or holds anything but tensors and plain containers.
    """
    import torch

    if not os.path.isfile(path):
        raise InputError(f"{path}: no such file")
    try:
        with warnings.catch_warnings():  # torch warns of what it is about to refuse; the error says it in one line
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(f"{path}: refused, it holds more than tensors (a pickle can run code)") from error
    except _DAMAGED as error:
        raise InputError(f"{path}: not a readable PyTorch file ({_first_line(error)})") from error


def read_image(path: Path, mode: str = "RGB") -> Image.Image:
    """Read a picture, turned as its EXIF orientation says; alpha is laid over white, 16 bits become 8.

    Raises:
        InputError: the file is missing or not a readable picture, or its pixels have no range known to be 0 to 1.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as opened:
            opened.load()
            sixteen = opened.mode.startswith("I;16") or (opened.mode == "I" and opened.format == "PNG")
            image = ImageOps.exif_transpose(opened)
        if sixteen:
            image = _eight_bit(image)
        elif image.mode in ("I", "F"):
            raise InputError(f"{path}: its pixels are 32-bit numbers of no known range; save it as an 8-bit PNG")
        if mode == "RGB" and image.has_transparency_data:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
        return image.convert(mode)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such picture") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: not a readable picture ({error})") from error


def _eight_bit(image: Image.Image) -> Image.Image:
    """A grey picture of 16 bits with 8; Pillow's own conversion cuts everything above 255 off."""
    import numpy as np
    from PIL import Image

    return Image.fromarray((np.asarray(image).astype(np.float32) / 257).round().astype(np.uint8))


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
