"""One attn2 layer's parallel cross-attention at SDXL's shapes: our backends against the form of the official processor.

The baseline builds the mask per layer and copies it for every head, computes explicit probabilities for the image
branch and adds two outputs.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rbctl.conditioning import box_cells, image_mask
from rbctl.kernels import BACKENDS, parallel_cross_attention

CASES = {"sdxl_1024_outer": (64, 10, 64), "sdxl_1024_inner": (32, 20, 64)}  # side of the grid, heads, head width
BOXES = torch.tensor([[[0.0, 0.2, 0.55, 0.85], [0.45, 0.26, 0.95, 0.9]]])
TEXT, PER_OBJECT, DUMMIES = 77, 16, 4
USABLE = [b.name for b in BACKENDS if b.why_not(torch.device("cpu"), torch.float32) is None]


def inputs(side: int, heads: int, width: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = PER_OBJECT * BOXES.shape[1]
    lengths = (side * side, TEXT, TEXT, image, image)
    return [torch.randn(1, heads, length, width, generator=generator) for length in lengths]


def official_form(
    q: torch.Tensor, k_text: torch.Tensor, v_text: torch.Tensor, k_image: torch.Tensor, v_image: torch.Tensor, side: int
) -> torch.Tensor:
    heads, width = q.shape[1], q.shape[-1]
    dummies = torch.zeros(1, heads, DUMMIES, width)
    k_image, v_image = torch.cat((dummies, k_image), dim=2), torch.cat((dummies, v_image), dim=2)
    cells = box_cells(BOXES, (side, side))
    attend = image_mask(cells, PER_OBJECT, DUMMIES).attend.repeat(1, heads, 1, 1)
    bias = torch.where(attend, 0.0, -10000.0)
    text = torch.nn.functional.scaled_dot_product_attention(q, k_text, v_text)
    probabilities = (q @ k_image.mT * width**-0.5 + bias).softmax(-1)
    probabilities = probabilities.masked_fill(~cells.any(1)[:, None, :, None], 0.0)
    return text + probabilities @ v_image


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("form", ["official", *USABLE])
def test_parallel_cross_attention(benchmark: Any, case: str, form: str) -> None:
    benchmark.group = f"parallel cross-attention, {case}, float32 on the CPU"
    side, heads, width = CASES[case]
    parts = inputs(side, heads, width)
    mask = image_mask(box_cells(BOXES, (side, side)), PER_OBJECT, 0)
    truth = official_form(*parts, side)
    with torch.no_grad():
        if form == "official":
            benchmark.pedantic(official_form, (*parts, side), rounds=7, warmup_rounds=1)
            return
        torch.testing.assert_close(parallel_cross_attention(*parts, mask, backend=form), truth, rtol=1e-4, atol=1e-5)
        benchmark.pedantic(parallel_cross_attention, (*parts, mask, form), rounds=7, warmup_rounds=1)
