"""Parallel cross-attention (MS-Diffusion) as diffusers attention processors.

h = Softmax(Q K_t / sqrt d) V_t + gamma * masked Softmax(Q K_i / sqrt d) V_i, then to_out. Only attn2 layers;
self-attention is untouched.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from rbctl.conditioning import Conditioning, ImageBranch, KeysValues, PseudoRegions, image_mask
from rbctl.kernels import ImageMask, parallel_cross_attention
from rbctl.kernels.eager import attention_probabilities


class SelfAttention(AttnProcessor2_0):
    """diffusers' own, which also takes the argument meant for attn2 without a warning."""

    def __call__(self, *args: Any, conditioning: Conditioning | None = None, **kwargs: Any) -> torch.Tensor:
        return super().__call__(*args, **kwargs)


class ParallelCrossAttention(nn.Module):
    """One attn2 layer's processor; it owns the layer's image projections and no state between calls.

    diffusers drops every cross-attention argument that ``__call__`` does not name, so ``conditioning`` is named here.
    """

    def __init__(self, layer: str, inner_dim: int, cross_attention_dim: int) -> None:
        super().__init__()
        self.layer = layer
        self.to_k_ip = nn.Linear(cross_attention_dim, inner_dim, bias=False)
        self.to_v_ip = nn.Linear(cross_attention_dim, inner_dim, bias=False)

    def project(self, attn: Attention, text: torch.Tensor, conditioning: Conditioning | None) -> KeysValues:
        """K and V of the text (B, T, D), and of the image tokens where there are any."""

        def heads(projected: torch.Tensor) -> torch.Tensor:
            return projected.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        k_text, v_text = heads(attn.to_k(text)), heads(attn.to_v(text))
        if conditioning is None or conditioning.image is None:
            return KeysValues(k_text, v_text)
        tokens = conditioning.image.tokens.to(text.dtype)
        k_image, v_image = self.to_k_ip(tokens), self.to_v_ip(tokens)
        weights = conditioning.image.weights[..., None].to(v_image.dtype)
        return KeysValues(k_text, v_text, heads(k_image), heads(v_image * weights))

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
        conditioning: Conditioning | None = None,
    ) -> torch.Tensor:
        q = attn.to_q(hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)  # (B, H, Q, d)
        kv, mask = self.inputs(attn, q, encoder_hidden_states, conditioning)
        if mask is None or kv.k_image is None or kv.v_image is None:
            out = scaled_dot_product_attention(q, kv.k_text, kv.v_text)
        else:
            backend = conditioning.backend if conditioning else None
            out = parallel_cross_attention(q, kv.k_text, kv.v_text, kv.k_image, kv.v_image, mask, backend)
        out = out.transpose(1, 2).flatten(2).to(q.dtype)  # (B, Q, H * d)
        return attn.to_out[1](attn.to_out[0](out))

    def inputs(
        self,
        attn: Attention,
        q: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None,
        conditioning: Conditioning | None,
    ) -> tuple[KeysValues, ImageMask | None]:
        """All that the attention needs besides the query: K and V, and the image mask where there is an image."""
        kv = conditioning.projected.get(self.layer) if conditioning else None
        if kv is None:
            if encoder_hidden_states is None:
                raise ValueError(f"{self.layer}: cross-attention needs encoder_hidden_states")
            kv = self.project(attn, encoder_hidden_states, conditioning)
        if conditioning is None:
            return kv, None
        record = conditioning.text_maps
        if record is not None and q.shape[2] <= record.max_queries:
            record.maps[self.layer] = text_map(q, kv.k_text, record.spans)
        image = conditioning.image
        return kv, None if image is None else self._mask(q, kv.k_text, image, conditioning.pseudo)

    def _mask(
        self, q: torch.Tensor, k_text: torch.Tensor, image: ImageBranch, pseudo: PseudoRegions | None
    ) -> ImageMask:
        """Built beforehand from the boxes; with pseudo regions, from the text attention so far."""
        if pseudo is not None:
            spans = pseudo.spans.unbind(1)
            maps = torch.stack([text_map(q, k_text, span) for span in spans], dim=1)  # (B, N, Q)
            regions = pseudo.add(self.layer, maps)
            if regions is not None:
                return image_mask(regions, image.tokens_per_object, image.dummies)
        if q.shape[2] not in image.masks:
            raise ValueError(f"{self.layer}: no mask for {q.shape[2]} queries, only for {list(image.masks)}")
        return image.masks[q.shape[2]]


def text_map(q: torch.Tensor, k_text: torch.Tensor, spans: torch.Tensor) -> torch.Tensor:
    """Text-attention map of a phrase: probabilities averaged over its tokens and then over heads.

    Args:
        q: (B, H, Q, d). k_text: (B, H, T, d). spans: (B, 2) token range [start, end).

    Returns:
        (B, Q); zeros for an empty range.
    """
    positions = torch.arange(k_text.shape[2], device=q.device)
    chosen = ((positions >= spans[:, :1]) & (positions < spans[:, 1:])).to(torch.float32)  # (B, T)
    chosen = chosen / chosen.sum(1, keepdim=True).clamp(min=1)
    return (attention_probabilities(q, k_text).mean(1) @ chosen[..., None].to(q.device))[..., 0]


def install(unet: UNet2DConditionModel) -> dict[str, ParallelCrossAttention]:
    """Put our processors into a UNet; returns the attn2 ones by layer, in the order of the adapter checkpoint's index.

    diffusers lists processors as down blocks, up blocks, mid block, self-attention included; the position in that list
    is the index of the official adapter's keys (see :func:`adapter_index`).
    """
    processors: dict[str, Any] = {}
    for name in unet.attn_processors:
        layer = name.removesuffix(".processor")
        attention = unet.get_submodule(layer)
        if layer.endswith("attn2"):
            weight = attention.to_k.weight
            processor = ParallelCrossAttention(layer, weight.shape[0], weight.shape[1])
            processors[name] = processor.to(weight.device, weight.dtype).requires_grad_(False)
        else:
            processors[name] = SelfAttention()
    unet.set_attn_processor(dict(processors))
    return {p.layer: p for p in processors.values() if isinstance(p, ParallelCrossAttention)}


def adapter_index(unet: UNet2DConditionModel) -> dict[str, int]:
    """attn2 layer -> index in the official adapter checkpoint."""
    names = [name.removesuffix(".processor") for name in unet.attn_processors]
    return {name: index for index, name in enumerate(names) if name.endswith("attn2")}


def project_once(unet: UNet2DConditionModel, conditioning: Conditioning) -> Conditioning:
    """Fill ``conditioning.projected``: K and V of every attn2 layer, for all denoising steps."""
    for name, processor in unet.attn_processors.items():
        if isinstance(processor, ParallelCrossAttention):
            attention = unet.get_submodule(name.removesuffix(".processor"))
            conditioning.projected[processor.layer] = processor.project(
                attention, conditioning.prompt_embeds, conditioning
            )
    return conditioning


def compile_blocks(unet: UNet2DConditionModel, backend: str = "inductor") -> None:
    """Compile the UNet's transformer blocks, one program for all blocks of a shape.

    The look-up by layer name stays out of the program: it would be a new one for every layer. Every LoRA brings new
    ones, two in SDXL; from the fifth on torch's default limit would leave them uncompiled.
    """
    torch._dynamo.config.recompile_limit = 64
    ParallelCrossAttention.inputs = torch.compiler.disable(ParallelCrossAttention.inputs)  # type: ignore[method-assign]
    unet.compile_repeated_blocks(backend=backend)
