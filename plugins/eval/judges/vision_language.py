"""A vision-language model on this machine as a judge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image

from rbctl.bundle.fingerprints import fingerprint
from rbctl.files import content_hash, read_image
from rbctl.plugins.eval.judges.judge import Answer, Item
from rbctl.vision_language import VisionLanguage

FORM = "{question} Answer with yes or no."  # of a model that sees the picture, and the second one after it


class VisionLanguageJudge:
    """Asks an image-text-to-text model of transformers, questions with as many pictures at once."""

    paid = False

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.name = folder.resolve().name
        self.hash = content_hash([fingerprint(folder), FORM])
        self._model = VisionLanguage(folder, device)

    def __call__(self, items: Sequence[Item]) -> Iterator[Answer]:
        answers: dict[int, Answer] = {}
        for alone in (True, False):
            numbers = [k for k, (_, question) in enumerate(items) if (question.second is None) is alone]
            if numbers:
                shown = [_pictures(items[k]) for k in numbers]
                said = self._model.yes(shown, [FORM.format(question=items[k][1].text) for k in numbers])
                answers.update((k, Answer(*answer)) for k, answer in zip(numbers, said, strict=True))
        yield from (answers[k] for k in range(len(items)))


def _pictures(item: Item) -> list[Image.Image]:
    picture, question = item
    return [read_image(path) for path in (picture.path, question.second) if path is not None]
