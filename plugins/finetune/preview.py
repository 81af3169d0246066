"""Preview pictures while training: the triplets' own individuals, prompts and boxes, with fixed seeds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rbctl import denoising
from rbctl.bundle.bundle import Bundle
from rbctl.conditioning import guided
from rbctl.device import pick_attention
from rbctl.images import write_png
from rbctl.pictures import grid
from rbctl.plugins.finetune.config import FinetuneConfig

_MOST = 4
_GUIDANCE = 5.0


def preview(bundle: Bundle, unet: Any, frozen: Mapping[str, torch.Tensor], config: FinetuneConfig, path: Path) -> None:
    """Sample a few triplets' prompts with the LoRA as it is now and write them as one grid."""
    count = min(_MOST, frozen["boxes"].shape[0])
    device, dtype = bundle.device, bundle.dtype
    tokens, boxes = frozen["image_tokens"][:count, 0].to(device), frozen["boxes"][:count, 0].to(device)
    *_, channels, h, w = frozen["latents_mean"].shape

    def text(name: str) -> torch.Tensor:
        return frozen[name][:count].to(device, dtype)

    def empty(name: str) -> torch.Tensor:
        return frozen[f"empty_{name}"][None].expand_as(frozen[name][:count]).to(device, dtype)

    gamma = bundle.gamma if config.gamma is None else config.gamma
    conditioning = guided(
        prompt_embeds=text("prompt_embeds"),
        pooled_prompt_embeds=text("pooled_prompt_embeds"),
        negative_prompt_embeds=empty("prompt_embeds"),
        negative_pooled_prompt_embeds=empty("pooled_prompt_embeds"),
        size=(h * bundle.latent_scale, w * bundle.latent_scale),
        latent_size=(h, w),
        levels=bundle.levels,
        image_tokens=tokens,
        boxes=boxes,
        object_weights=torch.full(boxes.shape[:2], gamma, device=device),
        backend=pick_attention(config.attention, device, dtype),
    )
    noise = denoising.initial_noise([config.seed + i for i in range(count)], channels, (h, w))
    training = unet.training
    unet.eval()
    latents = denoising.denoise(
        unet,
        bundle.scheduler(),
        noise.to(device),
        conditioning,
        config.preview_steps,
        torch.full((count,), _GUIDANCE, device=device),
    )
    unet.train(training)
    write_png(path, grid(denoising.to_pictures(bundle.decode_latents(latents)), count))
