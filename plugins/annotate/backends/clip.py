"""Backend ``clip``: individuals told apart by a CLIP image tower, shown cut out, on a plain background."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import normalize

from rbctl.image_prompt import CLIP_MEAN, clip_pixels
from rbctl.plugins.annotate.config import AnnotateConfig
from rbctl.pretrained import network
from rbctl.triplets.masks import box_of

_PLAIN = tuple(round(255 * value) for value in CLIP_MEAN)  # what CLIP sees as zeros
_MARGIN = 0.1  # around the individual, of its longer side


class Identity:
    """The vectors are CLIP's image embeddings."""

    min_similarity = 0.6

    def __init__(self, folder: Path, config: AnnotateConfig, device: torch.device) -> None:
        from transformers import CLIPVisionModelWithProjection

        self.model = network(CLIPVisionModelWithProjection, folder, torch.float32, use_safetensors=True).to(device)
        self.batch_size = config.batch_size

    def __call__(self, images: Sequence[Image.Image], masks: Sequence[np.ndarray]) -> list[np.ndarray]:
        cuts = [cut_out(image, mask) for image, rows in zip(images, masks, strict=True) for mask in rows]
        vectors = []
        for first in range(0, len(cuts), self.batch_size):
            pixels = clip_pixels(cuts[first : first + self.batch_size], self.model.config.image_size)
            with torch.no_grad():
                embeds = self.model(pixels.to(self.model.device)).image_embeds
            vectors.append(normalize(embeds.float(), dim=-1).cpu().numpy())
        counts = np.cumsum([len(rows) for rows in masks])[:-1]
        return np.split(np.concatenate(vectors), counts)


def cut_out(image: Image.Image, mask: np.ndarray) -> Image.Image:
    """The pixels of a mask in a square, with a margin, the rest plain."""
    width, height = image.size
    x0, y0, x1, y1 = np.array(box_of(mask)) * (width, height, width, height)
    side = max(round(max(x1 - x0, y1 - y0) * (1 + 2 * _MARGIN)), 1)
    square = Image.new("RGB", (side, side), _PLAIN)
    corner = round(side / 2 - (x0 + x1) / 2), round(side / 2 - (y0 + y1) / 2)
    square.paste(image, corner, Image.fromarray(mask.astype(np.uint8) * 255))
    return square
