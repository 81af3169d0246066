"""Sampling pictures with two individuals: ours, the official processor's way, and plain SDXL."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from bench import official
from bench.full.clocks import Row, gigabytes, once, peak, seconds
from bench.full.floors import step_floor, text_step_flops
from bench.full.results import Bench
from bench.full.sizes import BOXES, GAMMA, GUIDANCE
from rbctl import attention
from rbctl.bundle.bundle import Bundle
from rbctl.conditioning import guided
from rbctl.defaults import NEGATIVE_PROMPT
from rbctl.denoising import denoise, generators_of, initial_noise
from rbctl.files import write_png
from rbctl.pipeline import RelationPipeline
from rbctl.request import Request, Subject


def requests(bench: Bench, pictures: int) -> list[Request]:
    """One prompt with two individuals, as ``rbctl sample`` would draw it; their pictures are noise."""
    rng, names = np.random.default_rng(0), ("cat", "dog")
    subjects = []
    for name, box in zip(names, BOXES[2], strict=True):
        path = bench.work / f"{name}.png"
        write_png(path, Image.fromarray(rng.integers(0, 256, (512, 512, 3), dtype=np.uint8)))
        subjects.append(Subject(name=name, image=path, box=box, scale=GAMMA))
    return [
        Request(
            words="A cat is hugging a dog.",
            subjects=tuple(subjects),
            negative_prompt=NEGATIVE_PROMPT,
            width=bench.scale.resolution,
            height=bench.scale.resolution,
            steps=bench.scale.steps,
            guidance_scale=GUIDANCE,
            seed=42 + number,
        )
        for number in range(pictures)
    ]


@contextlib.contextmanager
def processors(unet: Any, others: Any) -> Iterator[None]:
    """A UNet with other attention processors, for a while."""
    before = unet.attn_processors
    unet.set_attn_processor(others)
    try:
        yield
    finally:
        unet.set_attn_processor(dict(before))


Loop = Callable[[int], torch.Tensor]  # number of steps -> latents (B, 4, h, w)


class Loops:
    """The denoising loop of one batch, from the same noise, every way."""

    def __init__(self, bundle: Bundle, batch: Sequence[Request]) -> None:
        self.bundle, self.size = bundle, (batch[0].height, batch[0].width)
        pipe = RelationPipeline(bundle)
        self.encoded, latent_size = pipe.sampler.encode(batch), pipe.latent_size(batch[0])
        generators = generators_of(range(len(batch)))
        self.noise = initial_noise(generators, bundle.unet.config.in_channels, latent_size).to(bundle.device)

    def ours(self, backend: str, steps: int) -> torch.Tensor:
        """As ``rbctl sample`` does it: masks built and K and V projected once, before the first step."""
        pipe = RelationPipeline(self.bundle, attention=backend)
        return pipe.sampler.denoise_encoded(self.encoded, self.noise, steps, GUIDANCE)

    def official(self, steps: int) -> torch.Tensor:
        """Masks, K and V at every layer and step."""
        bundle, plain = self.bundle, dataclasses.replace(self.encoded, image_tokens=None)
        latent_size = (self.noise.shape[-2], self.noise.shape[-1])
        text = guided(plain, size=self.size, latent_size=latent_size, levels=bundle.levels)
        conditioning = official.official_conditioning(self.encoded, text, GAMMA)
        guidance = torch.full((len(self.noise),), GUIDANCE, device=bundle.device)
        with processors(bundle.unet, official.processors(bundle.unet)):
            return denoise(bundle.unet, bundle.scheduler(), self.noise, conditioning, steps, guidance)

    def stock(self, steps: int) -> torch.Tensor:
        """diffusers' own pipeline for SDXL with its own processors: text only."""
        from diffusers.models.attention_processor import AttnProcessor2_0

        text = {name: value for name, value in vars(self.encoded).items() if name.endswith("prompt_embeds")}
        height, width = self.size
        with processors(self.bundle.unet, AttnProcessor2_0()):
            return self._pipeline(
                **text,
                height=height,
                width=width,
                num_inference_steps=steps,
                guidance_scale=GUIDANCE,
                latents=self.noise.to(self.bundle.dtype),
                output_type="latent",
            ).images

    @functools.cached_property
    def _pipeline(self) -> Any:
        from diffusers import StableDiffusionXLPipeline

        names = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet")
        parts = {name: getattr(self.bundle, name) for name in names}
        pipeline = StableDiffusionXLPipeline(**parts, scheduler=self.bundle.scheduler(), add_watermarker=False)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def _time_loop(
    bench: Bench, loop: Loop, row: Row, pictures: int, flops: float, around: float | None = None
) -> torch.Tensor:
    """Fill a row.

    Args:
        flops: of one row of a step.
        around: seconds of the batch outside the loop, where they are to be told with it.

    Returns:
        Latents after two steps.
    """
    steps = bench.scale.steps
    latents, most = peak(lambda: loop(2), bench.device)
    took = seconds(lambda: loop(steps), bench.device, rounds=2, warm_up=0)
    if around is not None:
        row["s/image"] = (around + took) / pictures
    row["loop s"] = took
    row["ms/step"] = took / steps * 1e3
    row["MFU of the loop"] = 2 * pictures * flops * steps / took / bench.rates.flops
    row.update(gigabytes(most))
    return latents


def measure(bench: Bench) -> None:
    """Pictures with two individuals: what comes before and after the loop once for all ways, the loop for each."""
    for pictures in bench.scale.pictures:
        batch, title = requests(bench, pictures), f"batch {pictures}"
        with_individuals, text_alone = _around(bench, batch, title)
        loops = Loops(bench.bundle, batch)
        took = _ours_and_official(bench, loops, title, pictures, with_individuals)
        with bench.row("sampling", f"{title}, stock diffusers, text only") as row:
            _time_loop(bench, loops.stock, row, pictures, text_step_flops(bench.scale), text_alone)
        best = min(took, key=lambda name: took[name]) if took else None
        with bench.row("sampling", f"{title}, rbctl sample itself, {best}") as row:
            whole = functools.partial(_whole, bench, batch, best)
            _, most = peak(whole, bench.device)
            row["s/image"] = seconds(whole, bench.device, rounds=2, warm_up=0) / pictures
            row.update(gigabytes(most))
        if best is not None and pictures == bench.scale.pictures[0]:
            bench.profile(f"where sampling spends its time: 4 steps of {best}", functools.partial(loops.ours, best, 4))


def _around(bench: Bench, batch: Sequence[Request], title: str) -> tuple[float | None, float | None]:
    """Seconds that a batch takes outside the loop: with its individuals, with its text alone; None where it failed."""
    bundle, device = bench.bundle, bench.device
    texts = [text for request in batch for text in (request.words, request.negative_prompt)]
    latents = torch.randn(len(batch), bundle.unet.config.in_channels, *bench.scale.latent_size, device=device)
    decode = functools.partial(bundle.decode_latents, latents)
    with bench.row("sampling", f"{title}, before and after the loop") as row:
        row["encoding s"] = seconds(lambda: RelationPipeline(bundle).sampler.encode(batch), device, rounds=2)
        row["of it text s"] = seconds(lambda: bundle.encode_prompts(texts), device, rounds=2)
        _, most = peak(decode, device)
        row["decoding s"] = seconds(decode, device, rounds=2, warm_up=0)
        row.update(gigabytes(most))
    if "failed" in row:
        return None, None
    return row["encoding s"] + row["decoding s"], row["of it text s"] + row["decoding s"]


def _ours_and_official(bench: Bench, loops: Loops, title: str, pictures: int, around: float | None) -> dict[str, float]:
    """Seconds of our loop by backend; the official processor's way is measured first, to compare with."""
    took: dict[str, float] = {}
    flops, baseline, latents = step_floor(bench.scale).flops, None, None
    with bench.row("sampling", f"{title}, official way") as row:
        latents = _time_loop(bench, loops.official, row, pictures, flops, around)
        baseline = row["loop s"]
    for name in bench.backends:
        with bench.row("sampling", f"{title}, ours, {name}") as row:
            own_latents = _time_loop(bench, functools.partial(loops.ours, name), row, pictures, flops, around)
            took[name] = row["loop s"]
            if baseline is not None and latents is not None:
                row["loop x official"] = baseline / took[name]
                row["from official after 2 steps"] = float((own_latents - latents).norm() / latents.norm())
    return took


def _whole(bench: Bench, batch: Sequence[Request], backend: str | None) -> None:
    RelationPipeline(bench.bundle, attention=backend or "auto").sample(batch)


def measure_compiled(bench: Bench) -> None:
    """The loops again, transformer blocks compiled; on the CPU only traced."""
    unet = bench.bundle.unet
    attention.compile_blocks(unet, "inductor" if bench.device.type == "cuda" else "eager")
    for pictures in bench.scale.pictures:
        loops = Loops(bench.bundle, requests(bench, pictures))
        ways: dict[str, tuple[Loop, float]] = {
            f"ours, {name}": (functools.partial(loops.ours, name), step_floor(bench.scale).flops)
            for name in bench.backends
            if name != "eager"  # the definition; nobody would compile it
        }
        ways["stock diffusers, text only"] = (loops.stock, text_step_flops(bench.scale))
        for way, (loop, flops) in ways.items():
            torch._dynamo.reset()  # as in a run that knows one batch size: no program for all of them
            with bench.row("compiled", f"batch {pictures}, {way}") as row:
                row["compiling s"] = once(functools.partial(loop, 1), bench.device)
                _time_loop(bench, loop, row, pictures, flops)
    bench.drop()
