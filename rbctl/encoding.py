"""From requests to what the networks read: text embeddings, image tokens, boxes, and where names stand in a text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from rbctl.bundle.bundle import Bundle
from rbctl.conditioning import Encoded, PseudoRegions
from rbctl.embeddings import pieces
from rbctl.errors import InputError
from rbctl.image_prompt import Injection, LocalTokens, clip_pixels, squared
from rbctl.measurements import measured
from rbctl.phrases import token_spans
from rbctl.request import Request, Subject


class Encoder:
    """Encodes requests by a bundle's encoders; a picture of a file is encoded once.

    Arguments as of :class:`rbctl.pipeline.RelationPipeline`.
    """

    def __init__(
        self, bundle: Bundle, local_tokens: LocalTokens, local_grid: int | None, local_injection: Injection
    ) -> None:
        self.bundle = bundle
        self.local_tokens, self.local_grid, self.local_injection = local_tokens, local_grid, local_injection
        self._encoded: dict[tuple[Path, ...], torch.Tensor] = {}

    def forget(self) -> None:
        """Encode every picture anew, as after a move of the networks."""
        self._encoded.clear()

    @measured("encode the prompts")
    def encode(self, requests: Sequence[Request]) -> Encoded:
        """What the networks read of requests of one kind."""
        bundle, first = self.bundle, requests[0]
        words, counts = [request.words for request in requests], [request.weights for request in requests]
        embeds, pooled = bundle.encode_prompts(words, first.embeddings, counts)
        negative, negative_pooled = None, None
        if first.guided:
            negatives = [request.negative_prompt for request in requests]
            counts = [request.negative_weights for request in requests]
            negative, negative_pooled = bundle.encode_prompts(negatives, first.embeddings, counts)
        tokens, boxes, weights = self._image_inputs(requests) if first.subjects else (None, None, None)
        return Encoded(
            prompt_embeds=embeds,
            pooled_prompt_embeds=pooled,
            negative_prompt_embeds=negative,
            negative_pooled_prompt_embeds=negative_pooled,
            image_tokens=tokens,
            boxes=boxes,
            object_weights=weights,
        )

    @torch.no_grad()
    def subject_tokens(self, subjects: Sequence[Subject]) -> torch.Tensor:
        """(N, S, C) CLIP and local tokens of one request's individuals; a picture of a file is encoded once."""
        if self.local_tokens == "first_image":  # the official code's local tokens depend on the prompt's first object
            return self._encode(subjects)
        return torch.cat([self._encode([subject]) for subject in subjects])

    def _encode(self, subjects: Sequence[Subject]) -> torch.Tensor:
        paths = tuple(subject.image for subject in subjects if isinstance(subject.image, Path))
        if len(paths) == len(subjects) and paths in self._encoded:
            return self._encoded[paths]
        bundle = self.bundle
        pictures = [squared(subject.picture()) for subject in subjects]  # once for both encoders
        local = None
        if self.local_tokens != "none":
            local = clip_pixels(pictures, bundle.local_image_size).to(bundle.device, bundle.dtype)
        pixels = clip_pixels(pictures, bundle.clip_image_size).to(bundle.device, bundle.dtype)
        tokens = bundle.image_prompt_encoder.object_tokens(
            pixels, local, self.local_tokens, self.local_grid, self.local_injection
        )
        if len(paths) == len(subjects):
            self._encoded[paths] = tokens
        return tokens

    @torch.no_grad()
    def _image_inputs(self, requests: Sequence[Request]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Image tokens (B, 4 + P N, D), boxes (B, N, 4) and weights (B, N); an absent individual has a zero box."""
        bundle = self.bundle
        most = max(len(request.subjects) for request in requests)
        boxes = torch.zeros(len(requests), most, 4, device=bundle.device)
        weights = torch.zeros(len(requests), most, device=bundle.device)
        phrases = [bundle.encode_phrases([subject.name for subject in request.subjects]) for request in requests]
        bundle.place("image_prompt_encoder")
        rows = []
        for row, request in enumerate(requests):
            count = len(request.subjects)
            boxes[row, :count] = torch.tensor([subject.box for subject in request.subjects])
            weights[row, :count] = torch.tensor([subject.scale for subject in request.subjects])
            tokens = self.subject_tokens(request.subjects)
            named = phrases[row][None]
            rows.append(bundle.image_prompt_encoder.adapter_tokens(tokens, boxes[row, None, :count], named)[0])
        longest = max(row.shape[0] for row in rows)
        padded = [torch.cat((row, row.new_zeros(longest - row.shape[0], row.shape[1]))) for row in rows]
        return torch.stack(padded), boxes, weights

    def regions(self, requests: Sequence[Request], start_step: int) -> PseudoRegions:
        """Where each individual is, to be read off the text attention from a step on."""
        most = max(len(request.subjects) for request in requests)
        spans = torch.zeros(len(requests), most, 2, dtype=torch.long)
        for row, request in enumerate(requests):
            spans[row, : len(request.subjects)] = torch.tensor(self.spans(request))
        if requests[0].guided:
            spans = torch.cat((spans, spans))
        return PseudoRegions(spans=spans.to(self.bundle.device), start_step=start_step)

    def spans(self, request: Request) -> list[tuple[int, int]]:
        """Token range of each individual's name in the prompt.

        Raises:
            InputError: the prompt has no such place for one, or it lies behind what the text encoders read.
        """
        tokenizer = self.bundle.tokenizer

        def tokenized(part: str, **_: object) -> dict[str, list[int]]:
            return {"input_ids": pieces(tokenizer, part, request.embeddings)}

        spans = token_spans(tokenized, request.words, [subject.name for subject in request.subjects])
        for subject, (start, end) in zip(request.subjects, spans, strict=True):
            if not 0 < start < end < tokenizer.model_max_length:
                raise InputError(
                    f"{request.source}: {subject.name}: --pseudo-mask-step does not find it in the text; write it once "
                    "for each object of that name, as words of their own with none but . ! ? , : behind, and not too "
                    "late"
                )
        return spans
