"""xformers' memory_efficient_attention (CUDA), forward and backward."""

from __future__ import annotations

import torch

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
    from xformers.ops import memory_efficient_attention

    batch, heads, queries, _ = q.shape
    tokens = k_image.shape[2]
    # xformers wants (B, Q, H, d), and a bias whose rows start at multiples of 8 elements, expanded over the heads.
    padded = torch.zeros(batch, 1, queries, -(-tokens // 8) * 8, dtype=q.dtype, device=q.device)
    padded[..., :tokens].masked_fill_(~mask.safe, torch.finfo(q.dtype).min)
    bias = padded.expand(batch, heads, -1, -1)[..., :tokens]

    def attend(k: torch.Tensor, v: torch.Tensor, attn_bias: torch.Tensor | None) -> torch.Tensor:
        parts = (t.transpose(1, 2).contiguous() for t in (q, k, v))
        return memory_efficient_attention(*parts, attn_bias=attn_bias).transpose(1, 2)

    return attend(k_text, v_text, None) + attend(k_image, v_image, bias) * mask.covered
