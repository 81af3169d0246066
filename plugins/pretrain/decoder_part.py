"""Part ``decoder``: the VAE's decoder learns to read latents as the UNet leaves them, a little wrong everywhere.

The encoder stays as it is, so the UNet goes on with the latents it knows. The decoder is shown latents with noise, of
which a part is smooth, and must give the picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import interpolate

from rbctl.bundle.vae import UnshuffleVAE
from rbctl.denoising import to_pictures
from rbctl.draws import generator
from rbctl.errors import InputError
from rbctl.files import read_object
from rbctl.pictures import grid, save_png
from rbctl.plugins.pretrain import renders
from rbctl.plugins.pretrain.architecture import VAE
from rbctl.plugins.pretrain.config import PretrainConfig
from rbctl.plugins.pretrain.loop import Part
from rbctl.plugins.pretrain.vae_part import drawn_pictures, psnr
from rbctl.plugins.pretrain.weights import write_network
from rbctl.provenance import SHEET

CLEAN = 0.25  # share of the pictures whose latents stay as the encoder gives them
NOISE = 0.6  # most noise, in standard deviations of the latents
_SMOOTH = (2, 4)  # sides of the cells, in latents, of the smooth parts of the noise
_GRADIENTS = 1.0  # weight of the error's slopes beside the error
_SHOWN, _MEASURED, _MEASURED_NOISE = 8, 64, 0.3


class DecoderPart(Part):
    """See :class:`rbctl.plugins.pretrain.loop.Part`."""

    name = "decoder"
    kinds = ("easy",)

    def __init__(self, config: PretrainConfig, device: torch.device) -> None:
        super().__init__(config, device)
        self.seed = config.seed
        folder = self.bundle / "vae"
        if not folder.is_dir():
            raise InputError(f"{folder}: not there yet; make it with 'rbctl pretrain vae'")
        self.settings = read_object(folder / "config.json")
        vae = UnshuffleVAE.from_pretrained(folder, torch_dtype=torch.float32, trust_remote_code=False)
        if self.settings.get("coarse_channels") is None:
            coarse = {key: VAE[key] for key in ("coarse_channels", "coarse_layers")}
            vae = with_coarse_level(vae, **coarse)
            self.settings |= coarse
        self.vae = vae.to(device, memory_format=torch.channels_last).requires_grad_(False)
        self.vae.decoder.requires_grad_(True)
        self.plain = (self.vae.decoder[-2].weight,)
        self.forward = torch.compile(self._loss) if config.compile else self._loss

    def modules(self) -> dict[str, nn.Module]:
        return {"decoder": self.vae.decoder}

    def latents(self, pixels: torch.Tensor) -> torch.Tensor:
        """Scaled latents, the posterior's means."""
        with torch.no_grad():
            return self.vae.encode(pixels).latent_dist.mean.float() * self.vae.config.scaling_factor

    def pictures(self, latents: torch.Tensor) -> torch.Tensor:
        """Pictures of scaled latents."""
        return self.vae.decode(latents / self.vae.config.scaling_factor).sample.float()

    def loss(self, step: int, chance: torch.Generator) -> tuple[torch.Tensor, Mapping[str, Any]]:
        pixels, weights = drawn_pictures(self.scenes, self.portraits, self.batch_size, chance, self.device)
        latents = self.latents(pixels)
        sizes = NOISE * torch.rand(self.batch_size, generator=chance)
        sizes *= torch.rand(self.batch_size, generator=chance) >= CLEAN
        noise = sizes[:, None, None, None] * partly_smooth_noise(latents.shape, chance)
        return self.forward(pixels, weights, latents + noise.to(self.device))

    def _loss(
        self, pixels: torch.Tensor, weights: torch.Tensor, latents: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        decoded = self.pictures(latents)
        error = decoded - pixels
        absolute = (weights * error.abs()).mean()
        slopes = (weights[:, :, 1:] * error.diff(dim=2).abs()).mean()
        slopes = slopes + (weights[..., 1:] * error.diff(dim=3).abs()).mean()
        numbers = {"absolute": absolute, "slopes": slopes, "mse": error.square().mean()}
        total = absolute + _GRADIENTS * slopes
        return total, {name: value.detach() for name, value in numbers.items()}

    @torch.no_grad()
    def preview(self, folder: Path, step: int) -> Mapping[str, float]:
        """Held-out pictures, what the decoder makes of their latents, and of these with noise; PSNR in dB of both."""
        count = min(_MEASURED, len(self.unseen))
        pixels = renders.pixels(self.unseen.pictures[:count], self.device)
        latents = self.latents(pixels)
        noise = torch.randn(latents.shape, generator=generator(self.seed, "preview")).to(self.device)
        rows = [pixels]
        numbers = {}
        for name, size in (("psnr", 0.0), ("psnr_of_noisy", _MEASURED_NOISE)):
            noisy = latents + size * noise
            rows.append(torch.cat([self.pictures(lot) for lot in noisy.split(16)]).clamp(-1, 1))
            numbers[name] = psnr(((rows[-1] - pixels) / 2).square().mean())
        shown = torch.cat([row[:_SHOWN] for row in rows])
        save_png(grid(to_pictures(shown), _SHOWN), folder / "previews" / f"step-{step:06d}.png", source_type=SHEET)
        return numbers

    def finish(self) -> None:
        write_network(self.bundle / "vae", self.settings, self.vae.state_dict())


def with_coarse_level(vae: UnshuffleVAE, coarse_channels: int, coarse_layers: int) -> UnshuffleVAE:
    """The same VAE with a coarse level in its decoder. It decodes as before until it is trained."""
    deeper = UnshuffleVAE.from_config(vae.config, coarse_channels=coarse_channels, coarse_layers=coarse_layers)
    deeper.encoder.load_state_dict(vae.encoder.state_dict())
    head = 1 + vae.config.decoder_layers  # the first convolution and the blocks before the coarse level
    deeper.decoder[:head].load_state_dict(vae.decoder[:head].state_dict())
    deeper.decoder[-2].load_state_dict(vae.decoder[-2].state_dict())
    return deeper


def partly_smooth_noise(shape: torch.Size, chance: torch.Generator) -> torch.Tensor:
    """Unit noise (B, C, h, w): white, smooth or a mixture, another one in every picture.

    A UNet errs in patches, not in each latent alone.
    """
    layers = [torch.randn(shape, generator=chance)]
    for side in _SMOOTH:
        coarse = torch.randn(*shape[:2], *(-(-n // side) for n in shape[2:]), generator=chance)
        smooth = interpolate(coarse, size=shape[2:], mode="bilinear")
        layers.append(smooth / smooth.std())
    weights = torch.rand(shape[0], len(layers), generator=chance).square()
    weights = (weights / weights.sum(1, keepdim=True)).sqrt()
    return (weights[..., None, None, None] * torch.stack(layers, dim=1)).sum(1)
