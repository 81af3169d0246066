"""Progress on stderr: a bar where there is a terminal, a sparse line elsewhere."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


def progress(total: int, label: str, initial: int = 0, unit: str = "step", disable: bool = False) -> Any:
    """A tqdm bar; away from a terminal it prints at most one line in ten seconds."""
    interval = 0.1 if sys.stderr.isatty() else 10.0
    return tqdm(
        total=total,
        initial=initial,
        desc=label,
        unit=unit,
        mininterval=interval,
        maxinterval=max(interval, 10),
        disable=disable,
    )
