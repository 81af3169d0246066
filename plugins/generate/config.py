"""Options of ``rbctl generate``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rbctl.options import option

OPENAI_MODEL = "gpt-image-2.5-sunburst"
OPENAI_SIZE = "1024x1024"
MOST_DOLLARS = 1_000_000.0  # of a picture, an answer or a set; more is a mistake


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """What to make, with which engine, and for how much."""

    relation: str = option(..., "Relation: the name of a shipped one, or the path of a YAML file.", group="Data")
    number: int = option(6, "Triplets of the set.", min=1, max=10_000)
    output: Path | None = option(None, "Folder of the set. [default: runs/generate/RELATION]", group="Run")
    engine: Literal["miniature", "openai", "diffusers", "edit"] = option(
        "miniature", "Who makes the pictures.", group="Pictures"
    )
    seed: int = option(0, "Seed of the pairs and, except for openai, of the pictures.", min=0, max=2**31)
    size: str | None = option(
        None, "Pixels, WIDTHxHEIGHT. [default: miniature 128x128, openai 1024x1024, others the pipeline's]"
    )
    pairs: Path | None = option(
        None,
        "Individuals for all but miniature: a text file with a pair on each line, as 'cat, dog'. [default: shipped]",
        group="Data",
    )
    estimate: bool = option(False, "Print the prompts, the number of pictures and their cost, and stop.", group="Run")

    model: str | None = option(
        None,
        f"openai: its name, by default {OPENAI_MODEL}; diffusers and edit: a bundle's name or a pipeline's folder.",
        group="Pictures",
    )
    quality: Literal["low", "medium", "high", "xhigh", "max"] = option("medium", "Quality, for openai.")
    references: Literal["earlier", "none"] = option(
        "earlier",
        "Earlier pictures of a triplet that openai and edit are shown, so that identities hold; none for servers that "
        "take none.",
    )
    price: float | None = option(
        None,
        "Price of an openai picture in US dollars. It replaces the built-in table, because prices change.",
        group="Budget",
        min=0,
        max=MOST_DOLLARS,
    )
    budget: float = option(5.0, "Most US dollars to spend on an openai set.", min=0, max=MOST_DOLLARS)
    max_pictures: int | None = option(None, "Most pictures to ask openai for, for the whole set.", min=1, max=1_000_000)
    max_refusals: int = option(10, "Stop after this many refused prompts of the set.", min=1, max=1_000_000)
    timeout: float = option(300.0, "Seconds to wait for an answer of openai.", group="Budget", min=0.1, max=3600)
    retries: int = option(5, "Retries after a failure of openai, with growing pauses.", min=0, max=100)

    steps: int | None = option(
        None, "Denoising steps of diffusers and edit. [default: the pipeline's]", group="Pictures", min=1, max=1000
    )
    guidance_scale: float | None = option(
        None, "Classifier-free guidance of diffusers and edit. [default: the pipeline's]", min=0, max=100
    )
    device: Literal["auto", "cpu", "cuda"] = option("auto", "Where to run diffusers and edit.", group="Hardware")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option("auto", "auto: bf16 on CUDA, fp32 on the CPU.")

    def __post_init__(self) -> None:
        if self.size is not None and not re.fullmatch(r"[1-9][0-9]{1,3}x[1-9][0-9]{1,3}", self.size):
            raise ValueError(f"--size {self.size}: WIDTHxHEIGHT was expected, as 1024x1024")
        if self.engine == "miniature" and len(set(self.pixels)) > 1:
            raise ValueError(f"--size {self.size}: the embedded world is square; give 128x128 or the like")
        if self.engine in ("diffusers", "edit") and self.model is None:
            raise ValueError(f"--engine {self.engine}: give --model, a bundle's name or the folder of a pipeline")

    @property
    def pixels(self) -> tuple[int | None, int | None]:
        """Width and height; None leaves them to the engine."""
        if self.size is None:
            return None, None
        width, height = map(int, self.size.split("x"))
        return width, height

    @property
    def openai(self) -> dict[str, str]:
        """What the API is asked for besides the prompt."""
        return {"model": self.model or OPENAI_MODEL, "size": self.size or OPENAI_SIZE, "quality": self.quality}
