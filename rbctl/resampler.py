"""The grounded resampler of MS-Diffusion: image tokens of one object -> a fixed number of adapter tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Interval
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

FOURIER_TEMPERATURE = 100

_Size = Annotated[int, Interval(ge=1, le=65_536)]


@dataclass(frozen=True, kw_only=True)
class ResamplerConfig:
    """Sizes; the defaults are those of the official SDXL adapter."""

    dim: _Size = 1280
    depth: Annotated[int, Interval(ge=1, le=1000)] = 4
    dim_head: _Size = 64
    heads: _Size = 20
    num_queries: _Size = 16
    embedding_dim: _Size = 1664
    output_dim: _Size = 2048
    ff_mult: _Size = 4
    phrase_embeddings_dim: _Size = 768
    fourier_freqs: _Size = 8


def fourier_embedding(boxes: torch.Tensor, num_freqs: int) -> torch.Tensor:
    """Fourier features of boxes, (..., 4) -> (..., num_freqs * 2 * 4).

    Frequencies are 100 ** (i / num_freqs), slowest index first, then sin and cos, then the coordinate (GLIGEN's order).
    """
    exponents = torch.arange(num_freqs, device=boxes.device, dtype=boxes.dtype) / num_freqs
    angles = boxes[..., None, :] * (FOURIER_TEMPERATURE**exponents)[:, None]  # (..., F, 4)
    return torch.stack((angles.sin(), angles.cos()), dim=-2).flatten(-3)


class PerceiverAttention(nn.Module):
    """Latents attend to image tokens and to themselves."""

    def __init__(self, dim: int, dim_head: int, heads: int) -> None:
        super().__init__()
        inner = dim_head * heads
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(dim, inner * 2, bias=False)
        self.to_out = nn.Linear(inner, dim, bias=False)

    def forward(self, tokens: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """tokens (R, S, dim), latents (R, Q, dim) -> (R, Q, dim)."""
        tokens, latents = self.norm1(tokens), self.norm2(latents)
        q = self.to_q(latents)
        k, v = self.to_kv(torch.cat((tokens, latents), dim=1)).chunk(2, dim=-1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        return self.to_out(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Resampler(nn.Module):
    """Perceiver whose queries know the object's phrase and box. Module names are those of the official checkpoint."""

    def __init__(self, config: ResamplerConfig) -> None:
        super().__init__()
        self.config = config
        dim, grounding = config.dim, config.phrase_embeddings_dim + config.fourier_freqs * 8
        hidden = grounding * 2
        self.grounding_latents = nn.Parameter(torch.randn(1, config.num_queries, dim) / dim**0.5)
        self.latent_proj = nn.Sequential(
            nn.Linear(grounding, hidden), nn.GELU(), nn.Linear(hidden, dim * config.num_queries)
        )
        self.latent_norm = nn.LayerNorm(dim)
        self.proj_in = nn.Linear(config.embedding_dim, dim)
        self.attention_norm = nn.LayerNorm(dim)
        self.proj_out = nn.Linear(dim, config.output_dim)
        self.norm_out = nn.LayerNorm(config.output_dim)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    PerceiverAttention(dim, config.dim_head, config.heads),
                    nn.Sequential(
                        nn.LayerNorm(dim),
                        nn.Linear(dim, dim * config.ff_mult, bias=False),
                        nn.GELU(),
                        nn.Linear(dim * config.ff_mult, dim, bias=False),
                    ),
                ]
            )
            for _ in range(config.depth)
        )

    def forward(
        self,
        image_tokens: torch.Tensor,
        boxes: torch.Tensor,
        phrase_embeds: torch.Tensor,
        drop_grounding: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Adapter tokens of R objects.

        Args:
            image_tokens: (R, S, embedding_dim).
            boxes: (R, 4) relative xyxy.
            phrase_embeds: (R, phrase_embeddings_dim), pooled text embedding of each object's phrase.
            drop_grounding: (R,) bool, true where the learned queries replace the grounded ones; None for nowhere.

        Returns:
            (R, num_queries, output_dim).
        """
        grounding = torch.cat((phrase_embeds, fourier_embedding(boxes, self.config.fourier_freqs)), dim=-1)
        grounding = grounding.to(self.proj_in.weight.dtype)
        latents = self.latent_norm(self.latent_proj(grounding).unflatten(-1, (self.config.num_queries, -1)))
        if drop_grounding is not None:
            latents = torch.where(drop_grounding[:, None, None], self.grounding_latents, latents)
        tokens = self.proj_in(image_tokens.to(self.proj_in.weight.dtype))
        for layer in self.layers:
            attention, feed_forward = layer.children()
            latents = attention(tokens, latents) + latents
            latents = feed_forward(latents) + latents
        return self.norm_out(self.proj_out(self.attention_norm(latents)))
