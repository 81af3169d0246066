"""xformers' memory_efficient_attention (CUDA), forward and backward."""

from __future__ import annotations

import torch

from rbctl.kernels.image_mask import Branch, ImageMask


def parallel_cross_attention(q: torch.Tensor, text: Branch, image: Branch, mask: ImageMask) -> torch.Tensor:
    """See :func:`rbctl.kernels.parallel_cross_attention`."""
    from xformers.ops import memory_efficient_attention

    # xformers wants (B, Q, H, d).
    def attend(k: torch.Tensor, v: torch.Tensor, attn_bias: torch.Tensor | None) -> torch.Tensor:
        parts = (t.transpose(1, 2).contiguous() for t in (q, k, v))
        return memory_efficient_attention(*parts, attn_bias=attn_bias).transpose(1, 2)

    if not image[0].shape[2]:  # no objects: PyTorch gives a kernel of this kind no empty keys either
        return attend(*text, None) + 0 * (image[0].sum() + image[1].sum())
    bias = mask.bias(q.dtype).expand(-1, q.shape[1], -1, -1)
    return attend(*text, None) + attend(*image, bias) * mask.covered
