"""Options of ``rbctl animate``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rbctl.options import option

SUFFIXES = {"mp4": (".mp4",), "webp": (".webp",), "both": (".mp4", ".webp")}


@dataclass(frozen=True, kw_only=True)
class AnimateConfig:
    """What to animate, with what, and how. None leaves a value to the pipeline."""

    pictures: Path = option(..., "Folder of pictures, or one picture.", group="Pictures", argument=True)
    model: str = option(
        ..., "Folder of an image-to-video pipeline in diffusers' layout, such as CogVideoX-5b-I2V.", group="Model"
    )
    output: Path | None = option(None, "Folder of the clips. [default: runs/animate/NAME]", group="Run")
    prompt: str | None = option(None, "What all clips show. [default: each picture's own text]", group="Pictures")
    format: Literal["mp4", "webp", "both"] = option("both", "Files of each clip.")

    negative_prompt: str | None = option(None, "What the picture should not show.", group="Sampling")
    frames: int | None = option(
        None, "Frames of a clip. [default: the pipeline's, 49 for CogVideoX]", min=2, max=10_000
    )
    fps: int | None = option(
        None, "Frames a second. [default: the pipeline's, 8 for CogVideoX, 16 for Wan]", min=1, max=240
    )
    width: int | None = option(
        None, "Pixels, a multiple of 8. [default: the pipeline's area in the picture's shape]", min=16, max=8192
    )
    height: int | None = option(None, "Pixels, a multiple of 8; give both or neither.", min=16, max=8192)
    steps: int | None = option(None, "Denoising steps. [default: the pipeline's]", min=1, max=1000)
    guidance_scale: float | None = option(None, "Classifier-free guidance. [default: the pipeline's]", min=0, max=100)
    seed: int = option(42, "Seed of a picture's first clip; the next ones count up.", min=0, max=2**63 - 10_001)
    clips: int = option(1, "Clips of each picture.", min=1, max=10_000)

    device: Literal["auto", "cpu", "cuda"] = option("auto", "Where to run.", group="Hardware")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option("auto", "auto: bf16 on CUDA, fp32 on the CPU.")
    lowvram: bool = option(
        False, "Keep only the network in use on the GPU and decode frames in tiles: less memory, slower."
    )
    sequential_offload: bool = option(
        False, "Keep only the layer in use on the GPU and decode frames in tiles: least memory, very slow."
    )

    def __post_init__(self) -> None:
        if (self.width is None) != (self.height is None):
            raise ValueError("give both --width and --height, or neither")
        for name in ("width", "height"):
            value = getattr(self, name)
            if value is not None and value % 8:
                raise ValueError(f"--{name} {value}: must be a multiple of 8")
        if self.prompt is not None and not self.prompt.strip():
            raise ValueError("--prompt: is empty; say what happens, or leave it out for the pictures' own texts")
