"""The fused Triton kernel computes what the definition does: on CUDA as it is, else in Triton's CPU interpreter.

Triton decides when it is imported whether it interprets, so that the interpreter has a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rbctl.conditioning import box_cells, box_mask, box_ranges
from rbctl.kernels import BACKENDS, ImageMask, choose, eager

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED or not torch.cuda.is_available() else "cuda")
RUNS_HERE = find_spec("triton") is not None and (INTERPRETED or DEVICE.type == "cuda")

kernel = pytest.mark.skipif(not RUNS_HERE, reason="wants CUDA or Triton's interpreter")

Box = tuple[float, float, float, float]
ABSENT, FULL, ONE_CELL = (0.0,) * 4, (0.0, 0.0, 1.0, 1.0), (0.5, 0.5, 0.51, 0.51)
LEFT, MIDDLE = (0.0, 0.0, 0.5, 1.0), (0.25, 0.25, 0.75, 0.75)
any_box = st.tuples(*[st.floats(0, 1, width=32)] * 4).map(
    lambda c: (min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]), max(c[1], c[3]))
)


@pytest.mark.slow
@pytest.mark.skipif(RUNS_HERE or find_spec("triton") is None, reason="no interpreter needed, or no triton")
def test_in_the_interpreter(tmp_path: Path) -> None:
    """The other tests of this file."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", __file__],
        cwd=tmp_path,  # the root of the checkout must not be on the path
        env={**ours, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(RUNS_HERE or find_spec("triton") is None, reason="the kernel itself runs, or no triton")
@pytest.mark.parametrize(("regions", "dummies"), [(False, 0), (False, 4), (True, 0)])
def test_triton_accepts_every_kernel(monkeypatch: pytest.MonkeyPatch, regions: bool, dummies: int) -> None:
    """The interpreter lets pass what Triton's compiler refuses: compile, as far as its first form, for a card."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler.compiler import ASTSource
    from triton.runtime.driver import driver
    from triton.runtime.jit import JITFunction

    class Card:
        get_current_device = staticmethod(lambda: 0)
        get_current_stream = staticmethod(lambda device: 0)
        get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))

    class Enough(Exception):
        pass

    accepted = []
    make_ir, launch = ASTSource.make_ir, JITFunction.run

    def first_form(source: Any, *arguments: Any, **options: Any) -> None:
        make_ir(source, *arguments, **options)
        accepted.append(source.fn.fn.__name__)
        raise Enough

    def run_nothing(function: Any, *arguments: Any, warmup: bool, **options: Any) -> None:
        with pytest.raises(Enough):
            launch(function, *arguments, warmup=True, **options)

    monkeypatch.setattr(ASTSource, "make_ir", first_form)
    monkeypatch.setattr(JITFunction, "run", run_nothing)
    monkeypatch.setattr(driver, "_active", Card())
    mask = box_mask(torch.tensor([[LEFT, MIDDLE]]), (8, 8), 16, dummies)
    if regions:
        mask = ImageMask.build(mask.attend[:, 0])
    parts = [part.bfloat16() for part in inputs(0, 1, 2, (64, 77, 32 + dummies), 64, "heads inside")]
    queries, keys = "backward_queries", "backward_keys"
    for wanted, backward in (((0, 1, 2, 3, 4), [queries, keys, keys]), ((0,), [queries]), ((4,), [keys])):
        accepted.clear()
        some = [part.detach().requires_grad_(index in wanted) for index, part in enumerate(parts)]
        fused(*some, mask).sum().backward()
        assert accepted == ["forward", *backward]
    accepted.clear()
    fused(*parts, mask)
    assert accepted == ["forward"]


@contextmanager
def poison() -> Iterator[None]:
    """torch.empty gives NaN: an element that is not written shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.empty(3).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def inputs(
    seed: int, batch: int, heads: int, lengths: tuple[int, int, int], width: int, layout: str = "plain"
) -> list[torch.Tensor]:
    """q, K and V of the text, K and V of the image, (B, H, length, width) float32."""
    generator = torch.Generator().manual_seed(seed)
    queries, text, image = lengths

    def one(length: int) -> torch.Tensor:
        if layout == "heads inside":  # as projections give them
            return torch.randn(batch, length, heads, width, generator=generator).transpose(1, 2)
        if layout == "every other":
            return torch.randn(batch, heads, length, 2 * width, generator=generator)[..., ::2]
        if layout == "one for all rows":
            return torch.randn(1, heads, length, width, generator=generator).expand(batch, -1, -1, -1)
        return torch.randn(batch, heads, length, width, generator=generator)

    return [one(length) for length in (queries, text, text, image, image)]


def fused(q: Any, k_text: Any, v_text: Any, k_image: Any, v_image: Any, mask: ImageMask) -> torch.Tensor:
    from rbctl.kernels import fused as module

    return module.parallel_cross_attention(q, (k_text, v_text), (k_image, v_image), mask)


def defined(q: Any, k_text: Any, v_text: Any, k_image: Any, v_image: Any, mask: ImageMask) -> torch.Tensor:
    return eager.parallel_cross_attention(q, (k_text, v_text), (k_image, v_image), mask)


def run(function: Any, parts: list[torch.Tensor], mask: ImageMask) -> list[torch.Tensor]:
    """The output and the gradients of all inputs, on the CPU in float64."""
    parts = [part.detach().requires_grad_() for part in parts]
    out = function(*parts, mask)
    weights = torch.linspace(-1, 1, out.shape[-1], dtype=out.dtype, device=out.device)
    (out * (weights + out)).sum().backward()
    return [t.detach().cpu().double() for t in (out, *(p.grad if p.grad is not None else p for p in parts))]


def check(parts: list[torch.Tensor], mask: ImageMask, dtype: torch.dtype) -> None:
    """Error of the kernel at most twice that of eager at the same precision."""
    parts = [part.to(dtype) for part in parts]
    truth = run(defined, [part.double() for part in parts], mask)
    reference = run(defined, parts, mask)
    with poison():
        ours = run(fused, [part.to(DEVICE) for part in parts], mask.to(DEVICE))
    margin = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}[dtype]
    for exact, plain, fast in zip(truth, reference, ours, strict=True):
        if exact.numel():
            limit = 2 * (plain - exact).abs().max() + margin * (exact.abs().max() + 1e-3)
            assert (fast - exact).abs().max() <= limit  # false for NaN


@kernel
@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 20), (torch.bfloat16, 64), (torch.float16, 128)])
@settings(max_examples=5, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    shape=st.sampled_from([(1, 1), (1, 2), (2, 1)]),
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    boxes=st.lists(any_box | st.sampled_from([ABSENT, FULL, ONE_CELL, LEFT, MIDDLE]), max_size=3),
    text=st.sampled_from([0, 1, 7, 40]),
    per_object=st.sampled_from([1, 5, 16]),
    dummies=st.sampled_from([0, 4]),
    regions=st.booleans(),
    layout=st.sampled_from(["plain", "heads inside", "every other", "one for all rows"]),
)
@example(0, (2, 1), (6, 7), [LEFT, ABSENT, MIDDLE], 40, 16, 4, False, "heads inside")
@example(1, (1, 2), (7, 6), [ONE_CELL, LEFT], 33, 5, 0, True, "every other")
@example(2, (1, 1), (3, 3), [], 7, 4, 0, False, "plain")
@example(2, (1, 1), (3, 3), [], 7, 4, 0, True, "plain")
@example(3, (1, 1), (3, 3), [], 0, 4, 4, False, "plain")
def test_the_kernel_agrees_with_the_definition(
    dtype: torch.dtype,
    width: int,
    seed: int,
    shape: tuple[int, int],
    grid: tuple[int, int],
    boxes: list[Box],
    text: int,
    per_object: int,
    dummies: int,
    regions: bool,
    layout: str,
) -> None:
    batch, heads = shape
    rows = torch.tensor([boxes, boxes[::-1]][:batch]).reshape(batch, len(boxes), 4)
    mask = box_mask(rows, grid, per_object, dummies)
    if regions:
        mask = ImageMask.build(mask.attend[:, 0])
    lengths = (grid[0] * grid[1], text, mask.attend.shape[-1])
    check(inputs(seed, batch, heads, lengths, width, layout), mask, dtype)


@kernel
def test_all_rows_and_heads_and_several_chunks_of_queries() -> None:
    mask = box_mask(torch.tensor([[LEFT, MIDDLE], [ABSENT, ONE_CELL]]), (5, 5), 4, 0)
    check(inputs(0, 2, 2, (25, 7, 8), 8, "heads inside"), mask, torch.float32)
    one_for_both = box_mask(torch.tensor([[LEFT, MIDDLE]]), (5, 5), 4, 0)
    check(inputs(0, 2, 1, (25, 7, 8), 8), one_for_both, torch.float32)
    mask = box_mask(torch.tensor([[MIDDLE]]), (23, 23), 3, 0)
    check(inputs(1, 1, 1, (23 * 23, 5, 3), 16), mask, torch.bfloat16)


@kernel
@pytest.mark.parametrize("regions", [False, True])
def test_a_query_in_no_box_gets_exactly_the_text_branch(regions: bool) -> None:
    mask = box_mask(torch.tensor([[(0.0, 0.0, 1.0, 0.25)]]), (10, 10), 4, 0)  # rows 0 to 2, in the first block
    if regions:
        mask = ImageMask.build(mask.attend[:, 0])
    parts = [part.to(DEVICE) for part in inputs(0, 1, 1, (100, 7, 4), 16)]
    nobody = ImageMask.build(torch.zeros(1, 100, 0, dtype=torch.bool)).to(DEVICE)
    text = fused(*parts[:3], parts[3][:, :, :0], parts[4][:, :, :0], nobody)
    both = fused(*parts, mask.to(DEVICE))
    assert torch.equal(both[:, :, 30:], text[:, :, 30:])
    assert (both[:, :, :30] != text[:, :, :30]).any(-1).all()
    poisoned = [*parts[:3], *(torch.full_like(part, float("nan")) for part in parts[3:])]
    assert torch.equal(fused(*poisoned, mask.to(DEVICE))[:, :, 64:], text[:, :, 64:])  # image keys are not even read


@kernel
@pytest.mark.parametrize("wanted", [(0,), (1,), (4,), (2, 3)])
def test_only_the_gradients_wanted(wanted: tuple[int, ...]) -> None:
    mask = box_mask(torch.tensor([[MIDDLE]]), (4, 4), 4, 0)
    parts = inputs(0, 1, 1, (16, 5, 4), 16)
    every = run(fused, [part.to(DEVICE) for part in parts], mask.to(DEVICE))
    some = [part.to(DEVICE).requires_grad_(index in wanted) for index, part in enumerate(parts)]
    with poison():
        out = fused(*some, mask.to(DEVICE))
        weights = torch.linspace(-1, 1, 16, device=DEVICE)
        (out * (weights + out)).sum().backward()
    for index, part in enumerate(some):
        if index in wanted:
            assert part.grad is not None
            assert torch.equal(part.grad.cpu().double(), every[1 + index])
        else:
            assert part.grad is None


@kernel
def test_what_the_kernel_does_not_take() -> None:
    mask = box_mask(torch.tensor([[FULL]]), (2, 2), 4, 0).to(DEVICE)
    parts = [part.to(DEVICE) for part in inputs(0, 1, 1, (4, 3, 4), 16)]
    with pytest.raises(ValueError, match="at most 128 channels, got 136"):
        fused(*(part.expand(1, 1, -1, 16).repeat(1, 1, 1, 9)[..., :136] for part in parts), mask)
    with pytest.raises(ValueError, match="float64"):
        fused(*(part.double() for part in parts), mask)
    with pytest.raises(ValueError, match="of the text branch do not fit"):
        fused(parts[0], parts[1][..., :8], *parts[2:], mask)
    with pytest.raises(RuntimeError, match=r"expand|speak of other tokens"):
        fused(*parts[:3], parts[3][:, :, :2], parts[4][:, :, :2], mask)
    with torch.no_grad():
        assert fused(*(part.requires_grad_() for part in parts), mask).grad_fn is None


@given(
    st.tuples(st.integers(1, 30), st.integers(1, 30)),
    st.lists(st.tuples(*[st.floats(-0.5, 1.5, width=32)] * 4) | any_box | st.just(ABSENT), max_size=4),
    st.integers(0, 4),
)
def test_the_numbers_of_a_box_mask_say_what_the_mask_does(
    grid: tuple[int, int], boxes: list[Box], dummies: int
) -> None:
    given_boxes = torch.tensor(boxes).reshape(1, len(boxes), 4)
    mask = box_mask(given_boxes, grid, 3, dummies).to(torch.device("cpu"))
    numbers = mask.boxes
    assert numbers is not None
    assert (numbers.width, numbers.tokens_per_object, numbers.dummies) == (grid[1], 3, dummies)
    assert numbers.ranges.dtype == torch.int32
    assert torch.equal(numbers.ranges, box_ranges(given_boxes, grid))
    seen = torch.zeros(len(boxes), *grid, dtype=torch.bool)
    for index, (first_column, first_row, end_column, end_row) in enumerate(numbers.ranges[0].tolist()):
        assert 0 <= first_column <= grid[1] and 0 <= end_column <= grid[1]  # noqa: PT018
        assert 0 <= first_row <= grid[0] and 0 <= end_row <= grid[0]  # noqa: PT018
        seen[index, first_row:end_row, first_column:end_column] = True
    assert torch.equal(seen.flatten(1), box_cells(given_boxes, grid)[0])
    assert torch.equal(mask.attend[0, 0, :, dummies:], seen.flatten(1).T.repeat_interleave(3, dim=1))
    assert torch.equal(
        mask.attend[0, 0, :, :dummies].all(1) if dummies else ~seen.flatten(1).any(0), ~seen.any(0).flatten()
    )


def test_triton_says_where_it_cannot_serve_and_is_not_preferred_yet() -> None:
    with pytest.raises(ValueError, match="CUDA only"):
        choose(torch.device("cpu"), torch.float32, "triton")
    backend = next(backend for backend in BACKENDS if backend.name == "triton")
    assert "float64" in str(backend.why_not(torch.device("cuda"), torch.float64))
    names = [backend.name for backend in BACKENDS]
    assert names.index("triton") > max(names.index("sdpa"), names.index("xformers"))
