"""Boxes of named individuals by detectors of transformers: Grounding DINO and OWLv2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.ops import box_convert

from rbctl.pretrained import from_pretrained, network


@dataclass(frozen=True, eq=False)
class Detections:
    """Boxes of K individuals in a picture, in any order.

    Attributes:
        boxes: (K, 4) relative xyxy.
        scores: (K,) in [0, 1].
        names: (K,) number of the name that each fits best; None where nobody says.
    """

    boxes: np.ndarray
    scores: np.ndarray
    names: np.ndarray | None = None


class GroundingDino:
    """Boxes by Grounding DINO.

    Args:
        threshold: least score of a box.
    """

    def __init__(self, folder: Path, threshold: float, device: torch.device) -> None:
        from transformers import AutoProcessor, GroundingDinoForObjectDetection

        self.model = network(GroundingDinoForObjectDetection, folder, torch.float32, use_safetensors=True).to(device)
        self.processor = from_pretrained(AutoProcessor, folder)
        self.threshold = threshold

    def __call__(self, images: Sequence[Image.Image], names: Sequence[Sequence[str]]) -> list[Detections]:
        # The form it was trained on: lower case, every phrase ended by a full stop.
        texts = [" ".join(f"{name.lower().replace('.', ' ').strip()}." for name in row) for row in names]
        inputs = self.processor(images=list(images), text=texts, return_tensors="pt", padding=True)
        with torch.no_grad():
            output = self.model(**inputs.to(self.model.device))
        full_stop = self.processor.tokenizer.convert_tokens_to_ids(".")
        # Per box and word of the text; words beyond a text's end are -inf. Boxes are relative to each picture itself.
        return [
            _detections(logits, boxes, self.threshold, _phrases(ids == full_stop, len(row)))
            for logits, boxes, ids, row in zip(
                output.logits, output.pred_boxes, inputs["input_ids"], names, strict=True
            )
        ]


class Owlv2:
    """Boxes by OWLv2.

    Args:
        threshold: least score of a box.
    """

    def __init__(self, folder: Path, threshold: float, device: torch.device) -> None:
        from transformers import Owlv2ForObjectDetection, Owlv2Processor

        self.model = network(Owlv2ForObjectDetection, folder, torch.float32, use_safetensors=True).to(device)
        self.processor = from_pretrained(Owlv2Processor, folder)
        self.threshold = threshold

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
            words = [[k] for k in range(len(row))]
            detections.append(_detections(output.logits[0], output.pred_boxes[0], self.threshold, words, *sizes))
        return detections


def _phrases(full_stops: torch.Tensor, count: int) -> list[list[int]]:
    """By phrase the numbers of its words, in a text that a special token begins and full stops divide."""
    ends = full_stops.nonzero()[:, 0].tolist()[:count]
    return [list(range(start + 1, end)) for start, end in zip([0, *ends], ends, strict=False)]


def _detections(
    logits: torch.Tensor,
    boxes: torch.Tensor,
    threshold: float,
    phrases: Sequence[Sequence[int]],
    side: int = 1,
    size: tuple[int, int] = (1, 1),
) -> Detections:
    """The boxes that show any of the phrases.

    Args:
        logits: (N, words).
        boxes: (N, 4) centre and size, relative to a square.
        phrases: by name the numbers of its words.
        side, size: of the square, and of the picture in it, in any unit.
    """
    each = logits.float().sigmoid().cpu().numpy()
    scores = each.max(-1)
    names = np.stack([each[:, list(words)].max(-1, initial=0) for words in phrases], -1).argmax(-1)
    corners = box_convert(boxes.float().cpu(), "cxcywh", "xyxy").numpy() * side / (*size, *size)
    kept = scores >= threshold
    return Detections(np.clip(corners, 0, 1)[kept], scores[kept], names[kept])
