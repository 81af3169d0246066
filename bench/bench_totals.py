"""Operations of an SDXL picture and of a finetuning, printed as a table; nothing is timed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import yaml

from bench.full.sizes import FULL
from bench.full.totals import h100_seconds, official_picture_flops, picture_flops, tuning_flops
from rbctl.shortcuts import QUALITIES, Quality, Shortcuts

DISTILLED = 8  # steps with a step-distilled LoRA
PAPER = Path(__file__).resolve().parents[1] / "recipes" / "paper.yaml"


def test_totals(report: Callable[[str, list[str]], None]) -> None:
    tuning = yaml.safe_load(PAPER.read_text())["finetune"]
    official, ours = official_picture_flops(FULL), picture_flops(FULL)
    standard = picture_flops(FULL, shortcuts=_of("standard"))
    distilled = picture_flops(FULL, DISTILLED, _of("standard"), guidance=False)
    passes = tuning_flops(FULL, tuning["steps"], tuning["batch_size"])
    rows = {
        f"a picture, {FULL.steps} steps, official way": official,
        f"a picture, {FULL.steps} steps, ours, nothing left out": ours,
        f"a picture, {FULL.steps} steps, ours by default": standard,
        f"a picture, {FULL.steps} steps, ours, draft": picture_flops(FULL, shortcuts=_of("draft")),
        f"a picture, {DISTILLED} steps, no guidance (step-distilled LoRA)": distilled,
        f"a finetuning, {tuning['steps']} steps of {tuning['batch_size']}, either way": passes,
    }
    lines = [f"{'UNet alone':56} {'TFLOP':>9} {'s on an H100 at 40 % MFU':>25}"]
    lines += [f"{what:56} {flops / 1e12:9.1f} {h100_seconds(flops):25.2f}" for what, flops in rows.items()]
    shares = ((ours, "nothing left out"), (standard, "by default"), (distilled, "step-distilled LoRA"))
    lines += [f"share of the official way, {name}: {flops / official:.3f}" for flops, name in shares]
    lines.append("The paper's finetuning takes 600 s on two A100.")
    report("operations of SDXL at 1024 px with two objects", lines)
    assert ours < official
    assert standard <= 0.55 * official
    assert distilled <= 0.2 * official


def _of(quality: Quality) -> Shortcuts:
    """What a quality leaves out where a bundle says nothing of it."""
    return Shortcuts(**QUALITIES[quality])
