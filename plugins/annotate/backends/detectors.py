"""Backends ``grounding-dino`` and ``owlv2``: boxes of named individuals by detectors of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.ops import box_convert

from rbctl.plugins.annotate.config import AnnotateConfig
from rbctl.plugins.annotate.steps import Detections
from rbctl.pretrained import from_pretrained, network


class GroundingDino:
    """Boxes by Grounding DINO."""

    def __init__(self, folder: Path, config: AnnotateConfig, device: torch.device) -> None:
        from transformers import AutoProcessor, GroundingDinoForObjectDetection

        self.model = network(GroundingDinoForObjectDetection, folder, torch.float32, use_safetensors=True).to(device)
        self.processor = from_pretrained(AutoProcessor, folder)
        self.threshold = config.box_threshold

    def __call__(self, images: Sequence[Image.Image], names: Sequence[Sequence[str]]) -> list[Detections]:
        # The form it was trained on: lower case, every phrase ended by a full stop.
        texts = [" ".join(f"{name.lower().replace('.', ' ').strip()}." for name in row) for row in names]
        inputs = self.processor(images=list(images), text=texts, return_tensors="pt", padding=True)
        with torch.no_grad():
            output = self.model(**inputs.to(self.model.device))
        # Per box and word of the text; words beyond a text's end are -inf. Boxes are relative to each picture itself.
        return [
            _detections(logits, boxes, self.threshold)
            for logits, boxes in zip(output.logits, output.pred_boxes, strict=True)
        ]


class Owlv2:
    """Boxes by OWLv2."""

    def __init__(self, folder: Path, config: AnnotateConfig, device: torch.device) -> None:
        from transformers import Owlv2ForObjectDetection, Owlv2Processor

        self.model = network(Owlv2ForObjectDetection, folder, torch.float32, use_safetensors=True).to(device)
        self.processor = from_pretrained(Owlv2Processor, folder)
        self.threshold = config.box_threshold

    def __call__(self, images: Sequence[Image.Image], names: Sequence[Sequence[str]]) -> list[Detections]:
        detections = []
        # One by one: of a batch the processor pads the phrases, and padding is found in pictures too.
        for image, row in zip(images, names, strict=True):
            texts = [[f"a photo of a {name}" for name in row]]
            inputs = self.processor(images=image, text=texts, return_tensors="pt")
            with torch.no_grad():
                output = self.model(**inputs.to(self.model.device))
            # Relative to the square that the picture was padded to, at its right or lower edge.
            sizes = max(image.size), image.size
            detections.append(_detections(output.logits[0], output.pred_boxes[0], self.threshold, *sizes))
        return detections


def _detections(
    logits: torch.Tensor, boxes: torch.Tensor, threshold: float, side: int = 1, size: tuple[int, int] = (1, 1)
) -> Detections:
    """The boxes that show any of the phrases.

    Args:
        logits: (N, words).
        boxes: (N, 4) centre and size, relative to a square.
        side, size: of the square, and of the picture in it, in any unit.
    """
    scores = logits.float().sigmoid().max(-1).values.cpu().numpy()
    corners = box_convert(boxes.float().cpu(), "cxcywh", "xyxy").numpy() * side / (*size, *size)
    return Detections(np.clip(corners, 0, 1)[scores >= threshold], scores[scores >= threshold])
