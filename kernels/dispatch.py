"""One public function, and which backend serves it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from rbctl.kernels import eager, grouped, memory_efficient, sdpa
from rbctl.kernels.image_mask import ImageMask


def _always(device: torch.device, dtype: torch.dtype) -> str | None:
    return None


def _cpu_only(device: torch.device, dtype: torch.dtype) -> str | None:
    # Elsewhere its many small calls cost more than the mask does.
    return None if device.type == "cpu" else "grouped is for the CPU"


@functools.cache
def _xformers_import() -> str | None:
    import logging

    logging.getLogger("xformers").setLevel(logging.ERROR)  # it warns of C++ operators that this backend does not use
    try:
        import xformers.ops  # noqa: F401
    except ImportError as error:
        return f"xformers cannot be imported ({error}); pip install xformers"
    return None


def _not_for(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cuda":
        return f"{name} runs on CUDA only"
    if dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"{name} does not take {dtype}"
    return None


def _xformers_why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    if reason := _not_for("xformers", device, dtype) or _xformers_import():
        return reason
    if torch.version.hip is None and torch.cuda.get_device_capability(device) > (9, 0):
        return "its kernel for an additive bias ends at compute capability 9.0"
    return None


@functools.cache
def _triton_import() -> str | None:
    try:
        import triton  # type: ignore[import-untyped]
    except ImportError as error:
        return f"triton cannot be imported ({error})"
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 3):
        return f"triton {triton.__version__} is too old, 3.3 is needed"  # tuples as kernel arguments
    return None


def _triton_why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    if reason := _not_for("triton", device, dtype) or _triton_import():
        return reason
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
        return "triton needs compute capability 8.0"
    return None


def _triton(*arguments: Any) -> torch.Tensor:
    from rbctl.kernels import fused  # triton is imported when it is used

    return fused.parallel_cross_attention(*arguments)


@dataclass(frozen=True)
class Backend:
    """One way to compute the same thing.

    Attributes:
        why_not: called with device and dtype; None where it can be used, else the reason.
        plain_only: never the default with gradients (its backward pass is slower than that of the next) or under
            torch.compile (its loops over groups of queries break the program).
    """

    name: str
    call: Callable[..., torch.Tensor]
    why_not: Callable[[torch.device, torch.dtype], str | None]
    plain_only: bool = False


# In order of preference. triton becomes the first once it has been measured.
BACKENDS = (
    Backend("grouped", grouped.parallel_cross_attention, _cpu_only, plain_only=True),
    Backend("sdpa", sdpa.parallel_cross_attention, _always),
    Backend("xformers", memory_efficient.parallel_cross_attention, _xformers_why_not),
    Backend("triton", _triton, _triton_why_not),
    Backend("eager", eager.parallel_cross_attention, _always),
)


def choose(device: torch.device, dtype: torch.dtype, requested: str | None = None, plain: bool = True) -> Backend:
    """The first usable backend, or the requested one.

    Args:
        plain: neither gradients nor torch.compile are wanted.

    Raises:
        ValueError: the requested backend does not exist, or cannot serve this device and dtype; the reason is told.
    """
    if requested is None:
        return next(b for b in BACKENDS if b.why_not(device, dtype) is None and (plain or not b.plain_only))
    for backend in BACKENDS:
        if backend.name == requested:
            if reason := backend.why_not(device, dtype):
                raise ValueError(f"attention backend {requested!r} cannot be used: {reason}")
            return backend
    raise ValueError(f"no attention backend {requested!r}; there are {', '.join(b.name for b in BACKENDS)}")


def parallel_cross_attention(
    q: torch.Tensor,
    k_text: torch.Tensor,
    v_text: torch.Tensor,
    k_image: torch.Tensor,
    v_image: torch.Tensor,
    mask: ImageMask,
    backend: str | None = None,
) -> torch.Tensor:
    """Text attention plus masked image attention with one query (parallel cross-attention of MS-Diffusion).

    Equivalent code::

        text = softmax(q @ k_text.mT / sqrt(d)) @ v_text
        image = softmax(q @ k_image.mT / sqrt(d) + where(attend, 0, -inf)) @ v_image
        return text + where(covered, image, 0)

    The weight of the image branch (gamma, or one scale per object) is linear in ``v_image``: the caller folds it in,
    once per prompt.

    Args:
        q: (B, H, Q, d).
        k_text, v_text: (B, H, T, d).
        k_image, v_image: (B, H, M, d).
        mask: which image tokens each query may attend to; a query that may attend to none gets exactly zero.
        backend: a name of BACKENDS, or None for the best usable one.

    Returns:
        (B, H, Q, d) in the dtype of ``q``.
    """
    learns = torch.is_grad_enabled() and any(t.requires_grad for t in (q, k_text, v_text, k_image, v_image))
    plain = not learns and not torch.compiler.is_compiling()
    return choose(q.device, q.dtype, backend, plain).call(q, (k_text, v_text), (k_image, v_image), mask)
