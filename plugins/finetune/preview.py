"""Preview pictures while training: the triplets' own individuals, prompts and boxes, with fixed seeds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image

from rbctl import denoising
from rbctl.bundle.bundle import Bundle
from rbctl.conditioning import Encoded
from rbctl.pictures import grid, save_png
from rbctl.pipeline import RelationPipeline
from rbctl.plugins.finetune.config import FinetuneConfig
from rbctl.plugins.finetune.samples import target_size

_MOST = 4
_GUIDANCE = 5.0
_TEXTS = ("prompt_embeds", "pooled_prompt_embeds")


def preview(bundle: Bundle, encodings: Mapping[str, torch.Tensor], config: FinetuneConfig, path: Path) -> None:
    """Sample a few triplets' prompts with the LoRA as it is now and write them as one grid."""
    count = min(_MOST, encodings["boxes"].shape[0])
    tokens, boxes = (encodings[name][:count, 0].to(bundle.device) for name in ("image_tokens", "boxes"))
    texts = {name: encodings[name][:count].to(bundle.device, bundle.dtype) for name in _TEXTS}
    empty = {name: encodings[f"empty_{name}"].to(texts[name]).expand_as(texts[name]) for name in _TEXTS}
    gamma = bundle.gamma if config.gamma is None else config.gamma
    weights = torch.full(boxes.shape[:2], gamma, device=bundle.device)
    channels = encodings["latents_mean"].shape[-3]
    by_size: dict[tuple[int, int], list[int]] = {}
    for number in range(count):
        by_size.setdefault(target_size(encodings["time_ids"][number, 0]), []).append(number)
    training = bundle.unet.training
    bundle.unet.eval()
    pipe = RelationPipeline(bundle, attention=config.attention)
    images: dict[int, Image.Image] = {}
    for (height, width), alike in by_size.items():
        encoded = Encoded(
            **{name: embeds[alike] for name, embeds in texts.items()},
            **{f"negative_{name}": embeds[alike] for name, embeds in empty.items()},
            image_tokens=tokens[alike],
            boxes=boxes[alike],
            object_weights=weights[alike],
        )
        size = height // bundle.latent_scale, width // bundle.latent_scale
        generators = denoising.generators_of([config.seed + number for number in alike])
        noise = denoising.initial_noise(generators, channels, size)
        latents = pipe.denoise_encoded(encoded, noise, config.preview_steps, _GUIDANCE, generators=generators)
        images |= zip(alike, denoising.to_pictures(bundle.decode_latents(latents)), strict=True)
    bundle.unet.train(training)
    save_png(grid([images[number] for number in range(count)], count), path)
