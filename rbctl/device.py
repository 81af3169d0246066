"""Where to run, and in which precision."""

from __future__ import annotations

import os
from typing import Literal

import torch

from rbctl.errors import InputError
from rbctl.kernels import choose

Precision = Literal["fp32", "bf16", "fp16"]

DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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
    """Precision of the products of a training whose weights stay float32.

    ``auto`` is bf16 on CUDA and on CPUs that multiply it; others only emulate it, which is slower than float32.
    """
    if wanted != "auto":
        return wanted  # type: ignore[return-value]
    features = torch.cpu.get_capabilities()
    fast = device.type == "cuda" or features.get("avx512_bf16") or features.get("amx_bf16")
    return "bf16" if fast else "fp32"


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
