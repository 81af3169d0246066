"""WebDataset shards: tar files whose members KEY.SUFFIX belong together by their key."""

from __future__ import annotations

import itertools
import operator
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from rbctl.errors import InputError, abridged, reason

_MEMBER = 256 << 20  # bytes of one file
_RATIO = 20  # pictures do not shrink, and JSON less than that; gzip takes zeros to a thousandth
_SPARE = 64 << 20  # bytes that a shard may expand to whatever its own size


_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")  # two letters at least: C: is a drive


def refuse_address(name: str, where: str) -> None:
    """A shard is a file of this machine.

    Raises:
        InputError: its name begins with a scheme, as ``https:`` or WebDataset's ``pipe:`` (which names a command).
    """
    if match := _SCHEME.match(name):
        raise InputError(f"{where}: begins with {match[0]!r}; shards are local files, so download or rename it")


class _Bounded:
    """A stream of a shard's bytes that ends where it expands beyond reason."""

    def __init__(self, stream: BinaryIO, shard: Path) -> None:
        self.stream, self.shard, self.count = stream, shard, 0
        self.limit = _RATIO * os.stat(shard).st_size + _SPARE

    def read(self, size: int) -> bytes:
        content = self.stream.read(size)
        self.count += len(content)
        if self.count > self.limit:
            raise InputError(f"{self.shard}: expands to more than {_RATIO} times its size; no pictures do")
        return content


def samples(shard: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Key and files by suffix (in lower case, without the dot) of every sample, in the order of the shard.

    A member's key ends at the first dot of its base name, as WebDataset has it. The shard is opened as a file, never as
    an address, whatever its name; nothing in it is unpacked to the disk.

    Raises:
        InputError: its name is an address, it is missing, no tar file (plain or compressed), or expands beyond reason.
    """
    refuse_address(shard.name, str(shard))
    try:
        with open(shard, "rb") as file, _expanded(file, shard) as archive:
            for key, members in itertools.groupby(_members(archive, shard), operator.itemgetter(0)):
                yield key, {suffix: content for _, suffix, content in members}
    except FileNotFoundError as error:
        raise InputError(f"{shard}: no such shard") from error
    except InputError:
        raise
    except Exception as error:  # whatever tar and decompression raise
        raise InputError(f"{shard}: cannot be read as a WebDataset shard ({reason(error)})") from error


def _members(archive: tarfile.TarFile, shard: Path) -> Iterator[tuple[str, str, bytes]]:
    """Key, suffix and content of every file that belongs to a sample."""
    for member in archive:
        folder, _, name = member.name.rpartition("/")
        stem, dot, suffix = name.partition(".")
        if not (member.isfile() and stem and dot) or member.name.startswith("__"):
            continue
        if member.issparse():
            raise InputError(f"{shard}: {abridged(member.name)} is a sparse file; no pictures are")
        if member.size > _MEMBER:
            raise InputError(f"{shard}: {abridged(member.name)} is larger than {_MEMBER >> 20} MB")
        content = archive.extractfile(member)
        assert content is not None  # it is a file
        yield f"{folder}/{stem}" if folder else stem, suffix.lower(), content.read()


def _expanded(file: BinaryIO, shard: Path) -> tarfile.TarFile:
    import bz2
    import gzip
    import lzma

    start = file.read(6)
    file.seek(0)
    openers: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
    stream = next((opened(file, "rb") for mark, opened in openers.items() if start.startswith(mark)), file)
    bounded: Any = _Bounded(stream, shard)
    return tarfile.open(fileobj=bounded, mode="r|")
