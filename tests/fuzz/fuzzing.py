"""Readers given broken inputs, one after the other, and what they did counted."""

from __future__ import annotations

import contextlib
import io
import re
import tempfile
import time
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np
from judgement import Outcome, judged
from readers import READERS


@dataclass
class Tally:
    """What a reader did.

    Attributes:
        seconds: it took in all.
        faults: by their kind, the cases that show it and what was wrong.
    """

    inputs: int = 0
    refused: int = 0
    taken: int = 0
    seconds: float = 0.0
    faults: dict[str, list[tuple[int, str]]] = field(default_factory=dict)

    @property
    def failures(self) -> int:
        return sum(map(len, self.faults.values()))

    def add(self, case: int, outcome: Outcome) -> None:
        self.inputs += 1
        self.taken += outcome.taken
        self.refused += not outcome.taken
        if outcome.fault:
            kind = re.sub(r"'[^']*'|\"[^\"]*\"|/tmp\S+|\d+", "*", outcome.fault)[:120]  # values vary, faults do not
            self.faults.setdefault(kind, []).append((case, outcome.fault))


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    with (
        contextlib.redirect_stderr(io.StringIO()),
        contextlib.redirect_stdout(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _temporary_in(folder: Path) -> Iterator[None]:
    """A reader's temporary files are no escape from the folder."""
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


def fuzz(name: str, cases: Sequence[int], seed: int, folder: Path, show: bool = False) -> Tally:
    """Give a reader broken inputs.

    Args:
        cases: their numbers; seed, name and number make an input.
        folder: empty; its valid input is put there.
        show: print each input and its outcome.
    """
    tally = Tally()
    place = folder / name
    place.mkdir(parents=True)
    with _temporary_in(folder), _silent():
        made = READERS[name](place)
        for document in made.documents:
            (place / document.path).parent.mkdir(parents=True, exist_ok=True)
            (place / document.path).write_bytes(document.write(document.content))
        made.read(place)  # what is valid is taken
    start = time.monotonic()
    for case in cases:
        random = np.random.default_rng([seed, zlib.crc32(name.encode()), case])
        document = made.documents[random.integers(len(made.documents))]
        with _temporary_in(folder), _silent():
            broken = document.mutate(document.content, random)
            (place / document.path).write_bytes(broken)
            names = (*made.fields, name, *(Path(d.path).name for d in made.documents))
            outcome = judged(lambda: made.read(place), names, folder)
            (place / document.path).write_bytes(document.write(document.content))
        tally.add(case, outcome)
        if show:
            click.echo(f"{document.path}: {broken[:2000]!r}\n{outcome}")
    tally.seconds = time.monotonic() - start
    return tally
