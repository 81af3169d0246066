"""Runs: who writes in a folder, what was run, and how a run is stopped."""

from __future__ import annotations

import contextlib
import errno
import platform
import signal
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

from rbctl import __version__
from rbctl.errors import InputError, reason
from rbctl.files import PARTIAL, write_json, writing_in

RUNS = Path("runs")

# Another process of rbctl. Not "-m rbctl", which lets modules of the current folder shadow ours, and that may be data.
_START = (
    "import sys; sys.path = [place for place in sys.path if place]; from rbctl.cli import main; main(prog_name='rbctl')"
)
COMMAND = (sys.executable, "-c", _START)

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


def tuned(name: str, bundle: str) -> Path:
    """Folder of a finetuning that names none; what was tuned on another bundle than mini lies apart."""
    base = Path(bundle).resolve().name
    return RUNS / "finetune" / (name if base == "mini" else f"{name}-{base}")


@contextlib.contextmanager
def claim(folder: Path) -> Iterator[None]:
    """Hold ``folder`` for writing; the claim ends with the process, however it ends.

    Where the file system has no locks (some of NFS and FUSE) the run goes on without one and says so. While the claim
    lasts, nothing in the folder is written through a link that lies in it.

    Raises:
        InputError: another process holds it, or it cannot be made.
    """
    import filelock  # here, for a quick start

    lock = filelock.FileLock(folder / ".lock", blocking=False)
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if (folder / ".lock").is_symlink():
                raise InputError(f"{folder / '.lock'}: is a link; remove it")
            stack.enter_context(lock)
        except filelock.Timeout as error:
            raise InputError(f"{folder}: another run is writing here; wait for it or choose another folder") from error
        except (OSError, NotImplementedError) as error:
            if getattr(error, "errno", None) not in _NO_LOCKS and not isinstance(error, NotImplementedError):
                what = getattr(error, "strerror", None) or reason(error)
                raise InputError(f"{folder}: cannot be written ({what}); choose another folder") from error
            click.echo(f"{folder}: its file system has no locks; start no second run in it", err=True)
        for left in (*folder.glob(f".*{PARTIAL}"), *folder.glob(f"*/.*{PARTIAL}")):  # of runs that were killed
            if left.parent == folder or not left.parent.is_symlink():
                left.unlink(missing_ok=True)
        stack.enter_context(writing_in(folder))
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
    machine = f"{platform.system()}-{platform.release()}-{platform.machine()}"  # platform.platform() starts a program
    write_json(folder / "run.json", {"versions": versions(), "machine": machine, **facts})
