"""Time and memory of the parts of a command, written where the environment variable RBCTL_MEASUREMENTS names a file."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rbctl import formats
from rbctl.files import append_line, read_jsonl

VARIABLE = "RBCTL_MEASUREMENTS"

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # of Linux


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A line of the file; a part has one when it begins, without figures, and one when it has ended.

    Attributes:
        seconds: from begin to end; None at the begin.
        memory: most bytes of main memory that the process held meanwhile, files that it reads in place included; None
            where the system does not tell.
        gpu_memory: most bytes that PyTorch held on the GPU meanwhile; None without one.
    """

    part: str
    seconds: float | None = None
    memory: int | None = None
    gpu_memory: int | None = None


@contextlib.contextmanager
def measured(part: str, file: Path | None = None) -> Iterator[None]:
    """Measure a block, or as a decorator a function. Blocks may not be nested.

    Args:
        part: what is done in it.
        file: where it is written; None for the one that the environment names, if it names any.
    """
    if file is None and VARIABLE in os.environ:
        file = Path(os.environ[VARIABLE])
    if file is None:
        yield
        return
    import torch

    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        _RESET.write_text("5")  # the peak of main memory counts from now on
    _append(file, Measurement(part=part))
    begun = time.perf_counter()
    yield
    if cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - begun
    gpu_memory = torch.cuda.max_memory_allocated() if cuda else None
    _append(file, Measurement(part=part, seconds=seconds, memory=_peak(), gpu_memory=gpu_memory))


def read_measurements(path: Path) -> list[Measurement]:
    """What a command measured; of a part that did not end the begin alone. Empty where there is no file."""
    lines = read_jsonl(path) if path.is_file() else []
    rows = [formats.read(Measurement, line, str(path)) for line in lines]
    last = rows[-1:] if rows and rows[-1].seconds is None else []
    return [row for row in rows if row.seconds is not None] + last


def _append(path: Path, row: Measurement) -> None:
    append_line(path, json.dumps(asdict(row)))


def _peak() -> int | None:
    with contextlib.suppress(OSError):
        if peak := re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text()):
            return int(peak[1]) * 1024
    return None
