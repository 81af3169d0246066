"""Image prompts (pictures of individuals) -> image tokens for the parallel cross-attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import nn

from rbctl.local_encoder import LocalEncoder, local_tokens
from rbctl.resampler import Resampler

LocalTokens = Literal["own", "first_image", "none"]
Injection = Literal["concat", "replace", "add"]

IMAGE_PROMPT_SIZE = 512  # every image prompt is first resized to this square, as the official code does
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def squared(image: Image.Image) -> Image.Image:
    """A picture as the 512-pixel square that all encoders are shown; one that is a square already stays as it is."""
    return image.convert("RGB").resize((IMAGE_PROMPT_SIZE, IMAGE_PROMPT_SIZE), Image.Resampling.BICUBIC)


def clip_pixels(images: Sequence[Image.Image], size: int) -> torch.Tensor:
    """Pictures -> (R, 3, size, size), normalised for CLIP; by way of :func:`squared`."""
    resized = [squared(image).resize((size, size), Image.Resampling.BICUBIC) for image in images]
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in resized])).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    return (pixels - mean) / std


def picture_tokens(
    image_encoder: Any,
    local_encoder: LocalEncoder | None,
    pixels: torch.Tensor,
    local_pixels: torch.Tensor | None,
    mode: LocalTokens,
    splits: int,
    injection: Injection = "concat",
) -> torch.Tensor:
    """CLIP's second-to-last hidden states, then the local tokens.

    Args:
        image_encoder, local_encoder: see :class:`ImagePromptEncoder`.
        pixels: (R, 3, H, W) at the image encoder's size.
        local_pixels: (R, 3, H', W') at the local encoder's size; not read where ``mode`` is "none".
        mode: "own" local tokens of each picture; "first_image" as the official code has it; "none".
        splits: pool them over a grid of so many by so many, so that there are ``splits**2``.
        injection: "concat" puts them behind CLIP's tokens (the paper's way); "replace" in the place of all but the
            class token; "add" adds each to CLIP's patches in its cell.

    Returns:
        (R, 1 + patches [+ splits**2], C); (R, 1 + splits**2, C) for "replace".
    """
    tokens: torch.Tensor = image_encoder(pixels, output_hidden_states=True).hidden_states[-2]
    if mode == "none":
        return tokens
    if local_encoder is None or local_pixels is None:
        raise ValueError("local tokens need a local encoder and local_pixels; mode='none' leaves them out")
    local = local_tokens(local_encoder, local_pixels, splits, mode == "first_image").to(tokens.dtype)
    if injection == "concat":
        return torch.cat((tokens, local), dim=1)
    if injection == "replace":
        return torch.cat((tokens[:, :1], local), dim=1)
    side = round((tokens.shape[1] - 1) ** 0.5)
    cell = torch.arange(side, device=local.device) * splits // side
    rows = local.unflatten(1, (splits, splits)).transpose(1, 2)  # they come column by column
    return torch.cat((tokens[:, :1], tokens[:, 1:] + rows[:, cell][:, :, cell].flatten(1, 2)), dim=1)


class ImagePromptEncoder(nn.Module):
    """CLIP tokens and local tokens of every object, resampled to a few adapter tokens each.

    Args:
        image_encoder: transformers ``CLIPVisionModelWithProjection`` (CLIP-bigG in SDXL's bundle).
        local_encoder: distilled by CLIPSelf, or None.
        dummy_image_tokens: (4, D), learned.
    """

    def __init__(
        self,
        image_encoder: Any,
        local_encoder: LocalEncoder | None,
        resampler: Resampler,
        dummy_image_tokens: torch.Tensor,
        local_splits: int = 4,
    ) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.local_encoder = local_encoder
        self.resampler = resampler
        self.dummy_image_tokens = nn.Parameter(dummy_image_tokens, requires_grad=False)
        self.local_splits = local_splits

    def object_tokens(
        self,
        pixels: torch.Tensor,
        local_pixels: torch.Tensor | None,
        mode: LocalTokens = "own",
        splits: int | None = None,
        injection: Injection = "concat",
    ) -> torch.Tensor:
        """:func:`picture_tokens` of this bundle's encoders; ``splits`` None is the bundle's own, 4."""
        splits = splits or self.local_splits
        return picture_tokens(self.image_encoder, self.local_encoder, pixels, local_pixels, mode, splits, injection)

    def adapter_tokens(
        self,
        object_tokens: torch.Tensor,
        boxes: torch.Tensor,
        phrase_embeds: torch.Tensor,
        drop_grounding: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Image tokens of B samples of N objects each.

        Args:
            object_tokens: (B * N, S, C), sample-major.
            boxes: (B, N, 4) relative xyxy.
            phrase_embeds: (B, N, P).
            drop_grounding: (B,) bool.

        Returns:
            (B, 4 + 16 N, D): dummy tokens, then each object's.
        """
        batch, objects = boxes.shape[:2]
        drop = None if drop_grounding is None else drop_grounding.repeat_interleave(objects)
        tokens = self.resampler(object_tokens, boxes.flatten(0, 1).float(), phrase_embeds.flatten(0, 1).float(), drop)
        tokens = tokens.unflatten(0, (batch, objects)).flatten(1, 2)
        dummies = self.dummy_image_tokens.to(tokens.dtype).expand(batch, -1, -1)
        return torch.cat((dummies, tokens), dim=1)
