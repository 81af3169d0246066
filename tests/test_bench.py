"""``make bench`` notices a slowdown: its own conftest on made-up benchmarks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.slow

BENCH = Path(__file__).resolve().parents[1] / "bench"
# The clock is made up too: on a busy machine a real one would fail the recorded ratio now and then.
CLOCK = """\
import time

import pytest
import torch


@pytest.fixture
def sleep(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


"""
FILE = (
    CLOCK
    + """\
def test_it(compare, sleep):
    compare("made up", lambda: sleep({ours}), lambda: sleep(0.1), rounds=3, memory=(1.5, 2.5))


def test_memory(compare, sleep):
    def fill(size):
        sleep(0.1)
        torch.zeros(size)

    compare("memory", lambda: fill(10**6), lambda: fill(4 * 10**6), rounds=3, memory=True)
"""
)
DISTURBED = (
    CLOCK
    + """\
def test_it(compare, sleep):
    calls = []

    def ours():
        calls.append(1)
        sleep(0.1 if len(calls) < 5 else 0.05)

    compare("made up", ours, lambda: sleep(0.1), rounds=3)
"""
)


def bench(folder: Path, ours: float, *flags: str, file: str = FILE) -> subprocess.CompletedProcess[str]:
    (folder / "bench_made_up.py").write_text(file.format(ours=ours))
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", str(BENCH.parent / "pyproject.toml")]
    command += [f"--rootdir={folder}", str(folder), *flags]
    # A process of its own, no worker of this run: in a worker pytest-benchmark measures nothing.
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=alone)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(BENCH / "conftest.py", tmp_path)
    return tmp_path


def test_a_slowdown_fails(folder: Path) -> None:
    recorded = bench(folder, 0.05, "--record-ratios")
    assert recorded.returncode == 0, recorded.stdout
    assert yaml.safe_load((folder / "ratios.yaml").read_text()) == {"made up": 2, "memory": 1}
    again = bench(folder, 0.05)
    assert again.returncode == 0, again.stdout
    slower = bench(folder, 0.1)
    assert slower.returncode == 1
    assert "more than 20 % below the recorded" in slower.stdout
    assert "2 passed" in slower.stdout


def test_what_slows_the_first_rounds_alone_does_not_fail(folder: Path) -> None:
    (folder / "ratios.yaml").write_text("made up: 2.0\n")
    done = bench(folder, 0, file=DISTURBED)
    assert done.returncode == 0, done.stdout


def test_what_is_measured_is_kept(folder: Path) -> None:
    done = bench(folder, 0.05)
    assert done.returncode == 0, done.stdout
    made_up, memory = json.loads((folder / "out" / "results.json").read_text())
    assert made_up.keys() == {"name", "ours_s", "baseline_s", "ratio", "peak_ours_mb", "peak_baseline_mb"}
    assert made_up["ours_s"] == pytest.approx(0.05)
    assert made_up["ratio"] == pytest.approx(made_up["baseline_s"] / made_up["ours_s"])
    assert (made_up["peak_ours_mb"], made_up["peak_baseline_mb"]) == (1.5, 2.5)
    assert (memory["peak_ours_mb"], memory["peak_baseline_mb"]) == pytest.approx((4, 16), rel=0.01)
    assert "made up" in done.stdout
