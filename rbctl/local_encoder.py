"""Dense CLIP features (CLIPSelf): the local tokens of an image prompt, and what distillation aligns.

Works on open_clip's image towers with a class token: its own ViTs, and the ViTs and EVAs that it has from timm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class TowerParts:
    """The parts of an image tower that dense features are made of, whatever its library calls them.

    Attributes:
        image_size, patch_size: sides in pixels: of the pictures that it was trained for, and of a patch.
        patches: (B, 3, H, W) -> (B, C, h, w).
        class_token: (C,), in any shape.
        positions: positional embedding (1 + g * g, C).
        rotary: what each block is told of a grid (rows, columns) besides its tokens.
        alone: the block in which every token attends to itself alone: (block, x) -> x.
        project: the final projection.
        direct: parameters that are used outside of their own module's call.
    """

    image_size: int
    patch_size: int
    patches: nn.Module
    class_token: torch.Tensor
    positions: torch.Tensor
    norm_before: nn.Module
    blocks: Sequence[nn.Module]
    norm_after: nn.Module
    rotary: Callable[[tuple[int, int]], dict[str, torch.Tensor]]
    alone: Callable[[Any, torch.Tensor], torch.Tensor]
    project: Callable[[torch.Tensor], torch.Tensor]
    direct: tuple[torch.Tensor, ...]

    @property
    def width(self) -> int:
        """C."""
        return self.class_token.shape[-1]


def tower_parts(visual: Any) -> TowerParts:
    """The parts of an open_clip image tower.

    Raises:
        ValueError: it is built otherwise, as ResNets, SigLIP and CoCa are.
    """
    trunk = getattr(visual, "trunk", None)
    if not (_plain(visual) if trunk is None else _plain_timm(trunk)):
        raise ValueError("a ViT or EVA with a class token is needed, as ViT-L-14, ViT-bigG-14 or EVA02-L-14")
    return _vit_parts(visual) if trunk is None else _timm_parts(visual)


def _plain(visual: Any) -> bool:
    """Whether it is a VisionTransformer of open_clip that ends in its class token."""
    blocks = getattr(getattr(visual, "transformer", None), "resblocks", ())
    attention = [isinstance(getattr(block, "attn", None), nn.MultiheadAttention) for block in blocks]
    return bool(attention) and all(attention) and visual.attn_pool is None and visual.pool_type == "tok"


def _vit_parts(visual: Any) -> TowerParts:
    blocks = visual.transformer.resblocks
    last = blocks[-1].attn
    return TowerParts(
        image_size=int(visual.image_size[0]),
        patch_size=int(visual.patch_size[0]),
        patches=visual.conv1,
        class_token=visual.class_embedding,
        positions=visual.positional_embedding,
        norm_before=visual.ln_pre,
        blocks=blocks,
        norm_after=visual.ln_post,
        rotary=lambda grid: {},
        alone=_value_block,
        project=lambda x: x @ visual.proj,
        direct=(
            *(visual.class_embedding, visual.positional_embedding, visual.proj),
            *(last.in_proj_weight, last.in_proj_bias),
        ),
    )


def _value_block(block: Any, x: torch.Tensor) -> torch.Tensor:
    """A block of open_clip by its value path: what attention gives when every token attends to itself alone."""
    attention = block.attn
    _, _, weight = attention.in_proj_weight.chunk(3)
    _, _, bias = attention.in_proj_bias.chunk(3)
    x = x + block.ls_1(attention.out_proj(linear(block.ln_1(x), weight, bias)))
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def _plain_timm(trunk: Any) -> bool:
    """Whether it is a ViT or EVA of timm that ends in its class token, which has a position too."""
    rope = getattr(trunk, "rope", None)
    return (
        getattr(trunk, "global_pool", None) == "token"
        and isinstance(getattr(trunk, "pos_embed", None), torch.Tensor)
        and trunk.num_prefix_tokens == 1
        and not trunk.no_embed_class
        and isinstance(trunk.fc_norm, nn.Identity)
        and (rope is None or hasattr(rope, "ref_feat_shape"))
    )


def _timm_parts(visual: Any) -> TowerParts:
    trunk = visual.trunk
    return TowerParts(
        image_size=int(trunk.patch_embed.img_size[0]),
        patch_size=int(trunk.patch_embed.patch_size[0]),
        patches=trunk.patch_embed.proj,
        class_token=trunk.cls_token,
        positions=trunk.pos_embed.squeeze(0),
        norm_before=trunk.norm_pre,
        blocks=trunk.blocks,
        norm_after=trunk.norm,
        rotary=lambda grid: _rotary(trunk, grid),
        alone=_masked_block,
        project=lambda x: visual.head(trunk.head(x)),
        direct=(trunk.cls_token, trunk.pos_embed),
    )


def _rotary(trunk: Any, grid: tuple[int, int]) -> dict[str, torch.Tensor]:
    """EVA02's rotary embedding of a grid, stretched over the grid that it was trained for."""
    rope = getattr(trunk, "rope", None)
    if rope is None:
        return {}
    from timm.layers import build_rotary_pos_embed  # type: ignore[import-not-found,unused-ignore]

    sin_and_cos = build_rotary_pos_embed(
        list(grid),
        dim=rope.dim,
        max_res=rope.max_res,
        temperature=rope.temperature,
        linear_bands=rope.linear_bands,
        in_pixels=rope.in_pixels,
        ref_feat_shape=rope.ref_feat_shape,
        grid_offset=rope.grid_offset,
        grid_indexing=rope.grid_indexing,
        rotate_half=rope.rotate_half,
        device=trunk.pos_embed.device,
    )
    return {"rope": torch.cat(sin_and_cos, dim=-1)}


def _masked_block(block: Any, x: torch.Tensor) -> torch.Tensor:
    """A block of timm, by a mask: EVAs differ in their value paths, and a mask fits them all."""
    return block(x, attn_mask=torch.eye(x.shape[1], dtype=torch.bool, device=x.device))


def dense_tokens(visual: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
    """Tokens of all patches: all blocks but the last as usual; in the last, every token attends to itself alone.

    Args:
        visual: image tower of open_clip, see :func:`tower_parts`.
        pixels: (B, 3, H, W), normalised for CLIP; any size that its patches tile.

    Returns:
        (B, h * w, C), in front of the final projection; and (h, w).
    """
    parts = tower_parts(visual)
    patches = parts.patches(pixels)  # (B, C, h, w)
    grid = patches.shape[-2:]
    tokens = patches.flatten(2).mT
    class_token = parts.class_token.to(tokens.dtype).expand(tokens.shape[0], 1, -1)
    embedding = resized_positional_embedding(parts.positions, grid)
    x = parts.norm_before(torch.cat((class_token, tokens), dim=1) + embedding.to(tokens.dtype))
    rotary = parts.rotary(grid)
    *blocks, last = parts.blocks
    for block in blocks:
        x = block(x, **rotary)
    return parts.norm_after(parts.alone(last, x)[:, 1:]), grid


def feature_map(tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Tokens (B, h * w, C) as a map (B, C, h, w), L2-normalised over C."""
    return normalize(tokens, dim=-1).mT.unflatten(2, grid)


def dense_features(visual: Any, pixels: torch.Tensor, project: bool) -> torch.Tensor:
    """Dense CLIP features.

    Args:
        visual, pixels: see :func:`dense_tokens`.
        project: with the final projection (CLIPSelf, for distillation) or without (DreamRelation's local tokens).

    Returns:
        (B, C, h, w), L2-normalised over C.
    """
    tokens, grid = dense_tokens(visual, pixels)
    return feature_map(tower_parts(visual).project(tokens) if project else tokens, grid)


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


class LocalEncoder(nn.Module):
    """What a bundle reads local tokens with: pictures -> dense features as wide as its adapter takes.

    Args:
        visual: image tower of open_clip.
        to_adapter: the linear map to the adapter's width, where the tower has another.
    """

    def __init__(self, visual: Any, to_adapter: nn.Module | None = None) -> None:
        super().__init__()
        self.visual = visual
        self.to_adapter = to_adapter or nn.Identity()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pictures (B, 3, H, W), normalised for CLIP -> (B, C, h, w), L2-normalised over C."""
        tokens, grid = dense_tokens(self.visual, pixels)
        return feature_map(self.to_adapter(tokens), grid)

    def picture_size(self, wanted: int) -> int:
        """The side in pixels nearest to ``wanted`` that its patches tile."""
        patch = tower_parts(self.visual).patch_size
        return max(1, round(wanted / patch)) * patch


def local_tokens(
    encoder: LocalEncoder, pixels: torch.Tensor, splits: int = 4, first_image: bool = False
) -> torch.Tensor:
    """Local tokens of R image prompts, (R, 3, H, W) -> (R, splits**2, C).

    Args:
        first_image: do as the official code does: it hands RoIAlign all boxes as those of one picture, so that the
            tokens of every object come from the first one.
    """
    features = encoder(pixels)
    if first_image:
        features = features[:1].expand_as(features)
    grid = local_grid(splits).to(pixels.device)
    return pool_regions(features, [grid] * features.shape[0]).unflatten(0, (features.shape[0], -1))
