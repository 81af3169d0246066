"""A small VAE for pictures of 128 px: pixel unshuffle first, no norms. AutoencoderKL's interface, a fifth of its time.

GroupNorm at full resolution is what costs most in AutoencoderKL on a CPU. Here the first levels are nothing but pixel
unshuffling, so all convolutions work at a quarter of the side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import nn

from rbctl.errors import InputError, abridged


class _Block(nn.Module):
    """Residual block without norms; it starts as the identity, which is what lets it train without them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)  # type: ignore[arg-type]  # it has one

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(nn.functional.silu(x))
        return x + self.second(nn.functional.silu(y))


class _Coarser(nn.Module):
    """Residual blocks at half the side, which the input goes around: the U of a decoder. It starts as the identity."""

    def __init__(self, width: int, coarse_width: int, layers: int) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4 * width, coarse_width, 1))
        self.blocks = nn.Sequential(*(_Block(coarse_width) for _ in range(layers)))
        self.up = nn.Sequential(nn.Conv2d(coarse_width, 4 * width, 1), nn.PixelShuffle(2))
        nn.init.zeros_(self.up[0].weight)  # type: ignore[arg-type]  # a convolution's
        nn.init.zeros_(self.up[0].bias)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.up(self.blocks(self.down(x)))


class UnshuffleVAE(ModelMixin, ConfigMixin):
    """Pictures (B, 3, H, W) in [-1, 1] <-> latents (B, C, H / 4, W / 4).

    Args:
        block_out_channels: one entry a level, as in AutoencoderKL. All levels but the last are pixel unshuffling alone
            (3 and 12 channels); the last is the width of the convolutions.
        encoder_layers, decoder_layers: residual blocks; the decoder, which has to invent edges, has more.
        coarse_channels: width of a level at half the side in the middle of the decoder, with ``decoder_layers`` blocks
            before it and again after it; None for none. It sees far enough to tell shapes from noise in the latents.
        coarse_layers: residual blocks there.
        scaling_factor, shift_factor: latents are scaled for the UNet as (z - shift) * factor.
        sample_size: side in pixels that it was trained on.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        latent_channels: int = 4,
        block_out_channels: Sequence[int] = (3, 12, 64),
        encoder_layers: int = 1,
        decoder_layers: int = 3,
        coarse_channels: int | None = None,
        coarse_layers: int = 3,
        sample_size: int = 128,
        scaling_factor: float = 1.0,
        shift_factor: float | None = None,
        force_upcast: bool = False,
    ) -> None:
        super().__init__()
        factor, width = 2 ** (len(block_out_channels) - 1), block_out_channels[-1]
        unshuffled = in_channels * factor**2
        blocks: list[nn.Module] = [_Block(width) for _ in range(decoder_layers)]
        if coarse_channels is not None:
            blocks += [_Coarser(width, coarse_channels, coarse_layers), *(_Block(width) for _ in range(decoder_layers))]
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(factor),
            nn.Conv2d(unshuffled, width, 3, padding=1),
            *(_Block(width) for _ in range(encoder_layers)),
            nn.SiLU(),
            nn.Conv2d(width, 2 * latent_channels, 3, padding=1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(latent_channels, width, 3, padding=1),
            *blocks,
            nn.SiLU(),
            nn.Conv2d(width, unshuffled, 3, padding=1),
            nn.PixelShuffle(factor),
        )

    def encode(self, x: torch.Tensor, return_dict: bool = True) -> Any:
        """Posterior of the unscaled latents, ``.latent_dist``."""
        posterior = DiagonalGaussianDistribution(self.encoder(x))
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def decode(self, z: torch.Tensor, return_dict: bool = True) -> Any:
        """Pictures of unscaled latents, ``.sample``."""
        sample = self.decoder(z)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        """There and back, through the posterior's mean."""
        return self.decode(self.encode(sample).latent_dist.mode()).sample


_KINDS = {kind.__name__: kind for kind in (AutoencoderKL, UnshuffleVAE)}


def vae_class(config: Mapping[str, Any], where: object) -> Any:
    """The class that ``vae/config.json`` names; without a name AutoencoderKL.

    Args:
        where: what to name in the error.

    Raises:
        InputError: it names none that we know.
    """
    name = config.get("_class_name", "AutoencoderKL")
    if name not in _KINDS:
        raise InputError(f"{where}: _class_name is {abridged(name)}; known are {', '.join(_KINDS)}")
    return _KINDS[name]
