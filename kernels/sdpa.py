"""PyTorch's scaled_dot_product_attention, once per branch."""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention

from rbctl.kernels.image_mask import ImageMask


def parallel_cross_attention(
    q: torch.Tensor,
    k_text: torch.Tensor,
    v_text: torch.Tensor,
    k_image: torch.Tensor,
    v_image: torch.Tensor,
    mask: ImageMask,
) -> torch.Tensor:
    """See :func:`rbctl.kernels.parallel_cross_attention`."""
    text = scaled_dot_product_attention(q, k_text, v_text)
    image = scaled_dot_product_attention(q, k_image, v_image, attn_mask=mask.safe)
    return text + image * mask.covered
