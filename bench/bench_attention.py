"""One attn2 layer at SDXL's two shapes on the CPU: every backend against the official processor's way.

"attention" is the attention alone; "layer" has the projections too, of which ours keeps those of text and image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention

from bench.official import OfficialConditioning, OfficialCrossAttention
from bench.official import parallel_cross_attention as official
from rbctl.attention import ParallelCrossAttention
from rbctl.conditioning import DUMMY_TOKENS, Conditioning, ImageBranch, box_mask
from rbctl.kernels import BACKENDS, parallel_cross_attention

CASES = {"outer": (64, 10), "inner": (32, 20)}  # side of the grid, heads of 64 channels
WIDTH, TEXT, PER_OBJECT, DEEP = 64, 77, 16, 2048
OBJECTS = {
    2: [[0.0, 0.2, 0.55, 0.85], [0.45, 0.26, 0.95, 0.9]],
    4: [[0.0, 0.2, 0.3, 0.85], [0.25, 0.26, 0.55, 0.9], [0.5, 0.1, 0.75, 0.9], [0.7, 0.3, 1.0, 0.95]],
}
# Only the default of the CPU is measured at each `make bench`.
USABLE = [
    pytest.param(b.name, marks=() if b.name == "grouped" else pytest.mark.thorough)
    for b in BACKENDS
    if b.why_not(torch.device("cpu"), torch.float32) is None and b.name != "eager"
]
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 6e-2}


@pytest.fixture(params=[pytest.param(1, marks=pytest.mark.thorough, id="1 thread"), pytest.param(2, id="2 threads")])
def threads(request: pytest.FixtureRequest) -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


# Dtype, batch, rounds: fewer of four pictures at once, and of bf16, which takes seconds where the CPU has it not.
KINDS = [(torch.float32, 2, 5), (torch.float32, 8, 2), (torch.bfloat16, 2, 2)]
TWO_ROWS = [kind for kind in KINDS if kind[1] == 2]


def boxes_of(objects: int, batch: int = 2) -> torch.Tensor:
    """(B, N, 4); as in guidance, the first half of the batch has none."""
    boxes = torch.tensor([OBJECTS[objects]]).repeat(batch, 1, 1)
    boxes[: batch // 2] = 0
    return boxes


def inputs(case: str, objects: int, dtype: torch.dtype, batch: int = 2) -> tuple[torch.Tensor, ...]:
    """q, k_text, v_text, k_image, v_image as layers hand them over (heads are a view of (B, tokens, H * d)), boxes."""
    side, heads = CASES[case]
    image = DUMMY_TOKENS + PER_OBJECT * objects
    generator = torch.Generator().manual_seed(0)
    drawn = (
        torch.randn(batch, length, heads, WIDTH, generator=generator).transpose(1, 2).to(dtype)
        for length in (side * side, TEXT, TEXT, image, image)
    )
    return *drawn, boxes_of(objects, batch)


def named(what: str, case: str, objects: int, dtype: torch.dtype, threads: int, batch: int = 2) -> str:
    rows = f", batch {batch}" if batch != 2 else ""
    return f"{what}, {case}, {objects} objects, {str(dtype)[6:]}, {threads} threads{rows}"


@torch.no_grad()
@pytest.mark.parametrize("objects", OBJECTS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dtype", "batch", "rounds"), KINDS, ids=str)
@pytest.mark.parametrize("backend", USABLE)
def test_attention(
    compare: Callable[..., Any],
    backend: str,
    dtype: torch.dtype,
    batch: int,
    rounds: int,
    case: str,
    objects: int,
    threads: int,
) -> None:
    side, _ = CASES[case]
    q, k_text, v_text, k_image, v_image, boxes = inputs(case, objects, dtype, batch)
    mask = box_mask(boxes, (side, side), PER_OBJECT, 0)
    k_seen, v_seen = k_image[:, :, DUMMY_TOKENS:], v_image[:, :, DUMMY_TOKENS:] * 0.6

    def ours() -> torch.Tensor:
        return parallel_cross_attention(q, k_text, v_text, k_seen, v_seen, mask, backend)

    def baseline() -> torch.Tensor:
        return official(q, k_text, v_text, k_image, v_image, boxes, (side, side))

    torch.testing.assert_close(ours(), baseline(), rtol=0, atol=TOLERANCE[dtype])
    name = named(f"attention, {backend}", case, objects, dtype, threads, batch)
    compare(name, ours, baseline, rounds, memory=True)


@torch.no_grad()
@pytest.mark.thorough
@pytest.mark.parametrize("objects", OBJECTS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dtype", "batch", "rounds"), TWO_ROWS, ids=str)
def test_floor(
    compare: Callable[..., Any], dtype: torch.dtype, batch: int, rounds: int, case: str, objects: int, threads: int
) -> None:
    """The text branch by PyTorch's own attention: what would be left if the image branch cost nothing."""
    q, k_text, v_text, k_image, v_image, boxes = inputs(case, objects, dtype, batch)
    side, _ = CASES[case]

    def ours() -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q, k_text, v_text)

    def baseline() -> torch.Tensor:
        return official(q, k_text, v_text, k_image, v_image, boxes, (side, side))

    compare(named("floor, text alone", case, objects, dtype, threads), ours, baseline, rounds)


@torch.no_grad()
@pytest.mark.parametrize("objects", OBJECTS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dtype", "batch", "rounds"), TWO_ROWS, ids=str)
def test_layer(
    compare: Callable[..., Any], dtype: torch.dtype, batch: int, rounds: int, case: str, objects: int, threads: int
) -> None:
    side, heads = CASES[case]
    channels = heads * WIDTH
    torch.manual_seed(0)
    attention = Attention(channels, DEEP, heads=heads, dim_head=WIDTH)
    processor = ParallelCrossAttention("layer", channels, DEEP)
    attention.set_processor(processor)
    attention.to(dtype)
    hidden, text = torch.randn(batch, side * side, channels).to(dtype), torch.randn(batch, TEXT, DEEP).to(dtype)
    tokens = torch.randn(batch, DUMMY_TOKENS + PER_OBJECT * objects, DEEP).to(dtype)
    boxes, empty = boxes_of(objects, batch), torch.zeros(1)
    cached = Conditioning(
        prompt_embeds=text,
        pooled_prompt_embeds=empty,
        time_ids=empty,
        image=ImageBranch.build(tokens, boxes, [(side, side)], 0.6),
    )
    cached.projected["layer"] = processor.project(attention, text, cached)
    theirs = OfficialConditioning(
        prompt_embeds=text, pooled_prompt_embeds=empty, time_ids=empty, image_tokens=tokens, boxes=boxes, gamma=0.6
    )
    official_layer = OfficialCrossAttention(processor)

    def ours() -> torch.Tensor:
        return processor(attention, hidden, text, conditioning=cached)

    def baseline() -> torch.Tensor:
        return official_layer(attention, hidden, text, conditioning=theirs)

    torch.testing.assert_close(ours(), baseline(), rtol=0, atol=TOLERANCE[dtype])
    compare(named("layer", case, objects, dtype, threads), ours, baseline, rounds, memory=True)
