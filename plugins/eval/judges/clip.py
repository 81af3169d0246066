"""CLIP scores as a judge: what many papers take for one. ``judge-check`` tells how good it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from scipy.special import expit

from rbctl.files import read_image
from rbctl.plugins.eval.encoders import Encoder, as_array
from rbctl.plugins.eval.judges.judge import Answer, Item
from rbctl.plugins.eval.metrics import cosine

_TEMPERATURE = 100.0  # CLIP's own, of its softmax over texts


class ClipJudge:
    """Yes where the picture is nearer to a question's statement than to the words against it; probability by softmax.

    Where nothing stands against a statement, "a picture" does. Questions without a statement it cannot answer.
    """

    name, paid = "clip", False

    def __init__(self, encoder: Encoder) -> None:
        self.hash, self._encoder = encoder.hash, encoder

    @torch.no_grad()
    def __call__(self, items: Sequence[Item]) -> Iterator[Answer]:
        encoder = self._encoder
        assert encoder.texts is not None
        paths = list(dict.fromkeys(picture.path for picture, _ in items))
        pixels = torch.stack([encoder.prepare(read_image(path)) for path in paths]).to(encoder.device)
        pictures = dict(zip(paths, as_array(encoder.images(pixels)), strict=True))
        lines = list(dict.fromkeys(line for _, q in items for line in (q.statement, q.against or "a picture") if line))
        texts = dict(zip(lines, as_array(encoder.texts(lines)), strict=True))
        for picture, question in items:
            if not question.statement:
                yield Answer(None)
                continue
            statements = [texts[question.statement], texts[question.against or "a picture"]]
            near = [float(cosine(pictures[picture.path][None], text[None])[0, 0]) for text in statements]
            yield Answer(float(expit(_TEMPERATURE * (near[0] - near[1]))))
