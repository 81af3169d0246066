"""Progress on stderr: a live bar where there is a terminal, a sparse line elsewhere. And tables on stdout likewise."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

import click


def progress(total: int, label: str, initial: int = 0, unit: str = "step", disable: bool = False) -> Any:
    """A bar: ``update(count=1)``, ``set_postfix(**numbers)``; a context that ends it.

    Away from a terminal it is tqdm's, with at most one line in ten seconds.
    """
    if sys.stderr.isatty() and not disable:
        return _Bar(total, label, initial, unit)
    from tqdm import tqdm

    return tqdm(
        total=total, initial=initial, desc=label, unit=unit, mininterval=10.0, maxinterval=10.0, disable=disable
    )


@cache
def _console() -> Any:
    """The console of all bars."""
    from rich.console import Console

    return Console(stderr=True)


class _Bar:
    """A live bar of rich, with what tqdm offers of it. Lines that are printed meanwhile stand above it."""

    def __init__(self, total: int, label: str, initial: int, unit: str) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.progress import TimeRemainingColumn as Remaining

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(f"{unit}s", markup=False),
            TimeElapsedColumn(),
            Remaining(),
            TextColumn("{task.fields[numbers]}", markup=False),
        )
        self._progress = Progress(*columns, console=_console(), redirect_stdout=False)
        self._task = self._progress.add_task(label, total=total, completed=initial, numbers="")

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, count: int = 1) -> None:
        """So many more are done."""
        self._progress.update(self._task, advance=count)

    def set_postfix(self, numbers: dict[str, str] | None = None, refresh: bool = True, **more: str) -> None:
        """Numbers beside the bar."""
        shown = " ".join(f"{name} {value}" for name, value in {**(numbers or {}), **more}.items())
        self._progress.update(self._task, numbers=shown, refresh=refresh)


def print_above_bar(sequence: str) -> bool:
    """Send a control sequence to the terminal, and end its line; a live bar goes on below.

    Returns:
        Whether stderr is a terminal; elsewhere nothing is written.
    """
    if not sys.stderr.isatty():
        return False
    from rich.segment import ControlType, Segment, Segments

    # A segment with a control code counts as no width, and rich passes it on as it is.
    _console().print(Segments([Segment(sequence, None, [(ControlType.CARRIAGE_RETURN,)]), Segment.line()]))
    return True


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout: drawn in a terminal, else aligned text, a row a line.

    Args:
        head: of the columns; empty for none.
    """
    lines = [row for row in (head, *rows) if row]
    if not lines:
        return
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(show_header=bool(head), box=None, pad_edge=False)
        for name in head or rows[0]:
            table.add_column(Text(name), overflow="fold")  # nothing of a cell is left out
        for row in rows:
            table.add_row(*map(Text, row))
        Console().print(table)
        return
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        click.echo("  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip())
