"""The work of ``rbctl sample``."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

import click
import torch

from rbctl import denoising, lora, pictures
from rbctl.bundle.catalogue import resolve
from rbctl.bundle.load import Bundle, fingerprint, load, summary
from rbctl.conditioning import PseudoRegions, guided
from rbctl.device import DTYPES, pick_attention, pick_device, pick_precision
from rbctl.files import atomic_write, read_image, write_jsonl
from rbctl.image_prompt import clip_pixels
from rbctl.lora import LoraFile
from rbctl.phrases import token_span
from rbctl.plugins.sample.config import SampleConfig
from rbctl.plugins.sample.jobs import Defaults, Job, lora_of, plan, relation_of
from rbctl.progress import progress
from rbctl.prompts import Prompt, PromptObject, check_pictures, read_official_config, read_prompts
from rbctl.runs import RUNS, claim


def run(config: SampleConfig) -> Path:
    """Sample all prompts; returns the folder. Pictures already made by the same prompt, seed and models stay."""
    prompts = _prompts(config)
    check_pictures(prompts)
    loras = _loras(prompts, config)
    folder = resolve(config.bundle)
    facts = summary(folder)
    jobs = plan(
        prompts, config, Defaults(facts.resolution, facts.gamma, folder.resolve().name, fingerprint(folder)), loras
    )
    source = config.prompts or config.config
    assert source is not None
    output = config.output or RUNS / "sample" / source.stem
    with claim(output):
        waiting = [job for job in jobs if not _made(output, job)]
        if waiting:
            _sample(waiting, config, loras, output)
        write_jsonl(output / "metadata.jsonl", [{"file_name": job.file_name, **job.record} for job in jobs])
        _write_grid(output, jobs)
    click.echo(f"{len(waiting)} made, {len(jobs) - len(waiting)} were there", err=True)
    return output


def _prompts(config: SampleConfig) -> Sequence[Prompt]:
    if config.config is not None:
        prompt = read_official_config(config.config)
        return (dataclasses.replace(prompt, lora=config.lora or prompt.lora),)
    assert config.prompts is not None
    return read_prompts(config.prompts)


def _loras(prompts: Sequence[Prompt], config: SampleConfig) -> dict[str, LoraFile]:
    """Every LoRA the prompts need, read and checked before anything heavy is loaded."""
    loras: dict[str, LoraFile] = {}
    for prompt in prompts:
        relation, named = relation_of(prompt, config)
        path, weight = lora_of(prompt, relation, config)
        if path and path not in loras:
            loras[path] = lora.read(Path(path))
        found = "" if named or relation is None else " (from its words)"
        what = f"relation {relation.name}{found}" if relation else "no relation"
        click.echo(f"{prompt.source}: {what}, {f'LoRA {path} x {weight:g}' if path else 'base model'}", err=True)
    return loras


def _made(output: Path, job: Job) -> bool:
    record = pictures.read_record(output / job.file_name)
    return record is not None and record.get("fingerprint") == job.record["fingerprint"]


def _sample(jobs: Sequence[Job], config: SampleConfig, loras: dict[str, LoraFile], output: Path) -> None:
    device = pick_device(config.device)
    dtype = DTYPES[pick_precision(config.precision, device)]
    backend = pick_attention(config.attention, device, dtype)
    bundle = load(config.bundle, device, dtype, local_encoder=config.local_tokens != "none")
    names = {path: f"lora{number}" for number, path in enumerate(loras)}
    for path, file in loras.items():
        lora.attach(bundle.unet, file, names[path])
    if config.compile:
        bundle.unet.compile_repeated_blocks()
    encoder = ObjectEncoder(bundle, config)
    for job in jobs:
        if bundle.overlong(job.text):
            click.echo(f"{job.record['source']}: too long for the text encoders; its end is not read", err=True)
    with progress(len(jobs), "sample", unit="picture") as bar:
        for batch in _batches(jobs, config.batch_size):
            first = batch[0]
            lora.use(bundle.unet, names[first.lora] if first.lora else None, first.lora_weight)
            made = denoising.to_pictures(sample_batch(bundle, encoder, batch, config, backend))
            for job, picture in zip(batch, made, strict=True):
                pictures.save_png(picture, output / job.file_name, _parameters(job), job.record)
            bar.update(len(batch))


def _batches(jobs: Sequence[Job], size: int) -> Iterable[Sequence[Job]]:
    """Batches of one kind; a kind comes when its first job does."""
    kinds: dict[tuple[object, ...], list[Job]] = {}
    for job in jobs:
        kinds.setdefault(job.kind, []).append(job)
    for same in kinds.values():
        yield from (same[i : i + size] for i in range(0, len(same), size))


class ObjectEncoder:
    """CLIP and local tokens of image prompts; each picture is encoded once a run."""

    def __init__(self, bundle: Bundle, config: SampleConfig) -> None:
        self.bundle, self.mode = bundle, config.local_tokens
        self.known: dict[tuple[Path, ...], torch.Tensor] = {}

    def __call__(self, objects: Sequence[PromptObject]) -> torch.Tensor:
        """(N, S, C) of one prompt's objects."""
        paths = tuple(thing.image for thing in objects)
        if self.mode == "first_image":  # the official code's local tokens depend on the prompt's first object
            return self._encode(paths)
        return torch.cat([self._encode((path,)) for path in paths])

    @torch.no_grad()
    def _encode(self, paths: tuple[Path, ...]) -> torch.Tensor:
        if paths not in self.known:
            bundle, images = self.bundle, [read_image(path) for path in paths]
            local = None
            if self.mode != "none":
                local = clip_pixels(images, bundle.local_image_size).to(bundle.device, bundle.dtype)
            pixels = clip_pixels(images, bundle.clip_image_size).to(bundle.device, bundle.dtype)
            self.known[paths] = bundle.image_prompt_encoder.object_tokens(pixels, local, self.mode)
        return self.known[paths]


def sample_batch(
    bundle: Bundle, encoder: ObjectEncoder, batch: Sequence[Job], config: SampleConfig, backend: str | None
) -> torch.Tensor:
    """Decoded pictures (B, 3, H, W) of jobs of one kind, roughly in [-1, 1]."""
    device = bundle.device
    first = batch[0]
    latent_size = (first.height // bundle.latent_scale, first.width // bundle.latent_scale)
    embeds, pooled = bundle.encode_prompts([job.text for job in batch])
    negative, negative_pooled = None, None
    if first.guidance_scale != 1:
        negative, negative_pooled = bundle.encode_prompts([job.negative_prompt for job in batch])
    tokens, boxes, weights = _image_inputs(bundle, encoder, batch) if first.objects else (None, None, None)
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
        backend=backend,
    )
    if config.pseudo_mask_step and first.objects:
        conditioning.pseudo = _pseudo_regions(bundle, batch, config.pseudo_mask_step, negative is not None)
    noise = denoising.initial_noise([job.seed for job in batch], bundle.unet.config.in_channels, latent_size)
    scales = torch.tensor([job.guidance_scale for job in batch], device=device)
    latents = denoising.denoise(
        bundle.unet,
        bundle.scheduler(),
        noise.to(device),
        conditioning,
        first.steps,
        scales if negative is not None else None,
    )
    # One at a time: decoding is where the memory of large pictures peaks.
    return torch.cat([bundle.decode_latents(one[None]) for one in latents])


@torch.no_grad()
def _image_inputs(
    bundle: Bundle, encoder: ObjectEncoder, batch: Sequence[Job]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Image tokens (B, 4 + P N, D), boxes (B, N, 4) and weights (B, N); an absent object has an all-zero box."""
    most = max(len(job.objects) for job in batch)
    boxes = torch.zeros(len(batch), most, 4, device=bundle.device)
    weights = torch.zeros(len(batch), most, device=bundle.device)
    rows = []
    for row, job in enumerate(batch):
        count = len(job.objects)
        boxes[row, :count] = torch.tensor([thing.box for thing in job.objects])
        scales = [job.scale if thing.subject_scale is None else thing.subject_scale for thing in job.objects]
        weights[row, :count] = torch.tensor(scales)
        phrases = bundle.encode_phrases([thing.name for thing in job.objects])
        tokens = encoder(job.objects)
        rows.append(bundle.image_prompt_encoder.adapter_tokens(tokens, boxes[row, None, :count], phrases[None])[0])
    longest = max(row.shape[0] for row in rows)
    padded = [torch.cat((row, row.new_zeros(longest - row.shape[0], row.shape[1]))) for row in rows]
    return torch.stack(padded), boxes, weights


def _pseudo_regions(bundle: Bundle, batch: Sequence[Job], start: int, guidance: bool) -> PseudoRegions:
    most = max(len(job.objects) for job in batch)
    spans = torch.zeros(len(batch), most, 2, dtype=torch.long)
    for row, job in enumerate(batch):
        for column, thing in enumerate(job.objects):
            spans[row, column] = torch.tensor(token_span(bundle.tokenizer, job.text, thing.name))
    spans = spans.to(bundle.device)
    return PseudoRegions(spans=torch.cat((spans, spans)) if guidance else spans, start_step=start)


def _parameters(job: Job) -> str:
    return pictures.parameters_text(
        job.text,
        negative_prompt=job.negative_prompt,
        steps=job.steps,
        guidance_scale=job.guidance_scale,
        seed=job.seed,
        width=job.width,
        height=job.height,
        model=job.record["bundle"],
        extras={
            "Relation": job.relation,
            "Lora": f"{Path(job.lora).stem}: {job.lora_weight:g}" if job.lora else None,
        },
    )


def _write_grid(output: Path, jobs: Sequence[Job]) -> None:
    """One row a prompt: its image prompts, then its pictures."""
    rows = []
    for _, group in itertools.groupby(jobs, key=lambda job: job.prompt_number):
        made = list(group)
        image_prompts = [read_image(thing.image) for thing in made[0].objects]
        shown = [read_image(output / job.file_name) for job in made]
        rows.append(pictures.sheet_row(image_prompts, shown, made[0].text))
    with atomic_write(output / "grid.png") as temporary:
        pictures.grid(rows, 1).save(temporary, format="PNG")
