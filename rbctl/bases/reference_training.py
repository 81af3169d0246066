"""How a transformer with references in its sequence is trained on triplets."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from PIL import Image
from torch.nn.functional import pad

from rbctl.bases import PER_TRIPLET, Prediction
from rbctl.bases.reference_sampling import Encoded, denoised
from rbctl.bases.reference_transformer import TIMESTEPS, Reading
from rbctl.instructions import instruction

if TYPE_CHECKING:
    from rbctl.bases.reference_transformer import ReferenceTransformer

_STEPS = 50  # of sampling, for a shift of the timesteps that depends on their number
_GUIDANCE = 4.0  # of previews, where the base takes guidance


class Texts(NamedTuple):
    """An instruction, and the negative prompt of previews."""

    prompt: str
    negative: str = " "


class ReferenceTraining(ABC):
    """See :class:`rbctl.bases.Training`. Texts are encoded for each version: an encoder with eyes sees the pictures."""

    guide: Any  # as of ReferenceSampler

    shapes: Mapping[str, str] = {
        "words": "S A T D",
        "words_mask": "S A T",
        "negative_words": "S A U D",
        "negative_mask": "S A U",
        "present": "S A N",
    }
    timesteps = TIMESTEPS

    def __init__(self, base: ReferenceTransformer, config: Any) -> None:
        self.base, self.config = base, config

    def texts(self, prompt: str, predicate: str, names: Sequence[str], where: str | None) -> Texts:
        return Texts(instruction(prompt, names, range(1, len(names) + 1)))

    def of_triplet(self, texts: Texts) -> dict[str, torch.Tensor]:
        return {}

    def of_version(
        self, texts: Texts, prompts: Sequence[Image.Image], squares: Sequence[Image.Image], boxes: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        words, negative = self.base.texts(list(texts), [squares, squares])
        return {
            "words": words,
            "words_mask": torch.ones(len(words), dtype=torch.bool),
            "negative_words": negative,
            "negative_mask": torch.ones(len(negative), dtype=torch.bool),
        }

    def padded(self, encoded: Mapping[str, torch.Tensor], objects: int, most: int) -> dict[str, torch.Tensor]:
        return {**encoded, "present": torch.arange(most) < objects}

    def even(self, rows: Sequence[dict[str, torch.Tensor]]) -> None:
        for name, mask in (("words", "words_mask"), ("negative_words", "negative_mask")):
            longest = max(row[name].shape[-2] for row in rows)
            for row in rows:
                missing = longest - row[name].shape[-2]
                row[name], row[mask] = pad(row[name], (0, 0, 0, missing)), pad(row[mask], (0, missing))

    def of_nothing(self) -> dict[str, torch.Tensor]:
        return {}

    def levels(self, timesteps: torch.Tensor, latent_size: tuple[int, int]) -> torch.Tensor:
        """Evenly spread times t, shifted as the scheduler shifts those of a picture of this size."""
        scheduler = self.base.pipeline.scheduler
        times = (timesteps.float() + 1) / TIMESTEPS
        if scheduler.config.use_dynamic_shifting:
            rows, columns = self.base.grid(latent_size)
            shift = math.exp(self.base.shift(rows * columns, _STEPS))
        else:
            shift = scheduler.config.shift
        return TIMESTEPS * shift * times / (1 + (shift - 1) * times)

    def noised(
        self, latents: torch.Tensor, noise: torch.Tensor, levels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        times = (levels / TIMESTEPS)[:, None, None, None]
        return (1 - times) * latents + times * noise, noise - latents

    def predict(
        self,
        model: Any,
        noisy: torch.Tensor,
        levels: torch.Tensor,
        encoded: Mapping[str, torch.Tensor],
        prompt_latents: torch.Tensor,
    ) -> Prediction:
        reading = self._reading(encoded, prompt_latents, *self.words(encoded))
        return Prediction(self.base.velocity(model, noisy, levels / TIMESTEPS, reading), conditioning=reading)

    def words(self, encoded: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, T, D) of the instructions of B samples, and which of them is no padding."""
        return encoded["words"], encoded["words_mask"]

    def negative(
        self, encodings: Mapping[str, torch.Tensor], rows: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The same of the negative prompt, for these triplets of a set."""
        return encodings["negative_words"][list(rows), 0], encodings["negative_mask"][list(rows), 0]

    def _reading(
        self,
        encoded: Mapping[str, torch.Tensor],
        references: torch.Tensor,
        words: torch.Tensor,
        mask: torch.Tensor | None,
    ) -> Reading:
        device = self.base.device
        boxes = encoded["boxes"].to(device) if self.config.reference_mask == "boxes" else None
        words, mask = words.to(device), None if mask is None else mask.to(device)
        return Reading(words, mask, references.to(device), encoded["present"].to(device), boxes)

    def clean(self, noisy: torch.Tensor, output: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        return noisy - (levels / TIMESTEPS)[:, None, None, None] * output

    def cells(self, latents: torch.Tensor) -> torch.Tensor:
        return self.base.cells(latents)

    def sample(
        self,
        encodings: Mapping[str, torch.Tensor],
        rows: Sequence[int],
        noise: torch.Tensor,
        steps: int,
        generators: Sequence[Any],
    ) -> torch.Tensor:
        base, some = self.base, list(rows)
        of = {
            name: tensor[some] if name in PER_TRIPLET else tensor[some, 0]
            for name, tensor in encodings.items()
            if not name.startswith("empty_")
        }
        reading = self._reading(of, of["prompt_latents_mean"], *self.words(of))
        reading = dataclasses.replace(reading, words=reading.words.to(base.dtype))
        negative = None
        if not base.distilled:
            words, mask = self.negative(encodings, some)
            negative = dataclasses.replace(reading, words=words.to(reading.words), words_mask=mask)
        scales = torch.full((len(some),), _GUIDANCE)
        return denoised(base, Encoded(reading, negative), noise, steps, scales, self.guide)
