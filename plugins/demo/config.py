"""Options of ``rbctl demo``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rbctl.inline_pictures import CHOICE_HELP, Choice
from rbctl.options import option


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """What to show, and on which base model."""

    output: Path = option(Path("runs/demo"), "Folder of everything the demo makes.")
    bundle: str = option("mini", "Base model: a name of 'rbctl models list', or a folder.")
    relation: str = option("ride", "Relation that the embedded world can draw.")
    pairs: int = option(4, "Pairs of individuals; each is a row of the grid.", min=1, max=8)
    seed: int = option(0, "Seed of the triplets, the individuals and the pictures.", min=0, max=2**31)
    steps: int | None = option(None, "Steps of finetuning. [default: the bundle's]", min=1, max=1_000_000)
    sampling_steps: int | None = option(None, "Denoising steps of a picture. [default: the bundle's]", min=1, max=1000)
    show: Choice = option("auto", CHOICE_HELP)
    device: Literal["auto", "cpu", "cuda"] = option("auto", "Where to run.")
