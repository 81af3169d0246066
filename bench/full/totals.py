"""Operations of a whole picture and of a whole finetuning, the official program's way and ours.

All are counted on meta tensors through the modules that run. Only the UNet's are: both ways sample with the same VAE
and encoders. A loop costs the sum over its steps, so a way that saves work is a list of cheaper steps.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch.utils.flop_counter import FlopCounterMode

from bench import official
from bench.full.floors import call_flops, conditioning_on_meta, on_meta, step_floor, tuning_floor
from bench.full.sizes import GAMMA, NOMINAL, PER_OBJECT, SMALL, Scale
from rbctl import attention, denoising
from rbctl.conditioning import DUMMY_TOKENS
from rbctl.deep_cache import DeepCache
from rbctl.shortcuts import NO_SHORTCUTS, Shortcuts

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


@functools.cache
def shallow_row_flops(scale: Scale) -> float:
    """One row of a step that takes the deep features of the step before."""
    unet = on_meta(scale.architecture)
    cached = DeepCache(unet, span=1.0)
    noisy = torch.empty(1, unet.config.in_channels, *scale.latent_size, device="meta")
    with torch.no_grad():
        conditioning = attention.project_once(unet, conditioning_on_meta(unet, scale))
        denoising.predict(cached, noisy, torch.empty(1, device="meta"), conditioning)  # computes the features
        return call_flops(cached.shallow, scale, conditioning)


class _Count:
    """A scheduler that does nothing but count steps."""

    init_noise_sigma = 1.0

    def set_timesteps(self, steps: int, device: Any) -> None:
        self.timesteps = torch.zeros(steps, device=device)

    def scale_model_input(self, latents: torch.Tensor, _timestep: Any) -> torch.Tensor:
        return latents

    def step(self, _prediction: Any, _timestep: Any, latents: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
        return (latents,)


def _widened(channels: int, features: torch.Tensor, *_: Any) -> torch.Tensor:
    """Nothing, in the shape of a ResNet block's output."""
    return features.new_empty(len(features), channels, *features.shape[2:])


@functools.cache
def calls(steps: int, shortcuts: Shortcuts, guidance: bool) -> list[tuple[int, bool]]:
    """Rows of each call of the UNet, and whether it is whole, as the sampling loop itself calls a tiny one."""
    unet, made = on_meta(SMALL.architecture), list[tuple[int, bool]]()
    for module in unet.modules():  # what takes the time, and changes nothing in who is called
        if isinstance(module, Transformer2DModel):
            module.forward = lambda features, **_: (features,)
        elif isinstance(module, ResnetBlock2D):
            module.forward = functools.partial(_widened, module.out_channels)
    unet.conv_in.register_forward_hook(lambda _module, _inputs, features: made.append((len(features), False)))
    unet.mid_block.register_forward_hook(lambda *_: made.append((made.pop()[0], True)))
    noise = torch.empty(1, unet.config.in_channels, *SMALL.latent_size, device="meta")
    denoising.denoise(
        unet,
        _Count(),
        noise,
        conditioning_on_meta(unet, SMALL, 2 if guidance else 1),
        steps,
        torch.empty(1, device="meta") if guidance else None,
        shortcuts=shortcuts,
        unguided=None if shortcuts.always_guided else conditioning_on_meta(unet, SMALL),
    )
    return made


def picture_flops(
    scale: Scale, steps: int | None = None, shortcuts: Shortcuts = NO_SHORTCUTS, guidance: bool = True
) -> float:
    """One picture, our way. The image branch is counted for every query, as by ``sdpa``."""
    of_row = {True: step_floor(scale).flops, False: shallow_row_flops(scale)}
    loop = [Step(rows, of_row[whole]) for rows, whole in calls(steps or scale.steps, shortcuts, guidance)]
    projected = (2 if guidance else 1) + (guidance and not shortcuts.always_guided)  # rows, and those without guidance
    return loop_flops(loop, once=projected * projection_flops(scale))


def tuning_flops(scale: Scale, steps: int, batch_size: int) -> float:
    """A finetuning's passes through the UNet, forward and backward; both ways do the same ones."""
    return steps * batch_size * tuning_floor(scale).flops


def h100_seconds(flops: float) -> float:
    """How long an H100 takes at ``MFU`` of its nominal rate in bf16. By arithmetic, not measured."""
    return flops / (MFU * NOMINAL["flops"])
