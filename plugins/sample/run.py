"""The work of ``rbctl sample``."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import click
import torch

from rbctl import attention, denoising, embeddings, lora, pictures
from rbctl.bundle.catalogue import read_object, resolve
from rbctl.bundle.load import BASE, Bundle, fingerprint, generator_fingerprint, load, local_encoder_hash, summary
from rbctl.conditioning import PseudoRegions, guided
from rbctl.device import DTYPES, pick_attention, pick_device, pick_precision
from rbctl.embeddings import Embedding
from rbctl.errors import InputError
from rbctl.files import write_bytes, write_jsonl
from rbctl.image_prompt import clip_pixels
from rbctl.images import read_image
from rbctl.lora import LoraFile
from rbctl.phrases import token_spans
from rbctl.plugins.sample.config import SampleConfig
from rbctl.plugins.sample.jobs import Defaults, Job, embeddings_of, lora_of, plan, relation_of
from rbctl.progress import progress
from rbctl.prompts import Prompt, PromptObject, check_pictures, read_official_config, read_prompts
from rbctl.runs import RUNS, claim

_ROW = 8  # pictures in a row of the grid; a prompt with more has more rows
_PAGE = 50  # rows on a page of it


def run(config: SampleConfig) -> Path:
    """Sample all prompts; returns the folder. Pictures already made by the same prompt, seed and models stay."""
    prompts = _prompts(config)
    check_pictures(prompts)
    loras = _loras(prompts, config)
    learned = {given: embeddings.read(given) for prompt in prompts for given in embeddings_of(prompt, config)}
    folder = resolve(config.bundle)
    facts, scheduler = summary(folder), read_object(folder / "scheduler" / "scheduler_config.json")
    defaults = Defaults(
        resolution=facts.resolution,
        gamma=facts.gamma,
        bundle=folder.resolve().name,
        bundle_fingerprint=generator_fingerprint(folder),
        base=fingerprint(folder, BASE),
        local_encoder=local_encoder_hash(folder),
        scheduler=str(scheduler.get("_class_name", "EulerDiscreteScheduler")),
        precision=pick_precision(config.precision, pick_device(config.device)),
    )
    _check_widths(learned.values(), folder)
    _check_training([*loras.values(), *learned.values()], config, defaults)
    jobs = plan(prompts, config, defaults, loras, learned)
    source = config.prompts or config.config
    assert source is not None
    output = config.output or RUNS / "sample" / source.stem
    with claim(output):
        wanted = {job.file_name: job for job in jobs}  # two prompts may ask for the same picture
        _copy_image_prompts(jobs, output)
        waiting = [job for job in wanted.values() if not _made(output, job)]
        if waiting:
            _sample(waiting, config, loras, output)
        write_jsonl(output / "metadata.jsonl", [{"file_name": job.file_name, **job.record} for job in jobs])
        _write_grid(output, jobs)
    click.echo(f"{len(waiting)} made, {len(wanted) - len(waiting)} were there", err=True)
    return output


def _prompts(config: SampleConfig) -> Sequence[Prompt]:
    if config.config is not None:
        prompt = read_official_config(config.config)
        return (dataclasses.replace(prompt, lora=config.lora or prompt.lora, lora_weight=config.lora_weight),)
    assert config.prompts is not None
    return read_prompts(config.prompts)


def _loras(prompts: Sequence[Prompt], config: SampleConfig) -> dict[str, LoraFile]:
    """Every LoRA the prompts need, read and checked before anything heavy is loaded."""
    loras: dict[str, LoraFile] = {}
    for prompt in prompts:
        relation, named = relation_of(prompt, config)
        path, weight = lora_of(prompt, relation, config)
        for part in lora.split(path) if path else ():
            if part not in loras:
                loras[part] = lora.read(Path(part))
        found = "" if named or relation is None else " (from its words)"
        what = f"relation {relation.name}{found}" if relation else "no relation"
        click.echo(f"{prompt.source}: {what}, {f'LoRA {path} x {weight:g}' if path else 'base model'}", err=True)
    return loras


def _check_widths(learned: Iterable[Embedding], folder: Path) -> None:
    """Raises InputError when an embedding is not as wide as the bundle's text encoders."""
    for embedding in learned:
        configs = (read_object(folder / part / "config.json") for part in ("text_encoder", "text_encoder_2"))
        embeddings.check_widths(embedding, [config["hidden_size"] for config in configs], folder.resolve().name)


def _check_training(files: Iterable[LoraFile | Embedding], config: SampleConfig, defaults: Defaults) -> None:
    """Compare what LoRAs and embeddings were trained with, as far as their files tell, with what they are used with.

    Raises:
        InputError: one is of another base, and that is not allowed.
    """
    for file in files:
        base = file.metadata.get("rbctl.base", defaults.base)
        if base != defaults.base and not config.allow_other_base:
            raise InputError(
                f"{file.path}: made for another base than bundle {defaults.bundle!r} as it is now; choose its own "
                "with --bundle; --allow-other-base samples with it all the same"
            )
        encoder = file.metadata.get("rbctl.local_encoder_hash", defaults.local_encoder)
        if encoder != defaults.local_encoder and config.local_tokens != "none":
            click.echo(f"{file.path}: trained with another local encoder than that of {defaults.bundle!r}", err=True)
        trained = file.metadata.get("rbctl.local_tokens", config.local_tokens)
        if trained != config.local_tokens:
            click.echo(
                f"{file.path}: trained with --local-tokens {trained}, used with --local-tokens {config.local_tokens}",
                err=True,
            )


def _copy_image_prompts(jobs: Sequence[Job], output: Path) -> None:
    copies = {
        output / entry["image"]: individual.image
        for job in jobs
        for individual, entry in zip(job.objects, job.record["objects"], strict=True)
    }
    for copy, image in copies.items():
        if not copy.is_file():
            write_bytes(copy, image.read_bytes())


def _made(output: Path, job: Job) -> bool:
    record = pictures.read_record(output / job.file_name)
    return record is not None and record.get("fingerprint") == job.record["fingerprint"]


def _sample(jobs: Sequence[Job], config: SampleConfig, loras: dict[str, LoraFile], output: Path) -> None:
    device = pick_device(config.device)
    dtype = DTYPES[pick_precision(config.precision, device)]
    backend = pick_attention(config.attention, device, dtype)
    bundle = load(config.bundle, device, dtype, local_encoder=config.local_tokens != "none", lowvram=config.lowvram)
    names = {path: f"lora{number}" for number, path in enumerate(loras)}
    for path, file in loras.items():
        lora.attach(bundle.unet, file, names[path])
    if config.compile:
        attention.compile_blocks(bundle.unet)
    encoder = ObjectEncoder(bundle, config)
    for job in jobs:
        if bundle.overlong(job.words, job.embeddings):
            click.echo(f"{job.record['source']}: too long for the text encoders; its end is not read", err=True)
        if config.pseudo_mask_step:
            _spans(bundle, job)  # what is wrong with one is told before the first picture

    def finish(batch: Sequence[Job], latents: torch.Tensor) -> None:
        with torch.cuda.stream(stream):
            made = denoising.to_pictures(decode(bundle, batch, latents))
        for job, picture in zip(batch, made, strict=True):
            pictures.save_png(picture, output / job.file_name, _parameters(job), job.record)
        bar.update(len(batch))

    # While a GPU denoises a batch, the one before is decoded and written; a CPU has no time to share.
    stream = torch.cuda.Stream(device) if device.type == "cuda" and not config.lowvram else None
    with progress(len(jobs), "sample", unit="picture") as bar, ThreadPoolExecutor(max_workers=1) as thread:
        before: Future[None] | None = None
        for batch in _batches(jobs, config.batch_size):
            first = batch[0]
            lora.use(bundle.unet, [names[p] for p in lora.split(first.lora)] if first.lora else None, first.lora_weight)
            latents = denoise_batch(bundle, encoder, batch, config, backend)
            if stream is None:
                finish(batch, latents)
                continue
            stream.wait_stream(torch.cuda.current_stream(device))
            latents.record_stream(stream)
            if before:
                before.result()  # one batch at most waits, and what is wrong with a picture is told
            before = thread.submit(finish, batch, latents)
        if before:
            before.result()


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
        self.bundle, self.config, self.mode = bundle, config, config.local_tokens
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
            self.known[paths] = bundle.image_prompt_encoder.object_tokens(
                pixels, local, self.mode, self.config.local_grid, self.config.local_injection
            )
        return self.known[paths]


def sample_batch(
    bundle: Bundle, encoder: ObjectEncoder, batch: Sequence[Job], config: SampleConfig, backend: str | None
) -> torch.Tensor:
    """Pictures (B, 3, H, W) of jobs of one kind, roughly in [-1, 1]."""
    return decode(bundle, batch, denoise_batch(bundle, encoder, batch, config, backend))


def denoise_batch(
    bundle: Bundle, encoder: ObjectEncoder, batch: Sequence[Job], config: SampleConfig, backend: str | None
) -> torch.Tensor:
    """Scaled latents (B, C, h, w) of jobs of one kind."""
    device = bundle.device
    first = batch[0]
    latent_size = (first.height // bundle.latent_scale, first.width // bundle.latent_scale)
    embeds, pooled = bundle.encode_prompts([job.words for job in batch], first.embeddings)
    negative, negative_pooled = None, None
    if first.guidance_scale != 1:
        negative, negative_pooled = bundle.encode_prompts([job.negative_prompt for job in batch], first.embeddings)
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
    bundle.place("unet")
    return denoising.denoise(
        bundle.unet,
        bundle.scheduler(),
        noise.to(device),
        conditioning,
        first.steps,
        scales if negative is not None else None,
    )


def decode(bundle: Bundle, batch: Sequence[Job], latents: torch.Tensor) -> torch.Tensor:
    """Pictures (B, 3, H, W) of scaled latents.

    Raises:
        InputError: one came out as NaN or infinite values.
    """
    decoded = bundle.decode_latents(latents)
    for job, picture in zip(batch, decoded, strict=True):
        if not picture.isfinite().all():
            raise InputError(
                f"{job.record['source']}: the picture of seed {job.seed} came out as NaN or infinite values; "
                f"{_FINITE[bundle.dtype]}, and run again: finished pictures stay"
            )
    return decoded


_FINITE = {
    torch.float16: "take --precision bf16 or fp32",
    torch.bfloat16: "take --precision fp32",
    torch.float32: "take a smaller --lora-weight or --guidance-scale",
}


@torch.no_grad()
def _image_inputs(
    bundle: Bundle, encoder: ObjectEncoder, batch: Sequence[Job]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Image tokens (B, 4 + P N, D), boxes (B, N, 4) and weights (B, N); an absent object has an all-zero box."""
    most = max(len(job.objects) for job in batch)
    boxes = torch.zeros(len(batch), most, 4, device=bundle.device)
    weights = torch.zeros(len(batch), most, device=bundle.device)
    phrases = [bundle.encode_phrases([thing.name for thing in job.objects]) for job in batch]
    bundle.place("image_prompt_encoder")
    rows = []
    for row, job in enumerate(batch):
        count = len(job.objects)
        boxes[row, :count] = torch.tensor([thing.box for thing in job.objects])
        scales = [job.scale if thing.subject_scale is None else thing.subject_scale for thing in job.objects]
        weights[row, :count] = torch.tensor(scales)
        tokens = encoder(job.objects)
        named = phrases[row][None]
        rows.append(bundle.image_prompt_encoder.adapter_tokens(tokens, boxes[row, None, :count], named)[0])
    longest = max(row.shape[0] for row in rows)
    padded = [torch.cat((row, row.new_zeros(longest - row.shape[0], row.shape[1]))) for row in rows]
    return torch.stack(padded), boxes, weights


def _pseudo_regions(bundle: Bundle, batch: Sequence[Job], start: int, guidance: bool) -> PseudoRegions:
    most = max(len(job.objects) for job in batch)
    spans = torch.zeros(len(batch), most, 2, dtype=torch.long)
    for row, job in enumerate(batch):
        spans[row, : len(job.objects)] = torch.tensor(_spans(bundle, job))
    spans = spans.to(bundle.device)
    return PseudoRegions(spans=torch.cat((spans, spans)) if guidance else spans, start_step=start)


def _spans(bundle: Bundle, job: Job) -> list[tuple[int, int]]:
    """Token range of each object's name in the text.

    Raises:
        InputError: the text has no such place for an object, or it lies behind what the text encoders read.
    """

    def tokenized(part: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": embeddings.pieces(bundle.tokenizer, part, job.embeddings)}

    spans = token_spans(tokenized, job.words, [thing.name for thing in job.objects])
    for thing, (start, end) in zip(job.objects, spans, strict=True):
        if not 0 < start < end < bundle.tokenizer.model_max_length:
            raise InputError(
                f"{job.record['source']}: {thing.name}: --pseudo-mask-step does not find it in the text; write it once "
                "for each object of that name, as words of their own with none but . ! ? , : behind, and not too late"
            )
    return spans


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
        sampler=pictures.sampler_name(job.record["scheduler"]),
        extras={
            "Relation": job.relation,
            "Lora": ", ".join(f"{Path(p).stem}: {job.lora_weight:g}" for p in lora.split(job.lora))
            if job.lora
            else None,
            "TI": ", ".join(f"{e.token}: {e.path}" for e in job.embeddings) or None,
        },
    )


def _write_grid(output: Path, jobs: Sequence[Job]) -> None:
    """Image prompts and pictures of each prompt in grid.png, grid-2.png and so on, each of a bounded size."""
    rows = []
    for _, group in itertools.groupby(jobs, key=lambda job: job.prompt_number):
        made = list(group)
        rows += [made[start : start + _ROW] for start in range(0, len(made), _ROW)]
    pages = [rows[start : start + _PAGE] for start in range(0, len(rows), _PAGE)]
    for number, page in enumerate(pages, 1):
        shown = [
            pictures.sheet_row(
                [read_image(thing.image) for thing in row[0].objects],
                [read_image(output / job.file_name) for job in row],
                row[0].text,
            )
            for row in page
        ]
        pictures.save_png(pictures.grid(shown, 1), _page(output, number), f"page {number}", {"page": number})
    number = len(pages) + 1
    while pictures.read_record(_page(output, number)) == {"page": number}:  # of a longer list of prompts; ours
        _page(output, number).unlink()
        number += 1


def _page(output: Path, number: int) -> Path:
    return output / ("grid.png" if number == 1 else f"grid-{number}.png")
