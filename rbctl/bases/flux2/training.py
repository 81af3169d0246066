"""Triplets -> what FLUX.2 Klein is trained on; its text encoder sees no pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from PIL import Image

from rbctl.bases.flux2.sampling import Sampler
from rbctl.bases.reference_training import ReferenceTraining, Texts


class Training(ReferenceTraining):
    """Words are encoded once for a triplet; all have 512 tokens, and the padding counts as in the pipeline."""

    shapes: Mapping[str, str] = {"prompt_embeds": "S T D", "present": "S A N", "empty_prompt_embeds": "T D"}
    guide = staticmethod(Sampler.guide)

    def of_triplet(self, texts: Texts) -> dict[str, torch.Tensor]:
        return {"prompt_embeds": self.base.texts([texts.prompt], [()])[0]}

    def of_version(
        self, texts: Texts, prompts: Sequence[Image.Image], squares: Sequence[Image.Image], boxes: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        return {}

    def even(self, rows: Sequence[dict[str, torch.Tensor]]) -> None:
        """They are."""

    def of_nothing(self) -> dict[str, torch.Tensor]:
        return {"empty_prompt_embeds": self.base.texts([""], [()])[0].cpu()}

    def words(self, encoded: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, None]:
        return encoded["prompt_embeds"], None

    def negative(
        self, encodings: Mapping[str, torch.Tensor], rows: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        return encodings["empty_prompt_embeds"].expand(len(rows), -1, -1), None
