"""Operations of an SDXL picture and of a finetuning, printed as a table; nothing is timed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import yaml

from bench.full.sizes import FULL
from bench.full.totals import h100_seconds, official_picture_flops, picture_flops, tuning_flops

PAPER = Path(__file__).resolve().parents[1] / "recipes" / "paper.yaml"


def test_totals(report: Callable[[str, list[str]], None]) -> None:
    tuning = yaml.safe_load(PAPER.read_text())["finetune"]
    official, ours = official_picture_flops(FULL), picture_flops(FULL)
    passes = tuning_flops(FULL, tuning["steps"], tuning["batch_size"])
    rows = {
        f"a picture, {FULL.steps} steps, official way": official,
        f"a picture, {FULL.steps} steps, ours": ours,
        f"a finetuning, {tuning['steps']} steps of {tuning['batch_size']}, either way": passes,
    }
    lines = [f"{'UNet alone':46} {'TFLOP':>9} {'s on an H100 at 40 % MFU':>25}"]
    lines += [f"{what:46} {flops / 1e12:9.1f} {h100_seconds(flops):25.2f}" for what, flops in rows.items()]
    lines.append(f"a picture, ours / official way: {ours / official:.3f}")
    lines.append("The paper's finetuning takes 600 s on two A100.")
    report("operations of SDXL at 1024 px with two objects", lines)
    assert ours < official
