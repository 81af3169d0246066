"""Dense CLIP features (CLIPSelf): the local tokens of an image prompt, and what distillation aligns.

Works on the visual tower of any open_clip ViT.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import interpolate, linear, normalize
from torchvision.ops import roi_align


def local_grid(splits: int = 4) -> torch.Tensor:
    """Boxes of a splits x splits grid, (splits**2, 4) relative xyxy, column by column (x outer, y inner).

    The order is the official code's; the resampler was trained on nothing else.
    """
    edges = torch.arange(splits + 1) / splits
    cells = [(edges[x], edges[y], edges[x + 1], edges[y + 1]) for x in range(splits) for y in range(splits)]
    return torch.tensor(cells)


def resized_positional_embedding(embedding: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Positional embedding (1 + g*g, C) for another patch grid (rows, columns): class part kept, the rest bicubic."""
    class_part, patches = embedding[:1], embedding[1:]
    side = round(patches.shape[0] ** 0.5)
    if (side, side) == grid:
        return embedding
    square = patches.T.unflatten(1, (side, side))[None]  # (1, C, g, g)
    resized = interpolate(square.float(), size=grid, mode="bicubic", align_corners=False)
    return torch.cat((class_part, resized[0].flatten(1).T.to(embedding.dtype)))


def dense_features(visual: Any, pixels: torch.Tensor, project: bool) -> torch.Tensor:
    """Dense CLIP features: all blocks but the last as usual; the last one by its value path, without attention.

    Args:
        visual: open_clip ``VisionTransformer``.
        pixels: (B, 3, H, W), normalised for CLIP; any size that its patches tile.
        project: with the final projection (CLIPSelf, for distillation) or without (DreamRelation's local tokens).

    Returns:
        (B, C, h, w), L2-normalised over C.
    """
    patches = visual.conv1(pixels)  # (B, C, h, w)
    grid = patches.shape[-2:]
    tokens = patches.flatten(2).mT
    class_token = visual.class_embedding.to(tokens.dtype).expand(tokens.shape[0], 1, -1)
    embedding = resized_positional_embedding(visual.positional_embedding, grid)
    x = visual.ln_pre(torch.cat((class_token, tokens), dim=1) + embedding.to(tokens.dtype))
    *blocks, last = visual.transformer.resblocks
    for block in blocks:
        x = block(x)
    x = x + last.ls_1(_value_path(last.attn, last.ln_1(x)))
    x = x + last.ls_2(last.mlp(last.ln_2(x)))
    x = visual.ln_post(x[:, 1:])
    if project:
        x = x @ visual.proj
    return normalize(x, dim=-1).mT.unflatten(2, grid)


def _value_path(attention: nn.MultiheadAttention, x: torch.Tensor) -> torch.Tensor:
    """What attention gives when every token attends to itself alone."""
    _, _, weight = attention.in_proj_weight.chunk(3)
    _, _, bias = attention.in_proj_bias.chunk(3)
    return attention.out_proj(linear(x, weight, bias))


def pool_regions(features: torch.Tensor, boxes: list[torch.Tensor]) -> torch.Tensor:
    """RoIAlign each box to one vector.

    Args:
        features: (B, C, h, w).
        boxes: per picture (K_b, 4) relative xyxy.

    Returns:
        (sum of K_b, C), picture by picture.
    """
    h, w = features.shape[-2:]
    wide = features.float()  # RoIAlign interpolates at fractional cells, and has no bf16 on the CPU
    scale = torch.tensor([w, h, w, h], dtype=wide.dtype, device=wide.device)
    cells = [b.to(wide) * scale for b in boxes]
    return roi_align(wide, cells, (1, 1), 1.0, -1, True)[..., 0, 0].to(features.dtype)


def local_tokens(visual: Any, pixels: torch.Tensor, splits: int = 4, first_image: bool = False) -> torch.Tensor:
    """Local tokens of R image prompts, (R, 3, H, W) -> (R, splits**2, C).

    Args:
        first_image: do as the official code does: it hands RoIAlign all boxes as those of one picture, so that the
            tokens of every object come from the first one.
    """
    features = dense_features(visual, pixels, project=False)
    if first_image:
        features = features[:1].expand_as(features)
    grid = local_grid(splits).to(pixels.device)
    return pool_regions(features, [grid] * features.shape[0]).unflatten(0, (features.shape[0], -1))
