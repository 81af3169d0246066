"""Options of ``rbctl eval``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rbctl.options import option
from rbctl.paths import FOLLOW_OUTSIDE
from rbctl.plugins.eval.judges.config import JudgeOptions

Profile = Literal["cc101", "dreambench", "dreambench++", "relationbench", "crops"]

_NAME = re.compile(r"[\w.+-]+")


@dataclass(frozen=True, kw_only=True)
class EvalConfig(JudgeOptions):
    """What to score, against what, and by which encoders."""

    runs: tuple[Path, ...] = option(
        (), "Folders of pictures (metadata.jsonl, metadata.csv or names).", group="Pictures", argument=True
    )
    pairs: Path | None = option(
        None, "CSV that lists the pictures of every folder in RUNS, for folders without a list of their own."
    )
    bench: str | None = option(None, "Benchmark: a name of recipes/benchmarks, or a YAML file.", group="Benchmark")
    data: Path | None = option(None, "Folder of the benchmark's pictures. [default: what its YAML says]")
    run: tuple[str, ...] = option(
        (), "NAME=FOLDER: pictures of another method or model, to be scored too; repeatable.", group="Pictures"
    )
    lora: tuple[str, ...] = option(
        (), "[NAME:]RELATION=PATH: sample the benchmark with this LoRA; repeatable.", group="Sampling"
    )
    base: bool = option(True, "With --bench, sample the base model too.")
    relations: tuple[str, ...] = option(
        (), "Relations of the benchmark. [default: those of --lora, else all of it]", group="Benchmark"
    )
    cases: int | None = option(
        None, "Cases of each relation, if the benchmark draws them. [default: its own]", min=1, max=100_000
    )
    partial: bool = option(False, "Skip cases without pictures, and count them.")
    follow_outside: bool = option(False, FOLLOW_OUTSIDE, group="Run")
    pairwise: bool = option(
        False,
        "Also show judges every two runs side by side, in both orders, and ask which is better.",
        group="Judges",
    )
    judge_check: Path | None = option(
        None, "check.json of 'rbctl eval judge-check', which corrects what judges say. [default: its own place]"
    )
    dino: Path | None = option(
        None,
        "DINO that scores: folder of transformers. [default: with the bundle's CLIP, its own]",
        group="Encoders",
    )
    dinov2: Path | None = option(None, "DINOv2 that scores: folder of transformers.")
    profile: tuple[Profile, ...] = option((), "Metrics; repeatable. [default: the benchmark's, else relationbench]")
    output: Path | None = option(None, "Folder of report and samples. [default: runs/eval/NAME]", group="Run")
    cache: Path | None = option(None, "Where features are kept. [default: runs/eval/features]")
    images: int = option(
        1, "Pictures sampled of each case, with seeds that count up.", group="Sampling", min=1, max=1000
    )
    steps: int | None = option(None, "Denoising steps of the samples. [default: the bundle's]", min=1, max=1000)
    sample_recipe: str | None = option(
        None, "Recipe whose section 'sample' the samples are made with: lowvram, local_tokens, scale ..."
    )
    seed: int = option(0, "Random seed for bootstrap intervals and tests.", group="Run", min=0, max=2**63 - 1)
    show: int = option(24, "Cases whose pictures the report shows.", group="Run", min=0, max=100_000)
    json: bool = option(False, "Print JSON for a program to read.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.bench and not self.runs:
            raise ValueError("give a folder of pictures, or --bench NAME")
        if not self.bench:
            for name in ("lora", "run", "relations", "cases", "data"):
                if getattr(self, name):
                    raise ValueError(f"--{name}: needs --bench")
        elif self.pairs:
            raise ValueError(
                f"--pairs {self.pairs}: lists pictures of RUNS; with --bench the cases are the benchmark's"
            )
        elif self.runs:
            raise ValueError(f"{self.runs[0]}: with --bench name it as --run NAME={self.runs[0]}")
        for assignment in self.run:
            name, equals, folder = assignment.partition("=")
            if not (equals and folder and _NAME.fullmatch(name)):
                raise ValueError(f"--run {assignment}: write NAME=FOLDER")
        for assignment in self.lora:
            before, equals, path = assignment.partition("=")
            names = before.split(":")
            if not (equals and path and len(names) <= 2 and all(_NAME.fullmatch(name) for name in names)):
                raise ValueError(f"--lora {assignment}: write RELATION=PATH or NAME:RELATION=PATH")

    def loras(self) -> dict[str, dict[str, Path]]:
        """By run, the LoRA of each relation."""
        paths: dict[str, dict[str, Path]] = {}
        for assignment in self.lora:
            before, _, path = assignment.partition("=")
            name, _, relation = before.rpartition(":")
            paths.setdefault(name or "lora", {})[relation] = Path(path)
        return paths

    def folders(self) -> dict[str, Path]:
        """By run, the folder of ``--run``."""
        return {name: Path(folder) for name, _, folder in (assignment.partition("=") for assignment in self.run)}
