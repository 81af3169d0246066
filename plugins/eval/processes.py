"""Several processes that share the encoding (``accelerate launch``, ``torchrun``); one without either."""

from __future__ import annotations

import datetime
import os
from typing import Any

import torch

from rbctl.device import pick_device


def count_and_rank() -> tuple[int, int]:
    """How many processes share the work, and which one this is."""
    if _alone():
        return 1, 0
    state = _state()
    return state.num_processes, state.process_index


def wait() -> None:
    """Go on when every process has come here."""
    if not _alone():
        _state().wait_for_everyone()


def own_device(wanted: str) -> torch.device:
    """Where this process runs: a GPU of its own where several share the work."""
    device = pick_device(wanted)
    return device if _alone() or device.type == "cpu" else torch.device(_state().device)


def _alone() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) < 2


def _state() -> Any:
    from accelerate import PartialState

    # The others wait while the first samples a whole benchmark: by default they give up after some minutes.
    return PartialState(cpu=not torch.cuda.is_available(), timeout=datetime.timedelta(days=7))
