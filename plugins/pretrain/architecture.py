"""Shapes of the bundles ``mini`` and ``mini-dit``, from ``architecture.yaml``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rbctl.bundle.random_weights import Architecture
from rbctl.files import read_yaml

_SHAPES: dict[str, dict[str, Any]] = read_yaml(Path(__file__).with_suffix(".yaml"))
UNET, VAE, CLIP_VISION, CLIPSELF = (_SHAPES[name] for name in ("unet", "vae", "clip_vision", "clipself"))
TEXT_1 = {"architectures": ["CLIPTextModel"], **_SHAPES["text_encoder"]}
TEXT_2 = {"architectures": ["CLIPTextModelWithProjection"], **_SHAPES["text_encoder"]}
ADAPTER, SCHEDULER, MODEL_INDEX, DINO = (_SHAPES[name] for name in ("adapter", "scheduler", "model_index", "dino"))
MINI = Architecture(UNET, VAE, TEXT_1, TEXT_2, CLIP_VISION, CLIPSELF, ADAPTER)
DIT, DIT_SCHEDULER, DIT_MODEL_INDEX = (_SHAPES[name] for name in ("dit", "dit_scheduler", "dit_model_index"))
