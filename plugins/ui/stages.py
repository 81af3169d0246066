"""Stages that the page starts: the commands that a user would type, as processes, a step of output at a time."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from rbctl.errors import InputError
from rbctl.plugins.ui.workspace import Workspace
from rbctl.runs import start

_MOST_LINES = 200  # of output that the page shows
_PAUSE = 0.5  # seconds between two looks


@dataclass
class _Running:
    process: subprocess.Popen[str]
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=_MOST_LINES))
    stopped: bool = False

    def read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            text = line.rstrip()
            if self.lines and "%|" in text and "%|" in self.lines[-1]:  # a bar moves on in its line
                self.lines.pop()
            if text:
                self.lines.append(text)


class Stages:
    """Runs one stage at a time, in the work folder.

    Args:
        before: called before a stage starts.
    """

    def __init__(self, workspace: Workspace, before: Callable[[], None]) -> None:
        self.workspace = workspace
        self.before = before
        self._running: dict[tuple[str, ...], _Running] = {}

    def run(self, arguments: Sequence[str]) -> Iterator[str]:
        """Run ``rbctl ARGUMENTS`` and yield the end of its output, again and again until it ends.

        Where the same command runs already, because its page was closed, it is looked at again.

        Raises:
            InputError: the stage failed, with the last line that it said, or it was stopped.
        """
        key = tuple(arguments)
        running = self._running.get(key)
        if running is None:
            self.before()
            process = start(
                arguments, cwd=self.workspace.root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                encoding="utf-8", errors="replace",
            )  # fmt: skip
            running = self._running[key] = _Running(process)
            threading.Thread(target=running.read, daemon=True).start()
        while running.process.poll() is None:
            yield "\n".join(running.lines)
            time.sleep(_PAUSE)
        self._running.pop(key, None)
        time.sleep(0.1)  # the last lines are on their way
        yield "\n".join(running.lines)
        if running.stopped:
            raise InputError("stopped; the same button goes on from what was saved")
        if running.process.returncode:
            last = running.lines[-1] if running.lines else "it said nothing"
            raise InputError(f"rbctl {arguments[0]}: {last.removeprefix('Error: ')}")

    def stop(self) -> None:
        """Ask what runs to save and end, as Ctrl-C does."""
        for running in list(self._running.values()):
            running.stopped = True
            if os.name == "nt":
                running.process.terminate()
            else:
                running.process.send_signal(signal.SIGINT)


def command_line(*commands: Sequence[str]) -> str:
    """Commands as a user types them in the work folder, a line each."""
    return "\n".join(shlex.join(["rbctl", *arguments]) for arguments in commands)
