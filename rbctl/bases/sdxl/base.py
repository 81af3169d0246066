"""A folder of SDXL with adapter -> the loaded bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rbctl.bases import Summary
from rbctl.bundle import config
from rbctl.bundle import load as loader
from rbctl.bundle.bundle import Bundle
from rbctl.files import read_object
from rbctl.schedulers import make_scheduler


def load(folder: Path, device: torch.device, dtype: torch.dtype, **options: Any) -> Bundle:
    """Args: options: as of :func:`rbctl.bases.load.load`."""
    return loader.load(str(folder), device, dtype, **options)


def summary(folder: Path) -> Summary:
    return config.summary(folder)


def check_schedule(folder: Path, name: str | None, steps: int) -> None:
    make_scheduler(read_object(folder / "scheduler" / "scheduler_config.json"), name, steps)


def load_tokenizer(folder: Path) -> Any:
    return loader.load_tokenizer(str(folder))
