"""Requests -> latents, by a transformer with references in its sequence."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from rbctl.bases import OnStep, SamplerOptions
from rbctl.bases.reference_transformer import TIMESTEPS, Reading, ReferenceTransformer, together
from rbctl.errors import InputError
from rbctl.instructions import instruction
from rbctl.measurements import measured
from rbctl.triplets import geometry

if TYPE_CHECKING:
    from rbctl.request import Request, Subject


@dataclass(frozen=True)
class Encoded:
    """What the transformer reads of B pictures: with the prompt, and with the negative one (None without guidance)."""

    prompt: Reading
    negative: Reading | None


class ReferenceSampler(ABC):
    """See :class:`rbctl.bases.Sampler`; a picture of a file is encoded once."""

    @staticmethod
    @abstractmethod
    def guide(
        base: ReferenceTransformer, velocity: torch.Tensor, without: torch.Tensor, scales: torch.Tensor
    ) -> torch.Tensor:
        """Velocities (B, C, h, w) with the prompt and with the negative one, by scales (B, 1, 1, 1)."""

    def __init__(self, base: ReferenceTransformer, options: SamplerOptions) -> None:
        self.base, self.options = base, options
        self._latents: dict[tuple[Path, int], torch.Tensor] = {}

    def forget(self) -> None:
        self._latents.clear()

    def check(self, request: Request) -> None:
        where, base = request.source, self.base.name
        if request.embeddings:
            raise InputError(f"{where}: {base} takes no learned embedding; leave --embedding out")
        if any(request.weights) or any(request.negative_weights):
            raise InputError(f"{where}: {base} weighs no words; take --no-prompt-weighting")
        if request.scheduler:
            raise InputError(f"{where}: {base} has a scheduler of its own; leave --ss and --scheduler out")
        if request.guided and self.base.distilled:
            raise InputError(f"{where}: {base} is distilled and takes no guidance; take a guidance scale of 1")
        cell = self.base.multiple
        if request.width % cell or request.height % cell:
            raise InputError(f"{where}: {request.width} x {request.height}: {base} needs multiples of {cell} pixels")

    def check_memory(self, requests: Sequence[Request]) -> None:
        return  # nothing is known of it beforehand

    @measured("encode the prompts")
    def encode(self, requests: Sequence[Request]) -> Encoded:
        base = self.base
        for request in requests:
            self.check(request)
        side = reference_side(base, requests[0].width, requests[0].height)
        shown = [ordered(request) for request in requests]
        squares = [[square(subject.picture(), side) for subject in subjects] for subjects in shown]
        words, words_mask = together(base.texts([instructed(request) for request in requests], squares))
        latents = self._references(shown, squares, side)
        most = max(map(len, shown))
        present = torch.tensor([[k < len(subjects) for k in range(most)] for subjects in shown], dtype=torch.bool)
        boxes = None
        if self.options.reference_mask == "boxes" and most:
            boxes = torch.zeros(len(requests), most, 4, device=base.device)
            for row, subjects in enumerate(shown):
                for k, subject in enumerate(subjects):
                    boxes[row, k] = torch.tensor(subject.box)
        reading = Reading(words, words_mask, latents, present.reshape(len(requests), most).to(base.device), boxes)
        negative = None
        if requests[0].guided:
            texts = base.texts([request.negative_prompt for request in requests], squares)
            words, words_mask = together(texts)
            negative = dataclasses.replace(reading, words=words, words_mask=words_mask)
        return Encoded(reading, negative)

    def _references(
        self, shown: Sequence[Sequence[Subject]], squares: Sequence[Sequence[Image.Image]], side: int
    ) -> torch.Tensor:
        """Latents (B, N, C, p, p); zeros for an individual that a request lacks."""
        base, cells = self.base, side // self.base.latent_scale
        most = max(map(len, shown))
        latents = torch.zeros(len(shown), most, base.latent_channels, cells, cells, device=base.device)
        base.place("vae")
        for row, (subjects, pictures) in enumerate(zip(shown, squares, strict=True)):
            for k, (subject, picture) in enumerate(zip(subjects, pictures, strict=True)):
                latents[row, k] = self._latents_of(subject.image, picture, side)
        return latents

    def _latents_of(self, image: Path | Image.Image, picture: Image.Image, side: int) -> torch.Tensor:
        key = (image, side) if isinstance(image, Path) else None
        if key in self._latents:
            return self._latents[key]
        mean, _ = self.base.encode_pictures(pixels_of(picture))
        if key:
            self._latents[key] = mean[0]
        return mean[0]

    @measured("denoise")
    def denoise(
        self,
        requests: Sequence[Request],
        encoded: Encoded,
        noise: torch.Tensor,
        scheduler: Any = None,
        on_step: OnStep | None = None,
        generators: Sequence[torch.Generator | None] | None = None,
    ) -> torch.Tensor:
        scales = torch.tensor([request.guidance_scale for request in requests])
        return denoised(self.base, encoded, noise, requests[0].steps, scales, self.guide, scheduler, on_step)


@torch.no_grad()
def denoised(
    base: ReferenceTransformer,
    encoded: Encoded,
    noise: torch.Tensor,
    steps: int,
    guidance_scale: torch.Tensor,
    guide: Callable[[ReferenceTransformer, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
    scheduler: Any = None,
    on_step: OnStep | None = None,
) -> torch.Tensor:
    """The sampling loop: (B, C, h, w) scaled latents, float32.

    Args:
        noise: (B, C, h, w) unit noise.
        guidance_scale: (B,); of no effect without negative prompts.
    """
    base.place("transformer")
    scheduler = scheduler or base.scheduler()
    base.set_timesteps(scheduler, steps, (noise.shape[-2], noise.shape[-1]))
    latents, scales = noise.to(base.device).float(), guidance_scale.to(base.device)
    for number, timestep in enumerate(scheduler.timesteps):
        times = (timestep / TIMESTEPS).expand(len(latents)).to(base.device)
        velocity = base.velocity(base.model, latents, times, encoded.prompt)
        if encoded.negative is not None:
            without = base.velocity(base.model, latents, times, encoded.negative)
            velocity = guide(base, velocity, without, scales[:, None, None, None])
        latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
        if on_step:
            changed = on_step(number, latents)
            latents = latents if changed is None else changed
    return latents


def ordered(request: Request) -> list[Subject]:
    """The individuals in the order of the relation's roles, as far as the words tell it."""
    return [request.subjects[k] for k in request.order or range(len(request.subjects))]


def instructed(request: Request) -> str:
    """The prompt, with the number of its picture behind each individual."""
    order = list(request.order or range(len(request.subjects)))
    numbers = [order.index(k) + 1 for k in range(len(request.subjects))]
    return instruction(request.words, [subject.name for subject in request.subjects], numbers)


def reference_side(base: ReferenceTransformer, width: int, height: int) -> int:
    """Side in pixels of the square that a reference is shown as: it has the area of the picture, as in training."""
    side = min((width * height) ** 0.5, base.resolution)
    return max(base.multiple, round(side / base.multiple) * base.multiple)


def square(picture: Image.Image, side: int) -> Image.Image:
    """A picture whole in a white square, as training shows it."""
    blank = np.ones((1, picture.height, picture.width), bool)
    whole = geometry.Annotated(
        image=picture.convert("RGB"), masks=blank, boxes=np.zeros((1, 4)), keypoints=np.zeros((1, 17, 3), np.float32)
    )
    return geometry.contain(whole, side, side).image


def pixels_of(picture: Image.Image) -> torch.Tensor:
    """A picture as (1, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1
