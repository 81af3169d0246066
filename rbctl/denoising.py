"""The sampling loop as free functions over tensors."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from rbctl.attention import project_once
from rbctl.conditioning import Conditioning
from rbctl.deep_cache import DeepCache
from rbctl.shortcuts import NO_SHORTCUTS, Shortcuts

OnStep = Callable[[int, torch.Tensor], torch.Tensor | None]


def generators_of(seeds: Sequence[int]) -> list[torch.Generator]:
    """A picture's own generator on the CPU, of its noise and then of its steps, whatever the batch."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def initial_noise(
    generators: Sequence[torch.Generator | None], channels: int, latent_size: tuple[int, int]
) -> torch.Tensor:
    """Unit noise (B, C, h, w), float32 on the CPU; None draws from torch's own generator."""
    shape = (1, channels, *latent_size)
    drawn = [torch.randn(shape, generator=own, device=own.device if own else "cpu") for own in generators]
    return torch.cat([noise.cpu() for noise in drawn])


def guide(prediction: torch.Tensor, guidance_scale: torch.Tensor) -> torch.Tensor:
    """Classifier-free guidance; ``prediction`` is [unconditional; conditional] (2B, ...), ``guidance_scale`` (B,)."""
    unconditional, conditional = prediction.chunk(2)
    return unconditional + guidance_scale[:, None, None, None] * (conditional - unconditional)


def predict(unet: Any, latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
    """The UNet's output for B noisy latents, (B, C, h, w) float32.

    Args:
        latents: (B, C, h, w), as the scheduler scales them.
        timesteps: (B,), or one for all.
    """
    output: torch.Tensor = unet(
        latents.to(conditioning.prompt_embeds.dtype),
        timesteps,
        encoder_hidden_states=conditioning.prompt_embeds,
        cross_attention_kwargs={"conditioning": conditioning},
        added_cond_kwargs=conditioning.added_cond_kwargs,
        return_dict=False,
    )[0]
    return output.float()


@torch.no_grad()
def denoise(
    unet: Any,
    scheduler: Any,
    noise: torch.Tensor,
    conditioning: Conditioning,
    steps: int,
    guidance_scale: torch.Tensor | None,
    on_step: OnStep | None = None,
    generators: Sequence[torch.Generator | None] | None = None,
    shortcuts: Shortcuts = NO_SHORTCUTS,
    unguided: Conditioning | None = None,
) -> torch.Tensor:
    """Sample latents.

    Args:
        noise: (B, C, h, w) unit noise on the UNet's device.
        conditioning: 2B rows, [unconditional; conditional]; B rows where ``guidance_scale`` is None.
        guidance_scale: (B,), or None for no guidance (half the work).
        on_step: called with the step's number and the latents after it; latents that it returns take their place.
            A scheduler of second order has nearly two calls of the UNet a step; each counts as one here.
        generators: one a picture, for the noise that a stochastic scheduler adds.
        shortcuts: what is left out.
        unguided: the conditional B rows alone, for steps without guidance; needed where ``shortcuts`` leave some out.

    Returns:
        (B, C, h, w) scaled latents, float32.
    """
    for rows in filter(None, (conditioning, unguided)):
        project_once(unet, rows)
    cached = DeepCache(unet, shortcuts.cache_start, shortcuts.cache_span)
    scheduler.set_timesteps(steps, device=noise.device)
    options: dict[str, Any] = {}
    if generators and None not in generators and "generator" in inspect.signature(scheduler.step).parameters:
        options["generator"] = list(generators)
    latents = noise.float() * scheduler.init_noise_sigma
    for number, timestep in enumerate(scheduler.timesteps):
        cached.share = number / len(scheduler.timesteps)
        if guidance_scale is None:
            prediction = predict(cached, scheduler.scale_model_input(latents, timestep), timestep, conditioning)
        elif unguided is None or shortcuts.guided(cached.share):
            doubled = scheduler.scale_model_input(torch.cat([latents, latents]), timestep)
            prediction = guide(predict(cached, doubled, timestep, conditioning), guidance_scale)
        else:
            prediction = predict(cached, scheduler.scale_model_input(latents, timestep), timestep, unguided)
        latents = scheduler.step(prediction, timestep, latents, return_dict=False, **options)[0]
        if on_step:
            changed = on_step(number, latents)
            latents = latents if changed is None else changed
    return latents


def to_pictures(decoded: torch.Tensor) -> list[Image.Image]:
    """Decoded pictures (B, 3, H, W) in [-1, 1] -> PIL."""
    scaled = (decoded.float() / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    return [Image.fromarray(np.asarray(picture)) for picture in scaled.permute(0, 2, 3, 1).cpu()]
