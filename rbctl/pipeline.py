"""From a prompt and pictures of individuals to a new picture: the public Python API, and what all stages sample by.

pipe = RelationPipeline.from_pretrained("mini")
pipe.load_relation("runs/finetune/ride/lora.safetensors")
image = pipe("A {cat} is riding a {bear}", images={"cat": "cat.png", "bear": "bear.png"}).images[0]
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image

from rbctl import denoising, formats, layout, lora, memory
from rbctl.attention import compile_blocks
from rbctl.bundle.bundle import Bundle
from rbctl.bundle.load import load
from rbctl.bundle.recipe import sampling_defaults
from rbctl.conditioning import PseudoRegions, guided
from rbctl.device import DTYPES, pick_attention, pick_device, pick_precision
from rbctl.embeddings import Embedding, pieces
from rbctl.errors import InputError
from rbctl.files import sha256
from rbctl.image_prompt import Injection, LocalTokens, clip_pixels
from rbctl.images import read_image
from rbctl.layout import LayoutPrior
from rbctl.lora import LoraFile
from rbctl.phrases import token_spans
from rbctl.progress import progress
from rbctl.prompts.fields import Settings
from rbctl.relations import Box, check_box, find_relation, load_relation, shipped

Picture = Path | str | Image.Image

_PLACE = re.compile(r"\{([^{}]+)\}")
_FINITE = {
    torch.float16: "take --precision bf16 or fp32",
    torch.bfloat16: "take --precision fp32",
    torch.float32: "take a smaller --lora-weight or --guidance-scale",
}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One individual to be shown.

    Attributes:
        name: the words for it in the prompt, "plush bear".
        image: its picture.
        box: where it goes, relative xyxy.
        scale: weight of its image tokens.
    """

    name: str
    image: Path | Image.Image
    box: Box
    scale: float


@dataclass(frozen=True, kw_only=True)
class Request:
    """One picture to be drawn, with every default filled in.

    Attributes:
        words: the prompt as the text encoders are given it, learned tokens in their places.
        width, height: pixels, multiples of 8.
        guidance_scale: 1 for none.
        seed: of its noise.
        embeddings: what learned tokens in ``words`` stand for.
        source: where it was asked for, for errors.
    """

    words: str
    subjects: tuple[Subject, ...]
    negative_prompt: str
    width: int
    height: int
    steps: int
    guidance_scale: float
    seed: int = 0
    embeddings: tuple[Embedding, ...] = ()
    source: str = "prompt"

    @property
    def kind(self) -> tuple[Any, ...]:
        """Requests of one kind can be sampled in one batch."""
        plain = not self.subjects
        return self.embeddings, self.width, self.height, self.steps, self.guidance_scale == 1, plain


@dataclass
class RelationPipelineOutput(BaseOutput):
    """What :class:`RelationPipeline` returns, as pipelines of diffusers do.

    Attributes:
        images: a list of PIL pictures; or an array (B, H, W, 3), a tensor (B, 3, H, W), both in [0, 1]; or latents.
    """

    images: Any


class RelationPipeline:
    """Samples pictures of given individuals in a given relation.

    Args:
        bundle: the frozen networks; see :meth:`from_pretrained`.
        local_tokens: each individual's own local tokens, the first one's for all (official code), or none.
        local_grid: local tokens are pooled over a grid of so many by so many; None for the bundle's.
        local_injection: local tokens come behind CLIP's (paper), in the place of its patches, or are added to them.
        pseudo_mask_step: from this step on the text-attention maps replace the boxes; 0 keeps the boxes.
        attention: backend of the parallel cross-attention, a name of ``rbctl doctor``.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        local_tokens: LocalTokens = "own",
        local_grid: int | None = None,
        local_injection: Injection = "concat",
        pseudo_mask_step: int = 0,
        attention: str = "auto",
    ) -> None:
        self.bundle = bundle
        self.local_tokens, self.local_grid, self.local_injection = local_tokens, local_grid, local_injection
        self.pseudo_mask_step = pseudo_mask_step
        self.attention = attention
        self.backend = pick_attention(attention, bundle.device, bundle.dtype)
        self._read: dict[tuple[Path, str], LoraFile] = {}
        self._adapters: dict[int, tuple[LoraFile, str]] = {}
        self._relations: tuple[LoraFile, ...] = ()
        self._encoded: dict[tuple[Path, ...], torch.Tensor] = {}
        self._progress_bar = True

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | Path = "mini",
        *,
        torch_dtype: torch.dtype | None = None,
        device: str = "auto",
        lowvram: bool = False,
        **options: Any,
    ) -> RelationPipeline:
        """Load a bundle: a name that ``rbctl models list`` shows, or a folder of the same layout.

        Args:
            torch_dtype: of the networks (the VAE stays float32); None is bfloat16 on CUDA, float32 on the CPU.
            device: "auto" (CUDA where there is one), "cpu" or "cuda".
            lowvram: only the networks at work lie on the GPU.
            options: of the class.

        Raises:
            InputError: the bundle is not there, or a part of it is missing or damaged; the mend is told.
        """
        place = pick_device(device)
        dtype = torch_dtype or DTYPES[pick_precision("auto", place)]
        local_encoder = options.get("local_tokens", "own") != "none"
        return cls(load(str(name_or_folder), place, dtype, local_encoder=local_encoder, lowvram=lowvram), **options)

    @property
    def device(self) -> torch.device:
        return self.bundle.device

    @property
    def dtype(self) -> torch.dtype:
        return self.bundle.dtype

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> RelationPipeline:
        """Move the networks, or change their type; the VAE stays float32. Returns the pipeline itself."""
        bundle = self.bundle
        bundle.device = torch.device(device) if device is not None else bundle.device
        bundle.dtype = dtype or bundle.dtype
        bundle.vae.to("cpu" if bundle.lowvram else bundle.device)
        for part in ("unet", "text_encoder", "text_encoder_2", "image_prompt_encoder"):
            if module := getattr(bundle, part):
                module.to("cpu" if bundle.lowvram else bundle.device, bundle.dtype)
        self._encoded.clear()
        self.backend = pick_attention(self.attention, bundle.device, bundle.dtype)
        return self

    def set_progress_bar_config(self, disable: bool = False) -> None:
        """Whether calls show a bar on stderr."""
        self._progress_bar = not disable

    def compile(self) -> None:
        """Compile the UNet's transformer blocks: a slow start, then faster steps."""
        compile_blocks(self.bundle.unet)

    # --- relations

    def load_relation(self, paths: Path | str | Sequence[Path | str], weight: float = 1.0) -> None:
        """Sample with a relation LoRA from now on, or with several at the same weight. The last call counts.

        Raises:
            InputError: a file is no relation LoRA, or is made for another base.
        """
        files = []
        for path in [paths] if isinstance(paths, Path | str) else paths:
            key = Path(path), sha256(Path(path)) if Path(path).is_file() else ""  # a file may be tuned anew meanwhile
            if key not in self._read:
                self._read[key] = lora.read(key[0])
            files.append(self._read[key])
        self.use(files, weight)

    def unload_relation(self) -> None:
        """Sample with the base model from now on."""
        self.use([])

    def use(self, files: Sequence[LoraFile], weight: float = 1.0) -> None:
        """:meth:`load_relation` of files that are read already."""
        for file in files:
            self.attach(file)
        lora.use(self.bundle.unet, [self._adapters[id(file)][1] for file in files] or None, weight)
        self._relations = tuple(files)

    def attach(self, file: LoraFile) -> None:
        """Put a LoRA into the UNet, once, without switching it on.

        Raises:
            InputError: it is made for another base.
        """
        if id(file) not in self._adapters:
            name = f"lora{len(self._adapters)}"
            lora.attach(self.bundle.unet, file, name)
            self._adapters[id(file)] = file, name  # kept with its file, so that no other comes to have its id

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
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: Literal["pil", "np", "pt", "latent"] = "pil",
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
            height, width: pixels, multiples of 8.
            guidance_scale: classifier-free guidance; 1 is none.
            image_scale: weight of the image branch, gamma.
            generator: one for all pictures, or one for each; the first picture of ``rbctl sample --seed 7`` has the
                noise of ``torch.Generator().manual_seed(7)``.
            latents: unit noise (B, C, height / f, width / f) in place of the generator's.
            output_type: see :class:`RelationPipelineOutput`.
            callback_on_step_end: called with the pipeline, the step, the timestep and {"latents": ...} after every
                step; latents in the dictionary it returns take their place.
            return_dict: False gives a tuple.

        Raises:
            InputError: an argument is wrong; it is named.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        defaults = sampling_defaults(self.bundle.folder)
        given = {
            "negative_prompt": negative_prompt,
            "height": height,
            "width": width,
            "steps": num_inference_steps,
            "guidance_scale": guidance_scale,
            "scale": image_scale,
            "images": num_images_per_prompt,
        }
        sizes = {"height": self.bundle.resolution, "width": self.bundle.resolution, "scale": self.bundle.gamma}
        names = {"steps": "num_inference_steps", "scale": "image_scale", "images": "num_images_per_prompt"}
        settings = formats.read(Settings, given, "RelationPipeline", names)
        chosen = {key: getattr(settings, key) for key, value in given.items() if value is not None}
        values = sizes | defaults | chosen
        scale, copies = values.pop("scale"), values.pop("images")
        requests = [
            Request(words=words, subjects=subjects, source=f"prompt {number}", **values)
            for number, text in enumerate(prompts, 1)
            for words, subjects in [
                self._subjects(text, _of(images, number, len(prompts)), _of(boxes, number, len(prompts)), scale)
            ]
            for _ in range(copies)
        ]
        noise = self._noise(requests, generator) if latents is None else latents
        scheduler = self.bundle.scheduler()
        with progress(values["steps"], "sampling", disable=not self._progress_bar) as bar:

            def on_step(step: int, latents: torch.Tensor) -> torch.Tensor | None:
                bar.update()
                if callback_on_step_end is None:
                    return None
                changed = callback_on_step_end(self, step, scheduler.timesteps[step], {"latents": latents}) or {}
                return changed.get("latents")

            sampled = self.denoise(requests, noise, scheduler, on_step)
        made = sampled if output_type == "latent" else _as(output_type, self.decode(requests, sampled))
        return RelationPipelineOutput(images=made) if return_dict else (made,)

    def _subjects(
        self, text: str, images: Mapping[str, Picture], boxes: Mapping[str, Box], scale: float
    ) -> tuple[str, tuple[Subject, ...]]:
        """The prompt with its places filled by their names, and who stands in them, in their order."""
        names = [name.strip() for name in _PLACE.findall(text)]
        for argument, mapping in (("images", images), ("boxes", boxes)):
            if strange := [name for name in mapping if name not in names]:
                raise InputError(f"{argument}: {strange[0]!r} has no place in the prompt; write {{{strange[0]}}}")
        if lacking := [name for name in names if name not in images]:
            raise InputError(f"images: has no picture of {lacking[0]!r}, which the prompt names")
        if len(set(names)) < len(names):
            raise InputError("prompt: two individuals have the same name; tell them apart: {red cat}, {blue cat}")
        if boxes and len(boxes) < len(names):
            raise InputError("boxes: some individuals have a box and some have none; give one for each, or none")
        words = _PLACE.sub(lambda place: place[1].strip(), text)
        places: Sequence[Box] = [_box(boxes[name], name) for name in names] if boxes else self.boxes(words, len(names))
        pictures = [image if isinstance(image, Image.Image) else Path(image) for image in map(images.get, names)]  # type: ignore[arg-type]
        return words, tuple(
            Subject(name=name, image=picture, box=box, scale=scale)
            for name, picture, box in zip(names, pictures, places, strict=True)
        )

    def boxes(self, text: str, count: int) -> tuple[Box, ...]:
        """Boxes for ``count`` individuals of a prompt that gives none: by the LoRA's layout prior, or its relation."""
        stored = [(file.metadata.get("rbctl.layout_prior"), str(file.path)) for file in self._relations]
        prior = next((LayoutPrior.from_json(text, path) for text, path in stored if text), None)
        relation = find_relation(text, [load_relation(name) for name in shipped()])
        return layout.boxes_for(count, prior, relation)[0]

    def _noise(
        self, requests: Sequence[Request], generator: torch.Generator | Sequence[torch.Generator] | None
    ) -> torch.Tensor:
        shape = (1, self.bundle.unet.config.in_channels, *self.latent_size(requests[0]))
        several = isinstance(generator, Sequence)
        generators = list(generator) if isinstance(generator, Sequence) else [generator] * len(requests)
        if several and len(generators) != len(requests):
            raise InputError(f"generator: {len(generators)} for {len(requests)} pictures; give one, or one for each")
        drawn = [torch.randn(shape, generator=one, device=one.device if one else "cpu") for one in generators]
        return torch.cat([noise.cpu() for noise in drawn])

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
    ) -> torch.Tensor:
        """Scaled latents (B, C, h, w) of requests of one kind.

        Args:
            noise: (B, C, h, w) unit noise; None draws each from its seed.
            scheduler: of diffusers; None for the bundle's.
            on_step: see :func:`rbctl.denoising.denoise`.
        """
        bundle, first = self.bundle, requests[0]
        latent_size = self.latent_size(first)
        if bundle.device.type == "cpu":  # a GPU says so itself
            self._check_memory(requests)
        embeds, pooled = bundle.encode_prompts([request.words for request in requests], first.embeddings)
        negative, negative_pooled = None, None
        if first.guidance_scale != 1:
            negatives = [request.negative_prompt for request in requests]
            negative, negative_pooled = bundle.encode_prompts(negatives, first.embeddings)
        tokens, boxes, weights = self._image_inputs(requests) if first.subjects else (None, None, None)
        conditioning = guided(
            prompt_embeds=embeds,
            pooled_prompt_embeds=pooled,
            negative_prompt_embeds=negative,
            negative_pooled_prompt_embeds=negative_pooled,
            size=(first.height, first.width),
            latent_size=latent_size,
            levels=bundle.levels,
            image_tokens=tokens,
            boxes=boxes,
            object_weights=weights,
            backend=self.backend,
        )
        if self.pseudo_mask_step and first.subjects:
            conditioning.pseudo = self._pseudo_regions(requests, negative is not None)
        if noise is None:
            seeds = [request.seed for request in requests]
            noise = denoising.initial_noise(seeds, bundle.unet.config.in_channels, latent_size)
        scales = torch.tensor([request.guidance_scale for request in requests], device=bundle.device)
        bundle.place("unet")
        return denoising.denoise(
            bundle.unet,
            scheduler or bundle.scheduler(),
            noise.to(bundle.device),
            conditioning,
            first.steps,
            scales if negative is not None else None,
            on_step,
        )

    def _check_memory(self, requests: Sequence[Request]) -> None:
        bundle, first = self.bundle, requests[0]
        latent_size, rows = self.latent_size(first), len(requests) * (1 if first.guidance_scale == 1 else 2)
        denoising = memory.forward_bytes(bundle.unet.config, rows, latent_size, bundle.dtype.itemsize)
        decoding = memory.picture_bytes(bundle.vae.config, first.height, first.width)
        what = f"{first.source}: {len(requests)} x {first.width} x {first.height} pixels at once"
        mend = "make them smaller, or lower --batch-size"
        memory.require(max(denoising, decoding), bundle.device, what, mend)
        memory.require_time(bundle.unet.config, latent_size, bundle.device, what)

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

    @torch.no_grad()
    def subject_tokens(self, subjects: Sequence[Subject]) -> torch.Tensor:
        """(N, S, C) CLIP and local tokens of one request's individuals; a picture of a file is encoded once."""
        images = [subject.image for subject in subjects]
        if self.local_tokens == "first_image":  # the official code's local tokens depend on the prompt's first object
            return self._encode(images)
        return torch.cat([self._encode([image]) for image in images])

    def _encode(self, images: Sequence[Path | Image.Image]) -> torch.Tensor:
        paths = tuple(image for image in images if isinstance(image, Path))
        if len(paths) == len(images) and paths in self._encoded:
            return self._encoded[paths]
        bundle = self.bundle
        pictures = [read_image(image) if isinstance(image, Path) else image.convert("RGB") for image in images]
        local = None
        if self.local_tokens != "none":
            local = clip_pixels(pictures, bundle.local_image_size).to(bundle.device, bundle.dtype)
        pixels = clip_pixels(pictures, bundle.clip_image_size).to(bundle.device, bundle.dtype)
        tokens = bundle.image_prompt_encoder.object_tokens(
            pixels, local, self.local_tokens, self.local_grid, self.local_injection
        )
        if len(paths) == len(images):
            self._encoded[paths] = tokens
        return tokens

    @torch.no_grad()
    def _image_inputs(self, requests: Sequence[Request]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Image tokens (B, 4 + P N, D), boxes (B, N, 4) and weights (B, N); an absent individual has a zero box."""
        bundle = self.bundle
        most = max(len(request.subjects) for request in requests)
        boxes = torch.zeros(len(requests), most, 4, device=bundle.device)
        weights = torch.zeros(len(requests), most, device=bundle.device)
        phrases = [bundle.encode_phrases([subject.name for subject in request.subjects]) for request in requests]
        bundle.place("image_prompt_encoder")
        rows = []
        for row, request in enumerate(requests):
            count = len(request.subjects)
            boxes[row, :count] = torch.tensor([subject.box for subject in request.subjects])
            weights[row, :count] = torch.tensor([subject.scale for subject in request.subjects])
            tokens = self.subject_tokens(request.subjects)
            named = phrases[row][None]
            rows.append(bundle.image_prompt_encoder.adapter_tokens(tokens, boxes[row, None, :count], named)[0])
        longest = max(row.shape[0] for row in rows)
        padded = [torch.cat((row, row.new_zeros(longest - row.shape[0], row.shape[1]))) for row in rows]
        return torch.stack(padded), boxes, weights

    def _pseudo_regions(self, requests: Sequence[Request], guidance: bool) -> PseudoRegions:
        most = max(len(request.subjects) for request in requests)
        spans = torch.zeros(len(requests), most, 2, dtype=torch.long)
        for row, request in enumerate(requests):
            spans[row, : len(request.subjects)] = torch.tensor(self.spans(request))
        spans = spans.to(self.device)
        return PseudoRegions(spans=torch.cat((spans, spans)) if guidance else spans, start_step=self.pseudo_mask_step)

    def spans(self, request: Request) -> list[tuple[int, int]]:
        """Token range of each individual's name in the prompt.

        Raises:
            InputError: the prompt has no such place for one, or it lies behind what the text encoders read.
        """
        tokenizer = self.bundle.tokenizer

        def tokenized(part: str, **_: object) -> dict[str, list[int]]:
            return {"input_ids": pieces(tokenizer, part, request.embeddings)}

        spans = token_spans(tokenized, request.words, [subject.name for subject in request.subjects])
        for subject, (start, end) in zip(request.subjects, spans, strict=True):
            if not 0 < start < end < tokenizer.model_max_length:
                raise InputError(
                    f"{request.source}: {subject.name}: --pseudo-mask-step does not find it in the text; write it once "
                    "for each object of that name, as words of their own with none but . ! ? , : behind, and not too "
                    "late"
                )
        return spans


def _of(mapping: Any, number: int, count: int) -> Mapping[str, Any]:
    """What an argument says of prompt ``number``, from 1: one mapping for all prompts, or a list of one for each."""
    if mapping is None or isinstance(mapping, Mapping):
        return mapping or {}
    if len(mapping) != count:
        raise InputError(f"images and boxes: {len(mapping)} mappings for {count} prompts; give one, or one for each")
    return mapping[number - 1]


def _box(value: Any, name: str) -> Box:
    try:
        return check_box(value)
    except ValueError as error:
        raise InputError(f"boxes: {name}: {error}") from error


def _as(output_type: str, decoded: torch.Tensor) -> Any:
    if output_type == "pil":
        return denoising.to_pictures(decoded)
    pixels = (decoded.float() / 2 + 0.5).clamp(0, 1)
    if output_type == "pt":
        return pixels
    if output_type == "np":
        return np.asarray(pixels.permute(0, 2, 3, 1).cpu())
    raise InputError(f"output_type: {output_type!r} is none of pil, np, pt, latent")
