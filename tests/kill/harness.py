"""Runs a command undisturbed, kills others of its runs until they end, and compares the folders."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import processes

from kill.commands import COMMANDS, Command, Inputs
from kill.documented import DOCUMENTED

_SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)  # drawn from
_IN_A_ROW = 4  # kills of one folder at most, before it is let come to its end
_PATIENCE = 300  # seconds that a run may take


@dataclass
class Result:
    """What became of a command.

    Attributes:
        seconds: that its run takes undisturbed.
        kills, runs: signals sent, and folders that came to their end after some.
        full: runs on a disk that was too small.
        differences: what differs from the undisturbed run, or went wrong; each is said once.
    """

    seconds: float = 0.0
    kills: int = 0
    runs: int = 0
    full: int = 0
    differences: dict[str, None] = field(default_factory=dict)


class Kills:
    """Runs of a command, each in a folder of its own below ``work``."""

    def __init__(self, work: Path, name: str, rng: random.Random) -> None:
        self.work, self.name, self.rng = work, name, rng
        self.command: Command = COMMANDS[name]
        self.inputs = Inputs(work / "inputs")
        self.log = work / f"{name}.log"
        self.result = Result()
        for needed in self.command.needs:
            self.inputs(needed)
        self.straight = self._fresh("straight")

    def undisturbed(self) -> None:
        """Run it to its end, which is timed: what all others are compared with.

        Raises:
            RuntimeError: it failed.
        """
        begun = time.perf_counter()
        if code := processes.run(self.command.arguments, self.log, folder=self.straight):
            raise RuntimeError(f"{self.name}: ended with {code}:\n{self.log.read_text()[-2000:]}")
        self.result.seconds = time.perf_counter() - begun

    def run_anew(self) -> None:
        """Run it in a Python of its own, which orders sets differently."""
        folder, environment = self._fresh("anew"), {**os.environ, "PYTHONHASHSEED": "1"}
        command = [sys.executable, "-m", "rbctl", *self.command.arguments]
        with self.log.open("a") as log:
            subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=log, check=True)
        self._compare(folder, "no kill, in another process")

    def kill_and_resume(self, most: int) -> None:
        """Kill a fresh run up to ``most`` times, each time at a moment of the whole run's length, then let it end."""
        folder, signals = self._fresh("killed"), list[str]()
        for _ in range(min(most, _IN_A_ROW)):
            number, moment = self.rng.choice(_SIGNALS), self.rng.uniform(0, self.result.seconds)
            process = processes.start(self.command.arguments, self.log, folder=folder)
            process.join(moment)
            if process.exitcode is not None:
                break
            assert process.pid is not None
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)
            process.join(_PATIENCE)
            signals.append(f"{signal.Signals(number).name} at {moment:.2f} s")
            # Before the command begins, Python itself ends with 1 on SIGINT.
            early = number == signal.SIGINT and process.exitcode == 1 and "Traceback" not in self.log.read_text()
            if process.exitcode not in (0, 130, -number) and not early:
                self._tell(f"ends with {process.exitcode} on {signal.Signals(number).name}")
        self.result.kills += len(signals)
        self.result.runs += 1
        if self._finish(folder, ", ".join(signals)):
            self._compare(folder, ", ".join(signals))

    def fill_the_disk(self) -> None:
        """Run it on a disk that has room for a part of it, then give it more; needs the right to mount one."""
        with small_disk(self.work / f"{self.name}.full") as resize:
            folder = self._fresh("full")
            start = _room(folder)
            grown = max(0, _room(self.straight) - start)  # a command may only delete
            room = start + int(self.rng.uniform(0.05, 0.9) * grown)
            resize(room)
            after = f"a full disk of {room} bytes"
            if (code := processes.run(self.command.arguments, self.log, folder=folder)) == 0:
                return
            self.result.full += 1
            if code != 2 or not self._last_line().startswith("Error: "):
                self._tell(f"on a full disk: ends with {code}: {self._last_line()}")
            resize(1 << 30)
            if self._finish(folder, after):
                self._compare(folder, after)

    def _fresh(self, which: str) -> Path:
        """A folder with the command's copies, and nothing else."""
        folder = self.work / f"{self.name}.{which}"
        for path in folder.iterdir() if folder.is_mount() else ():
            shutil.rmtree(path)
        if not folder.is_mount():
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(exist_ok=True)
        for name in self.command.copies:
            shutil.copytree(self.inputs(name), folder / name, symlinks=True)
        return folder

    def _finish(self, folder: Path, after: str) -> bool:
        code = processes.run(self.command.arguments, self.log, folder=folder)
        if code:
            self._tell(f"the same command again ends with {code}: {self._last_line()}", after)
        return code == 0

    def _last_line(self) -> str:
        return self.log.read_text(errors="replace").strip().splitlines()[-1][:300]

    def _compare(self, folder: Path, after: str) -> None:
        for difference in differences(self.straight, folder):
            self._tell(difference, after)

    def _tell(self, difference: str, after: str = "") -> None:
        if difference not in self.result.differences:
            self.result.differences[difference] = None
            print(f"  {self.name}: {difference}{f' (after {after})' if after else ''}", flush=True)


@contextlib.contextmanager
def small_disk(place: Path) -> Iterator[Callable[[int], object]]:
    """A disk in memory at ``place``; yields what sets its size in bytes."""
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=True)
    try:
        yield lambda size: subprocess.run(["mount", "-o", f"remount,size={size}", place], check=True)
    finally:
        subprocess.run(["umount", place], check=True)


def may_mount(work: Path) -> bool:
    """Whether this user may mount a disk."""
    try:
        with small_disk(work / "disk"):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def _room(folder: Path) -> int:
    """Bytes that a folder's files take on a disk of pages of 4 KiB."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*") if path.is_file())


def differences(straight: Path, other: Path) -> list[str]:
    """What differs in another folder, a line a file, but for what is documented."""
    before, after = ({path.relative_to(place).as_posix(): path for path in place.rglob("*")} for place in (
        straight, other
    ))  # fmt: skip
    lines = [f"{name}: is missing" for name in _outermost(before.keys() - after.keys())]
    lines += [f"{name}: is left" for name in _outermost(after.keys() - before.keys())]
    for name in sorted(before.keys() & after.keys()):
        if difference := _difference(name, before[name], after[name]):
            lines.append(f"{name}: {difference}")
    return lines


def _outermost(names: Set[str]) -> list[str]:
    """Names without those below others, and without what is documented."""
    return [name for name in sorted(names) if os.path.dirname(name) not in names and not _documented(name)]


def _documented(name: str) -> bool:
    return any(fnmatch(name, known.files) and not known.fields for known in DOCUMENTED)


def _difference(name: str, one: Path, other: Path) -> str:
    if one.is_symlink() or other.is_symlink():
        same = one.is_symlink() and other.is_symlink() and os.readlink(one) == os.readlink(other)
        return "" if same else "leads elsewhere"
    if one.is_dir() or other.is_dir() or _documented(name):
        return "" if one.is_dir() == other.is_dir() else "is a folder in one of them alone"
    if one.read_bytes() == other.read_bytes():
        return ""
    fields = {field for known in DOCUMENTED if fnmatch(name, known.files) for field in known.fields}
    values = [_content(path) for path in (one, other)]
    if None in values:
        return "other bytes"
    faults = list(_unequal(*values, fields, ""))
    return ", ".join(faults[:3]) + (f" and {len(faults) - 3} more" if len(faults) > 3 else "")


def _content(path: Path) -> Any:
    """What a file of a known form says; None of any other."""
    if path.suffix == ".json":
        return json.loads(path.read_bytes())
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_bytes().splitlines()]
    if path.suffix == ".safetensors":
        raw = path.read_bytes()
        length = 8 + int.from_bytes(raw[:8], "little")
        return {"header": json.loads(raw[8:length]), "tensors": hash(raw[length:])}
    return None


def _unequal(one: Any, other: Any, fields: set[str], where: str) -> Iterator[str]:
    """The places where two contents differ, but for the fields."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted(one.keys() | other.keys()):
            if key not in fields:
                yield from _unequal(one.get(key), other.get(key), fields, f"{where}.{key}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for number, pair in enumerate(zip(one, other, strict=True)):
            yield from _unequal(*pair, fields, f"{where}[{number}]")
    elif one != other:
        yield f"{where or 'content'}: {str(one)[:60]} / {str(other)[:60]}"
