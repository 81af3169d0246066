"""Operations of a whole picture and of a whole finetuning, the official program's way and ours.

All are counted on meta tensors through the modules that run. Only the UNet's are: both ways sample with the same VAE
and encoders. A loop costs the sum over its steps, so a way that saves work is a list of cheaper steps.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench import official
from bench.full.floors import call_flops, conditioning_on_meta, on_meta, step_floor, tuning_floor
from bench.full.sizes import GAMMA, NOMINAL, PER_OBJECT, Scale
from rbctl import attention
from rbctl.conditioning import DUMMY_TOKENS

MFU = 0.4  # share of the nominal rate that a good program reaches


@dataclass(frozen=True)
class Step:
    """One call of the UNet: its rows (2 a picture with guidance, else 1), and the operations of each."""

    rows: int
    flops_of_row: float


def loop_flops(steps: Sequence[Step], once: float = 0) -> float:
    """Operations of a denoising loop, and of what is done ``once`` before it. Everything is summed here."""
    return once + sum(step.rows * step.flops_of_row for step in steps)


@functools.cache
def official_row_flops(scale: Scale) -> float:
    """One row of a step of the official way: K and V projected anew, the image branch for every query."""
    unet = on_meta(scale.architecture)
    ours = conditioning_on_meta(unet, scale)
    with torch.device("meta"):
        conditioning = official.OfficialConditioning(
            prompt_embeds=ours.prompt_embeds,
            pooled_prompt_embeds=ours.pooled_prompt_embeds,
            time_ids=ours.time_ids,
            image_tokens=torch.empty(1, DUMMY_TOKENS + 2 * PER_OBJECT, unet.config.cross_attention_dim),
            boxes=torch.empty(1, 2, 4),
            gamma=GAMMA,
        )
    unet.set_attn_processor(official.processors(unet))
    with torch.no_grad():
        return call_flops(unet, scale, conditioning)


@functools.cache
def projection_flops(scale: Scale) -> float:
    """K and V of one row in all layers, which ours projects once a picture."""
    unet = on_meta(scale.architecture)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        attention.project_once(unet, conditioning_on_meta(unet, scale))
    return counter.get_total_flops()


def official_picture_flops(scale: Scale) -> float:
    """One picture with guidance, the official way."""
    return loop_flops([Step(2, official_row_flops(scale))] * scale.steps)


def picture_flops(scale: Scale) -> float:
    """One picture with guidance at every step, our way. The image branch is counted for every query, as by ``sdpa``."""
    return loop_flops([Step(2, step_floor(scale).flops)] * scale.steps, once=2 * projection_flops(scale))


def tuning_flops(scale: Scale, steps: int, batch_size: int) -> float:
    """A finetuning's passes through the UNet, forward and backward; both ways do the same ones."""
    return steps * batch_size * tuning_floor(scale).flops


def h100_seconds(flops: float) -> float:
    """How long an H100 takes at ``MFU`` of its nominal rate in bf16. By arithmetic, not measured."""
    return flops / (MFU * NOMINAL["flops"])
