"""The image branch in ComfyUI's UNet: a replacement of the attention in every attn2."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from rbctl.conditioning import box_mask
from rbctl.kernels import ImageMask, parallel_cross_attention
from rbctl.relations import Box

Block = tuple[str, int, int]
Replacement = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, Any]], torch.Tensor]

_ATTN2 = re.compile(r"(input|output|middle)_blocks?\.(\d+)\.(?:\d+\.)?transformer_blocks\.(\d+)\.attn2")
_ORDER = ("input", "output", "middle")


def attn2_blocks(diffusion_model: nn.Module) -> dict[Block, tuple[int, int]]:
    """ComfyUI's names of the blocks that hold an attn2, and the shape (C, D) of its to_k.

    Their order is that of the adapter's layers: down blocks, up blocks, mid block.
    """
    blocks: dict[Block, tuple[int, int]] = {}
    for name, module in diffusion_model.named_modules():
        if match := _ATTN2.fullmatch(name):
            number = 0 if match[1] == "middle" else int(match[2])
            blocks[match[1], number, int(match[3])] = tuple(module.to_k.weight.shape)
    return dict(sorted(blocks.items(), key=lambda item: _ORDER.index(item[0][0])))


@functools.lru_cache(maxsize=16)  # all blocks of a resolution and all steps share one
def rows_mask(
    boxes: tuple[Box, ...],
    conditional: tuple[bool, ...],
    grid: tuple[int, int],
    tokens_per_object: int,
    device: torch.device,
) -> ImageMask:
    """Which image tokens each query may attend to, in a call of B rows.

    Args:
        boxes: one an individual, relative xyxy.
        conditional: of each row, whether it is of the positive prompt; the others see no individual.
        grid: (h, w) of the queries.
    """
    rows = torch.tensor(boxes)[None] * torch.tensor(conditional)[:, None, None]
    return box_mask(rows, grid, tokens_per_object, 0).to(device)


def own_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
    """What ComfyUI does where nothing is replaced, by the backend that it was started with."""
    from comfy.ldm.modules.attention import optimized_attention

    out: torch.Tensor = optimized_attention(q, k, v, options["n_heads"])
    return out


@dataclass
class ImageAttention:
    """Text attention plus image attention inside the boxes, in one transformer block.

    ComfyUI calls it with q (B, Q, C), k and v (B, T, C), heads side by side, and its options for patches.

    Attributes:
        k_image, v_image: (M, C), tokens of all individuals; gamma is folded into the values.
        boxes: one an individual, relative xyxy.
        sigmas: the first and the last noise level at which individuals are seen, the higher one first.
        replaced: another node's replacement of this block, which then gives the text attention.
        added: what nodes behind this one add, as IPAdapter does: a function and its settings.
    """

    k_image: torch.Tensor
    v_image: torch.Tensor
    boxes: tuple[Box, ...]
    sigmas: tuple[float, float]
    replaced: Replacement | None = None
    added: list[tuple[Callable[..., torch.Tensor], dict[str, Any]]] = field(default_factory=list)

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
        sigma = float(options["sigmas"][0])
        active = self.sigmas[0] >= sigma >= self.sigmas[1]
        if active and self.replaced is None:
            out = self._attend(q, k, v, options)
        else:
            out = (self.replaced or own_attention)(q, k, v, options)
            if active:
                nothing = torch.zeros_like(k[:, :1])
                out = out + self._attend(q, nothing, nothing, options)
        for function, settings in self.added:
            if settings.get("sigma_start", sigma) >= sigma >= settings.get("sigma_end", sigma):
                out = out + function(out, q, k, v, options, **settings)
        return out

    def _attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
        """Attention to text k and v and to the individuals, by rbctl's kernels."""

        def heads(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.unflatten(-1, (options["n_heads"], -1)).transpose(1, 2)

        chunks = options["cond_or_uncond"]  # one number a prompt, 0 for a positive one, in the order of the rows
        conditional = tuple(chunk == 0 for chunk in chunks for _ in range(len(q) // len(chunks)))
        tokens_per_object = len(self.k_image) // len(self.boxes)
        grid = tuple(options["activations_shape"][-2:])
        mask = rows_mask(self.boxes, conditional, grid, tokens_per_object, q.device)
        k_image, v_image = (heads(tensor.to(q).expand(len(q), -1, -1)) for tensor in (self.k_image, self.v_image))
        return parallel_cross_attention(heads(q), heads(k), heads(v), k_image, v_image, mask).transpose(1, 2).flatten(2)

    def add(self, function: Callable[..., torch.Tensor], **settings: Any) -> None:
        """Add to what this block gives: IPAdapter's nodes call it on the replacement that stands where they want to be.

        Args:
            function: called with the output so far, q, k, v, the options and ``settings``; its result is added.
            settings: with ``sigma_start`` and ``sigma_end``, the noise levels at which it acts.
        """
        self.added.append((function, settings))

    def to(self, device_or_dtype: torch.device | torch.dtype) -> ImageAttention:
        """ComfyUI moves patches to where the model is, and to its type."""
        self.k_image, self.v_image = self.k_image.to(device_or_dtype), self.v_image.to(device_or_dtype)
        return self


def replace_attention(
    model: Any,
    keys_values: Sequence[tuple[torch.Tensor, torch.Tensor]],
    boxes: tuple[Box, ...],
    sigmas: tuple[float, float],
) -> None:
    """Put an :class:`ImageAttention` into every block of a model; one that stands there already gives it the text.

    Args:
        model: ComfyUI's ``ModelPatcher``; a clone of one's own.
        keys_values: of every attn2, in the order of :func:`attn2_blocks`.
    """
    blocks = attn2_blocks(model.model.diffusion_model)
    replacements = model.model_options["transformer_options"].get("patches_replace", {}).get("attn2", {})
    for block, (k_image, v_image) in zip(blocks, keys_values, strict=True):
        replaced = replacements.get(block) or replacements.get(block[:2])
        patch = ImageAttention(k_image, v_image, boxes, sigmas, replaced)
        model.set_model_attn2_replace(patch, *block)
