"""``compare``: both sides in one run, a ratio, and a failure where it falls below what bench/ratios.yaml holds."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

# Threads that spin while they wait for one another get nowhere on busy cores. OpenMP reads this when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

HERE = Path(__file__).resolve().parent
if str(HERE.parent) not in sys.path:  # bench is no part of the distribution
    sys.path.insert(0, str(HERE.parent))

RATIOS, RESULTS = HERE / "ratios.yaml", HERE / "out" / "results.json"
SLACK = 0.8  # a ratio may be 20 % below the one recorded
REPEATS = 8  # rounds go on so many times where it falls lower: another process that ran meanwhile is no slowdown


@dataclass(frozen=True)
class Comparison:
    """One measurement; ratio = baseline_s / ours_s; peaks in MB."""

    name: str
    ours_s: float
    baseline_s: float
    ratio: float
    peak_ours_mb: float | None = None
    peak_baseline_mb: float | None = None


_RECORDED = pytest.StashKey[dict[str, float]]()
_DONE = pytest.StashKey[list[Comparison]]()
_SLOW = pytest.StashKey[list[str]]()
_TABLES = pytest.StashKey[dict[str, list[str]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "keep the ratios measured in bench/ratios.yaml, unless lower ones stand there"
    parser.addoption("--record-ratios", action="store_true", help=text)


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_DONE], config.stash[_SLOW], config.stash[_TABLES] = [], [], {}
    config.stash[_RECORDED] = yaml.safe_load(RATIOS.read_text()) if RATIOS.is_file() else {}


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Callable[[str, list[str]], None]:
    """``report(title, lines)``: a table of its own, of what is counted and not timed."""
    return request.config.stash[_TABLES].__setitem__


@pytest.fixture
def compare(benchmark: Any, request: pytest.FixtureRequest) -> Callable[..., Comparison]:
    """``compare(name, ours, baseline, rounds=5, memory=False, processes=False, warm_up=1)``, both without arguments.

    ``memory=True`` takes the ``peak_mb`` of either side, which slows a long one down and holds a record of all it did;
    a pair is the two peaks in MB, found otherwise. ``processes=True`` compares the user CPU time of the processes that
    the sides start, the median of the rounds; else the time on the clock counts, the fastest round.

    The sides take turns, so that a machine that slows down meanwhile slows both. A ratio too low is measured for longer
    before it is believed.
    """

    def run(
        name: str,
        ours: Callable[[], Any],
        baseline: Callable[[], Any],
        rounds: int = 5,
        memory: bool | tuple[float, float] = False,
        processes: bool = False,
        warm_up: int = 1,
    ) -> Comparison:
        if memory is True:
            memory = (peak_mb(ours), peak_mb(baseline))
        if memory:
            warm_up = 0  # both sides have run where their memory was measured
        clock = processes_clock if processes else time.perf_counter
        typical = statistics.median if processes else min
        ours_s: list[float] = []
        baseline_s: list[float] = []
        benchmark.pedantic(
            lambda: ours_s.append(seconds(ours, clock)),
            setup=lambda: baseline_s.append(seconds(baseline, clock)),
            rounds=rounds,
            warmup_rounds=warm_up,
        )
        del ours_s[:warm_up], baseline_s[:warm_up]
        for _ in range(REPEATS):
            if typical(baseline_s) / typical(ours_s) >= SLACK * request.config.stash[_RECORDED].get(name, 0):
                break
            for _ in range(rounds):
                baseline_s.append(seconds(baseline, clock))
                ours_s.append(seconds(ours, clock))
        ratio = typical(baseline_s) / typical(ours_s)
        comparison = Comparison(name, typical(ours_s), typical(baseline_s), ratio, *(memory or ()))
        benchmark.extra_info.update(dataclasses.asdict(comparison))
        request.config.stash[_DONE].append(comparison)
        return comparison

    return run


def seconds(function: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    """How long one call takes by the clock."""
    begun = clock()
    function()
    return clock() - begun


def processes_clock() -> float:
    """Seconds of user CPU time of all processes that this one started and waited for."""
    return os.times().children_user


def peak_mb(function: Callable[[], Any]) -> float:
    """The most memory that PyTorch held at once during a call, beyond what it held before."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    held = peak = 0
    # The public API sums allocations up; only the raw events tell what was held at once.
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak / 1e6


def pytest_sessionfinish(session: pytest.Session) -> None:
    done = session.config.stash[_DONE]
    if not done:
        return
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps([dataclasses.asdict(row) for row in done], indent=1) + "\n")
    recorded = session.config.stash[_RECORDED]
    if session.config.getoption("--record-ratios"):
        recorded |= {row.name: min(round(row.ratio, 2), recorded.get(row.name, math.inf)) for row in done}
        RATIOS.write_text(_HEAD + yaml.safe_dump(recorded))
    slow = session.config.stash[_SLOW]
    for row in done:
        if row.ratio < SLACK * recorded.get(row.name, 0):
            slow.append(f"{row.name}: ratio {row.ratio:.2f}, more than 20 % below the recorded {recorded[row.name]}")
    if slow and session.exitstatus == 0:
        session.exitstatus = 1


_HEAD = """\
# baseline seconds / ours of comparisons of `make bench`, which fails where a ratio falls more than 20 % below.
# Written by: python -m pytest bench --record-ratios (again and again: the lowest of all runs stays)
# Taken out by hand: sdpa in float32, data and what is set against an import of torch, as they vary by more from run to
# run; and bf16, which depends on whether the CPU has instructions for it.
# Scale: 1 is a time that grows with the number of items; what is above comes from what a go costs once.
"""


@pytest.hookimpl(trylast=True)  # below pytest-benchmark's own table: what failed stands last
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    for title, lines in config.stash[_TABLES].items():
        terminalreporter.section(title)
        for line in lines:
            terminalreporter.write_line(line)
    done = config.stash[_DONE]
    if not done:
        return
    terminalreporter.section("ours against the baseline")
    wide = max(len(row.name) for row in done)
    write = terminalreporter.write_line
    write(f"{'':{wide}} {'ours':>10} {'baseline':>10} {'ratio':>7} {'peak':>9} {'baseline':>9}")
    for row in done:
        peaks = (f"{'-' if mb is None else f'{mb:.1f} MB':>9}" for mb in (row.peak_ours_mb, row.peak_baseline_mb))
        seconds = (f"{side * 1e3:7.1f} ms" for side in (row.ours_s, row.baseline_s))
        write(f"{row.name:{wide}} {' '.join(seconds)} {row.ratio:6.2f}x {' '.join(peaks)}")
    for line in config.stash[_SLOW]:
        write(line, red=True)
