"""Options of ``rbctl distill``; the defaults are CLIPSelf's on COCO (recipes/distill/bigG-coco.yaml names them)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rbctl.options import option
from rbctl.paths import FOLLOW_OUTSIDE


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """What to distil, on what, and how."""

    model: str = option(
        "ViT-bigG-14",
        "A ViT or EVA of open_clip by name; a folder of one, with open_clip_config.json and its weights; or a bundle.",
        group="Model",
    )
    weights: Path | None = option(
        None,
        "The CLIP to start from, in open_clip naming: safetensors, or .pt of tensors, whole or its image tower. "
        "[default: those in the --model folder]",
    )
    random_weights: bool = option(False, "Start from random weights; only for trials and timing.")
    bundle: str | None = option(
        None,
        "Bundle that the encoder is for. If its adapter has another width, a linear map to it is trained too, "
        "towards the tokens of the bundle's own local encoder.",
    )
    data: str | None = option(
        None,
        "Pictures: a folder; or WebDataset shards (a folder of .tar, or a pattern as 'shards/{000..099}.tar').",
        group="Data",
    )
    annotations: Path | None = option(None, "COCO json that names the pictures of --data.")
    evaluation_data: str | None = option(
        None, "Folder of held-out pictures. [default: --held-out pictures of --data, not trained on]"
    )
    follow_outside: bool = option(False, FOLLOW_OUTSIDE)
    evaluation_annotations: Path | None = option(
        None, "COCO json of --evaluation-data; its boxes and labels give the region accuracy."
    )
    held_out: int = option(64, "Pictures to evaluate on.", min=1, max=1_000_000)
    output: Path | None = option(None, "Run folder. [default: runs/distill/MODEL]", group="Run")
    resume: bool = option(True, "Go on from the last checkpoint in the run folder; --no-resume starts again.")

    image_size: int = option(
        896, "Side of the picture that the student sees, in pixels.", group="Crops", min=8, max=8192
    )
    multiscale_sizes: tuple[int, ...] = option(
        (),
        "Sides to draw the student's from at every step (CLIPSelf's option: 336 448 672 896). [default: off]",
        min=1,
        max=8192,
    )
    max_split: int = option(6, "Most rows and columns of the grid that a picture is cut into.", min=1, max=64)
    max_cells: int = option(20, "Cells kept of a picture's grid.", min=1, max=4096)
    crop_scale: float = option(
        1.0, "How much a cell is enlarged around its centre for the teacher's crop.", min=1.0, max=100.0
    )
    train_blocks: int = option(
        6, "Number of last blocks of the tower to train; 0 for the whole tower.", group="Training", min=0, max=1000
    )

    epochs: int = option(6, "Passes over the pictures.", min=1, max=100_000)
    steps: int | None = option(None, "Optimizer steps, instead of --epochs; shards need it.", min=1, max=10_000_000)
    batch_size: int = option(16, "Pictures per optimizer step, over all processes.", min=1, max=1_000_000)
    micro_batch_size: int = option(
        2, "Most pictures that a process takes at a time; the rest is gradient accumulation.", min=1, max=4096
    )
    learning_rate: float = option(1e-5, "AdamW's learning rate.", min=0.0, max=1.0)
    map_learning_rate: float = option(1e-3, "AdamW's learning rate of the linear map.", min=0.0, max=1.0)
    weight_decay: float = option(
        0.1, "AdamW's weight decay, not on norms, biases and other vectors.", min=0.0, max=100.0
    )
    warmup_steps: int = option(1000, "Steps of linear warm-up.", min=0, max=10_000_000)
    lr_scheduler: Literal["cosine", "constant"] = option("cosine", "Schedule after the warm-up.")
    max_grad_norm: float = option(
        0.0, "Gradients are clipped to this norm; 0 for no clipping.", min=0.0, max=1_000_000.0
    )
    seed: int = option(0, "Seed of everything random.", min=0, max=2**63 - 1)

    zero_stage: int = option(
        2,
        "ZeRO stage. 0 divides nothing, 1 the optimizer, 2 gradients too, 3 parameters too.",
        group="Hardware",
        min=0,
        max=3,
    )
    zero_init: bool = option(False, "Divide the student while it is built (stage 3), if one device cannot hold it.")
    offload: Literal["none", "cpu", "nvme"] = option(
        "none", "Where to keep the optimizer's state instead of on the device."
    )
    nvme_path: Path | None = option(None, "Folder on a fast disk, for --offload nvme.")
    precision: Literal["auto", "fp32", "bf16"] = option("auto", "auto: bf16 on CUDA, fp32 on the CPU.")
    gradient_checkpointing: bool = option(False, "Recompute activations in the backward pass: less memory, more time.")
    device: Literal["auto", "cpu", "cuda"] = option("auto", "Where to run.")
    workers: int = option(4, "Processes per rank that decode and crop; 0 for none.", min=0, max=256)

    evaluate_every: int = option(
        1000, "Steps between evaluations; 0 for only before and after.", group="Run", min=0, max=10_000_000
    )
    pca_pictures: int = option(
        6, "Held-out pictures whose features are drawn before and after; 0 for none.", min=0, max=10_000
    )
    checkpoint_every: int = option(1000, "Steps between checkpoints; 0 for only the last.", min=0, max=10_000_000)
    keep_checkpoints: int = option(2, "Number of checkpoints to keep on disk.", min=1, max=10_000)
    official_checkpoint: bool = option(False, "Also write epoch_N.pt, named as CLIPSelf's own.")

    estimate: bool = option(False, "Print the memory that each process needs, and stop.", group="Memory")
    estimate_gpus: tuple[int, ...] = option((1, 8, 32), "Numbers of processes to print it for.", min=1, max=100_000)

    def __post_init__(self) -> None:
        if self.zero_init and self.zero_stage != 3:
            raise ValueError("--zero-init: needs --zero-stage 3")
        if self.offload != "none" and self.zero_stage == 0:
            raise ValueError(f"--offload {self.offload}: needs --zero-stage 1, 2 or 3")
        if self.offload == "nvme" and (self.zero_stage != 3 or self.nvme_path is None):
            raise ValueError("--offload nvme: needs --zero-stage 3 and --nvme-path")
        if self.weights and self.random_weights:
            raise ValueError("--weights and --random-weights: take one of them")
        if self.evaluation_annotations and not self.evaluation_data:
            raise ValueError("--evaluation-annotations: name the pictures too, with --evaluation-data")
