"""PyTorch's scaled_dot_product_attention, once per branch."""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention

from rbctl.kernels.image_mask import Branch, ImageMask


def parallel_cross_attention(q: torch.Tensor, text: Branch, image: Branch, mask: ImageMask) -> torch.Tensor:
    """See :func:`rbctl.kernels.parallel_cross_attention`."""
    masked = scaled_dot_product_attention(q, *image, attn_mask=mask.safe)
    return scaled_dot_product_attention(q, *text) + masked * mask.covered
