"""Square windows of pictures, as image encoders are shown them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize
from torchvision.ops import roi_align
from torchvision.transforms.functional import normalize as standardised

from rbctl.image_prompt import CLIP_MEAN, CLIP_STD
from rbctl.plugins.pretrain.renders import lots

WHOLE = (0.0, 0.0, 1.0, 1.0)


def cut(pictures: Any, boxes: Any, size: int, device: torch.device, mirrored: np.ndarray | None = None) -> torch.Tensor:
    """Windows of pictures, averaged down to ``size`` and normalised for CLIP.

    Args:
        pictures: uint8 (B, 3, H, H), an array or a tensor.
        boxes: (B, 4) relative xyxy, squares.
        mirrored: (B,) bool; None for none.

    Returns:
        (B, 3, size, size) on the device.
    """
    pixels = torch.as_tensor(pictures, device=device).float()
    boxes = torch.as_tensor(boxes, dtype=torch.float32, device=device)
    rows = torch.arange(len(boxes), dtype=torch.float32, device=device)[:, None]
    windows = roi_align(pixels, torch.cat((rows, boxes * pixels.shape[-1]), dim=1), size, 1.0, 2, True) / 255
    windows = standardised(windows, CLIP_MEAN, CLIP_STD)
    if mirrored is None:
        return windows
    return torch.where(torch.from_numpy(mirrored).to(device)[:, None, None, None], windows.flip(-1), windows)


def square(box: Sequence[float], margin: float) -> tuple[float, float, float, float]:
    """The square around a box, wider by ``margin`` of its side, moved into the picture."""
    x0, y0, x1, y1 = (float(v) for v in box)
    side = min(max(x1 - x0, y1 - y0) * (1 + margin), 1.0)
    left = min(max((x0 + x1 - side) / 2, 0.0), 1 - side)
    top = min(max((y0 + y1 - side) / 2, 0.0), 1 - side)
    return left, top, left + side, top + side


def embeddings(
    encode: Callable[[torch.Tensor], torch.Tensor],
    pictures: np.ndarray,
    size: int,
    device: torch.device,
    boxes: np.ndarray | None = None,
) -> torch.Tensor:
    """(B, D), normalised, of windows of any number of pictures; without boxes, of whole ones."""
    boxes = np.tile(WHOLE, (len(pictures), 1)) if boxes is None else boxes
    parts = [encode(cut(pictures[lot], boxes[lot], size, device)) for lot in lots(len(pictures), 64)]
    return normalize(torch.cat(parts).float(), dim=-1)
