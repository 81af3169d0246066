"""A folder of ``mini-dit`` -> the loaded base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image
from torch import nn
from torch.nn.functional import pad, pixel_shuffle, pixel_unshuffle

from rbctl.bases import Summary
from rbctl.bases.editors import check_editor, check_schedule
from rbctl.bases.flux2.base import Flux2
from rbctl.bundle.catalogue import place_of
from rbctl.bundle.vae import UnshuffleVAE
from rbctl.errors import InputError
from rbctl.files import read_object
from rbctl.pretrained import from_pretrained, loading, network

__all__ = ["check_schedule", "load", "load_tokenizer", "summary"]

PATCH, REFERENCE_PATCH = 2, 8  # sides of a token in latents: of the picture, and of a reference
_RESOLUTION = 128


class MiniDiT(Flux2):
    """Latents are those of the VAE. The first channels of a token are of the picture, the others of a reference."""

    architecture = "mini-dit"
    latent_scale = 4
    multiple = latent_scale * REFERENCE_PATCH
    patch = PATCH

    @property
    def resolution(self) -> int:
        return _RESOLUTION

    @property
    def latent_channels(self) -> int:
        return int(self.vae.config.latent_channels)

    def encode_text(self, text: str, pictures: Sequence[Image.Image]) -> torch.Tensor:
        return self.encode_texts([text])[0]

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """(B, T, D): the second-to-last states of both text encoders side by side, as SDXL has them."""
        ids = self.tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt")["input_ids"]
        return torch.cat(
            [
                encoder(ids.to(self.device), output_hidden_states=True).hidden_states[-2]
                for encoder in self.text_encoder
            ],
            dim=-1,
        )

    def encode_pictures(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.place("vae")
        with torch.no_grad():
            posterior = self.vae.encode(pixels.to(self.vae.device, self.vae.dtype)).latent_dist
        return posterior.mean, posterior.std

    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        self.place("vae")
        with torch.no_grad():
            decoded: torch.Tensor = self.vae.decode(latents.to(self.vae.device, self.vae.dtype)).sample
        return decoded

    def cells(self, latents: torch.Tensor) -> torch.Tensor:
        return latents

    def pack(self, latents: torch.Tensor) -> torch.Tensor:
        tokens = pixel_unshuffle(latents, PATCH).flatten(2).mT
        return pad(tokens, (0, self.model.config.in_channels - tokens.shape[-1]))

    def pack_references(self, latents: torch.Tensor) -> torch.Tensor:
        tokens = pixel_unshuffle(latents, REFERENCE_PATCH).flatten(2).mT
        before = latents.shape[1] * PATCH**2
        return pad(tokens, (before, self.model.config.in_channels - before - tokens.shape[-1]))

    def unpack(self, tokens: torch.Tensor, latent_size: tuple[int, int]) -> torch.Tensor:
        tokens = tokens[..., : self.latent_channels * PATCH**2]
        return pixel_shuffle(tokens.mT.unflatten(2, self.grid(latent_size)), PATCH)

    def grid(self, latent_size: tuple[int, int]) -> tuple[int, int]:
        return latent_size[0] // self.patch, latent_size[1] // self.patch

    def reference_grid(self, side: int) -> tuple[int, int]:
        return side // REFERENCE_PATCH, side // REFERENCE_PATCH

    def places(self, number: int, grid: tuple[int, int]) -> torch.Tensor:
        """The middle of each token, in tokens of the picture."""
        step = (REFERENCE_PATCH if number else self.patch) / PATCH
        rows, columns = ((torch.arange(count) + 0.5) * step - 0.5 for count in grid)
        zero = torch.zeros(1)
        return torch.cartesian_prod(zero + number, rows, columns, zero)


def load(folder: Path, device: torch.device, dtype: torch.dtype, **options: Any) -> MiniDiT:
    """Args: options: as of :func:`rbctl.bases.load.load`."""
    from diffusers import FlowMatchEulerDiscreteScheduler, Flux2Transformer2DModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    check_editor(folder)
    if options.get("vae"):
        raise InputError(f"--vae: {folder.name} has latents of its own, which no other VAE decodes; leave it out")
    lowvram = bool(options.get("lowvram"))

    def part(loader: Any, name: str, wanted: torch.dtype = dtype) -> Any:
        module = network(loader, place_of(folder, name), wanted)
        return module.requires_grad_(False).eval().to("cpu" if lowvram else device)

    path = folder / "scheduler" / "scheduler_config.json"
    with loading(path):
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(read_object(path))
    encoders = None
    if options.get("encoders", True):
        encoders = nn.ModuleList(
            [part(CLIPTextModel, "text_encoder"), part(CLIPTextModelWithProjection, "text_encoder_2")]
        )
    parts: Mapping[str, Any] = {
        "transformer": part(Flux2Transformer2DModel, "transformer"),
        "vae": part(UnshuffleVAE, "vae", torch.float32),
        "text_encoder": encoders,
        "tokenizer": load_tokenizer(folder),
        "scheduler": scheduler,
    }
    return MiniDiT(folder, device, dtype, SimpleNamespace(**parts, config={}), lowvram)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of both text encoders."""
    from transformers import CLIPTokenizer

    return from_pretrained(CLIPTokenizer, place_of(folder, "tokenizer"))


def summary(folder: Path) -> Summary:
    """Raises InputError where the scheduler is damaged."""
    check_editor(folder)
    return Summary(_RESOLUTION, multiple=MiniDiT.multiple, ordered=True)
