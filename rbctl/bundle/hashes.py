"""SHA-256 of a bundle's files, taken once: what was hashed is remembered until the file changes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rbctl.errors import InputError
from rbctl.files import read_json, sha256, write_json
from rbctl.progress import progress

_LARGE = 16 << 20  # bytes; a smaller file is hashed quicker than it is looked up


def file_hashes(folder: Path, paths: Iterable[str]) -> dict[str, str]:
    """SHA-256 of files of a bundle, by their paths in it.

    Raises:
        InputError: one cannot be read.
    """
    known = _read()
    digests, new = {}, {}
    for path in paths:
        file = (folder / path).resolve()
        try:
            state = _state(file)  # before hashing: a change meanwhile is noticed the next time
            entry = known.get(str(file))
            if isinstance(entry, dict) and {**state, "sha256": entry.get("sha256")} == entry:
                digest = str(entry["sha256"])
            elif state["size"] < _LARGE:
                digest = sha256(file)
            else:
                with progress(1, f"hash {path}", unit="file") as bar:
                    digest = sha256(file)
                    bar.update()
                new[str(file)] = {**state, "sha256": digest}
        except OSError as error:
            raise InputError(f"{folder / path}: cannot be read ({error.strerror})") from error
        digests[path] = digest
    _remember(new)
    return digests


def remember(folder: Path, digests: Mapping[str, str]) -> None:
    """Keep hashes that are known already, {path in the bundle: SHA-256}."""
    files = {(folder / path).resolve(): digest for path, digest in digests.items()}
    states = {file: _state(file) for file in files}
    _remember({str(f): {**s, "sha256": files[f]} for f, s in states.items() if s["size"] >= _LARGE})


def _store() -> Path:
    return Path.home() / ".cache" / "rbctl" / "hashes.json"


def _state(file: Path) -> dict[str, int]:
    """Changes whenever the content does; the second time cannot be set back, not even by a copy that keeps dates."""
    stat = file.stat()
    return {"size": stat.st_size, "modified": stat.st_mtime_ns, "changed": stat.st_ctime_ns}


def _read() -> dict[str, Any]:
    """What is remembered; nothing where that is missing or damaged."""
    with contextlib.suppress(InputError, RuntimeError):  # RuntimeError: nobody's home is known
        content = read_json(_store())
        return content if isinstance(content, dict) else {}
    return {}


def _remember(new: Mapping[str, Any]) -> None:
    """Add entries, and drop those of files that are gone. Where that cannot be written, hashes are taken again."""
    if new:
        with contextlib.suppress(InputError, OSError, RuntimeError):
            kept = {file: entry for file, entry in _read().items() if Path(file).is_file()}
            write_json(_store(), kept | dict(new))
