"""Backend ``grounding-dino``: boxes of named individuals by Grounding DINO of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from rbctl.plugins.annotate.backends.loading import network, processor
from rbctl.plugins.annotate.config import AnnotateConfig
from rbctl.plugins.annotate.steps import Found, corners


class Boxes:
    """See :class:`rbctl.plugins.annotate.steps.Boxes`."""

    def __init__(self, folder: Path, config: AnnotateConfig, device: torch.device) -> None:
        from transformers import AutoProcessor, GroundingDinoForObjectDetection

        self.model = network(GroundingDinoForObjectDetection, folder, device)
        self.processor = processor(AutoProcessor, folder)
        self.threshold = config.box_threshold

    def __call__(self, images: Sequence[Image.Image], names: Sequence[Sequence[str]]) -> list[Found]:
        # The form it was trained on: lower case, every phrase ended by a full stop.
        texts = [" ".join(f"{name.lower().replace('.', ' ').strip()}." for name in row) for row in names]
        inputs = self.processor(images=list(images), text=texts, return_tensors="pt", padding=True)
        with torch.no_grad():
            output = self.model(**inputs.to(self.model.device))
        # Per box and word of the text; words beyond a text's end are -inf.
        scores = output.logits.float().sigmoid().max(-1).values.cpu().numpy()
        boxes = corners(output.pred_boxes.float().cpu().numpy())  # relative to each picture itself
        found = []
        for score, box in zip(scores, boxes, strict=True):
            sure = score >= self.threshold
            found.append(Found(np.clip(box[sure], 0, 1), score[sure]))
        return found
