"""For the CPU: queries that may attend to the same image tokens are taken together, so that no mask is needed."""

from __future__ import annotations

import functools

import torch
from torch.nn.functional import scaled_dot_product_attention

from rbctl.kernels.image_mask import Branch, ImageMask

_QUERIES = 512  # whose probabilities are held at once


def parallel_cross_attention(q: torch.Tensor, text: Branch, image: Branch, mask: ImageMask) -> torch.Tensor:
    """See :func:`rbctl.kernels.parallel_cross_attention`. Queries of no region cost nothing in the image branch."""
    out = _attend(q, *text)
    if torch.is_grad_enabled() and out.requires_grad:
        out = out.clone()  # its own backward pass needs the text branch as it is
    groups = mask.groups(q.shape[0])
    if not groups and any(t.requires_grad for t in image):
        out = out + 0 * (image[0].sum() + image[1].sum())  # a gradient of zero, not none: DDP waits for all parameters'
    for rows, queries, tokens in groups:
        k, v = (t[rows].index_select(2, tokens) for t in image)
        out[rows].index_add_(2, queries, _attend(q[rows].index_select(2, queries), k, v))
    return out


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """PyTorch's attention; by products of bf16 matrices where the CPU has them: its fused function is slower there."""
    if q.dtype != torch.bfloat16 or not _multiplies_bf16():
        return scaled_dot_product_attention(q, k, v)
    scale, k = q.shape[-1] ** -0.5, k.transpose(-1, -2)
    parts = [torch.softmax((queries @ k) * scale, dim=-1) @ v for queries in q.split(_QUERIES, dim=2)]
    return torch.cat(parts, dim=2)


@functools.cache
def _multiplies_bf16() -> bool:
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # older PyTorch does not tell
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
