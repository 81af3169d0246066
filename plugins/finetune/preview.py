"""Preview pictures while training: the triplets' own individuals, prompts and boxes, with fixed seeds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image

from rbctl import denoising
from rbctl.bases import Base
from rbctl.bases.load import training
from rbctl.pictures import grid, save_png
from rbctl.plugins.finetune.config import FinetuneConfig
from rbctl.plugins.finetune.samples import target_size

_MOST = 4


def preview(base: Base, encodings: Mapping[str, torch.Tensor], config: FinetuneConfig, path: Path) -> None:
    """Sample a few triplets' prompts with the LoRA as it is now and write them as one grid."""
    count = min(_MOST, encodings["boxes"].shape[0])
    channels = encodings["latents_mean"].shape[-3]
    by_size: dict[tuple[int, int], list[int]] = {}
    for number in range(count):
        by_size.setdefault(target_size(encodings["time_ids"][number, 0]), []).append(number)
    was_training = base.model.training
    base.model.eval()
    course = training(base, config)
    images: dict[int, Image.Image] = {}
    for (height, width), alike in by_size.items():
        size = height // base.latent_scale, width // base.latent_scale
        generators = denoising.generators_of([config.seed + number for number in alike])
        noise = denoising.initial_noise(generators, channels, size)
        latents = course.sample(encodings, alike, noise, config.preview_steps, generators)
        images |= zip(alike, denoising.to_pictures(base.decode_latents(latents)), strict=True)
    base.model.train(was_training)
    save_png(grid([images[number] for number in range(count)], count), path)
