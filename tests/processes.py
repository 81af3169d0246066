"""rbctl in processes of its own, started from a server that has the heavy imports behind it: fast, and killable."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Sequence
from pathlib import Path

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["torch", "diffusers", "transformers", "peft", "accelerate", "open_clip", "rbctl.bundle.load"]
)


def _main(arguments: Sequence[str], log: str, file_limit: int | None, folder: str | None) -> None:
    import torch

    from rbctl.cli import main

    descriptor = os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    torch.set_num_threads(1)
    if folder is not None:
        os.chdir(folder)
    if file_limit is not None:
        import resource
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that the write fails with an error, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
        sys.dont_write_bytecode = True  # Python would leave modules cut short for all that come after
    sys.argv = ["rbctl", *arguments]
    main(list(arguments))


def start(
    arguments: Sequence[object], log: Path, file_limit: int | None = None, folder: Path | None = None
) -> multiprocessing.context.ForkServerProcess:
    """Start ``rbctl ARGUMENTS`` in ``folder``; output goes to ``log``. ``file_limit``: the most bytes of a file."""
    place = None if folder is None else str(folder)
    process = _context.Process(target=_main, args=([str(a) for a in arguments], str(log), file_limit, place))
    process.start()
    return process


def run(arguments: Sequence[object], log: Path, file_limit: int | None = None, folder: Path | None = None) -> int:
    """Run ``rbctl ARGUMENTS`` to its end; the exit code."""
    process = start(arguments, log, file_limit, folder)
    process.join()
    assert process.exitcode is not None
    return process.exitcode
