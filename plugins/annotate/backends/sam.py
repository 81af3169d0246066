"""Backend ``sam``: masks by SAM of transformers, a box as the prompt of each."""

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

    def __init__(self, folder: Path, config: AnnotateConfig, device: torch.device) -> None:
        from transformers import SamModel, SamProcessor

        self.model = network(SamModel, folder, torch.float32, use_safetensors=True).to(device)
        self.processor = from_pretrained(SamProcessor, folder)

    def __call__(self, images: Sequence[Image.Image], boxes: Sequence[np.ndarray]) -> list[np.ndarray]:
        masks = []
        for image, rows in zip(images, boxes, strict=True):  # one by one: pictures have different numbers of boxes
            pixels = rows * (*image.size, *image.size)
            inputs = self.processor(images=image, input_boxes=[pixels.tolist()], return_tensors="pt")
            sizes, resized = inputs.pop("original_sizes"), inputs.pop("reshaped_input_sizes")
            inputs["input_boxes"] = inputs["input_boxes"].float()
            with torch.no_grad():
                output = self.model(**inputs.to(self.model.device), multimask_output=True)
            logits = output.pred_masks.float().cpu()  # (1, K, 3, h, w)
            (proposals,) = self.processor.post_process_masks(logits, sizes, resized)
            best = output.iou_scores[0].float().argmax(-1).cpu()
            masks.append(proposals[torch.arange(len(rows)), best].numpy())
        return masks
