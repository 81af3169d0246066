"""Everything the frozen networks say about the triplets, computed once: then the loop runs the UNet alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rbctl.bundle.load import Bundle
from rbctl.conditioning import DUMMY_TOKENS
from rbctl.draws import generator
from rbctl.errors import InputError
from rbctl.image_prompt import clip_pixels
from rbctl.kept import not_finite
from rbctl.phrases import token_span
from rbctl.plugins.finetune.config import FinetuneConfig
from rbctl.progress import progress
from rbctl.triplets import Triplet, geometry

# Fields that change what the frozen networks are shown.
_KEYED = (
    "seed",
    "resolution",
    "augmentation_draws",
    "random_flip",
    "max_zoom",
    "local_tokens",
    "local_grid",
    "local_injection",
)


# The tensors' dimensions: S triplets and prior scenes, A draws, N objects, K keypoints, H x W pixels, h x w latents.
_SHAPES = {
    "latents_mean": "S A C h w",
    "latents_std": "S A C h w",
    "prompt_latents_mean": "S A N C h w",
    "prompt_latents_std": "S A N C h w",
    "image_tokens": "S A t D",
    "boxes": "S A N 4",
    "target_keypoints": "S A N K 2",
    "image_keypoints": "S A N K 2",
    "visible": "S A N K",
    "object_mask": "S A H W",
    "time_ids": "S A 6",
    "prompt_embeds": "S T D",
    "pooled_prompt_embeds": "S P",
    "predicate_span": "S 2",
    "empty_prompt_embeds": "T D",
    "empty_pooled_prompt_embeds": "P",
}
_TYPES = {"visible": torch.bool, "object_mask": torch.bool, "predicate_span": torch.int64}  # others: floating point


def made_from(config: FinetuneConfig, hashes: Mapping[str, Any], resolution: int, dtype: torch.dtype) -> dict[str, Any]:
    """What frozen results depend on; ``hashes`` holds those of data, prior set and bundle."""
    facts = {field: getattr(config, field) for field in _KEYED}
    facts |= {name: hashes[name] for name in ("data", "prior", "bundle")}
    facts |= {"resolution": resolution, "dtype": str(dtype), "version": 2}
    facts["predicate"] = config.attention_loss_weight > 0  # then every prompt was found to hold its predicate
    return facts


def fit(tensors: Mapping[str, torch.Tensor], triplets: int, draws: int, resolution: int) -> bool:
    """Whether tensors are of the names, shapes and types that :func:`encode` gives so many triplets."""
    sizes = {"S": triplets, "A": draws, "H": resolution, "W": resolution} | {n: int(n) for n in "246"}
    if tensors.keys() != _SHAPES.keys():
        return False
    for name, names in _SHAPES.items():
        tensor = tensors[name]
        if tensor.dtype != _TYPES[name] if name in _TYPES else not tensor.is_floating_point():
            return False
        expected = tuple(sizes.setdefault(n, size) for n, size in zip(names.split(), tensor.shape, strict=False))
        if tensor.ndim != len(names.split()) or tensor.shape != expected:
            return False
    return True


def encode(
    bundle: Bundle,
    triplets: Sequence[Triplet],
    config: FinetuneConfig,
    resolution: int,
    prior: Sequence[Triplet] = (),
) -> dict[str, torch.Tensor]:
    """Frozen results of every triplet and augmentation draw, then of the prior set's; ``split`` takes them apart.

    Returns:
        Tensors with leading dimensions (S triplets, A draws), objects padded with zeros to the most there are:
        ``latents_mean``, ``latents_std`` (C, h, w); ``prompt_latents_mean``, ``prompt_latents_std`` (N, C, h, w);
        ``image_tokens`` (4 + 16 N, D); ``boxes`` (N, 4); ``target_keypoints``, ``image_keypoints`` (N, K, 2);
        ``visible`` (N, K); ``object_mask`` (H, W); ``time_ids`` (6); and, without draws, ``prompt_embeds`` (T, D),
        ``pooled_prompt_embeds`` (P), ``predicate_span`` (2). Besides, of the empty prompt: ``empty_prompt_embeds``,
        ``empty_pooled_prompt_embeds``.
    """
    everything = [*triplets, *prior]
    most = max(len(triplet.objects) for triplet in everything)
    samples = []
    with progress(len(everything) * config.augmentation_draws, "encoding triplets", unit="draw") as bar:
        for number, triplet in enumerate(everything):
            draws = []
            for draw in range(config.augmentation_draws):
                draws.append(_pad(_encode_draw(bundle, triplet, draw, config, resolution), most))
                bar.update()
            samples.append(
                {name: torch.stack([d[name] for d in draws]) for name in draws[0]}
                | _words(bundle, triplet, config.attention_loss_weight > 0 and number < len(triplets))
            )
    result = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
    embeds, pooled = bundle.encode_prompts([""])
    result["empty_prompt_embeds"], result["empty_pooled_prompt_embeds"] = embeds[0], pooled[0]
    return {name: tensor.cpu() for name, tensor in result.items()}


def split(
    frozen: Mapping[str, torch.Tensor], count: int
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor] | None]:
    """The results of the first ``count`` triplets, and those of the prior set behind them (None where there is none).

    Both have those of the empty prompt.
    """

    def part(rows: slice) -> dict[str, torch.Tensor]:
        return {name: t if name.startswith("empty_") else t[rows] for name, t in frozen.items()}

    return part(slice(count)), part(slice(count, None)) if frozen["boxes"].shape[0] > count else None


def _words(bundle: Bundle, triplet: Triplet, needs_predicate: bool) -> dict[str, torch.Tensor]:
    embeds, pooled = bundle.encode_prompts([triplet.prompt])
    span = token_span(bundle.tokenizer, triplet.prompt, triplet.predicate)
    if needs_predicate and span == (0, 0):
        raise InputError(
            f"triplet {triplet.id!r}: its prompt {triplet.prompt!r} does not hold the predicate {triplet.predicate!r}, "
            "which --attention-loss-weight needs; mend the data or set the weight to 0"
        )
    return {
        "prompt_embeds": embeds[0],
        "pooled_prompt_embeds": pooled[0],
        "predicate_span": torch.tensor(span),
    }


@torch.no_grad()
def _encode_draw(
    bundle: Bundle, triplet: Triplet, draw: int, config: FinetuneConfig, resolution: int
) -> dict[str, torch.Tensor]:
    target = geometry.target(triplet)
    prompts = [geometry.image_prompt(thing) for thing in triplet.objects]
    zoom, anchor = 1.0, (0.5, 0.5)
    if draw > 0:  # draw 0 is the triplet as it is
        chance = torch.rand(4, generator=generator(config.seed, "augmentation", triplet.id, draw)).tolist()
        zoom, anchor = 1 + chance[0] * (config.max_zoom - 1), (chance[1], chance[2])
        if config.random_flip and chance[3] < 0.5:
            target, prompts = geometry.flip(target), [geometry.flip(prompt) for prompt in prompts]
    original_width, original_height = target.image.size
    target = geometry.cover(target, resolution, resolution, zoom=zoom, anchor=anchor)
    # The whole individual stays in view: image prompts are padded to the square, not cut.
    squares = [geometry.contain(prompt, resolution, resolution) for prompt in prompts]

    mean, std = bundle.encode_pictures(_pixels([target.image]))
    prompt_mean, prompt_std = bundle.encode_pictures(_pixels([square.image for square in squares]))
    pictures = [prompt.image for prompt in prompts]
    local = None
    if config.local_tokens != "none":
        local = clip_pixels(pictures, bundle.local_image_size).to(bundle.device, bundle.dtype)
    pixels = clip_pixels(pictures, bundle.clip_image_size).to(bundle.device, bundle.dtype)
    boxes = torch.from_numpy(target.boxes).float()
    encoder = bundle.image_prompt_encoder
    phrases = bundle.encode_phrases([thing.name for thing in triplet.objects])
    seen = encoder.object_tokens(pixels, local, config.local_tokens, config.local_grid, config.local_injection)
    tokens = encoder.adapter_tokens(seen, boxes[None].to(bundle.device), phrases[None])
    target_points = torch.from_numpy(target.keypoints).float()
    image_points = torch.from_numpy(np.concatenate([square.keypoints for square in squares])).float()
    return {
        "latents_mean": mean[0],
        "latents_std": std[0],
        "prompt_latents_mean": prompt_mean,
        "prompt_latents_std": prompt_std,
        "image_tokens": tokens[0],
        "boxes": boxes,
        "target_keypoints": target_points[..., :2],
        "image_keypoints": image_points[..., :2],
        "visible": (target_points[..., 2] > 0) & (image_points[..., 2] > 0),
        "object_mask": torch.from_numpy(target.masks.any(0)),
        # Crop (0, 0) whatever the crop was, as in the official script: sampling asks for an uncut picture.
        "time_ids": torch.tensor([original_height, original_width, 0, 0, resolution, resolution], dtype=torch.float32),
    }


_PER_OBJECT = ("prompt_latents_mean", "prompt_latents_std", "boxes", "target_keypoints", "image_keypoints", "visible")


def _pad(draw: dict[str, torch.Tensor], most: int) -> dict[str, torch.Tensor]:
    """Add absent objects: an all-zero box lets no query see them, and no keypoint of theirs counts."""
    objects = draw["boxes"].shape[0]
    tokens = draw["image_tokens"]
    per_object = (tokens.shape[0] - DUMMY_TOKENS) // objects

    def grow(tensor: torch.Tensor, count: int) -> torch.Tensor:
        return torch.cat((tensor, tensor.new_zeros(count, *tensor.shape[1:])))

    padded = {name: grow(value, most - objects) if name in _PER_OBJECT else value for name, value in draw.items()}
    return padded | {"image_tokens": grow(tokens, per_object * (most - objects))}


def _pixels(images: Sequence[Any]) -> torch.Tensor:
    array = np.stack([np.asarray(image) for image in images])
    return torch.from_numpy(array).permute(0, 3, 1, 2).float() / 127.5 - 1


def check_finite(frozen: dict[str, torch.Tensor], where: Path) -> None:
    """Raises InputError when a frozen network gave NaN or infinity (a damaged bundle, or fp16 overflow)."""
    if name := not_finite(frozen):
        raise InputError(f"{where}: the frozen networks gave NaN in {name}; try --precision bf16 or fp32")
