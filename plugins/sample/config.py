"""Options of ``rbctl sample``. What a prompt says on its own line wins over them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rbctl.defaults import GUIDANCE_SCALE, NEGATIVE_PROMPT, STEPS
from rbctl.inline_pictures import CHOICE_HELP, Choice
from rbctl.options import option
from rbctl.schedulers import SCHEDULERS, SCHEDULES, check_scheduler
from rbctl.shortcuts import NO_SHORTCUTS, QUALITY, Quality, Shortcuts


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """What to sample, with what, and how."""

    prompts: Path | None = option(None, "Prompts file, .txt or .yaml.", group="Prompts", argument=True)
    config: Path | None = option(None, "Instead of PROMPTS: one inference configuration of the official code.")
    bundle: str = option("mini", "Base model: a name of 'rbctl models list', or a folder.", group="Model")
    output: Path | None = option(None, "Folder of the pictures. [default: runs/sample/NAME]", group="Run")
    relation: str | None = option(
        None, "Relation of prompts that do not name one. [default: the one their words express]", group="Prompts"
    )
    prompt_weighting: bool = option(
        True,
        "A1111's marks weight words: (word), [word], (word:1.2); \\( is a bracket. --no-prompt-weighting reads all as "
        "text.",
    )
    lora: tuple[str, ...] = option(
        (),
        "LoRA of any origin, or tuned weights of a UNet, PATH[:WEIGHT], repeatable or with commas between; 'none' "
        "samples the base model. "
        "[default: RELATION.safetensors of runs/finetune/RELATION, or RELATION-BUNDLE if not of mini]",
        group="LoRA",
    )
    lora_dir: tuple[Path, ...] = option(
        (), "Folder in which <lora:NAME:WEIGHT> finds NAME.safetensors, subfolders included; repeatable."
    )
    embedding: tuple[str, ...] = option(
        (),
        "Learned embedding, PATH[:TOKEN], of prompts that name none; repeatable. If a prompt lacks its "
        "token, the embedding replaces the words that it stands for. No LoRA is then used unless it is named.",
        group="LoRA",
    )
    lora_weight: float = option(
        1.0, "Weight of LoRAs without one of their own; a negative weight reverses the effect.", min=-10, max=10
    )
    allow_other_base: bool = option(
        False, "Take a LoRA that was trained on another bundle, as on the SDXL that this one was fine-tuned from."
    )

    width: int | None = option(
        None, "Pixels, a multiple of 8. [default: the bundle's]", group="Sampling", min=64, max=8192, of_bundle=True
    )
    height: int | None = option(
        None, "Pixels, a multiple of 8. [default: the bundle's]", min=64, max=8192, of_bundle=True
    )
    steps: int = option(STEPS, "Denoising steps.", min=1, max=1000, of_bundle=True)
    guidance_scale: float = option(
        GUIDANCE_SCALE, "Classifier-free guidance; 1 or less is none and half the work.", min=0, max=100, of_bundle=True
    )
    quality: Quality = option(
        QUALITY,
        "How much work sampling may skip. best: none; standard: no measured loss; draft: more. "
        "The bundle's recipe has the details.",
        names_quality=True,
    )
    guidance_start: float = option(0.0, "Share of the steps after which guidance starts.", min=0, max=1, of_bundle=True)
    guidance_stop: float = option(
        1.0,
        "Share of the steps after which guidance stops; a step without it is half the work. [1, or as --quality says]",
        min=0,
        max=1,
        of_bundle=True,
    )
    cache_start: float = option(
        0.0,
        "Share of the steps after which the UNet's deep features are reused. [0, or as --quality says]",
        min=0,
        max=1,
        of_bundle=True,
    )
    cache_span: float = option(
        0.0,
        "From there on, reuse the deep features for this share of the steps (DeepCache). [0, or as --quality says]",
        min=0,
        max=1,
        of_bundle=True,
    )
    scheduler: str | None = option(
        None,
        f"{', '.join(SCHEDULERS)}; most take a schedule after the name, {', '.join(SCHEDULES)}: 'DPM++ 2M Karras'. "
        "[default: the bundle's]",
    )
    negative_prompt: str = option(NEGATIVE_PROMPT, "What the picture should not show.", of_bundle=True)
    # Below 2^63 by more than the most images there may be, as the seeds count up.
    seed: int = option(42, "Seed of a prompt's first picture; the next ones count up.", min=0, max=2**63 - 10_001)
    images: int = option(1, "Pictures per prompt.", min=1, max=10_000)
    scale: float | None = option(
        None,
        "Weight of the image branch, finetune's gamma. [default: the bundle's, 0.6 for SDXL]",
        group="Model",
        min=0,
        max=10,
        of_bundle=True,
    )
    vae: str | None = option(
        None, "Decode with another VAE: a .safetensors file, a folder in diffusers' layout, or a bundle's name."
    )
    local_tokens: Literal["own", "first_image", "none"] = option(
        "own", "Local tokens: each object's own, the first object's for all (official code), or none.", of_bundle=True
    )
    local_grid: int | None = option(
        None,
        "Side of the grid over which local tokens are pooled. [default: the bundle's, 4]",
        min=1,
        max=16,
        of_bundle=True,
    )
    local_injection: Literal["concat", "replace", "add"] = option(
        "concat",
        "Local tokens follow CLIP's (paper), replace its patches, or are added to them.",
        of_bundle=True,
    )
    reference_mask: Literal["none", "boxes"] = option(
        "none",
        "Bases with reference pictures in their sequence: boxes lets only the places in an individual's box see its "
        "picture. As in training.",
        of_bundle=True,
    )
    pseudo_mask_step: int = option(
        0,
        "From this step on the objects' text-attention maps replace the boxes; 0 keeps the boxes.",
        group="Sampling",
        min=0,
        max=1000,
        of_bundle=True,
    )

    show: Choice = option("auto", CHOICE_HELP, group="Run")

    batch_size: int = option(
        1,
        "Pictures sampled at once. More are faster; pictures then differ by rounding, by 1 of 255 at most.",
        group="Hardware",
        min=1,
        max=4096,
        of_bundle=True,
    )
    device: Literal["auto", "cpu", "cuda"] = option("auto", "Where to run.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option("auto", "auto: bf16 on CUDA, fp32 on the CPU.")
    attention: Literal["auto", "eager", "sdpa", "grouped", "xformers", "triton"] = option(
        "auto", "Attention backend; see 'rbctl doctor'. auto: what $RBCTL_ATTENTION names, else the best usable one."
    )
    lowvram: bool = option(
        False, "Keep only the networks in use on the GPU and decode large pictures in tiles: less memory, slower."
    )
    compile: bool = option(False, "Compile the UNet's transformer blocks: a slow start, then faster steps.")

    @property
    def shortcuts(self) -> Shortcuts:
        """What sampling leaves out."""
        return Shortcuts(self.guidance_start, self.guidance_stop, self.cache_start, self.cache_span)

    def __post_init__(self) -> None:
        if (self.prompts is None) == (self.config is None):
            raise ValueError("give either PROMPTS, a prompts file, or --config")
        if self.scheduler is not None:
            try:
                check_scheduler(self.scheduler)
            except ValueError as error:
                raise ValueError(f"--scheduler: {error}") from error
        if self.pseudo_mask_step and self.shortcuts != NO_SHORTCUTS:
            raise ValueError("--pseudo-mask-step: reads every step; add --quality best, which leaves nothing out")
        for name in ("width", "height"):
            value = getattr(self, name)
            if value is not None and value % 8:
                raise ValueError(f"--{name} {value}: must be a multiple of 8")
