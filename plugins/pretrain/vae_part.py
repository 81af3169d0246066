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
from rbctl.images import write_png
from rbctl.pictures import grid
from rbctl.plugins.pretrain import renders
from rbctl.plugins.pretrain.architecture import VAE
from rbctl.plugins.pretrain.config import PretrainConfig
from rbctl.plugins.pretrain.loop import Part
from rbctl.plugins.pretrain.weights import write_network

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
    kind = "easy"

    def __init__(self, config: PretrainConfig, device: torch.device) -> None:
        super().__init__(config, device)
        self.vae = UnshuffleVAE.from_config(VAE).to(device, memory_format=torch.channels_last)
        self.plain = (self.vae.encoder[1].weight, self.vae.decoder[-2].weight)
        self.forward = torch.compile(self._loss) if config.compile else self._loss

    def modules(self) -> dict[str, nn.Module]:
        return {"vae": self.vae}

    def loss(self, step: int, chance: torch.Generator) -> tuple[torch.Tensor, Mapping[str, Any]]:
        count = self.batch_size // _PORTRAITS
        scenes = torch.randint(len(self.scenes), (self.batch_size - count,), generator=chance).numpy()
        portraits = torch.randint(len(self.portraits), (count,), generator=chance).numpy()
        pictures = np.concatenate((self.scenes.pictures[scenes], self.portraits.pictures[portraits]))
        masks = np.concatenate((self.scenes.mask32[scenes].max(1), self.portraits.mask32[portraits]))
        mirrored = (torch.rand(self.batch_size, generator=chance) < 0.5).to(self.device)[:, None, None, None]
        noise = torch.randn(self.batch_size, VAE["latent_channels"], 32, 32, generator=chance)
        pixels = renders.pixels(pictures, self.device)
        shown = torch.from_numpy(masks)[:, None].to(self.device).float() / 255
        pixels, shown = (torch.where(mirrored, x.flip(-1), x) for x in (pixels, shown))
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        return self.forward(pixels, 1 + _ANIMALS * shown, noise.to(self.device))

    def _loss(
        self, pixels: torch.Tensor, weights: torch.Tensor, noise: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        mean, logvar = self.vae.encoder(pixels).float().chunk(2, dim=1)
        logvar = logvar.clamp(-20, 5)
        latents = mean + (logvar / 2).exp() * noise
        error = self.vae.decoder(latents).float() - pixels
        weights = interpolate(weights / weights.mean(), scale_factor=pixels.shape[-1] // weights.shape[-1])
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
        write_png(folder / "previews" / f"step-{step:06d}.png", grid(to_pictures(shown), 2 * _SHOWN))
        return {
            "psnr": _psnr(error.mean()),
            "psnr_in_box": _psnr(error[inside].mean()),
            "psnr_portraits": _psnr(((decoded_portraits - portraits) / 2).square().mean()),
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


def _inside(boxes: np.ndarray, side: int) -> torch.Tensor:
    """(H, W) bool, union of boxes (N, 4)."""
    inside = torch.zeros(side, side, dtype=torch.bool)
    for x0, y0, x1, y1 in np.clip(np.round(boxes * side), 0, side).astype(int).tolist():
        inside[y0:y1, x0:x1] = True
    return inside


def _psnr(error: torch.Tensor) -> float:
    return round(float(-10 * error.clamp(min=1e-10).log10()), 3)
