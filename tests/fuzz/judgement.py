"""What a reader may do with a broken input: take it, every number finite, or refuse it in one line that says where.

It may not fail otherwise, run anything, reach outside of its folder, or take long.
"""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import click
import numpy as np
import torch

from rbctl.errors import InputError

LONGEST = 400  # characters of a message
SECONDS = 10.0  # of a core, for one input
_STUCK = 60  # seconds after which a reader is stopped


@dataclass(frozen=True)
class Outcome:
    """``taken`` or ``refused``, and what is wrong with that; "" where nothing is."""

    taken: bool
    fault: str = ""


def judged(read: Callable[[], Any], names: Sequence[str], folder: Path) -> Outcome:
    """Call a reader.

    Args:
        names: files and fields; a message names one of them.
        folder: outside of it nothing may be written.
    """
    start = time.process_time()
    try:
        with _watched(folder) as reached:
            value = read()
    except (InputError, click.UsageError) as error:
        outcome = Outcome(
            False, _of_message(str(error) if isinstance(error, InputError) else error.format_message(), names)
        )
    except _Stuck:
        outcome = Outcome(False, "does not end")
    except Exception:  # whatever it is, it is a fault
        outcome = Outcome(False, "fails: " + _last_lines(traceback.format_exc()))
    else:
        outcome = Outcome(True, next(not_finite(value), ""))
    if reached:
        return Outcome(outcome.taken, f"reaches out: {reached[0]}")
    if (seconds := time.process_time() - start) > SECONDS:
        return Outcome(outcome.taken, f"takes {seconds:.0f} s")
    return outcome


def _last_lines(text: str) -> str:
    """Where of the project it failed, and the error."""
    lines = text.strip().splitlines()
    own = [line.strip() for line in lines if "/rbctl/" in line or "/plugins/" in line]
    return " | ".join([*own[-2:], lines[-1][:300]])


def _of_message(message: str, names: Sequence[str]) -> str:
    if len(message) > LONGEST:
        return f"message of {len(message)} characters: {message[:200]}"
    if "\n" in message:
        return f"message of several lines: {message!r}"
    if not any(name in message for name in names):
        return f"message names neither file nor field: {message}"
    return ""


def not_finite(value: Any, path: str = "value", depth: int = 0) -> Iterator[str]:
    """Numbers in a value that are not finite, and words that no file can hold."""
    if depth > 20:
        return
    inner: list[tuple[str, Any]] = []
    if isinstance(value, torch.Tensor):
        if not bool(torch.isfinite(value).all()):
            yield f"{path} is taken in with NaN or infinite numbers"
    elif isinstance(value, np.ndarray | np.generic):
        if value.dtype.kind in "fc" and not bool(np.isfinite(value).all()):
            yield f"{path} is taken in with NaN or infinite numbers"
    elif isinstance(value, float):
        if not math.isfinite(value):
            yield f"{path} is taken in as {value}"
    elif isinstance(value, str):
        if any("\ud800" <= char <= "\udfff" for char in value):
            yield f"{path} is taken in with half a character"
    elif isinstance(value, Mapping):
        inner = [(f"{path}[{str(key)[:40]}]", part) for key, part in value.items()]
        inner += [(f"a key of {path}", key) for key in value]
    elif isinstance(value, list | tuple | set | frozenset):
        inner = [(f"{path}[{k}]", part) for k, part in enumerate(value)]
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        inner = [(f"{path}.{field.name}", getattr(value, field.name)) for field in dataclasses.fields(value)]
    for name, part in inner:
        yield from not_finite(part, name, depth + 1)


# --- what it reaches ------------------------------------------------------------------------------------------------

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {"os.remove", "os.rmdir", "os.mkdir", "os.rename", "os.link", "os.symlink", "os.truncate", "os.chmod"}
_OUTSIDE = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "socket.connect"}
_watching: list[tuple[str, list[str]]] = []  # the folder, and what was reached


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching:
        return
    folder, reached = _watching[-1]
    if event == "open":
        path, _, flags = arguments
        if not isinstance(path, str) or path == os.devnull:
            return
        writes = isinstance(flags, int) and flags & _WRITES and "__pycache__" not in path
        if "passwd" in path or (writes and not os.path.realpath(path).startswith(folder)):
            reached.append(f"open {path}")
    elif event in _CHANGES and not isinstance(arguments[-1], int | None):
        path = os.fsdecode(arguments[0])
        if "__pycache__" not in path and not os.path.realpath(path).startswith(folder):
            reached.append(f"{event} {path}")
    elif event in _OUTSIDE:
        reached.append(f"{event} {arguments[:2]}")


class _Stuck(BaseException):
    """No Exception, so that no reader takes it for an error of its own."""


class _watched:
    """While the block lasts, what leaves ``folder`` is listed, and it ends when it takes very long."""

    def __init__(self, folder: Path) -> None:
        self.folder = os.path.realpath(folder)

    def __enter__(self) -> list[str]:
        if not getattr(sys, "_fuzz_audited", False):  # a hook cannot be taken out again
            sys.addaudithook(_audit)
            sys._fuzz_audited = True  # type: ignore[attr-defined]
        _watching.append((self.folder, []))
        self._before = signal.signal(signal.SIGALRM, _stop)
        signal.alarm(_STUCK)
        return _watching[-1][1]

    def __exit__(self, *_: object) -> None:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, self._before)
        _watching.pop()


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise _Stuck
