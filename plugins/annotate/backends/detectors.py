"""Backends ``grounding-dino`` and ``owlv2``: the detectors of rbctl.detectors, set up by annotate's options."""

from __future__ import annotations

from pathlib import Path

import torch

from rbctl import detectors
from rbctl.plugins.annotate.config import AnnotateConfig


class GroundingDino(detectors.GroundingDino):
    def __init__(self, folder: Path, config: AnnotateConfig, device: torch.device) -> None:
        super().__init__(folder, config.box_threshold, device)


class Owlv2(detectors.Owlv2):
    def __init__(self, folder: Path, config: AnnotateConfig, device: torch.device) -> None:
        super().__init__(folder, config.box_threshold, device)
