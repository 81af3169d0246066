"""Backends ``sam`` and ``sam2``: masks by SAM or SAM 2 of transformers, a box as the prompt of each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from rbctl.plugins.annotate.config import AnnotateConfig
from rbctl.pretrained import from_pretrained, network


class Masks:
    """Of SAM's three proposals the one it is surest of."""

    kind = "Sam"  # what its classes in transformers begin with

    def __init__(self, folder: Path, config: AnnotateConfig, device: torch.device) -> None:
        import transformers

        model = getattr(transformers, f"{self.kind}Model")
        self.model = network(model, folder, torch.float32, use_safetensors=True).to(device)
        self.processor = from_pretrained(getattr(transformers, f"{self.kind}Processor"), folder)

    def __call__(self, images: Sequence[Image.Image], boxes: Sequence[np.ndarray]) -> list[np.ndarray]:
        masks = []
        for image, rows in zip(images, boxes, strict=True):  # one by one: pictures have different numbers of boxes
            pixels = rows * (*image.size, *image.size)
            inputs = self.processor(images=image, input_boxes=[pixels.tolist()], return_tensors="pt")
            # SAM pads a picture to a square, and tells how much of it the picture is; SAM 2 stretches it.
            sizes = [inputs.pop(name) for name in ("original_sizes", "reshaped_input_sizes") if name in inputs]
            inputs["input_boxes"] = inputs["input_boxes"].float()
            with torch.no_grad():
                output = self.model(**inputs.to(self.model.device), multimask_output=True)
            logits = output.pred_masks.float().cpu()  # (1, K, 3, h, w)
            (proposals,) = self.processor.post_process_masks(logits, *sizes)
            best = output.iou_scores[0].float().argmax(-1).cpu()
            masks.append(proposals[torch.arange(len(rows)), best].numpy())
        return masks


class Masks2(Masks):
    kind = "Sam2"
