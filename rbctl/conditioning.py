"""What one UNet call is conditioned on: one explicit object per call, handed to every attention layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from rbctl.kernels import BoxCells, ImageMask

DUMMY_TOKENS = 4


def box_ranges(boxes: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """The columns and rows of a grid that each box touches: floor(x0 w) <= column < ceil(x1 w), rows likewise.

    Args:
        boxes: (..., 4) relative xyxy, float32. An all-zero box touches none.
        grid: (h, w).

    Returns:
        (..., 4) int32, clamped to the grid: first column, first row, end column, end row (exclusive).
    """
    h, w = grid
    x0, y0, x1, y1 = boxes.float().unbind(-1)
    ends = (
        (x0 * w).floor().clamp(0, w),
        (y0 * h).floor().clamp(0, h),
        (x1 * w).ceil().clamp(0, w),
        (y1 * h).ceil().clamp(0, h),
    )
    return torch.stack(ends, dim=-1).int()


def box_cells(boxes: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Which cells of a grid lie in each box, by :func:`box_ranges`.

    Args:
        boxes: (..., 4) relative xyxy, float32. An all-zero box holds no cell.
        grid: (h, w).

    Returns:
        (..., h * w) bool, row-major.
    """
    h, w = grid
    columns = torch.arange(w, device=boxes.device)
    rows = torch.arange(h, device=boxes.device)
    x0, y0, x1, y1 = box_ranges(boxes, grid)[..., None].unbind(-2)
    in_columns = (columns >= x0) & (columns < x1)
    in_rows = (rows >= y0) & (rows < y1)
    return (in_rows[..., :, None] & in_columns[..., None, :]).flatten(-2)


def latent_grids(latent_size: tuple[int, int], levels: int) -> list[tuple[int, int]]:
    """The (h, w) of every UNet level; each level halves, rounding up as a stride-2 convolution does."""
    h, w = latent_size
    return [(-(-h // 2**level), -(-w // 2**level)) for level in range(levels)]


def image_mask(cells: torch.Tensor, tokens_per_object: int, dummies: int, boxes: BoxCells | None = None) -> ImageMask:
    """Which image tokens each cell may attend to: those of every object whose region holds it.

    Args:
        cells: (B, N, Q) bool, region of each object.
        dummies: number of dummy tokens in front, which only cells of no region see; 0 where they are left out.
        boxes: the same in numbers, where the regions are boxes.
    """
    attend = cells.mT.repeat_interleave(tokens_per_object, dim=-1)  # (B, Q, N * tokens_per_object)
    if dummies:
        background = ~cells.any(1)
        attend = torch.cat((background[..., None].expand(-1, -1, dummies), attend), dim=-1)
    return ImageMask.build(attend, boxes)


def box_mask(boxes: torch.Tensor, grid: tuple[int, int], tokens_per_object: int, dummies: int) -> ImageMask:
    """:func:`image_mask` where the regions are boxes.

    Args:
        boxes: (B, N, 4) relative xyxy, float32.
        grid: (h, w).
    """
    numbers = BoxCells(box_ranges(boxes, grid), grid[1], tokens_per_object, dummies)
    return image_mask(box_cells(boxes, grid), tokens_per_object, dummies, numbers)


@dataclass(kw_only=True)
class PseudoRegions:
    """Regions read off the text attention itself: after ``start_step`` calls they replace the boxes (MS-Diffusion).

    Per layer, the text-attention maps of each object's phrase are averaged over the calls so far, min-max normalised
    and thresholded.

    Attributes:
        spans: (B, N, 2) token range of each object's phrase.
        start_step: how many calls must be in before the regions are used.
    """

    spans: torch.Tensor
    start_step: int
    threshold: float = 0.5
    sums: dict[str, torch.Tensor] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)

    def add(self, layer: str, maps: torch.Tensor) -> torch.Tensor | None:
        """Take in one call's maps (B, N, Q); the regions (B, N, Q) bool once there are enough calls, else None."""
        self.sums[layer] = self.sums[layer] + maps if layer in self.sums else maps
        self.calls[layer] = self.calls.get(layer, 0) + 1
        if self.calls[layer] < self.start_step:
            return None
        mean = self.sums[layer] / self.calls[layer]
        low, high = mean.amin(-1, keepdim=True), mean.amax(-1, keepdim=True)
        return (mean - low) / (high - low + 1e-5) > self.threshold


@dataclass(kw_only=True)
class TextMaps:
    """Records the text-attention map of one phrase per sample (the predicate), for the loss on it.

    Attributes:
        spans: (B, 2) token range [start, end); (0, 0) gives zeros.
        max_queries: layers with more queries are left out; the official code records at most 32 x 32.
        maps: layer -> (B, Q), in the order the layers ran.
    """

    spans: torch.Tensor
    max_queries: int = 32 * 32
    maps: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass(kw_only=True)
class ImageBranch:
    """The image side of the parallel cross-attention.

    Attributes:
        tokens: (B, M, D); the dummy tokens are left out where no query may see them.
        weights: (B, M), gamma or the object's own scale, folded into the values.
        masks: number of cells of a grid -> which tokens each cell may attend to.
    """

    tokens: torch.Tensor
    weights: torch.Tensor
    masks: dict[int, ImageMask]
    tokens_per_object: int
    dummies: int = 0

    @classmethod
    def build(
        cls,
        tokens: torch.Tensor,
        boxes: torch.Tensor,
        grids: Sequence[tuple[int, int]],
        gamma: float | torch.Tensor = 0.6,
        subject_scales: torch.Tensor | None = None,
        background_sees_dummies: bool = False,
        dummy_tokens: int = DUMMY_TOKENS,
    ) -> ImageBranch:
        """From what the image-prompt encoder gives.

        Args:
            tokens: (B, 4 + P N, D), dummy tokens first, then P per object, object-major.
            boxes: (B, N, 4) relative xyxy float32; zeros for an absent object.
            grids: (h, w) of every UNet level.
            gamma: weight of the image branch, one number or (B,).
            subject_scales: (N,) or (B, N); where given, each object's tokens are weighted by it and gamma is not used.
            background_sees_dummies: cells of no box attend to the dummy tokens (an option of the base method). By
                default they get exactly zero, and the dummy tokens never contribute.
            dummy_tokens: how many stand in front of ``tokens``.
        """
        batch, objects = boxes.shape[:2]
        per_object = (tokens.shape[1] - dummy_tokens) // objects
        weights = torch.ones(batch, tokens.shape[1], device=tokens.device)
        if subject_scales is None:
            weights = weights * torch.as_tensor(gamma, dtype=weights.dtype, device=weights.device).reshape(-1, 1)
        else:
            scales = subject_scales.to(weights).expand(batch, objects).repeat_interleave(per_object, dim=1)
            weights = torch.cat((weights[:, :dummy_tokens], scales), dim=1)
        dummies = dummy_tokens if background_sees_dummies else 0
        masks = {h * w: box_mask(boxes, (h, w), per_object, dummies) for h, w in grids}
        first = dummy_tokens - dummies
        return cls(
            tokens=tokens[:, first:],
            weights=weights[:, first:],
            masks=masks,
            tokens_per_object=per_object,
            dummies=dummies,
        )


class KeysValues(NamedTuple):
    """K and V of one layer, each (B, H, tokens, d); no image ones for plain text-to-image."""

    k_text: torch.Tensor
    v_text: torch.Tensor
    k_image: torch.Tensor | None = None
    v_image: torch.Tensor | None = None


@dataclass(kw_only=True)
class Conditioning:
    """Everything but the latents and the timestep, for one UNet call of B rows.

    Attributes:
        prompt_embeds: (B, T, D).
        pooled_prompt_embeds: (B, P).
        time_ids: (B, 6) float32, original height and width, crop top and left, target height and width, in pixels.
        image: None for plain text-to-image.
        projected: layer -> its K and V, filled by ``attention.project_once``; they depend on neither the latents nor
            the timestep, so sampling computes them once per prompt.
        backend: attention backend of ``rbctl.kernels``, None for the best usable one.
    """

    prompt_embeds: torch.Tensor
    pooled_prompt_embeds: torch.Tensor
    time_ids: torch.Tensor
    image: ImageBranch | None = None
    projected: dict[str, KeysValues] = field(default_factory=dict)
    text_maps: TextMaps | None = None
    pseudo: PseudoRegions | None = None
    backend: str | None = None

    @property
    def added_cond_kwargs(self) -> dict[str, torch.Tensor]:
        """SDXL's text_time conditioning."""
        return {"text_embeds": self.pooled_prompt_embeds, "time_ids": self.time_ids}


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A batch of B pictures as the networks read it: all that sampling depends on besides noise and size.

    Attributes:
        prompt_embeds, pooled_prompt_embeds: (B, T, D) and (B, P).
        negative_prompt_embeds, negative_pooled_prompt_embeds: likewise; None samples without guidance.
        image_tokens: (B, 4 + P N, D), None for plain text-to-image.
        boxes: (B, N, 4) relative xyxy; zeros for an absent object.
        object_weights: (B, N), gamma or the object's own scale.
    """

    prompt_embeds: torch.Tensor
    pooled_prompt_embeds: torch.Tensor
    negative_prompt_embeds: torch.Tensor | None = None
    negative_pooled_prompt_embeds: torch.Tensor | None = None
    image_tokens: torch.Tensor | None = None
    boxes: torch.Tensor | None = None
    object_weights: torch.Tensor | None = None


def guided(
    encoded: Encoded,
    *,
    size: tuple[int, int],
    latent_size: tuple[int, int],
    levels: int,
    backend: str | None = None,
    original_size: tuple[int, int] | None = None,
    crop: tuple[int, int] = (0, 0),
) -> Conditioning:
    """Conditioning for sampling: rows [unconditional; conditional], or the conditional alone without a negative prompt.

    The unconditional rows see zero image tokens and zero boxes.

    Args:
        size: (height, width) in pixels, for SDXL's micro-conditioning.
        latent_size: (h, w). levels: of the UNet.
        original_size, crop: (height, width) and (top, left) in pixels, of the micro-conditioning too; None is ``size``.
    """

    def rows(conditional: torch.Tensor, unconditional: torch.Tensor | None = None) -> torch.Tensor:
        if encoded.negative_prompt_embeds is None:
            return conditional
        return torch.cat((torch.zeros_like(conditional) if unconditional is None else unconditional, conditional))

    embeds = rows(encoded.prompt_embeds, encoded.negative_prompt_embeds)
    image = None
    if encoded.image_tokens is not None and encoded.boxes is not None:
        image = ImageBranch.build(
            rows(encoded.image_tokens),
            rows(encoded.boxes),
            latent_grids(latent_size, levels),
            subject_scales=None if encoded.object_weights is None else rows(encoded.object_weights),
        )
    time_ids = torch.tensor([*(original_size or size), *crop, *size], dtype=torch.float32, device=embeds.device)
    return Conditioning(
        prompt_embeds=embeds,
        pooled_prompt_embeds=rows(encoded.pooled_prompt_embeds, encoded.negative_pooled_prompt_embeds),
        time_ids=time_ids.expand(embeds.shape[0], -1),
        image=image,
        backend=backend,
    )
