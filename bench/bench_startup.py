"""How long a word of help takes, against importing torch: ``pytest bench/bench_startup.py``.

The ratio is what counts: seconds differ from machine to machine.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

COMMANDS = {
    "rbctl --help": [str(Path(sys.executable).with_name("rbctl")), "--help"],
    "rbctl finetune --help": [str(Path(sys.executable).with_name("rbctl")), "finetune", "--help"],
}


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True)


def _seconds(command: list[str], times: int) -> float:
    _run(command)  # the files are in memory from here on
    start = time.perf_counter()
    for _ in range(times):
        _run(command)
    return (time.perf_counter() - start) / times


def _measure(benchmark: Any, capsys: Any, name: str) -> None:
    torch = _seconds([sys.executable, "-c", "import torch"], 3)
    benchmark.pedantic(_run, [COMMANDS[name]], rounds=10, warmup_rounds=1)
    mean = benchmark.stats.stats.mean
    benchmark.extra_info["import torch"] = torch
    benchmark.extra_info["ratio"] = mean / torch
    with capsys.disabled():
        print(f"\n{name}: mean {mean:.3f} s; import torch: {torch:.3f} s; ratio {mean / torch:.2f}")


def test_help(benchmark: Any, capsys: Any) -> None:
    _measure(benchmark, capsys, "rbctl --help")


def test_help_of_a_stage(benchmark: Any, capsys: Any) -> None:
    _measure(benchmark, capsys, "rbctl finetune --help")
