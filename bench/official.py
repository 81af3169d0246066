"""The parallel cross-attention the official processor's way: the other side of every comparison.

At every call of every layer it projects the text and the image tokens anew, builds the mask from the boxes, copies it
for every head, writes out the probabilities of the image branch, and adds two outputs. The results are ours exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from rbctl.attention import ParallelCrossAttention
from rbctl.conditioning import DUMMY_TOKENS, Conditioning, Encoded, box_cells


def parallel_cross_attention(
    q: torch.Tensor,
    k_text: torch.Tensor,
    v_text: torch.Tensor,
    k_image: torch.Tensor,
    v_image: torch.Tensor,
    boxes: torch.Tensor,
    grid: tuple[int, int],
    gamma: float = 0.6,
) -> torch.Tensor:
    """q (B, H, Q, d), text (B, H, T, d), image (B, H, 4 + P N, d) with its dummy tokens, boxes (B, N, 4) -> like q."""
    batch, heads, queries, width = q.shape
    cells = box_cells(boxes, grid)  # (B, N, Q)
    covered = cells.any(1)
    per_object = (k_image.shape[2] - DUMMY_TOKENS) // boxes.shape[1]
    attend = cells.mT.repeat_interleave(per_object, dim=-1)
    attend = torch.cat((~covered[..., None].expand(-1, -1, DUMMY_TOKENS), attend), dim=-1)
    bias = torch.where(attend, 0.0, -10000.0).to(q.dtype).repeat_interleave(heads, dim=0)

    text = scaled_dot_product_attention(q, k_text, v_text)

    q, k_image, v_image = (t.reshape(batch * heads, -1, width) for t in (q, k_image, v_image))
    scores = torch.baddbmm(bias, q, k_image.mT, beta=1, alpha=width**-0.5)
    image = torch.bmm(scores.softmax(-1), v_image).view(batch, heads, queries, width)
    return text + gamma * (image * covered[:, None, :, None])


@dataclass(kw_only=True)
class OfficialConditioning(Conditioning):
    """What its layers are handed: image tokens (B, 4 + P N, D) and boxes (B, N, 4) as they are."""

    image_tokens: torch.Tensor
    boxes: torch.Tensor
    gamma: float


def official_conditioning(encoded: Encoded, ours: Conditioning, gamma: float) -> OfficialConditioning:
    """The same batch with guidance as the official layers are handed it."""
    assert encoded.image_tokens is not None
    assert encoded.boxes is not None
    return OfficialConditioning(
        prompt_embeds=ours.prompt_embeds,
        pooled_prompt_embeds=ours.pooled_prompt_embeds,
        time_ids=ours.time_ids,
        image_tokens=torch.cat((torch.zeros_like(encoded.image_tokens), encoded.image_tokens)),
        boxes=torch.cat((torch.zeros_like(encoded.boxes), encoded.boxes)),
        gamma=gamma,
    )


class OfficialCrossAttention(nn.Module):
    """An attn2 layer's processor, with the projections of ours."""

    def __init__(self, ours: ParallelCrossAttention) -> None:
        super().__init__()
        self.to_k_ip, self.to_v_ip = ours.to_k_ip, ours.to_v_ip

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
        conditioning: OfficialConditioning | None = None,
    ) -> torch.Tensor:
        assert conditioning is not None

        def heads(projected: torch.Tensor) -> torch.Tensor:
            return projected.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        tokens = conditioning.image_tokens
        side = int(hidden_states.shape[1] ** 0.5)
        out = parallel_cross_attention(
            heads(attn.to_q(hidden_states)),
            heads(attn.to_k(encoder_hidden_states)),
            heads(attn.to_v(encoder_hidden_states)),
            heads(self.to_k_ip(tokens)),
            heads(self.to_v_ip(tokens)),
            conditioning.boxes,
            (side, side),
            conditioning.gamma,
        )
        return attn.to_out[1](attn.to_out[0](out.transpose(1, 2).flatten(2)))


def processors(unet: Any) -> dict[str, Any]:
    """For ``unet.set_attn_processor``: these in place of ours, all else as it is."""
    return {
        name: OfficialCrossAttention(one) if isinstance(one, ParallelCrossAttention) else one
        for name, one in unet.attn_processors.items()
    }
