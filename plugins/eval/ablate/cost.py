"""What an ablation has yet to do: steps, pictures, and GPU hours by what bench/fullsize.py measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rbctl import formats
from rbctl.errors import InputError
from rbctl.files import read_object
from rbctl.plugins.eval.stages import Options

FIGURES = Path("bench/out/fullsize.json")
RESOLUTION = 1024  # pixels, at which full size is measured
_MOST = 1e9  # seconds
_STEPS, _BATCH, _DENOISING = 500, 8, 30  # of its finetuning, and of its pictures: bench/full/sizes.py

Row = dict[str, Any]


@dataclass(frozen=True)
class _Sections:
    """The parts that are read, rows of columns; one that was not measured is empty."""

    finetune: tuple[Row, ...] = ()
    sampling: tuple[Row, ...] = ()


@dataclass(frozen=True)
class _FullSize:
    """fullsize.json, as far as it is read."""

    device: str
    sizes: str
    sections: _Sections


@dataclass(frozen=True)
class Figures:
    """Seconds at full size, the least that were measured.

    Attributes:
        tuning, picture: of 500 finetuning steps with 8 samples; of one picture in 30 steps.
        source: the file, the device and the rows.
    """

    tuning: float
    picture: float
    source: str


def read_figures(path: Path) -> Figures:
    """The figures of a file that bench/fullsize.py wrote.

    Raises:
        InputError: it is not there, or lacks a figure of full size.
    """
    content = formats.read(_FullSize, read_object(path), str(path), ignore_others=True)
    if content.sizes != "full":
        raise InputError(f"{path}: was measured at small sizes; run bench/fullsize.py without --tiny, on a GPU")
    tuning = _least(path, content.sections.finetune, "s for 500 steps")
    picture = _least(path, content.sections.sampling, "s/image", "rbctl sample itself")
    seconds = tuning["s for 500 steps"], picture["s/image"]
    rows = f"{seconds[0]:.0f} s for 500 steps, {tuning['what']}; {seconds[1]:.2f} s a picture, {picture['what']}"
    return Figures(*seconds, f"{path} ({content.device}: {rows})")


def _least(path: Path, rows: Sequence[Row], column: str, words: str = "") -> Row:
    named = [row for row in rows if isinstance(row.get("what"), str) and words in row["what"]]
    known = [row for row in named if isinstance(row.get(column), int | float) and 0 < row[column] < _MOST]
    if not known:
        raise InputError(f"{path}: holds no {column!r}; run bench/fullsize.py --only finetune,sampling on a GPU")
    return min(known, key=lambda row: float(row[column]))


def summary(tunings: Sequence[Options], pictures: Sequence[Options], figures: Figures | str) -> str:
    """What is left to do, in a line.

    Args:
        tunings: options of each finetuning that is left.
        pictures: options of each picture that is left.
        figures: or why GPU hours cannot be told.
    """
    steps = sum(options["steps"] for options in tunings)
    denoising = sum(options["steps"] for options in pictures)
    work = f"cost: {steps:,} finetuning steps, {denoising:,} denoising steps"
    if isinstance(figures, str):
        return f"{work}; GPU hours are not known: {figures}"
    samples = sum(options["steps"] * options["batch_size"] for options in tunings)
    hours = (samples / (_STEPS * _BATCH) * figures.tuning + denoising / _DENOISING * figures.picture) / 3600
    return f"{work}; about {hours:.1f} GPU hours by {figures.source}"
