"""The sampling loop as free functions over tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from rbctl.attention import project_once
from rbctl.conditioning import Conditioning

OnStep = Callable[[int, torch.Tensor], torch.Tensor | None]


def initial_noise(seeds: Sequence[int], channels: int, latent_size: tuple[int, int]) -> torch.Tensor:
    """Unit noise (B, C, h, w), float32 on the CPU; every picture from its own generator, whatever the batch."""
    shape = (1, channels, *latent_size)
    return torch.cat([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


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
) -> torch.Tensor:
    """Sample latents.

    Args:
        noise: (B, C, h, w) unit noise on the UNet's device.
        conditioning: 2B rows, [unconditional; conditional]; B rows where ``guidance_scale`` is None.
        guidance_scale: (B,), or None for no guidance (half the work).
        on_step: called with the step's number and the latents after it; latents that it returns take their place.

    Returns:
        (B, C, h, w) scaled latents, float32.
    """
    project_once(unet, conditioning)
    scheduler.set_timesteps(steps, device=noise.device)
    latents = noise.float() * scheduler.init_noise_sigma
    for number, timestep in enumerate(scheduler.timesteps):
        doubled = latents if guidance_scale is None else torch.cat([latents, latents])
        prediction = predict(unet, scheduler.scale_model_input(doubled, timestep), timestep, conditioning)
        if guidance_scale is not None:
            prediction = guide(prediction, guidance_scale)
        latents = scheduler.step(prediction, timestep, latents, return_dict=False)[0]
        if on_step:
            changed = on_step(number, latents)
            latents = latents if changed is None else changed
    return latents


def to_pictures(decoded: torch.Tensor) -> list[Image.Image]:
    """Decoded pictures (B, 3, H, W) in [-1, 1] -> PIL."""
    scaled = (decoded.float() / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    return [Image.fromarray(np.asarray(picture)) for picture in scaled.permute(0, 2, 3, 1).cpu()]
