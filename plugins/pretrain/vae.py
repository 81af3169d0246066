"""Part ``vae``: the pictures' latents, trained on easy scenes and portraits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import avg_pool2d, interpolate

from rbctl.bundle.vae import UnshuffleVAE
from rbctl.denoising import to_pictures
from rbctl.images import write_png
from rbctl.pictures import grid
from rbctl.plugins.pretrain import renders
from rbctl.plugins.pretrain.architecture import VAE
from rbctl.plugins.pretrain.config import PretrainConfig
from rbctl.plugins.pretrain.weights import write_network

_PORTRAITS = 4  # one picture in so many is a portrait
_ANIMALS = 1.5  # how much more a pixel of an animal counts than one of the background
_ABSOLUTE = 0.02  # weight of |error| beside its square: edges stay sharp
_KL = 5e-5  # of the mean over latents: they stay near unit size, and what the decoder does not need stays noise
_COARSE = 4  # of one picture in so many the decoder also sees pooled latents and must give the pooled picture
_COARSE_WEIGHT = 0.1
_SHOWN, _MEASURED, _SCALED = 8, 64, 1024  # pictures of a preview, of the PSNR, of the latents' scale


class VaePart:
    """See :class:`rbctl.plugins.pretrain.loop.Part`."""

    def __init__(self, config: PretrainConfig, device: torch.device) -> None:
        folder = config.work / "renders"
        self.device, self.batch_size, self.learning_rate = device, config.vae_batch_size, config.vae_learning_rate
        self.bundle = config.work / "bundle"
        self.scenes, self.portraits = renders.scenes(folder, "easy"), renders.portraits(folder)
        self.unseen = renders.scenes(folder, "held_out")
        self.vae = UnshuffleVAE.from_config(VAE).to(device, memory_format=torch.channels_last)
        self.plain = (self.vae.encoder[1].weight, self.vae.decoder[-2].weight)
        self.forward = torch.compile(self._loss) if config.compile else self._loss

    def modules(self) -> dict[str, nn.Module]:
        return {"vae": self.vae}

    def loss(self, step: int, generator: torch.Generator) -> tuple[torch.Tensor, Mapping[str, Any]]:
        few = self.batch_size // _PORTRAITS
        numbers = [
            torch.randint(len(rows), (count,), generator=generator).numpy()
            for rows, count in ((self.scenes, self.batch_size - few), (self.portraits, few))
        ]
        pictures = np.concatenate((self.scenes.pictures[numbers[0]], self.portraits.pictures[numbers[1]]))
        masks = np.concatenate((self.scenes.mask32[numbers[0]].max(1), self.portraits.mask32[numbers[1]]))
        flip = torch.rand(self.batch_size, generator=generator) < 0.5
        noise = torch.randn(self.batch_size, VAE["latent_channels"], 32, 32, generator=generator)
        pixels = _pixels(pictures, self.device)
        weights = torch.from_numpy(masks)[:, None].to(self.device).float() / 255
        flip = flip.to(self.device)[:, None, None, None]
        pixels, weights = (torch.where(flip, x.flip(-1), x) for x in (pixels, weights))
        return self.forward(
            pixels.contiguous(memory_format=torch.channels_last), 1 + _ANIMALS * weights, noise.to(self.device)
        )

    def _loss(
        self, pixels: torch.Tensor, weights: torch.Tensor, noise: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        mean, logvar = self.vae.encoder(pixels).float().chunk(2, dim=1)
        logvar = logvar.clamp(-20, 5)
        latents = mean + (logvar / 2).exp() * noise
        found = self.vae.decoder(latents).float()
        scale = weights / weights.mean()
        error = found - pixels
        factor = pixels.shape[-1] // weights.shape[-1]
        square = (interpolate(scale, scale_factor=factor) * (error.square() + _ABSOLUTE * error.abs())).mean()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        few = max(1, pixels.shape[0] // _COARSE)
        coarse = self.vae.decoder(avg_pool2d(latents[:few], 2)).float() - avg_pool2d(pixels[:few], 2)
        coarse = coarse.square().mean()
        mse = error.detach().square().mean()
        told = {"mse": mse, "kl": kl.detach(), "coarse": coarse.detach()}
        return square + _KL * kl + _COARSE_WEIGHT * coarse, told

    @torch.no_grad()
    def preview(self, folder: Path, step: int) -> Mapping[str, float]:
        """Pictures above what the VAE makes of them; PSNR in dB on held-out individuals, whole and inside the boxes."""
        unseen = self.unseen
        count = min(_MEASURED, len(unseen))
        pixels = _pixels(unseen.pictures[:count], self.device)
        found = torch.cat([self.vae(rows) for rows in pixels.split(16)]).float().clamp(-1, 1)
        error = ((found - pixels) / 2).square().mean(1).cpu()  # of values in [0, 1]
        inside = torch.stack([_inside(boxes, error.shape[-1]) for boxes in unseen.boxes[:count]])
        portraits = _pixels(unseen.portraits[: count // 2].reshape(-1, *pixels.shape[1:]), self.device)
        again = torch.cat([self.vae(rows) for rows in portraits.split(16)]).float().clamp(-1, 1)
        rows = [pixels[: _SHOWN // 2], portraits[: _SHOWN // 2], found[: _SHOWN // 2], again[: _SHOWN // 2]]
        shown: list[Image.Image] = to_pictures(torch.cat(rows))
        write_png(folder / "previews" / f"step-{step:06d}.png", grid(shown, _SHOWN))
        return {
            "psnr": _psnr(error.mean()),
            "psnr_in_box": _psnr(error[inside].mean()),
            "psnr_portraits": _psnr(((again - portraits) / 2).square().mean()),
        }

    @torch.no_grad()
    def finish(self, folder: Path) -> None:
        """One scale for all channels: a channel that says little stays small, and costs the UNet little."""
        count = min(_SCALED, len(self.scenes))
        latents = []
        for first in range(0, count, 32):
            pixels = _pixels(self.scenes.pictures[first : min(first + 32, count)], self.device)
            latents.append(self.vae.encode(pixels).latent_dist.mean.float())
        config = {**VAE, "scaling_factor": round(float(1 / torch.cat(latents).std()), 5)}
        write_network(self.bundle / "vae", config, self.vae.state_dict())


def _pixels(pictures: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(pictures).to(device).float() / 127.5 - 1


def _inside(boxes: np.ndarray, side: int) -> torch.Tensor:
    """(H, W) bool, union of boxes (N, 4)."""
    inside = torch.zeros(side, side, dtype=torch.bool)
    for x0, y0, x1, y1 in np.clip(np.round(boxes * side), 0, side).astype(int).tolist():
        inside[y0:y1, x0:x1] = True
    return inside


def _psnr(error: torch.Tensor) -> float:
    return round(float(-10 * error.clamp(min=1e-10).log10()), 3)


def build(config: PretrainConfig, device: torch.device) -> VaePart:
    """The part, with first weights from torch's own generator."""
    return VaePart(config, device)
