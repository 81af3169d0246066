"""Deep features kept from one denoising step to the next (DeepCache, Ma et al., CVPR 2024, arXiv 2312.00858).

What a UNet computes below its first level hardly changes between neighbouring steps. A whole call keeps what enters the
last up block. A shallow one computes the first down block and the last up block alone.
"""

from __future__ import annotations

import copy
from functools import cached_property
from typing import Any

import torch
from torch import nn


class DeepCache:
    """A UNet that is whole in every ``interval``-th call, and shallow in those between.

    Args:
        unet: a UNet2DConditionModel of two levels or more.

    Attributes:
        interval: 1 is the UNet itself; it may change between calls.
    """

    def __init__(self, unet: Any, interval: int = 1) -> None:
        self.unet, self.interval = unet, interval
        self.kept = _Kept()
        self.age = 0  # calls since the features were computed, that one included

    def __call__(self, latents: torch.Tensor, *inputs: Any, **options: Any) -> Any:
        """The UNet's output for ``latents`` (B, C, h, w); further arguments are the UNet's.

        Fewer rows than in the call before are the last ones of those. More rows are computed whole.
        """
        kept = self.kept.features
        if kept is not None and self.age < self.interval and len(kept) >= len(latents):
            self.age += 1
            self.kept.features = kept[-len(latents) :]
            return self.shallow(latents, *inputs, **options)
        self.age = 1
        hook = self.unet.up_blocks[-2].register_forward_hook(self.kept.keep)
        try:
            return self.unet(latents, *inputs, **options)
        finally:
            hook.remove()

    @cached_property
    def shallow(self) -> Any:
        """The UNet without its deep blocks; it shares weights, hooks and LoRAs with the whole one."""
        first = _view(self.unet.down_blocks[0], downsamplers=None)
        outer = {"down_blocks": nn.ModuleList([first]), "up_blocks": nn.ModuleList([self.unet.up_blocks[-1]])}
        return _view(self.unet, mid_block=self.kept, **outer)


class _Kept(nn.Module):
    """In the place of all deep blocks: gives the features that they gave last."""

    features: torch.Tensor | None = None

    def keep(self, _block: nn.Module, _inputs: Any, features: torch.Tensor) -> None:
        self.features = features

    def forward(self, *_inputs: Any, **_options: Any) -> torch.Tensor:
        assert self.features is not None
        return self.features


def _view(module: nn.Module, **parts: nn.Module | None) -> Any:
    """The same module with other parts; no weight is copied."""
    view = copy.copy(module)
    view._modules = {**module._modules, **parts}
    return view
