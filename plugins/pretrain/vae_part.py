"""Part ``vae``: the pictures' latents, trained on easy scenes and portraits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import avg_pool2d, interpolate

from rbctl.bundle.vae import UnshuffleVAE
from rbctl.denoising import to_pictures
from rbctl.pictures import grid, save_png
from rbctl.plugins.pretrain import renders
from rbctl.plugins.pretrain.architecture import VAE
from rbctl.plugins.pretrain.config import PretrainConfig
from rbctl.plugins.pretrain.loop import Part
from rbctl.plugins.pretrain.weights import write_network
from rbctl.provenance import SHEET

_PORTRAITS = 4  # one picture in so many is a portrait
_ANIMALS = 1.5  # how much more a pixel of an animal counts than one of the background
_ABSOLUTE = 0.02  # weight of |error| beside its square: edges stay sharp
_KL = 5e-5  # of the mean over latents: they stay near unit size, and what the decoder does not need stays noise
_COARSE = 4  # of one picture in so many the decoder also sees pooled latents and must give the pooled picture
_COARSE_WEIGHT = 0.1
_SHOWN, _MEASURED, _SCALED = 4, 64, 1024  # pictures of each row of a preview, of the PSNR, of the latents' scale


class VaePart(Part):
    """See :class:`rbctl.plugins.pretrain.loop.Part`."""

    name = "vae"
    kinds = ("easy",)

    def __init__(self, config: PretrainConfig, device: torch.device) -> None:
        super().__init__(config, device)
        self.vae = UnshuffleVAE.from_config(VAE).to(device, memory_format=torch.channels_last)
        self.plain = (self.vae.encoder[1].weight, self.vae.decoder[-2].weight)
        self.forward = torch.compile(self._loss) if config.compile else self._loss

    def modules(self) -> dict[str, nn.Module]:
        return {"vae": self.vae}

    def loss(self, step: int, chance: torch.Generator) -> tuple[torch.Tensor, Mapping[str, Any]]:
        pixels, weights = drawn_pictures(self.scenes, self.portraits, self.batch_size, chance, self.device)
        noise = torch.randn(self.batch_size, VAE["latent_channels"], 32, 32, generator=chance)
        return self.forward(pixels, weights, noise.to(self.device))

    def _loss(
        self, pixels: torch.Tensor, weights: torch.Tensor, noise: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        mean, logvar = self.vae.encoder(pixels).float().chunk(2, dim=1)
        logvar = logvar.clamp(-20, 5)
        latents = mean + (logvar / 2).exp() * noise
        error = self.vae.decoder(latents).float() - pixels
        square = (weights * (error.square() + _ABSOLUTE * error.abs())).mean()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        few = max(1, pixels.shape[0] // _COARSE)
        pooled = self.vae.decoder(avg_pool2d(latents[:few], 2)).float()
        coarse = (pooled - avg_pool2d(pixels[:few], 2)).square().mean()
        numbers = {"mse": error.square().mean(), "kl": kl, "coarse": coarse}
        total = square + _KL * kl + _COARSE_WEIGHT * coarse
        return total, {name: value.detach() for name, value in numbers.items()}

    @torch.no_grad()
    def preview(self, folder: Path, step: int) -> Mapping[str, float]:
        """Pictures above what the VAE makes of them; PSNR in dB on held-out individuals, whole and inside the boxes."""
        unseen, count = self.unseen, min(_MEASURED, len(self.unseen))
        pixels = renders.pixels(unseen.pictures[:count], self.device)
        portraits = renders.pixels(unseen.portraits[: count // 2].reshape(-1, *unseen.pictures.shape[1:]), self.device)
        decoded, decoded_portraits = (
            torch.cat([self.vae(lot) for lot in rows.split(16)]).float().clamp(-1, 1) for rows in (pixels, portraits)
        )
        error = ((decoded - pixels) / 2).square().mean(1).cpu()  # of values in [0, 1]
        inside = torch.stack([_inside(boxes, error.shape[-1]) for boxes in unseen.boxes[:count]])
        shown = torch.cat([rows[:_SHOWN] for rows in (pixels, portraits, decoded, decoded_portraits)])
        save_png(grid(to_pictures(shown), 2 * _SHOWN), folder / "previews" / f"step-{step:06d}.png", source_type=SHEET)
        return {
            "psnr": psnr(error.mean()),
            "psnr_in_box": psnr(error[inside].mean()),
            "psnr_portraits": psnr(((decoded_portraits - portraits) / 2).square().mean()),
        }

    @torch.no_grad()
    def finish(self) -> None:
        """One scale for all channels: a channel that says little stays small, and costs the UNet little."""
        latents = [
            self.vae.encode(renders.pixels(self.scenes.pictures[lot], self.device)).latent_dist.mean.float()
            for lot in renders.lots(min(_SCALED, len(self.scenes)))
        ]
        config = {**VAE, "scaling_factor": round(float(1 / torch.cat(latents).std()), 5)}
        write_network(self.bundle / "vae", config, self.vae.state_dict())


def drawn_pictures(
    scenes: renders.Scenes, portraits: renders.Portraits, count: int, chance: torch.Generator, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scenes and some portraits, half of them mirrored, and how much each pixel counts: animals more.

    Returns:
        Pictures (count, 3, H, W) in [-1, 1], and weights (count, 1, H, W) with a mean of 1.
    """
    few = count // _PORTRAITS
    of_scenes = torch.randint(len(scenes), (count - few,), generator=chance).numpy()
    of_portraits = torch.randint(len(portraits), (few,), generator=chance).numpy()
    pictures = np.concatenate((scenes.pictures[of_scenes], portraits.pictures[of_portraits]))
    masks = np.concatenate((scenes.mask32[of_scenes].max(1), portraits.mask32[of_portraits]))
    mirrored = (torch.rand(count, generator=chance) < 0.5).to(device)[:, None, None, None]
    pixels = renders.pixels(pictures, device)
    weights = 1 + _ANIMALS * torch.from_numpy(masks)[:, None].to(device).float() / 255
    weights = interpolate(weights / weights.mean(), scale_factor=pixels.shape[-1] // weights.shape[-1])
    pixels, weights = (torch.where(mirrored, x.flip(-1), x) for x in (pixels, weights))
    return pixels.contiguous(memory_format=torch.channels_last), weights


def _inside(boxes: np.ndarray, side: int) -> torch.Tensor:
    """(H, W) bool, union of boxes (N, 4)."""
    inside = torch.zeros(side, side, dtype=torch.bool)
    for x0, y0, x1, y1 in np.clip(np.round(boxes * side), 0, side).astype(int).tolist():
        inside[y0:y1, x0:x1] = True
    return inside


def psnr(error: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error of values in [0, 1]."""
    return round(float(-10 * error.clamp(min=1e-10).log10()), 3)
