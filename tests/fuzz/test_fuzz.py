"""Every reader on some broken inputs; ``make fuzz`` gives them many more."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from fuzzing import fuzz
from judgement import judged
from mutations import json_file
from readers import READERS

pytestmark = pytest.mark.slow

INPUTS = 12  # of each reader


@pytest.mark.parametrize("name", READERS)
def test_a_broken_input_is_taken_or_refused_in_one_line(name: str, tmp_path: Path) -> None:
    tally = fuzz(name, range(INPUTS), 0, tmp_path)
    assert tally.inputs == INPUTS
    assert not tally.faults


def _refuse(message: str) -> None:
    raise click.UsageError(message)  # an InputError shortens itself


@pytest.mark.parametrize(
    ("read", "fault"),
    [
        (lambda: {"a": [1.0, float("inf")]}, "value[a][1] is taken in as inf"),
        (lambda: (torch.tensor([float("nan")]),), "value[0] is taken in with NaN"),
        (lambda: np.array([np.nan]), "value is taken in with NaN"),
        (lambda: ["\ud800"], "half a character"),
        (lambda: 1 / 0, "fails: ZeroDivisionError"),
        (lambda: _refuse("a.json: " + "x" * 400), "message of 408 characters"),
        (lambda: _refuse("a.json:\nx"), "message of several lines"),
        (lambda: _refuse("wrong"), "names neither file nor field"),
        (lambda: subprocess.run(["true"], check=True), "reaches out: subprocess.Popen"),
        (lambda: Path(tempfile.gettempdir(), "fuzz-outside").write_text("x"), "reaches out: open"),
        (lambda: _refuse("a.json: is wrong"), ""),
        (lambda: [1.0, "x", None], ""),
    ],
)
def test_the_judge_sees_what_is_wrong(read: Callable[[], object], fault: str, tmp_path: Path) -> None:
    outcome = judged(read, ["a.json"], tmp_path)
    assert fault in outcome.fault
    assert bool(outcome.fault) is bool(fault)


def test_a_seed_repeats_an_input() -> None:
    document = json_file("a.json", {"a": [1, 2.5, "x"], "b": {"c": True}})
    first, again, other = (document.mutate(document.content, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert first == again != other
