"""Both branches in one Triton kernel (CUDA), forward and backward: every query is read once."""

from __future__ import annotations

from typing import Any

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch.autograd.function import once_differentiable

from rbctl.kernels import fused_kernels
from rbctl.kernels.image_mask import Branch, ImageMask

LARGEST_HEAD = 128
BLOCK_KEYS = 32  # 77 text tokens and 16 per object: little padding
CHUNK = 512  # queries whose part of the gradient of K and V one program sums up
DOT_DTYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}
# Triton's CPU interpreter (TRITON_INTERPRET=1) multiplies bfloat16 matrices wrongly.
INTERPRETED = not isinstance(fused_kernels.forward, triton.JITFunction)


def _mask_arguments(mask: ImageMask, batch: int, queries: int, tokens: int) -> dict[str, Any]:
    """What the kernels want to know of the mask; a mask of one row serves all rows.

    Raises:
        RuntimeError: the mask is not one of these queries and tokens.
    """
    attend = mask.attend.expand(batch, 1, queries, tokens)
    common = {"attend": None, "attend_strides": None, "ranges": None, "objects": 0, "width": 1, "tokens": 1}
    if mask.boxes is None:
        regions = {"attend": attend.view(torch.uint8), "attend_strides": attend.stride()}
        return {**common, **regions, "DUMMIES": 0, "KIND": "regions"}
    boxes = mask.boxes
    ranges = boxes.ranges.expand(batch, -1, -1).contiguous()  # a few numbers
    if boxes.dummies + ranges.shape[1] * boxes.tokens_per_object != tokens:
        raise RuntimeError(f"the mask's boxes speak of other tokens than the {tokens} given")
    return {
        **common,
        "ranges": ranges,
        "objects": ranges.shape[1],
        "width": boxes.width,
        "tokens": max(1, boxes.tokens_per_object),
        "DUMMIES": boxes.dummies,
        "KIND": "boxes",
    }


def _sizes(q: torch.Tensor) -> dict[str, Any]:
    width = q.shape[-1]
    return {
        "scale": width**-0.5,
        "heads": q.shape[1],
        "query_count": q.shape[2],
        "D": width,
        "BLOCK_D": max(16, triton.next_power_of_2(width)),
        "BLOCK_Q": 64 if q.dtype.itemsize == 2 else 32,
        "BLOCK_K": BLOCK_KEYS,
        "DTYPE": tl.float32 if INTERPRETED else DOT_DTYPES[q.dtype],
    }


def _key_gradients(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    grad_out: torch.Tensor,
    lse: torch.Tensor,
    delta: torch.Tensor,
    want_k: bool,
    want_v: bool,
    mask: dict[str, Any],
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Gradients of one branch's K and V: each chunk of queries gives a part, added up in the same order every time."""
    if not (want_k or want_v):
        return None, None
    batch, heads, queries, _ = q.shape
    chunks = triton.cdiv(queries, CHUNK)
    k_parts, v_parts = (
        torch.empty(chunks, *k.shape, device=k.device, dtype=torch.float32) if wanted else None
        for wanted in (want_k, want_v)
    )
    parts = k_parts if k_parts is not None else v_parts
    if parts is not None and parts.numel():
        fused_kernels.backward_keys[(triton.cdiv(k.shape[2], BLOCK_KEYS), chunks, batch * heads)](
            q, k, v, grad_out, lse, delta, k_parts, v_parts,
            q.stride(), k.stride(), v.stride(), grad_out.stride(), parts.stride(),
            key_count=k.shape[2],
            CHUNK=CHUNK,
            WANT_K=want_k,
            WANT_V=want_v,
            **_sizes(q),
            **mask,
        )  # fmt: skip
    return (
        None if k_parts is None else k_parts.sum(0).to(k.dtype),
        None if v_parts is None else v_parts.sum(0).to(v.dtype),
    )


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k_text: torch.Tensor,
        v_text: torch.Tensor,
        k_image: torch.Tensor,
        v_image: torch.Tensor,
        mask: ImageMask,
    ) -> torch.Tensor:
        batch, heads, queries, _ = q.shape
        out = torch.empty_like(q)
        lse = None
        if any(ctx.needs_input_grad):
            lse = torch.empty(2, batch, heads, queries, device=q.device, dtype=torch.float32)
            ctx.save_for_backward(q, k_text, v_text, k_image, v_image, lse)
            ctx.mask = mask
        sizes = _sizes(q)
        if out.numel():
            with torch.cuda.device_of(q):
                fused_kernels.forward[(triton.cdiv(queries, sizes["BLOCK_Q"]), batch * heads)](
                    q, k_text, v_text, k_image, v_image, out, lse,
                    q.stride(), k_text.stride(), v_text.stride(), k_image.stride(), v_image.stride(), out.stride(),
                    text_count=k_text.shape[2],
                    image_count=k_image.shape[2],
                    **sizes,
                    **_mask_arguments(mask, batch, queries, k_image.shape[2]),
                )  # fmt: skip
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k_text, v_text, k_image, v_image, lse = ctx.saved_tensors
        want_q, want_k_text, want_v_text, want_k_image, want_v_image, _ = ctx.needs_input_grad
        batch, heads, queries, _ = q.shape
        mask = _mask_arguments(ctx.mask, batch, queries, k_image.shape[2])
        sizes = _sizes(q)
        delta = torch.empty_like(lse)
        grad_q = torch.empty_like(q) if want_q else None
        with torch.cuda.device_of(q):
            if q.numel() and (want_q or want_k_text or want_k_image):
                fused_kernels.backward_queries[(triton.cdiv(queries, sizes["BLOCK_Q"]), batch * heads)](
                    q, k_text, v_text, k_image, v_image, grad_out, lse, delta, grad_q,
                    q.stride(), k_text.stride(), v_text.stride(), k_image.stride(), v_image.stride(),
                    grad_out.stride(), None if grad_q is None else grad_q.stride(),
                    text_count=k_text.shape[2],
                    image_count=k_image.shape[2],
                    WANT_Q=want_q,
                    **sizes,
                    **mask,
                )  # fmt: skip
            text = _key_gradients(
                q, k_text, v_text, grad_out, lse[0], delta[0], want_k_text, want_v_text, {**mask, "KIND": "text"}
            )
            image = _key_gradients(q, k_image, v_image, grad_out, lse[1], delta[1], want_k_image, want_v_image, mask)
        return (grad_q, *text, *image, None)


def parallel_cross_attention(q: torch.Tensor, text: Branch, image: Branch, mask: ImageMask) -> torch.Tensor:
    """See :func:`rbctl.kernels.parallel_cross_attention`. The tensors may have any strides; nothing is copied.

    Where boxes decide the mask, they are tested cell by cell and no mask is read; keys of an object that a block of
    queries does not touch are not read either. The gradient has no gradient of its own.

    Raises:
        ValueError: shapes that do not fit, or a dtype or head width that the kernel does not take.
    """
    for name, (k, v) in {"text": text, "image": image}.items():
        if k.shape != v.shape or k.shape != (*q.shape[:2], k.shape[2], q.shape[3]):
            shapes = ", ".join(str(tuple(t.shape)) for t in (q, k, v))
            raise ValueError(f"q, k and v of the {name} branch do not fit: {shapes}")
    if q.dtype not in DOT_DTYPES:
        raise ValueError(f"the triton kernel does not take {q.dtype}")
    if q.shape[-1] > LARGEST_HEAD:
        raise ValueError(f"the triton kernel takes heads of at most {LARGEST_HEAD} channels, got {q.shape[-1]}")
    return _Fused.apply(q, *text, *image, mask)
