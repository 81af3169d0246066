"""Runs: who writes in a folder, what was run, and how a run is stopped."""

from __future__ import annotations

import contextlib
import fcntl
import platform
import signal
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

from rbctl import __version__
from rbctl.errors import InputError
from rbctl.files import PARTIAL, write_json

RUNS = Path("runs")


def tuned(name: str, bundle: str) -> Path:
    """Folder of a finetuning that names none; what was tuned on another bundle than mini lies apart."""
    base = Path(bundle).resolve().name
    return RUNS / "finetune" / (name if base == "mini" else f"{name}-{base}")


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
        raise InputError(f"{folder}: cannot be written ({error.strerror}); choose another folder") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{folder}: another run is writing here; wait for it or choose another folder") from error
        for left in (*folder.glob(f".*{PARTIAL}"), *folder.glob(f"*/.*{PARTIAL}")):  # of runs that were killed
            left.unlink(missing_ok=True)
        yield


class Stop:
    """Whether a signal asked the run to stop."""

    requested = False


@contextlib.contextmanager
def stop_signals() -> Iterator[Stop]:
    """SIGINT and SIGTERM ask the run to stop after its step, with a checkpoint; the same one again ends it at once.

    Ctrl-C under torchrun brings one of each: its own to every process, then torchrun's SIGTERM.
    """
    stop, seen = Stop(), set[int]()

    def handle(number: int, _frame: Any) -> None:
        if number in seen:
            raise KeyboardInterrupt
        seen.add(number)
        if not stop.requested:
            click.echo("finishing this step, then saving (again to stop at once)", err=True)
        stop.requested = True

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
