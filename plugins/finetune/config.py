"""Options of ``rbctl finetune``; the defaults are the paper's method (recipes/paper.yaml names its numbers)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from rbctl.defaults import BUNDLE
from rbctl.options import FormerOption, option
from rbctl.paths import FOLLOW_OUTSIDE

# What the bundle mini was taught, so that it can forget it (recipes/mini.yaml, section pretrain).
EASY = ("stand_next_to", "sit_beside", "lie_beside", "hide_behind", "jump_over", "chase", "face", "lean_on", "wave_to")

WITH_LORA = ("relation_lora", "dreambooth_lora")  # methods that learn one
# What others tune of the UNet itself.
UNET_PARTS: Mapping[str, Literal["all", "keys_and_values"]] = {
    "dreambooth": "all",
    "custom_diffusion": "keys_and_values",
}

setting = functools.partial(option, of_bundle=True)  # what the recipe inside of a bundle may set

# Called in every process after every step, with its number and its row of the metrics; what is true asks to stop.
Callback = Callable[[int, Mapping[str, float]], object]


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """What to tune, on what, and how."""

    FORMER_OPTIONS: ClassVar[Mapping[str, FormerOption]] = {
        "gradient_accumulation": FormerOption(
            "--batch-size counts the samples of a step over all processes now, and --micro-batch-size those that a "
            "process takes at a time",
            harmless="1",
        )
    }

    relation: str | None = option(
        None,
        "Relation: a shipped name (ride, hug, ...) or the path of a relation's YAML; needed to learn one.",
        group="Data",
    )
    data: Path | None = option(
        None, "Folder of triplets, ours or in the official layout. [default: drawn by the embedded world]"
    )
    follow_outside: bool = option(False, FOLLOW_OUTSIDE)
    allow_errors: bool = option(
        False, "Train even if 'rbctl data check' finds errors in --data; the LoRA's metadata records them."
    )
    triplets: int = option(6, "Number of triplets to draw if --data is not given.", min=1, max=10_000)
    bundle: str = option(BUNDLE, "Base model: a name of 'rbctl models list', or a folder.", group="Model")
    output: Path | None = option(
        None, "Run folder. [default: runs/finetune/RELATION, or RELATION-BUNDLE if not of mini]", group="Run"
    )
    resume: bool = option(True, "Go on from the last checkpoint in the run folder; --no-resume starts again.")

    steps: int = setting(500, "Optimizer steps.", group="Training", min=1, max=1_000_000)
    batch_size: int = setting(8, "Samples per optimizer step, over all processes.", min=1, max=1_000_000)
    micro_batch_size: int = setting(
        1, "Samples that a process takes at a time, at most; the rest is gradient accumulation.", min=1, max=4096
    )
    learning_rate: float = setting(1e-4, "AdamW's learning rate.", min=0.0, max=1.0)
    lr_scheduler: Literal["constant", "constant_with_warmup", "linear", "cosine"] = setting(
        "constant", "Schedule of the learning rate."
    )
    lr_warmup_steps: int = setting(0, "Steps of warm-up, where the schedule has one.", min=0, max=1_000_000)
    weight_decay: float = setting(0.0, "AdamW's weight decay.", min=0.0, max=100.0)
    max_grad_norm: float = setting(
        1.0, "Gradients are clipped to this norm; 0 for no clipping.", min=0.0, max=1_000_000.0
    )
    rank: int = setting(4, "Rank of the LoRA.", group="LoRA", min=1, max=1024)
    alpha: float = setting(4.0, "Scale of the LoRA is alpha / rank.", min=1e-3, max=1_000_000.0)
    lora_layers: Literal["attn2", "attention", "transformer"] = setting(
        "attn2",
        "Layers of the LoRA: the cross-attention (paper), both attentions, or all of a transformer block's. "
        "Of a transformer, attn2 is where pictures read the words.",
    )
    init_lora: Path | None = option(
        None, "LoRA file to start from, of the same layers and rank. [default: a LoRA that does nothing yet]"
    )
    seed: int = option(0, "Seed of everything random.", group="Training", min=0, max=2**63 - 1)

    prior: str = option(
        "auto",
        "Prior set against forgetting: a folder of triplets, or of what 'rbctl sample' made; 'drawn': scenes of "
        "other relations; 'none'; 'auto': drawn if the triplets are drawn, else none.",
        group="Prior set",
    )
    prior_share: float = setting(0.25, "Share of the samples that comes from the prior set.", min=0.0, max=0.9)
    prior_weight: float = setting(1.0, "Weight of a prior sample's denoising loss.", min=0.0, max=1000.0)
    prior_target: Literal["picture", "base"] = setting(
        "picture",
        "What a relation's LoRA learns from a prior sample: its picture (as in DreamBooth), or what the base predicts "
        "for it (learning without forgetting).",
    )
    prior_count: int = option(32, "Number of prior scenes to draw.", min=1, max=10_000)
    prior_relations: tuple[str, ...] = option(EASY, "Relations of drawn prior scenes.")

    resolution: int | None = setting(
        None, "Side of the training pictures in pixels. [default: the bundle's]", group="Augmentation", min=64, max=8192
    )
    aspect_buckets: bool = setting(
        True, "Train on each target in its own aspect ratio; --no-aspect-buckets cuts the square in its middle."
    )
    augmentation_draws: int = setting(
        1, "Versions of each triplet to draw from; 1 trains on it as it is.", min=1, max=10_000
    )
    random_flip: bool = setting(True, "Mirror random ones of the further draws, triplets as a whole.")
    face_right: bool = setting(
        False,
        "Where boxes do not tell who looks which way (one individual alone, one above the other): mirror the triplets "
        "whose subject looks left, and none at random. Else such individuals may be drawn looking both ways.",
    )
    layout_share: float = setting(
        0.0,
        "Where boxes lie apart: share of each triplet's versions that are in the layout prior's boxes, which pictures "
        "are sampled in, not in their own. Individuals of any size then do the same.",
        min=0.0,
        max=1.0,
    )
    max_zoom: float = setting(1.15, "Largest random zoom of the target in the further draws.", min=1.0, max=4.0)

    timestep_sampling: Literal["uniform", "logit_normal", "cosine"] = setting(
        "uniform",
        "Distribution of the timesteps (paper: uniform); logit_normal draws fewer of the first and last, cosine more "
        "of the last (ReVersion).",
        group="Loss",
    )
    logit_mean: float = setting(0.0, "Mean of the logit of timestep / all timesteps, for logit_normal.", min=-5, max=5)
    logit_std: float = setting(1.0, "Standard deviation of that logit.", min=0.01, max=5)

    kml_weight: float = setting(
        1e-3, "Weight of the keypoint matching loss (paper 1e-3; official code 0.1).", min=0.0, max=1000.0
    )
    kml_max_timestep: int = setting(
        999, "KML counts at timesteps up to this (paper: all; official code: 333).", min=0, max=999
    )
    kml_gather: Literal["intended", "as_code"] = setting(
        "intended", "Where KML reads the image prompts: at their keypoints, or in the corner as the official code does."
    )
    attention_loss_weight: float = setting(
        0.0,
        "Weight of the official code's attention-map term on the predicate (there 0.001; not in the paper).",
        min=0.0,
        max=1000.0,
    )
    local_tokens: Literal["own", "first_image", "none"] = setting(
        "own", "Local tokens: each object's own, the first object's for all (official code), or none.", group="Model"
    )
    local_grid: int | None = setting(
        None, "Side of the grid over which local tokens are pooled. [default: the bundle's, 4]", min=1, max=16
    )
    local_injection: Literal["concat", "replace", "add"] = setting(
        "concat", "Local tokens follow CLIP's (paper), replace its patches, or are added to them."
    )
    reference_mask: Literal["none", "boxes"] = setting(
        "none",
        "Bases with reference pictures in their sequence: boxes lets only the places in an individual's box see its "
        "picture.",
    )
    gamma: float | None = setting(
        None, "Weight of the image branch. [default: the bundle's, 0.6 for SDXL]", min=0.0, max=10.0
    )

    device: Literal["auto", "cpu", "cuda"] = option("auto", "Where to run.", group="Hardware")
    precision: Literal["auto", "fp32", "bf16", "fp16", "mixed"] = option(
        "auto",
        "mixed: fp32 with its products in bf16. auto: bf16 on CUDA, mixed on a CPU with AMX, else fp32.",
    )
    attention: Literal["auto", "eager", "sdpa", "grouped", "xformers", "triton"] = option(
        "auto", "Attention backend; see 'rbctl doctor'. auto: what $RBCTL_ATTENTION names, else the best usable one."
    )
    gradient_checkpointing: bool = setting(False, "Recompute activations in the backward pass: less memory, more time.")
    lowvram: bool = option(
        False, "Keep only the networks in use on the GPU while triplets are encoded: less memory, a slower start."
    )
    compile: bool = option(False, "Compile the UNet's transformer blocks: a slow start, then faster steps.")

    checkpoint_every: int = option(
        100, "Steps between checkpoints; 0 for only the last.", group="Run", min=0, max=1_000_000
    )
    keep_checkpoints: int = option(2, "Number of checkpoints to keep on disk.", min=1, max=10_000)
    preview_every: int = option(0, "Steps between preview pictures; 0 for none.", min=0, max=1_000_000)
    preview_steps: int = setting(30, "Denoising steps of a preview.", min=1, max=1000)
    save_every: int = option(
        0, "Steps between extra LoRA files: RELATION-000100.safetensors; 0 for none.", min=0, max=1_000_000
    )
    format: Literal["kohya", "official", "diffusers"] = option(
        "kohya",
        "Names in the LoRA file: kohya's, for ComfyUI and others; official, the authors', for diffusers; diffusers, "
        "its own names, for transformers the only ones.",
        group="LoRA",
    )
    author: str | None = option(None, "Author, for the file's metadata.")
    save_precision: Literal["fp32", "bf16", "fp16"] = option(
        "fp32", "Precision of the UNet's weights that dreambooth and custom_diffusion write."
    )
    licence: str | None = option(None, "Licence, for the file's metadata. [default: that of the bundle's UNet]")
    tensorboard: bool = option(False, "Also write tensorboard logs (pip install tensorboard).", group="Run")

    method: Literal[
        "relation_lora", "relation_inversion", "textual_inversion", "custom_diffusion", "dreambooth_lora", "dreambooth"
    ] = option(
        "relation_lora", "Method to train; all but the first are baselines (docs/baselines.md).", group="Baselines"
    )
    class_noun: str | None = option(None, "Class of a baseline's subject, such as cat.")
    token: str | None = option(
        None,
        "Word that stands for it in a prompt. [default: <RELATION>, <CLASS_NOUN>; before the noun <new1> for "
        "custom_diffusion, sks for dreambooth and dreambooth_lora]",
    )
    caption: str | None = option(
        None,
        "Caption of a subject's pictures; {} is the word that stands for it. "
        "[default: 'a photo of {}' and similar ones]",
    )
    vectors: int = setting(1, "Vectors of an embedding, in each text encoder.", min=1, max=32)
    initializer: str | None = option(
        None, "Words whose vectors initialise an embedding. [default: 'and' for a relation, as ReVersion; CLASS_NOUN]"
    )
    steering_weight: float = setting(
        0.01,
        "Weight of ReVersion's loss that keeps a relation's embedding among the prepositions.",
        min=0.0,
        max=1000.0,
    )

    def __post_init__(self) -> None:
        if self.resolution is not None and self.resolution % 8:
            raise ValueError(f"--resolution {self.resolution}: must be a multiple of 8")
