"""The life of a run in its folder: who writes there, whether it is the same run, how it begins, goes on and is stopped.

run = Run(folder, "finetune", config, free=FREE, results=("hug.safetensors",), world=world)
with run.claimed():  # one writer; the other processes of the same run may go on beside it
    run.check(facts)  # another run's folder is refused; options named in FREE may differ
    run.begin(facts)  # recipe.yaml and run.json; with --no-resume, what the run before left goes
    run.cut(start)  # metrics after the last of run.checkpoints(); then run.log(step, row), under stop_signals()
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import platform
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

from rbctl import __version__, metrics
from rbctl.defaults import BUNDLE
from rbctl.errors import InputError, abridged, reason
from rbctl.files import LOCK, append_line, read_object, read_yaml, sweep, write_json, writing_in
from rbctl.options import as_plain, former_options, write_recipe
from rbctl.processes import World

RUNS = Path("runs")
RELATION = "relation.yaml"  # in the folder of a finetuning: the relation that it learned
ANY_LORA = "lora.safetensors"  # in a run folder: a link to its LoRA, or the LoRA itself, of an earlier version

# Before what a process of ours runs: it ends as soon as its stdin does, and so with us, however we end.
_TETHER = "import os, threading; threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start(); "
# Another process of rbctl. Not "-m rbctl", which lets modules of the current folder shadow ours, and that may be data.
_START = (
    "import sys; sys.path = [place for place in sys.path if place]; from rbctl.cli import main; main(prog_name='rbctl')"
)
COMMAND = (sys.executable, "-c", _START)


def start(arguments: Sequence[str], **options: Any) -> subprocess.Popen[str]:
    """Start ``rbctl ARGUMENTS`` as a process of its own, which ends with this one, even if this one is killed.

    Wait for its end before its pipes are closed: it lives as long as its stdin.

    Args:
        options: of ``subprocess.Popen``, but for stdin.
    """
    return subprocess.Popen(
        [sys.executable, "-c", _TETHER + _START, *arguments], stdin=subprocess.PIPE, text=True, **options
    )


_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


def tuned(name: str, bundle: str) -> Path:
    """Folder of a finetuning that names none; what was tuned on another bundle than the default lies apart."""
    base = Path(bundle).resolve().name
    return RUNS / "finetune" / (name if base == BUNDLE else f"{name}-{base}")


def tuned_lora(relation: str, bundle: str) -> Path:
    """The LoRA of a relation in the folder of its finetuning, whether it is there or not."""
    folder = tuned(relation, bundle)
    path = folder / f"{relation}.safetensors"
    return path if path.is_file() else folder / ANY_LORA


@contextlib.contextmanager
def claim(folder: Path) -> Iterator[None]:
    """Hold ``folder`` for writing; the claim ends with the process, however it ends.

    Where the file system has no locks (some of NFS and FUSE) the run goes on without one and says so. While the claim
    lasts, nothing in the folder is written through a link that lies in it.

    Raises:
        InputError: another process holds it, or it cannot be made.
    """
    import filelock  # here, for a quick start

    lock = filelock.FileLock(folder / LOCK, blocking=False)
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if (folder / LOCK).is_symlink():
                raise InputError(f"{folder / LOCK}: is a link; remove it")
            stack.enter_context(lock)
        except filelock.Timeout as error:
            raise InputError(f"{folder}: another run is writing here; wait for it or choose another folder") from error
        except (OSError, NotImplementedError) as error:
            if getattr(error, "errno", None) not in _NO_LOCKS and not isinstance(error, NotImplementedError):
                what = getattr(error, "strerror", None) or reason(error)
                raise InputError(f"{folder}: cannot be written ({what}); choose another folder") from error
            click.echo(f"{folder}: its file system has no locks; start no second run in it", err=True)
        sweep(folder)
        stack.enter_context(writing_in(folder))
        yield


@dataclass(frozen=True)
class Run:
    """A run of a stage in its folder.

    Attributes:
        stage: its name, the recipe's section.
        config: its options, a frozen dataclass; ``resume`` and ``seed`` are read where it has them.
        free: options that may differ when the run is taken up again: they change how it runs, not what it computes.
            So may those whose meaning is compared as a fact: the data's hash, not how its folder was written.
        results: files and folders that only a run of ours may have written there.
        left: patterns of what else it leaves, and ``--no-resume`` drops.
        checkpoint: pattern of its checkpoints, sorted by age.
        logs: files with a row a step.
        world: the processes that share the run; the first alone writes.
    """

    folder: Path
    stage: str
    config: Any
    free: Set[str] = frozenset()
    results: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    checkpoint: str = "checkpoints/step-*.safetensors"
    logs: tuple[str, ...] = ("metrics.jsonl",)
    world: World = field(default_factory=World)

    @property
    def resume(self) -> bool:
        """Whether the run goes on from its last checkpoint, if there is one."""
        return bool(getattr(self.config, "resume", True))

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the folder while the block lasts, see :func:`claim`; the first process does it for all."""
        with claim(self.folder) if self.world.first else writing_in(self.folder):
            yield

    def checkpoints(self) -> list[Path]:
        """All checkpoints, the oldest first."""
        return sorted(self.folder.glob(self.checkpoint))

    def superseded(self) -> list[Path]:
        """Checkpoints that may go: all but the last ``keep_checkpoints``.

        Those of stops are the first to go, once there is a newer one: in the end a run has the same checkpoints whether
        or not it was stopped.
        """
        every, paths = self.config.checkpoint_every, self.checkpoints()
        steps = [int(re.findall(r"step-(\d+)", str(path.relative_to(self.folder)))[0]) for path in paths]
        due = [p for p, step in zip(paths, steps, strict=True) if p == paths[-1] or (every and step % every == 0)]
        return [path for path in paths if path not in due[-self.config.keep_checkpoints :]]

    def check(self, facts: Mapping[str, Any]) -> None:
        """Refuse a folder that holds another run, or results that no run wrote; the first process does it for all.

        Args:
            facts: what the result depends on besides the options: hashes of data and bundle, precision, processes.

        Raises:
            InputError: it names what differs.
        """
        if not self.world.first:
            return
        recipe, record = self.folder / "recipe.yaml", self.folder / "run.json"
        if not recipe.is_file():
            for name in self.results:
                if (self.folder / name).exists():
                    raise InputError(f"{self.folder}: holds a {name} that no run here wrote; choose another --output")
            return
        if not self.resume or not self.checkpoints():
            return
        mend = "choose another --output, or start again with --no-resume"
        before = read_yaml(recipe).get(self.stage)
        if not isinstance(before, dict) or not record.is_file():
            raise InputError(f"{self.folder}: its recipe.yaml or run.json is damaged; {mend}")
        # An option that the run did not know yet was as its default is now.
        defaults = {f.name: f.default for f in dataclasses.fields(self.config)}
        before = {k: list(d) if isinstance(d, tuple) else d for k, d in defaults.items()} | before
        for key, option in former_options(self.config).items():
            if key in before:
                what = f"holds a run of an earlier version with {key}: {option.instead}"
                raise InputError(f"{self.folder}: {what}; {mend}")
        # Paths are named from the folder, in runs of earlier versions as they were given.
        given, named, recorded = as_plain(self.config), as_plain(self.config, self.folder), read_object(record)
        pairs: list[tuple[str, Any, tuple[Any, ...]]]
        pairs = [(key, before.get(key), (named.get(key), given.get(key))) for key in sorted(before.keys() - self.free)]
        pairs += [(key, recorded.get(key), (value,)) for key, value in facts.items()]
        for key, was, now in pairs:
            if was not in now:
                old, new = (v[:12] if isinstance(v, str) and len(v) == 64 else v for v in (was, now[-1]))
                what = f"{key[:60]} {abridged(old)}, not {abridged(new)}"
                raise InputError(f"{self.folder}: holds a run with {what}; {mend}")

    def begin(self, facts: Mapping[str, Any]) -> None:
        """Write the recipe and the record, and with ``--no-resume`` drop what the run before left.

        Called when all input is known to be good; the first process does it for all.
        """
        if not self.world.first:
            return
        if not self.resume:
            for pattern in (self.checkpoint, *self.results, *self.logs, *self.left):
                for path in list(self.folder.glob(pattern)):
                    if path.is_dir() and not path.is_symlink():
                        shutil.rmtree(path)
                    else:
                        path.unlink()
        write_recipe(self.folder / "recipe.yaml", self.stage, self.config)
        seed = {"seed": self.config.seed} if hasattr(self.config, "seed") else {}
        write_record(self.folder, **seed, **facts)

    def cut(self, step: int) -> None:
        """Drop the rows of all logs after a step, which are about to be made again, and a torn last line.

        Args:
            step: that is done; at 0, where nothing is done, a row of step 0 is made again too.
        """
        if self.world.first:
            for name in self.logs:
                metrics.cut(self.folder / name, step or -1)

    def log(self, step: int, row: Mapping[str, Any], name: str = "metrics.jsonl") -> None:
        """Append a row to a log; the first process does it for all.

        Raises:
            InputError: the disk is full, or the file cannot be written or is a link.
        """
        if self.world.first:
            append_line(self.folder / name, json.dumps({"step": step, **row}))


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

    # Only the main thread may handle signals; a run in another one is stopped by its callback.
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def versions() -> dict[str, str]:
    """Versions of what can change a result."""
    names = ("torch", "diffusers", "transformers", "peft", "open_clip_torch", "accelerate", "xformers", "deepspeed")
    versions = {"rbctl": __version__, "python": platform.python_version()}
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def write_record(folder: Path, **facts: Any) -> None:
    """Write ``run.json``: versions, machine, and the stage's own facts (seeds, hashes of its inputs)."""
    machine = f"{platform.system()}-{platform.release()}-{platform.machine()}"  # platform.platform() starts a program
    write_json(folder / "run.json", {"versions": versions(), "machine": machine, **facts})
