"""Run folders: who writes in one, and what was run."""

from __future__ import annotations

import contextlib
import fcntl
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rbctl import __version__
from rbctl.errors import InputError
from rbctl.files import PARTIAL, write_json

RUNS = Path("runs")


@contextlib.contextmanager
def claim(folder: Path) -> Iterator[None]:
    """Hold ``folder`` for writing; the claim ends with the process, however it ends.

    Raises:
        InputError: another process holds it, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); choose another --output") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"{folder}: another run is writing here; wait for it or choose another --output"
            ) from error
        for left in (*folder.glob(f".*{PARTIAL}"), *folder.glob(f"*/.*{PARTIAL}")):  # of runs that were killed
            left.unlink(missing_ok=True)
        yield


def versions() -> dict[str, str]:
    """Versions of what can change a result."""
    names = ("torch", "diffusers", "transformers", "peft", "open_clip_torch", "accelerate", "xformers", "deepspeed")
    found = {"rbctl": __version__, "python": platform.python_version()}
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def write_record(folder: Path, **facts: Any) -> None:
    """Write ``run.json``: versions, machine, and the stage's own facts (seeds, hashes of its inputs)."""
    write_json(folder / "run.json", {"versions": versions(), "machine": platform.platform(), **facts})
