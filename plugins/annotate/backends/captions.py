"""Backends ``llava`` and ``image-text-to-text``: a caption of every picture that has no text.

Any image-text-to-text model of transformers will do, LLaVA among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from rbctl.plugins.annotate.config import AnnotateConfig
from rbctl.vision_language import VisionLanguage

_QUESTION = "Describe in one short sentence what {names} are doing to each other. Use exactly these names."
_MOST_TOKENS = 48


class Captions:
    def __init__(self, folder: Path, config: AnnotateConfig, device: torch.device) -> None:
        self.speaker = VisionLanguage(folder, device)

    def __call__(self, images: Sequence[Image.Image], names: Sequence[Sequence[str]]) -> list[str]:
        questions = [_QUESTION.format(names=" and ".join(f"the {name}" for name in row)) for row in names]
        return [
            self.speaker.say([image], question, _MOST_TOKENS) for image, question in zip(images, questions, strict=True)
        ]
