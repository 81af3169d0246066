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

_ROUNDING = 1e-6  # 7 / 12 - 4 / 12 is a quarter


class DeepCache:
    """A UNet that is whole where deep features are due, and shallow elsewhere.

    Args:
        unet: a UNet2DConditionModel of two levels or more.
        start: share of the run before which all calls are whole.
        span: share of the run that deep features are kept for; at 0 all calls are whole, and nothing is kept.

    Attributes:
        share: where in the run the next call is, in [0, 1).
    """

    def __init__(self, unet: Any, start: float = 0.0, span: float = 0.0) -> None:
        self.unet, self.start, self.span = unet, start, span
        self.share = self.computed = 0.0  # the latter: of the last whole call
        self.kept = _Kept()

    def __call__(self, latents: torch.Tensor, *inputs: Any, **options: Any) -> Any:
        """The UNet's output for ``latents`` (B, C, h, w); further arguments are the UNet's.

        Fewer rows than in the call before are the last ones of those. More rows are computed whole.
        """
        if not self.span:
            return self.unet(latents, *inputs, **options)
        kept = self.kept.features
        due = self.share < self.start or self.share - self.computed > self.span - _ROUNDING
        if kept is not None and not due and len(kept) >= len(latents):
            self.kept.features = kept[-len(latents) :]
            return self.shallow(latents, *inputs, **options)
        self.computed = self.share
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
