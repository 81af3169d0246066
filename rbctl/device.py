"""Where to run, and in which precision."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
from torch import nn

from rbctl.errors import InputError
from rbctl.kernels import choose

Precision = Literal["fp32", "bf16", "fp16", "mixed"]

# Of the weights; "mixed" is float32 ones whose products are in bf16.
DTYPES: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "mixed": torch.float32,
}


def pick_device(wanted: str) -> torch.device:
    """``auto`` is CUDA where there is one.

    Raises:
        InputError: CUDA is asked for and there is none.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: this machine has no usable CUDA device; 'rbctl doctor' shows what there is")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def pick_precision(wanted: str, device: torch.device) -> Precision:
    """``auto`` is bf16 on CUDA and fp32 on the CPU."""
    if wanted == "auto":
        return "bf16" if device.type == "cuda" else "fp32"
    return wanted  # type: ignore[return-value]


def pick_training_precision(wanted: str, device: torch.device) -> Precision:
    """For a training whose weights are float32.

    ``auto`` is mixed on CUDA and on CPUs that multiply bf16; others only emulate it, which is slower than float32.
    """
    if wanted != "auto":
        return wanted  # type: ignore[return-value]
    features = torch.cpu.get_capabilities()
    fast = device.type == "cuda" or features.get("avx512_bf16") or features.get("amx_bf16")
    return "mixed" if fast else "fp32"


def pick_tuning_precision(wanted: str, device: torch.device) -> Precision:
    """For a training of few weights beside frozen ones, in small steps.

    ``auto`` is bf16 on CUDA and mixed on CPUs with AMX. With AVX-512 BF16 alone, mixed was slower than float32.
    """
    if wanted != "auto":
        return wanted  # type: ignore[return-value]
    if device.type == "cuda":
        return "bf16"
    return "mixed" if torch.cpu.get_capabilities().get("amx_bf16") else "fp32"


def pick_attention(wanted: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """The backend's name for :func:`rbctl.kernels.parallel_cross_attention`, None for the best usable one.

    ``auto`` is the one that $RBCTL_ATTENTION names, if it names any.

    Raises:
        InputError: the backend asked for cannot be used here; who asked and the reason are told.
    """
    asked = f"--attention {wanted}"
    if wanted == "auto":
        wanted = os.environ.get("RBCTL_ATTENTION") or "auto"
        asked = f"RBCTL_ATTENTION={wanted}"
    if wanted == "auto":
        return None
    try:
        return choose(device, dtype, wanted).name
    except ValueError as error:
        raise InputError(f"{asked}: {error}") from error


@contextlib.contextmanager
def products_in_bf16(modules: Iterable[nn.Module], device: torch.device, enabled: bool) -> Iterator[None]:
    """Compute forward passes of modules in bf16, and with them the backward ones; the weights stay float32.

    On CUDA all that autocast knows. On a CPU the linear and convolution layers alone: there the backward passes of
    attention and GroupNorm are four times slower in bf16 than in float32.
    """
    if not enabled or device.type == "cuda":
        with torch.autocast(device.type, torch.bfloat16, enabled=enabled):
            yield
        return
    layers = [x for module in modules for x in module.modules() if isinstance(x, nn.Linear | nn.Conv2d)]
    classes: list[Any] = [type(layer) for layer in layers]
    for layer, own in zip(layers, classes, strict=True):
        layer.__class__ = _through_bf16(own)
    try:
        yield
    finally:
        for layer, own in zip(layers, classes, strict=True):
            layer.__class__ = own


class _ThroughBf16(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            y: torch.Tensor = super().forward(x)
            return y.float()


@functools.cache  # torch.compile compiles anew for every class
def _through_bf16(own: Any) -> Any:
    return type(own.__name__, (_ThroughBf16, own), {})
