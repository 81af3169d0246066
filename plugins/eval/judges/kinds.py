"""Judges by the name that ``--judge`` gives them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from rbctl.plugins.eval.encoders import Encoder
from rbctl.plugins.eval.judges.config import JudgeOptions, read_spec
from rbctl.plugins.eval.judges.judge import PictureJudge


@dataclass(frozen=True)
class Surroundings:
    """What a command has at hand for its judges.

    Attributes:
        options: of judges.
        clip: of ``--clip``, else the bundle's.
        oracle: folder of ``--oracle``, else the bundle's.
        device: where networks run.
        answers: folder where answers are kept; a paid judge counts there what they cost.
    """

    options: JudgeOptions
    clip: Encoder
    oracle: Path
    device: torch.device
    answers: Path


def open_judge(spec: str, at_hand: Surroundings) -> PictureJudge:
    """The judge of ``--judge KIND[=WHAT]``, loaded.

    Raises:
        InputError: its folder is not there or damaged, or its server has no key.
    """
    kind, what = read_spec(spec)
    if kind == "clip":
        from rbctl.plugins.eval.judges.clip import ClipJudge

        return ClipJudge(at_hand.clip)
    raise NotImplementedError(f"{kind} {what} {at_hand}")  # each judge adds its branch
