"""Other stages as commands: asked what they would do, and run, several at once."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rbctl.errors import InputError
from rbctl.progress import progress
from rbctl.runs import COMMAND, stop_signals

_PAUSE = 0.1  # seconds between looks at what runs


def resolved(stage: str, *arguments: str) -> dict[str, Any]:
    """Every option of a command line as the stage would run it: flags, recipe, the bundle's own recipe, defaults.

    Raises:
        InputError: the stage refuses them; its own words.
    """
    done = subprocess.run([*COMMAND, stage, *arguments, "--dry-run"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(last_line(done.stderr))
    return dict(yaml.safe_load(done.stdout)[stage])


def last_line(text: str) -> str:
    """The last line that says something (a progress bar's are ended by carriage returns), without "Error: "."""
    lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
    return lines[-1].removeprefix("Error: ") if lines else "it said nothing"


@dataclass(frozen=True)
class Step:
    """A command line of ``rbctl``.

    Attributes:
        log: what it says on stderr is added here.
        done: called with what it printed, once it has ended well.
    """

    arguments: tuple[str, ...]
    log: Path
    done: Callable[[str], None]


def run_steps(steps: Iterable[Step], jobs: int, label: str) -> None:
    """Run commands, ``jobs`` at once, on one thread each where that is more than one.

    When this process is asked to stop, so are they; they save what they have. One that fails stops no other.

    Raises:
        InputError: commands failed: how many, the last line of the first, and where its log lies.
    """
    waiting = deque(steps)
    total, failed = len(waiting), list[str]()
    if not total:
        return
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} if jobs > 1 else None
    running: dict[subprocess.Popen[str], Step] = {}
    with stop_signals() as stop, progress(total, label, unit="run") as bar:
        asked = False
        try:
            while running or (waiting and not stop.requested):
                while waiting and len(running) < jobs and not stop.requested:
                    step = waiting.popleft()
                    running[_start(step, environment)] = step
                if stop.requested and not asked:
                    asked = True
                    _interrupt(running)
                for process in [p for p in running if p.poll() is not None]:
                    step = running.pop(process)
                    assert process.stdout is not None
                    printed = process.stdout.read()
                    process.stdout.close()
                    if process.returncode == 0:
                        step.done(printed)
                        bar.update()
                    elif not stop.requested:
                        said = last_line(step.log.read_text(encoding="utf-8", errors="replace"))
                        code = "" if process.returncode == 2 else f" ended with code {process.returncode}"
                        failed.append(f"rbctl {step.arguments[0]}{code}: {said} (log: {step.log})")
                time.sleep(_PAUSE)
        finally:
            _interrupt(running)
            for process in running:
                process.wait()
    if stop.requested:
        raise KeyboardInterrupt
    if failed:
        several = f"{len(failed)} of {total} failed, the others are kept; the first: " if total > 1 else ""
        raise InputError(several + failed[0])


def _start(step: Step, environment: dict[str, str] | None) -> subprocess.Popen[str]:
    step.log.parent.mkdir(parents=True, exist_ok=True)
    with step.log.open("a", encoding="utf-8") as log:
        # In a session of its own: Ctrl-C reaches it through us alone, once.
        return subprocess.Popen(
            [*COMMAND, *step.arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
            start_new_session=True,
        )


def _interrupt(running: Iterable[subprocess.Popen[str]]) -> None:
    for process in running:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
