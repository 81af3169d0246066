"""Options of ``rbctl pretrain``; the defaults are those of the bundle ``mini``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rbctl.errors import abridged, nearest
from rbctl.options import option

MOST = 3  # individuals of a scene

# Each needs only those before it.
PARTS = (
    "renders",
    "pictures",
    "vae",
    "clip",
    "oracle",
    "clipself",
    "dino",
    "decoder",
    "unet",
    "bundle",
    "dit",
    "dit-bundle",
)
_EASY_ALONE = ("stand", "sit", "walk", "lie_down", "run")
_EASY_OF_TWO = (
    *("stand_next_to", "sit_beside", "lie_beside", "hide_behind", "jump_over", "chase", "face", "lean_on", "wave_to"),
)
_EASY_OF_THREE = ("stand_in_a_row", "sit_between", "walk_in_line", "lie_before")
EASY = (*_EASY_ALONE, *_EASY_OF_TWO, *_EASY_OF_THREE)
HELD_OUT = (
    *("sit_upright", "stand_on_hind_legs", "jump", "lie_on_back", "wave", "dance"),
    *("ride", "hug", "shake_hands", "carry", "high_five", "stand_on", "kick", "dance_with", "push", "pull"),
    *("pyramid", "carry_together", "huddle", "tug_at", "ring_dance"),
)


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """What to train, for how long, and on how many pictures."""

    parts: tuple[str, ...] = option((), "Parts, in this order; none: all.", group="Run", argument=True)
    work: Path = option(Path("build/pretrain"), "Folder of renders, checkpoints, previews and the bundle.")
    minutes: float | None = option(
        None,
        "Stop each part after so many minutes; the same command goes on. 0: write what is there.",
        min=0,
        max=1_000_000,
    )
    seed: int = option(0, "Seed of everything random.", min=0, max=2**63 - 1)
    device: Literal["auto", "cpu", "cuda"] = option("auto", "Where to train.", group="Hardware")
    threads: int = option(
        1, "Threads of a process on the CPU; two processes of one thread beat one of two.", min=1, max=1024
    )
    precision: Literal["auto", "fp32", "mixed"] = option(
        "auto",
        "mixed: fp32 with its products in bf16. auto: mixed on CUDA and on CPUs with bf16 instructions.",
    )
    compile: bool = option(
        False, "Compile the renderer and the networks: a slow start, then faster. Needs a C++ compiler."
    )
    optimizer: Literal["muon", "adamw"] = option(
        "muon", "Optimizer of the matrices; AdamW trains the rest.", group="Training"
    )
    decay: float = option(1.0, "Share of the steps at the end in which the learning rate falls.", min=0, max=1.0)
    checkpoint_every: int = option(500, "Steps between checkpoints.", group="Run", min=0, max=1_000_000)
    preview_every: int = option(500, "Steps between previews; 0 for none.", min=0, max=1_000_000)

    gates: Path | None = option(
        None, "gates.json of 'make gates' on these weights; its figures go into the model card.", group="Run"
    )

    easy: tuple[str, ...] = option(EASY, "Relations that the base model learns.", group="Data")
    held_out: tuple[str, ...] = option(HELD_OUT, "Relations that only the oracle sees: left for relation LoRAs.")
    shares: tuple[float, ...] = option(
        (0.2, 0.55, 0.25),
        "Shares of scenes with one, two and three individuals; each is divided equally among its relations.",
        min=0.0,
        max=1.0,
    )
    individuals: int = option(3000, "Individuals that are drawn again and again.", min=2, max=1_000_000)
    portraits: int = option(4, "Portraits of each of them.", min=1, max=10_000)
    easy_scenes: int = option(40960, "Scenes of the easy relations.", min=1, max=100_000_000)
    all_scenes: int = option(24576, "Scenes of all relations, for the encoders and the oracle.", min=1, max=100_000_000)
    shard: int = option(
        1024, "Scenes of one shard: what is rendered, written and resumed at a time.", min=1, max=1_000_000
    )
    render_batch: int = option(16, "Scenes rendered at once (16 on a CPU, 512 on a GPU).", min=1, max=65_536)
    render_rank: int | None = option(
        None,
        "Render only shards of this number modulo --render-world. [default: torchrun's rank]",
        group="Data",
        min=0,
        max=100_000,
    )
    render_world: int | None = option(
        None, "How many processes share the shards. [default: torchrun's]", min=1, max=100_000
    )

    vae_steps: int = option(6000, "Steps of the VAE.", group="VAE", min=1, max=10_000_000)
    vae_batch_size: int = option(16, "Pictures per process and step.", min=1, max=65_536)
    vae_learning_rate: float = option(1e-3, "Highest learning rate.", min=0, max=1.0)
    clip_steps: int = option(6000, "Steps of the text and image encoders.", group="Encoders", min=1, max=10_000_000)
    clip_batch_size: int = option(64, "Pictures per process and step.", min=1, max=65_536)
    clip_learning_rate: float = option(1e-3, "Highest learning rate.", min=0, max=1.0)
    oracle_from: Path | None = option(
        None,
        "Folder of an oracle to start from; it may know fewer relations and roles. [default: random weights]",
        group="Oracle",
    )
    oracle_steps: int = option(4000, "Steps of the oracle.", min=1, max=10_000_000)
    oracle_batch_size: int = option(32, "Pictures per process and step.", min=1, max=65_536)
    oracle_learning_rate: float = option(1e-3, "Highest learning rate.", min=0, max=1.0)
    dino_steps: int = option(3000, "Steps of the small DINO.", group="Encoders", min=1, max=10_000_000)
    dino_batch_size: int = option(64, "Pictures per process and step.", min=1, max=65_536)
    dino_learning_rate: float = option(1e-3, "Highest learning rate.", min=0, max=1.0)
    decoder_steps: int = option(
        6000, "Steps of the VAE's decoder on noisy latents.", group="VAE", min=1, max=10_000_000
    )
    decoder_batch_size: int = option(16, "Pictures per process and step.", min=1, max=65_536)
    decoder_learning_rate: float = option(1e-3, "Highest learning rate.", min=0, max=1.0)
    unet_init: Literal["random", "bundle"] = option(
        "random",
        "First weights of UNet and adapter: random, or those in WORK/bundle; a checkpoint wins over both.",
        group="UNet",
    )
    unet_steps: int = option(12000, "Steps of UNet and adapter.", min=1, max=10_000_000)
    unet_batch_size: int = option(16, "Pictures per process and step.", min=1, max=65_536)
    unet_learning_rate: float = option(1e-3, "Highest learning rate.", min=0, max=1.0)
    dit_init: Literal["random", "bundle"] = option(
        "random",
        "First weights of the transformer: random, or those in WORK/bundle-dit; a checkpoint wins over both.",
        group="Transformer of mini-dit",
    )
    dit_steps: int = option(4000, "Steps of the transformer.", min=1, max=10_000_000)
    dit_coarse_steps: int = option(
        2200, "Of these, at first, with patches of 4 x 4 latents, which cost a third.", min=0, max=10_000_000
    )
    dit_batch_size: int = option(16, "Pictures per process and step.", min=1, max=65_536)
    dit_learning_rate: float = option(4e-3, "Highest learning rate.", min=0, max=1.0)

    def __post_init__(self) -> None:
        if len(self.shares) != MOST:
            raise ValueError(f"--shares: {MOST} were expected, of scenes with one to {MOST} individuals")
        if not sum(self.shares):
            raise ValueError("--shares: all are 0; at least one must be more")
        for part in self.parts:
            if part not in PARTS:
                raise ValueError(f"no part {abridged(part)}{nearest(part, PARTS) or '; parts: ' + ', '.join(PARTS)}")
        if both := set(self.easy) & set(self.held_out):
            raise ValueError(f"--held-out: {min(both)!r} is among --easy too; a relation is either learnt or held out")
