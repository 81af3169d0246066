"""The attention alone at the shapes of SDXL's attn2 layers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention

from bench import official
from bench.full.clocks import device_seconds, peak, seconds
from bench.full.floors import attention_floor
from bench.full.results import Bench
from bench.full.sizes import BOXES, GAMMA, HEAD, PER_OBJECT, TEXT
from rbctl.conditioning import DUMMY_TOKENS, box_mask
from rbctl.kernels import parallel_cross_attention

WRONG = 0.1  # error, as a share of the largest value, from which a backend is broken and not merely rounding


class Inputs(NamedTuple):
    """Of one attn2 layer: q (B, H, Q, d); K and V of text and image (B, H, tokens, d); the output's gradient.

    ``*_seen`` are what ours reads: without the dummy tokens, gamma folded in.
    """

    q: torch.Tensor
    k_text: torch.Tensor
    v_text: torch.Tensor
    k_image: torch.Tensor
    v_image: torch.Tensor
    k_seen: torch.Tensor
    v_seen: torch.Tensor
    grad_out: torch.Tensor


class Case:
    """One shape of the attention, and every way to compute it."""

    def __init__(
        self, rows: int, side: int, heads: int, objects: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.shape = (rows, heads, side * side, objects)
        self.device, self.dtype, self.grid = device, dtype, (side, side)
        boxes = torch.tensor([BOXES[objects]], device=device).repeat(rows, 1, 1)
        boxes[: rows // 2] = 0  # as in guidance
        self.boxes, self.mask = boxes, box_mask(boxes, self.grid, PER_OBJECT, 0)
        # Several sets take turns: one alone would lie in the cache, which no layer of a UNet finds its input in.
        count = 1
        if device.type == "cuda":
            cache = torch.cuda.get_device_properties(device).L2_cache_size
            count = 1 + 4 * cache // (2 * rows * heads * side * side * HEAD * dtype.itemsize)
        self.sets = [self._draw() for _ in range(count)]

    def _draw(self) -> Inputs:
        rows, heads, queries, objects = self.shape
        image = DUMMY_TOKENS + PER_OBJECT * objects
        # As layers hand them over: heads are a view of (B, tokens, H * d).
        q, k_text, v_text, k_image, v_image, grad_out = (
            torch.randn(rows, length, heads, HEAD, device=self.device, dtype=self.dtype).transpose(1, 2)
            for length in (queries, TEXT, TEXT, image, image, queries)
        )
        seen = k_image[:, :, DUMMY_TOKENS:], v_image[:, :, DUMMY_TOKENS:] * GAMMA
        return Inputs(q, k_text, v_text, k_image, v_image, *seen, grad_out)

    def ways(self, backends: Sequence[str]) -> dict[str, Callable[[Inputs], list[torch.Tensor]]]:
        """Name -> outputs; the baseline first."""

        def by_official(x: Inputs) -> list[torch.Tensor]:
            kv = (x.k_text, x.v_text, x.k_image, x.v_image)
            return [official.parallel_cross_attention(x.q, *kv, self.boxes, self.grid, GAMMA)]

        def by_two_calls(x: Inputs) -> list[torch.Tensor]:
            pairs = ((x.k_text, x.v_text), (x.k_seen, x.v_seen))
            return [scaled_dot_product_attention(x.q, *pair) for pair in pairs]

        def by_backend(name: str, x: Inputs) -> list[torch.Tensor]:
            kv = (x.k_text, x.v_text, x.k_seen, x.v_seen)
            return [parallel_cross_attention(x.q, *kv, self.mask, name)]

        ours = {name: functools.partial(by_backend, name) for name in backends}
        return {"official way": by_official, "two plain SDPA calls": by_two_calls, **ours}

    def run(self, way: Callable[[Inputs], list[torch.Tensor]], x: Inputs, backward: bool) -> Sequence[torch.Tensor]:
        """The output, or with ``backward`` the gradients of q, k_text and v_text: those that reach the LoRA."""
        if not backward:
            return way(x)
        x = x._replace(**{name: getattr(x, name).detach().requires_grad_() for name in ("q", "k_text", "v_text")})
        outputs = way(x)
        return torch.autograd.grad(outputs, (x.q, x.k_text, x.v_text), [x.grad_out] * len(outputs))

    @functools.cached_property
    def truth(self) -> dict[bool, Sequence[torch.Tensor]]:
        """Results on the first set by the definition in float64, without and with the backward pass."""
        first = self.sets[0]
        wide = Inputs(*(tensor.double() for tensor in first))
        wide = wide._replace(v_seen=wide.v_image[:, :, DUMMY_TOKENS:] * GAMMA)

        def defined(x: Inputs) -> list[torch.Tensor]:
            return [parallel_cross_attention(x.q, x.k_text, x.v_text, x.k_seen, x.v_seen, self.mask, "eager")]

        return {backward: self.run(defined, wide, backward) for backward in (False, True)}

    def error(self, results: Sequence[torch.Tensor], backward: bool) -> float:
        """Largest error of any result, as a share of the largest value it should have."""
        pairs = zip(results, self.truth[backward], strict=True)
        return max(float((result.double() - exact).abs().max() / exact.abs().max()) for result, exact in pairs)


def measure(bench: Bench) -> None:
    """One attn2 layer's attention without its projections: every backend against the official processor's way.

    "ms" is on the device alone, "ms as called" with the launches of a Python that has nothing else to do.
    """
    for name, (side, heads) in bench.scale.grids.items():
        for rows in bench.scale.rows:
            for objects in BOXES:
                case = Case(rows, side, heads, objects, bench.device, bench.dtype)
                for backward in (False, True):
                    what = f"{name}, B {rows}, {objects} objects, {'forward + backward' if backward else 'forward'}"
                    _ways(bench, case, what, backward)


def _ways(bench: Bench, case: Case, what: str, backward: bool) -> None:
    rows, heads, queries, objects = case.shape
    floor = attention_floor(rows, heads, queries, objects, case.dtype.itemsize, backward)
    seconds_by_way: dict[str, float] = {}
    for way, function in case.ways(bench.backends).items():
        calls = [functools.partial(case.run, function, x, backward) for x in case.sets]
        with bench.row("attention", what, way=way) as row:
            calls[0]()  # libraries take their workspace at the first call
            before = torch.cuda.memory_allocated() if bench.device.type == "cuda" else 0
            results, most = peak(calls[0], bench.device)
            if most is not None:
                row["extra peak MB"] = (most - before) / 1e6
            if way != "two plain SDPA calls":  # these are no way to compute it, only to see what it costs
                row["max error"] = case.error(results, backward)
                if not row["max error"] < WRONG:
                    raise ArithmeticError("wrong results")
            del results
            row["ms as called"] = seconds(calls[0], bench.device, bench.scale.rounds) * 1e3
            seconds_by_way[way] = device_seconds(calls, bench.device, bench.scale.rounds)
            row["ms"] = seconds_by_way[way] * 1e3
            for other, title in (("official way", "x official"), ("two plain SDPA calls", "x two SDPA")):
                if other in seconds_by_way:
                    row[title] = seconds_by_way[other] / seconds_by_way[way]
            row["of memory floor"] = floor.bytes / bench.rates.bandwidth / seconds_by_way[way]
