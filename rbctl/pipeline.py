"""From a prompt and pictures of individuals to a new picture: the public Python API, and what all stages sample by.

pipe = RelationPipeline.from_pretrained("mini")
pipe.load_relation("runs/finetune/ride/ride.safetensors")
image = pipe("A {cat} is riding a {bear}", images={"cat": "cat.png", "bear": "bear.png"}).images[0]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers.utils import BaseOutput

from rbctl import denoising, lora
from rbctl.any_lora import AnyLora
from rbctl.bases import Base, SamplerOptions
from rbctl.bases.load import load, sampler
from rbctl.bundle.recipe import sampling_defaults
from rbctl.device import DTYPES, pick_device, pick_precision
from rbctl.errors import InputError
from rbctl.image_prompt import Injection, LocalTokens
from rbctl.lora_loader import LoraLoader
from rbctl.progress import progress
from rbctl.relations import Box, Relation, load_relation, shipped
from rbctl.request import Picture, Request, requested
from rbctl.roles import find_relation, order_of_roles, place
from rbctl.shortcuts import QUALITY, Quality, Shortcuts

_FINITE = {
    torch.float16: "take --precision bf16 or fp32",
    torch.bfloat16: "take --precision fp32",
    torch.float32: "take a smaller --lora-weight or --guidance-scale",
}


@dataclass
class RelationPipelineOutput(BaseOutput):
    """What :class:`RelationPipeline` returns, as pipelines of diffusers do.

    Attributes:
        images: a list of PIL pictures; or an array (B, H, W, 3), a tensor (B, 3, H, W), both in [0, 1]; or latents.
    """

    images: Any


class RelationPipeline(LoraLoader):
    """Samples pictures of given individuals in a given relation.

    Args:
        bundle: the frozen networks; see :meth:`from_pretrained`.
        local_tokens: each individual's own local tokens, the first one's for all (official code), or none.
        local_grid: local tokens are pooled over a grid of so many by so many; None for the bundle's.
        local_injection: local tokens come behind CLIP's (paper), in the place of its patches, or are added to them.
        pseudo_mask_step: from this step on the text-attention maps replace the boxes; 0 keeps the boxes.
        attention: backend of the parallel cross-attention, a name of ``rbctl doctor``.
        reference_mask: of bases with reference pictures in their sequence, which have none of the options above:
            "boxes" lets only the places in an individual's box see its picture.
        prompt_weighting: A1111's marks weigh words of a prompt, "(word:1.2)"; else they are words too.
    """

    def __init__(
        self,
        bundle: Base,
        *,
        local_tokens: LocalTokens = "own",
        local_grid: int | None = None,
        local_injection: Injection = "concat",
        pseudo_mask_step: int = 0,
        attention: str = "auto",
        reference_mask: Literal["none", "boxes"] = "none",
        prompt_weighting: bool = True,
    ) -> None:
        super().__init__(bundle)
        self.options = SamplerOptions(
            local_tokens=local_tokens,
            local_grid=local_grid,
            local_injection=local_injection,
            pseudo_mask_step=pseudo_mask_step,
            attention=attention,
            reference_mask=reference_mask,
        )
        self.sampler: Any = sampler(bundle, self.options)  # a base's own may do more than rbctl.bases.Sampler
        self.prompt_weighting = prompt_weighting
        self._progress_bar = True
        self._scheduler = bundle.scheduler()

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | Path = "mini",
        *,
        torch_dtype: torch.dtype | None = None,
        device: str = "auto",
        lowvram: bool = False,
        vae: str | Path | None = None,
        **options: Any,
    ) -> RelationPipeline:
        """Load a bundle: a name that ``rbctl models list`` shows, or a folder of the same layout.

        Args:
            torch_dtype: of the networks (the VAE stays float32); None is bfloat16 on CUDA, float32 on the CPU.
            device: "auto" (CUDA where there is one), "cpu" or "cuda".
            lowvram: only the networks at work lie on the GPU.
            vae: decodes in place of the bundle's: a .safetensors file, a folder in diffusers' layout, or a bundle.
            options: of the class.

        Raises:
            InputError: the bundle is not there, or a part of it is missing or damaged; the mend is told.
        """
        place = pick_device(device)
        dtype = torch_dtype or DTYPES[pick_precision("auto", place)]
        local_encoder = options.get("local_tokens", "own") != "none"
        bundle = load(name_or_folder, place, dtype, local_encoder=local_encoder, lowvram=lowvram, vae=vae)
        return cls(bundle, **options)

    @property
    def device(self) -> torch.device:
        return self.bundle.device

    @property
    def dtype(self) -> torch.dtype:
        return self.bundle.dtype

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> RelationPipeline:
        """Move the networks, or change their type; the VAE stays float32. Returns the pipeline itself."""
        bundle = self.bundle
        bundle.move(torch.device(device) if device is not None else bundle.device, dtype or bundle.dtype)
        self.sampler = sampler(bundle, self.options)
        return self

    @property
    def scheduler(self) -> Any:
        """Of diffusers, the bundle's own at first. To set it, give another or a name: "Euler a", "DPM++ 2M Karras"."""
        return self._scheduler

    @scheduler.setter
    def scheduler(self, scheduler: Any) -> None:
        self._scheduler = self.bundle.scheduler(scheduler) if isinstance(scheduler, str) else scheduler

    def set_progress_bar_config(self, disable: bool = False) -> None:
        """Whether calls show a bar on stderr."""
        self._progress_bar = not disable

    def compile(self) -> None:
        """Compile the blocks of the UNet or transformer: a slow start, then faster steps."""
        self.bundle.compile()

    # --- the call

    def __call__(
        self,
        prompt: str | Sequence[str],
        images: Mapping[str, Picture] | Sequence[Mapping[str, Picture]] | None = None,
        boxes: Mapping[str, Box] | Sequence[Mapping[str, Box]] | None = None,
        *,
        negative_prompt: str | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        image_scale: float | None = None,
        num_images_per_prompt: int = 1,
        original_size: tuple[int, int] | None = None,
        crops_coords_top_left: tuple[int, int] = (0, 0),
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: Literal["pil", "np", "pt", "latent"] = "pil",
        quality: Quality = QUALITY,
        shortcuts: Shortcuts | None = None,
        callback_on_step_end: Callable[[RelationPipeline, int, Any, dict[str, torch.Tensor]], Any] | None = None,
        return_dict: bool = True,
    ) -> Any:
        """Sample pictures, all in one batch. What is not given is as the bundle recommends.

        Args:
            prompt: with each individual's name in braces, "A {cat} is riding a {plush bear}"; or several prompts.
            images: picture of each individual by its name, a PIL picture or a path; for several prompts one mapping
                for all, or one for each.
            boxes: where each goes, relative xyxy in [0, 1], likewise. [default: the relation's layout prior, else the
                relation that the words express, else side by side]
            height, width: pixels, multiples of 8, for some bases of 16.
            guidance_scale: classifier-free guidance; 1 or less is none.
            image_scale: weight of the image branch, gamma.
            original_size, crops_coords_top_left: SDXL's micro-conditioning, (height, width) and (top, left) in pixels.
            generator: one for all pictures, or one for each; the first picture of ``rbctl sample --seed 7`` has the
                noise of ``torch.Generator().manual_seed(7)``.
            latents: unit noise (B, C, height / f, width / f) in place of the generator's.
            output_type: see :class:`RelationPipelineOutput`.
            quality: what speed may cost, as ``rbctl sample --quality``: "draft", "standard" or "best".
            shortcuts: what sampling leaves out, in place of the quality's.
            callback_on_step_end: called with the pipeline, the step, the timestep and {"latents": ...} after every
                step; latents in the dictionary it returns take their place.
            return_dict: False gives a tuple.

        Raises:
            InputError: an argument is wrong; it is named.
        """
        bundle = self.bundle
        defaults, own_shortcuts = sampling_defaults(bundle.folder, quality)
        defaults = {"height": bundle.resolution, "width": bundle.resolution, "scale": bundle.gamma, **defaults}
        requests = requested(
            [prompt] if isinstance(prompt, str) else list(prompt),
            images,
            boxes,
            {
                "negative_prompt": negative_prompt,
                "height": height,
                "width": width,
                "steps": num_inference_steps,
                "guidance_scale": guidance_scale,
                "scale": image_scale,
                "images": num_images_per_prompt,
            },
            defaults,
            self.boxes,
            self.prompt_weighting,
        )
        how: dict[str, Any] = {
            "original_size": original_size,
            "crop": crops_coords_top_left,
            "shortcuts": shortcuts or own_shortcuts,
        }
        requests = [
            dataclasses.replace(request, order=order_by_words(request, self.loras), **how) for request in requests
        ]
        generators = self._generators(requests, generator)
        noise = latents
        if noise is None:
            noise = denoising.initial_noise(generators, bundle.latent_channels, self.latent_size(requests[0]))
        scheduler = type(self.scheduler).from_config(self.scheduler.config)  # each call's own: they have a state
        bundle.set_timesteps(scheduler, requests[0].steps, self.latent_size(requests[0]))
        with progress(len(scheduler.timesteps), "sampling", disable=not self._progress_bar) as bar:

            def on_step(step: int, latents: torch.Tensor) -> torch.Tensor | None:
                bar.update()
                if callback_on_step_end is None:
                    return None
                changed = callback_on_step_end(self, step, scheduler.timesteps[step], {"latents": latents}) or {}
                return changed.get("latents")

            sampled = self.denoise(requests, noise, scheduler, on_step, generators)
        made = sampled if output_type == "latent" else _as(output_type, self.decode(requests, sampled))
        return RelationPipelineOutput(images=made) if return_dict else (made,)

    def boxes(self, text: str, names: Sequence[str]) -> tuple[Box, ...]:
        """Boxes for individuals of a prompt that gives none, with the LoRAs in use; see :func:`boxes_by_words`."""
        return boxes_by_words(text, names, self.loras)

    def _generators(
        self, requests: Sequence[Request], generator: torch.Generator | Sequence[torch.Generator] | None
    ) -> list[torch.Generator | None]:
        generators: list[torch.Generator | None] = (
            [*generator] if isinstance(generator, Sequence) else [generator] * len(requests)
        )
        if len(generators) != len(requests):
            raise InputError(f"generator: {len(generators)} for {len(requests)} pictures; give one, or one for each")
        return generators

    # --- what stages use

    def latent_size(self, request: Request) -> tuple[int, int]:
        """(h, w) of a request's latents."""
        return request.height // self.bundle.latent_scale, request.width // self.bundle.latent_scale

    def sample(self, requests: Sequence[Request]) -> torch.Tensor:
        """Pictures (B, 3, H, W) of requests of one kind, roughly in [-1, 1]."""
        return self.decode(requests, self.denoise(requests))

    def denoise(
        self,
        requests: Sequence[Request],
        noise: torch.Tensor | None = None,
        scheduler: Any = None,
        on_step: denoising.OnStep | None = None,
        generators: Sequence[torch.Generator | None] | None = None,
    ) -> torch.Tensor:
        """Scaled latents (B, C, h, w) of requests of one kind.

        Args:
            noise: (B, C, h, w) unit noise; None draws each from its seed.
            scheduler: of diffusers; None for the requests'.
            on_step, generators: see :func:`rbctl.denoising.denoise`; without noise, the generators are of the seeds.
        """
        bundle, first = self.bundle, requests[0]
        for request in requests:
            self.sampler.check(request)
        if bundle.device.type == "cpu":  # a GPU says so itself
            self.sampler.check_memory(requests)
        encoded = self.sampler.encode(requests)
        if noise is None:
            generators = denoising.generators_of([request.seed for request in requests])
            noise = denoising.initial_noise(generators, bundle.latent_channels, self.latent_size(first))
        scheduler = scheduler or bundle.scheduler(first.scheduler)
        return self.sampler.denoise(requests, encoded, noise, scheduler, on_step, generators)

    def decode(self, requests: Sequence[Request], latents: torch.Tensor) -> torch.Tensor:
        """Pictures (B, 3, H, W) of scaled latents.

        Raises:
            InputError: one came out as NaN or infinite values.
        """
        decoded = self.bundle.decode_latents(latents)
        for request, picture in zip(requests, decoded, strict=True):
            if not picture.isfinite().all():
                raise InputError(
                    f"{request.source}: the picture of seed {request.seed} came out as NaN or infinite values; "
                    f"{_FINITE[self.dtype]}, and run again: finished pictures stay"
                )
        return decoded


def order_by_words(request: Request, loras: Sequence[AnyLora]) -> tuple[int, ...]:
    """The individuals in the order of the roles of the relation that the words say; () where they do not tell."""
    names = [subject.name for subject in request.subjects]
    return order_of_roles(request.words, names, _said(request.words, names, loras, None))


def _said(text: str, names: Sequence[str], loras: Sequence[AnyLora], named: Relation | None) -> Relation | None:
    """The relation that a text says: one of the LoRAs' or the named one first, then the shipped ones."""
    own = [*([named] if named else []), *(own for file in loras if (own := lora.relation_of(file)))]
    known = [*own, *(load_relation(name) for name in shipped())]
    return find_relation(text, own, names) or find_relation(text, known, names) or next(iter(own), None)


def boxes_by_words(
    text: str, names: Sequence[str], loras: Sequence[AnyLora], relation: Relation | None = None
) -> tuple[Box, ...]:
    """Boxes for individuals of a prompt that gives none: by the LoRAs' layout prior, or the relation that it says.

    Each has the box of its role, as far as the text tells who does what to whom.

    Args:
        names: N, as the text has them.
        relation: the one that is named beside the text, if one is.

    Returns:
        N boxes, relative xyxy in [0, 1].
    """
    said = _said(text, names, loras, relation)
    return place(text, names, said, lora.layout_prior(loras)).boxes


def _as(output_type: str, decoded: torch.Tensor) -> Any:
    if output_type == "pil":
        return denoising.to_pictures(decoded)
    pixels = (decoded.float() / 2 + 0.5).clamp(0, 1)
    if output_type == "pt":
        return pixels
    if output_type == "np":
        return np.asarray(pixels.permute(0, 2, 3, 1).cpu())
    raise InputError(f"output_type: {output_type!r} is none of pil, np, pt, latent")
