"""The definition: two softmaxes written out, scores and probabilities in float32 (float64 for float64 inputs)."""

from __future__ import annotations

import torch

from rbctl.kernels.image_mask import Branch, ImageMask


def attention_probabilities(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Softmax(Q K^T / sqrt d), (B, H, Q, d) x (B, H, K, d) -> (B, H, Q, K), float32 or wider."""
    wide = torch.promote_types(q.dtype, torch.float32)
    with torch.autocast(q.device.type, enabled=False):
        return (q.to(wide) @ k.to(wide).mT * q.shape[-1] ** -0.5).softmax(-1)


def parallel_cross_attention(q: torch.Tensor, text: Branch, image: Branch, mask: ImageMask) -> torch.Tensor:
    """See :func:`rbctl.kernels.parallel_cross_attention`."""
    wide = torch.promote_types(q.dtype, torch.float32)
    with torch.autocast(q.device.type, enabled=False):
        out = attention_probabilities(q, text[0]) @ text[1].to(wide)
        scores = q.to(wide) @ image[0].to(wide).mT * q.shape[-1] ** -0.5
        probabilities = scores.masked_fill(~mask.safe, float("-inf")).softmax(-1) * mask.covered
        return (out + probabilities @ image[1].to(wide)).to(q.dtype)
