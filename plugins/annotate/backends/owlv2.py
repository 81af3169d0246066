"""Backend ``owlv2``: boxes of named individuals by OWLv2 of transformers."""

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
        from transformers import Owlv2ForObjectDetection, Owlv2Processor

        self.model = network(Owlv2ForObjectDetection, folder, device)
        self.processor = processor(Owlv2Processor, folder)
        self.threshold = config.box_threshold

    def __call__(self, images: Sequence[Image.Image], names: Sequence[Sequence[str]]) -> list[Found]:
        found = []
        # One by one: of a batch the processor pads the phrases, and padding is found in pictures too.
        for image, row in zip(images, names, strict=True):
            texts = [[f"a photo of a {name}" for name in row]]
            inputs = self.processor(images=image, text=texts, return_tensors="pt")
            with torch.no_grad():
                output = self.model(**inputs.to(self.model.device))
            scores = output.logits[0].float().sigmoid().max(-1).values.cpu().numpy()
            # Relative to the square that the picture was padded to, at its right or lower edge.
            boxes = corners(output.pred_boxes[0].float().cpu().numpy()) * max(image.size)
            boxes = boxes / (image.width, image.height, image.width, image.height)
            sure = scores >= self.threshold
            found.append(Found(np.clip(boxes[sure], 0, 1), scores[sure]))
        return found
