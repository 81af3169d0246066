"""Options of ``rbctl eval judge-check``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rbctl.options import option
from rbctl.paths import FOLLOW_OUTSIDE
from rbctl.plugins.eval.judges.config import JudgeOptions


@dataclass(frozen=True, kw_only=True)
class JudgeCheckConfig(JudgeOptions):
    """Which judges, on which pictures with known answers."""

    folder: Path | None = option(
        None, "Pictures with metadata.csv and answers.csv. [default: faults planted in the embedded world]",
        group="Pictures", argument=True,
    )  # fmt: skip
    relations: tuple[str, ...] = option(
        ("ride", "shake_hands", "push", "chase", "hug"), "Relations whose scenes get faults; repeatable."
    )
    cases: int = option(8, "Scenes a relation.", min=1, max=10_000)
    sampled: bool = option(
        False, "Let the bundle's UNet take the last steps of every picture, so that it looks sampled."
    )
    follow_outside: bool = option(False, FOLLOW_OUTSIDE)
    output: Path | None = option(None, "Output folder. [default: runs/eval/judge-check]", group="Run")
    json: bool = option(False, "Print JSON for a program to read.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.judge:
            raise ValueError("give --judge, such as --judge oracle; docs/judging.md lists them")
        if self.folder is not None and self.sampled:
            raise ValueError(f"--sampled: {self.folder} is scored as it is; leave one of them out")
