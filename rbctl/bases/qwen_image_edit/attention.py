"""Joint attention of words and pictures under a mask, which the processor of diffusers does not take."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.transformer_qwenimage import QwenDoubleStreamAttnProcessor2_0, apply_rotary_emb_qwen


class MaskedAttention(QwenDoubleStreamAttnProcessor2_0):
    """As its parent without a mask. With one, the same under it."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_hidden_states_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Args: attention_mask: (B, 1, 1 or S, S) bool over words and pictures, true where a token may look."""
        if attention_mask is None:
            plain: tuple[torch.Tensor, torch.Tensor] = super().__call__(
                attn, hidden_states, encoder_hidden_states, encoder_hidden_states_mask, None, image_rotary_emb
            )
            return plain
        assert encoder_hidden_states is not None
        of_pictures, of_words = image_rotary_emb
        width = attn.inner_dim // attn.heads

        def heads(projected: torch.Tensor, norm: Any = None, places: Any = None) -> torch.Tensor:
            split = projected.unflatten(-1, (-1, width))
            split = split if norm is None else norm(split)
            return split if places is None else apply_rotary_emb_qwen(split, places, use_real=False)

        words, pictures = encoder_hidden_states, hidden_states
        queries = heads(attn.add_q_proj(words), attn.norm_added_q, of_words)
        keys = heads(attn.add_k_proj(words), attn.norm_added_k, of_words)
        query = torch.cat((queries, heads(attn.to_q(pictures), attn.norm_q, of_pictures)), dim=1).transpose(1, 2)
        key = torch.cat((keys, heads(attn.to_k(pictures), attn.norm_k, of_pictures)), dim=1).transpose(1, 2)
        value = torch.cat((heads(attn.add_v_proj(words)), heads(attn.to_v(pictures))), dim=1).transpose(1, 2)
        joint = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask)
        joint = joint.transpose(1, 2).flatten(2).to(query.dtype)
        seen, told = joint[:, words.shape[1] :].contiguous(), joint[:, : words.shape[1]].contiguous()
        for layer in attn.to_out:
            seen = layer(seen)
        return seen, attn.to_add_out(told)
