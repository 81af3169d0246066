"""Weights of a prompt's words, on what SDXL's text encoders say of it: the work of the library compel."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch

from rbctl.embeddings import Embedding, pieces, placed
from rbctl.errors import InputError
from rbctl.prompts.weights import WeightedText


class _Tokenizer:
    """A CLIP tokenizer as compel calls it, which knows learned tokens."""

    def __init__(self, tokenizer: Any, embeddings: Sequence[Embedding]) -> None:
        self._tokenizer, self._embeddings = tokenizer, embeddings

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, texts: Sequence[str], **_: object) -> dict[str, list[list[int]]]:
        return {"input_ids": [pieces(self._tokenizer, text, self._embeddings) for text in texts]}


class _TextEncoder:
    """A CLIP text encoder as compel calls it, which reads learned tokens."""

    def __init__(self, encoder: Any, vectors: torch.Tensor | None) -> None:
        self._encoder, self._vectors = encoder, vectors
        self.device, self.dtype = encoder.device, encoder.dtype

    def __call__(self, ids: torch.Tensor, attention_mask: torch.Tensor, **options: Any) -> Any:
        if self._vectors is None:
            return self._encoder(ids, attention_mask, **options)
        with placed(self._encoder, ids, self._vectors) as known:
            return self._encoder(known, attention_mask, **options)


def check_installed() -> None:
    """Raises InputError where compel is not installed."""
    if find_spec("compel") is None:
        raise InputError(
            "weights in a prompt, (word:1.2), need compel; pip install compel, or take --no-prompt-weighting"
        )


def weighted_embeds(
    tokenizer: Any, encoder: Any, text: WeightedText, embeddings: Sequence[Embedding], side: int
) -> torch.Tensor:
    """Second-to-last hidden states of one text encoder, (T, D), with every word weighted.

    A weight above 1 enlarges a token's difference from the empty prompt. One below 1 also blends in what the encoder
    says without the words. With all weights 1 it is exactly what the encoder says. T is the most tokens the encoder
    reads; what is behind them is lost.

    Args:
        side: of the embeddings' vectors, 0 or 1: which of SDXL's encoders it is.

    Raises:
        InputError: compel is not installed.
    """
    check_installed()
    from compel import EmbeddingsProvider, ReturnedEmbeddingsType  # type: ignore[import-untyped]

    vectors = torch.cat([embedding.vectors[side] for embedding in embeddings]) if embeddings else None
    provider = EmbeddingsProvider(
        _Tokenizer(tokenizer, embeddings),
        _TextEncoder(encoder, vectors),
        returned_embeddings_type=ReturnedEmbeddingsType.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED,
        truncate=True,
    )
    fragments = text.fragments
    embeds = provider.get_embeddings_for_weighted_prompt_fragments(
        [[words for words, _ in fragments]], [[weight for _, weight in fragments]], device=encoder.device
    )
    return embeds[0]
