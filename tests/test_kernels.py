"""Every attention backend computes what the definition does."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rbctl.conditioning import box_cells, image_mask, latent_grids
from rbctl.kernels import BACKENDS, ImageMask, choose, parallel_cross_attention

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
USABLE = [
    (backend.name, device, dtype)
    for device in DEVICES
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
    for backend in BACKENDS
    if backend.why_not(torch.device(device), dtype) is None
]

boxes_in = st.tuples(*[st.floats(0, 1, width=32)] * 4).map(
    lambda c: (min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]), max(c[1], c[3]))
)


def case(
    seed: int, grid: tuple[int, int], boxes: list[tuple[float, ...]], head: int
) -> tuple[list[torch.Tensor], ImageMask]:
    generator = torch.Generator().manual_seed(seed)
    cells = box_cells(torch.tensor([boxes, [(0.0,) * 4] * len(boxes)]).reshape(2, len(boxes), 4), grid)
    mask = image_mask(cells, tokens_per_object=4, dummies=0)
    lengths = (grid[0] * grid[1], 7, 7, 4 * len(boxes), 4 * len(boxes))
    return [torch.randn(2, 3, n, head, generator=generator) for n in lengths], mask


def summed(inputs: list[torch.Tensor], mask: ImageMask) -> list[torch.Tensor]:
    """Of the output and each input's gradient, the sum of its terms' absolute values; the loss sums squared outputs."""
    q, k_text, v_text, k_image, v_image = inputs
    scale = q.shape[-1] ** -0.5
    text = (q @ k_text.mT * scale).softmax(-1)
    image = (q @ k_image.mT * scale).masked_fill(~mask.safe, float("-inf")).softmax(-1) * mask.covered
    out = text @ v_text.abs() + image @ v_image.abs()
    of_q, of_branches = torch.zeros_like(q), []
    for p, k, v in ((text, k_text, v_text), (image, k_image, v_image)):
        dp = 2 * out @ v.abs().mT
        ds = p * (dp + (p * dp).sum(-1, keepdim=True)) * scale
        of_q += ds @ k.abs()
        of_branches += [ds.mT @ q.abs(), p.mT @ (2 * out)]
    return [out, of_q, *of_branches]


@pytest.mark.parametrize(("name", "device", "dtype"), USABLE)
@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    boxes=st.lists(boxes_in, max_size=3),
    head=st.sampled_from([8, 16]),
)
@example(seed=0, grid=(2, 2), boxes=[(0.0, 0.0, 0.0, 0.0)], head=8)
@example(seed=0, grid=(3, 2), boxes=[], head=8)  # no objects, so no image tokens
@example(seed=179, grid=(1, 1), boxes=[(0.0, 0.0, 1.0, 1.0)], head=8)  # one query: what is rounded nearly cancels
def test_backends_agree_with_the_definition(
    name: str, device: str, dtype: torch.dtype, seed: int, grid: tuple[int, int], boxes: list, head: int
) -> None:
    """Error of a backend at most twice that of eager at the same precision, and rounding; gradients too."""
    inputs, mask = case(seed, grid, boxes, head)
    mask = mask.to(torch.device(device))

    def run(backend: str, wanted: torch.dtype) -> list[torch.Tensor]:
        parts = [t.to(device, dtype).to(wanted).detach().clone().requires_grad_() for t in inputs]
        out = parallel_cross_attention(*parts, mask, backend)
        out.double().square().sum().backward()
        return [out.detach(), *(p.grad for p in parts)]

    truth = run("eager", torch.float64)
    reference = run("eager", dtype)
    ours = run(name, dtype)
    sums = summed([t.to(device, dtype).double() for t in inputs], mask)
    for exact, plain, fast, terms in zip(truth, reference, ours, sums, strict=True):
        assert fast.shape == exact.shape
        if exact.numel():
            noise = float((plain.double() - exact).abs().max())
            # Score, probability and product are rounded, each by a share of eps of the terms and not of their sum: a
            # key of few queries has a gradient of p * (dp - mean dp), far smaller than the dp that were rounded.
            limit = 2 * noise + 3 * torch.finfo(dtype).eps * float(terms.max())
            assert float((fast.double() - exact).abs().max()) <= limit


@pytest.mark.parametrize(("name", "device", "dtype"), USABLE)
def test_a_query_in_no_box_gets_exactly_the_text_branch(name: str, device: str, dtype: torch.dtype) -> None:
    inputs, mask = case(0, (4, 4), [(0.0, 0.0, 0.5, 0.5)], 8)
    parts = [t.to(device, dtype) for t in inputs]
    moved = [*parts[:3], parts[3] + 5, parts[4] + 5]
    before, after = (parallel_cross_attention(*p, mask.to(torch.device(device)), backend=name) for p in (parts, moved))
    inside = mask.covered[0, 0, :, 0].to(device)
    assert torch.equal(before[0][:, ~inside], after[0][:, ~inside])
    assert not torch.equal(before[0][:, inside], after[0][:, inside])
    assert torch.equal(before[1], after[1])  # all its boxes are zero
    assert torch.isfinite(after).all()


def test_an_unusable_backend_says_why() -> None:
    with pytest.raises(ValueError, match="CUDA only"):
        choose(torch.device("cpu"), torch.float32, "xformers")
    with pytest.raises(ValueError, match="no attention backend"):
        choose(torch.device("cpu"), torch.float32, "flash")
    assert choose(torch.device("cpu"), torch.float32).name == "grouped"
    assert choose(torch.device("cpu"), torch.float32, plain=False).name == "sdpa"  # gradients, torch.compile
    assert choose(torch.device("cpu"), torch.float32, "grouped", plain=False).name == "grouped"


@pytest.mark.slow
@given(st.integers(1, 40), st.integers(1, 40), boxes_in)
def test_box_cells_follow_floor_and_ceil(h: int, w: int, box: tuple[float, ...]) -> None:
    x0, y0, x1, y1 = (torch.tensor(v) for v in box)
    cells = box_cells(torch.tensor(box), (h, w)).reshape(h, w)
    for row in range(h):
        for column in range(w):
            inside = torch.floor(x0 * w) <= column < torch.ceil(x1 * w) and torch.floor(y0 * h) <= row < torch.ceil(
                y1 * h
            )
            assert bool(cells[row, column]) == bool(inside)


def test_a_grid_is_told_by_its_number_of_cells() -> None:
    for size in ((16, 16), (13, 21), (1, 5), (96, 152)):
        grids = latent_grids(size, 3)
        assert len({h * w for h, w in grids}) == len(set(grids))
