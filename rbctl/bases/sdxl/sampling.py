"""Requests -> latents, by SDXL with MS-Diffusion's adapter."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from rbctl import denoising, memory
from rbctl.bases import OnStep, SamplerOptions
from rbctl.bundle.bundle import Bundle
from rbctl.conditioning import Encoded, PseudoRegions, guided
from rbctl.device import pick_attention
from rbctl.encoding import Encoder
from rbctl.errors import InputError
from rbctl.measurements import measured
from rbctl.request import Request
from rbctl.shortcuts import NO_SHORTCUTS, Shortcuts


class Sampler:
    """See :class:`rbctl.bases.Sampler`.

    Attributes:
        encoder: encodes requests; a picture of a file is encoded once.
        backend: of the parallel cross-attention; None for the best usable one.
    """

    def __init__(self, bundle: Bundle, options: SamplerOptions) -> None:
        self.bundle, self.options = bundle, options
        self.encoder = Encoder(bundle, options.local_tokens, options.local_grid, options.local_injection)
        self.backend = pick_attention(options.attention, bundle.device, bundle.dtype)

    def forget(self) -> None:
        self.encoder.forget()

    def check(self, request: Request) -> None:
        if not (self.options.pseudo_mask_step and request.subjects):
            return
        if request.shortcuts != NO_SHORTCUTS:
            raise InputError("pseudo_mask_step: reads every step; take quality 'best', which leaves nothing out")
        self.encoder.spans(request)

    def check_memory(self, requests: Sequence[Request]) -> None:
        bundle, first = self.bundle, requests[0]
        latent_size = first.height // bundle.latent_scale, first.width // bundle.latent_scale
        rows = len(requests) * (2 if first.guided else 1)
        denoising = memory.forward_bytes(bundle.unet.config, rows, latent_size, bundle.dtype.itemsize)
        decoding = memory.picture_bytes(bundle.vae.config, first.height, first.width)
        what = f"{first.source}: {len(requests)} x {first.width} x {first.height} pixels at once"
        mend = "make them smaller, or lower --batch-size"
        memory.require(max(denoising, decoding), bundle.device, what, mend)
        memory.require_time(bundle.unet.config, latent_size, bundle.device, what)

    def encode(self, requests: Sequence[Request]) -> Encoded:
        return self.encoder.encode(requests)

    def denoise(
        self,
        requests: Sequence[Request],
        encoded: Encoded,
        noise: torch.Tensor,
        scheduler: Any = None,
        on_step: OnStep | None = None,
        generators: Sequence[torch.Generator | None] | None = None,
    ) -> torch.Tensor:
        first, pseudo = requests[0], None
        if self.options.pseudo_mask_step and first.subjects:
            pseudo = self.encoder.regions(requests, self.options.pseudo_mask_step)
        return self.denoise_encoded(
            encoded,
            noise,
            first.steps,
            torch.tensor([request.guidance_scale for request in requests]),
            scheduler,
            on_step,
            pseudo,
            generators,
            first.original_size,
            first.crop,
            first.shortcuts,
        )

    @measured("denoise")
    def denoise_encoded(
        self,
        encoded: Encoded,
        noise: torch.Tensor,
        steps: int,
        guidance_scale: float | torch.Tensor,
        scheduler: Any = None,
        on_step: denoising.OnStep | None = None,
        pseudo: PseudoRegions | None = None,
        generators: Sequence[torch.Generator | None] | None = None,
        original_size: tuple[int, int] | None = None,
        crop: tuple[int, int] = (0, 0),
        shortcuts: Shortcuts = NO_SHORTCUTS,
    ) -> torch.Tensor:
        """:meth:`denoise` of what is encoded, without requests.

        Args:
            noise: (B, C, h, w) unit noise; the pictures have its size.
            guidance_scale: one for all or (B,); of no effect without negative prompts.
            pseudo: regions read off the text attention, which replace the boxes; they need every step whole.
            shortcuts: what is left out.
        """
        bundle, (h, w) = self.bundle, noise.shape[-2:]
        rows = partial(
            guided,
            size=(h * bundle.latent_scale, w * bundle.latent_scale),
            latent_size=(h, w),
            levels=bundle.levels,
            backend=self.backend,
            original_size=original_size,
            crop=crop,
        )
        conditioning, unguided = rows(encoded), None
        if encoded.negative_prompt_embeds is not None and not shortcuts.always_guided:
            unguided = rows(dataclasses.replace(encoded, negative_prompt_embeds=None))
        conditioning.pseudo = pseudo
        scales = torch.as_tensor(guidance_scale, device=bundle.device).expand(len(noise))
        bundle.place("unet")
        return denoising.denoise(
            bundle.unet,
            scheduler or bundle.scheduler(),
            noise.to(bundle.device),
            conditioning,
            steps,
            None if encoded.negative_prompt_embeds is None else scales,
            on_step,
            generators,
            shortcuts,
            unguided,
        )
