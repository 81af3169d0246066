"""The work of ``rbctl sample``."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import click
import torch

from rbctl import any_lora, denoising, embeddings, pictures
from rbctl.any_lora import AnyLora
from rbctl.bundle.catalogue import resolve
from rbctl.bundle.fingerprints import base_fingerprint, local_encoder_hash
from rbctl.device import DTYPES, pick_device, pick_precision
from rbctl.embeddings import Embedding
from rbctl.errors import InputError
from rbctl.files import read_image, read_object, write_bytes, write_jsonl
from rbctl.inline_pictures import show
from rbctl.phrases import unread
from rbctl.pipeline import RelationPipeline
from rbctl.plugins.sample.config import SampleConfig
from rbctl.plugins.sample.jobs import Job, described, plan
from rbctl.plugins.sample.learned import read_learned
from rbctl.progress import progress
from rbctl.prompts import Prompt, check_pictures, read_official_config, read_prompts
from rbctl.provenance import SHEET, check_signer
from rbctl.runs import RUNS, claim

_ROW = 8  # pictures in a row of the grid; a prompt with more has more rows


def run(config: SampleConfig) -> Path:
    """Sample all prompts; returns the folder. Pictures already made by the same prompt, seed and models stay."""
    check_signer()
    folder = resolve(config.bundle)
    prompts = _prompts(config)
    if config.prompt_weighting:
        prompts = [prompt.weighed() for prompt in prompts]
    check_pictures(prompts)
    learned = read_learned(prompts, config)
    for prompt, own in zip(prompts, learned, strict=True):
        click.echo(described(prompt, own), err=True)
    files = {file.path: file for own in learned for file in own.trained}
    _check_training(files.values(), config, folder)
    source = config.prompts or config.config
    assert source is not None
    output = config.output or RUNS / "sample" / source.stem
    jobs = plan(prompts, learned, config, folder, output)
    with claim(output):
        wanted = {job.file_name: job for job in jobs}  # two prompts may ask for the same picture
        _copy_image_prompts(jobs, output)
        waiting = [job for job in wanted.values() if not _made(output, job)]
        if waiting:
            _sample(waiting, config, output)
        write_jsonl(output / "metadata.jsonl", [{"file_name": job.file_name, **job.record} for job in jobs])
        _write_grid(output, jobs)
    click.echo(f"{len(waiting)} made, {len(wanted) - len(waiting)} were there", err=True)
    return output


def _prompts(config: SampleConfig) -> Sequence[Prompt]:
    if config.config is not None:
        prompt = read_official_config(config.config)
        if config.lora:
            return (dataclasses.replace(prompt, lora=None),)
        return (dataclasses.replace(prompt, lora_weight=(config.lora_weight,)),)
    assert config.prompts is not None
    return read_prompts(config.prompts)


def _check_training(files: Iterable[AnyLora | Embedding], config: SampleConfig, folder: Path) -> None:
    """Compare what LoRAs and embeddings were trained with, as far as their files tell, with what they are used with.

    Raises:
        InputError: an embedding is of another width than the bundle's text encoders, or a file is of another base, and
            that is not allowed.
    """
    own_base, own_encoder, name = base_fingerprint(folder), local_encoder_hash(folder), folder.resolve().name
    for file in files:
        if isinstance(file, Embedding):
            configs = [read_object(folder / part / "config.json") for part in ("text_encoder", "text_encoder_2")]
            embeddings.check_widths(file, [encoder["hidden_size"] for encoder in configs], name)
    for file in files:
        if file.metadata.get("rbctl.base", own_base) != own_base and not config.allow_other_base:
            raise InputError(
                f"{file.path}: made for another base than bundle {name!r} as it is now; choose its own with --bundle; "
                "--allow-other-base samples with it all the same"
            )
        encoder = file.metadata.get("rbctl.local_encoder_hash", own_encoder)
        if encoder != own_encoder and config.local_tokens != "none":
            click.echo(f"{file.path}: trained with another local encoder than that of {name!r}", err=True)
        trained = file.metadata.get("rbctl.local_tokens", config.local_tokens)
        if trained != config.local_tokens:
            used = f"used with --local-tokens {config.local_tokens}"
            click.echo(f"{file.path}: trained with --local-tokens {trained}, {used}", err=True)
        mask = file.metadata.get("rbctl.reference_mask", config.reference_mask)
        if mask != config.reference_mask:
            used = f"used with --reference-mask {config.reference_mask}"
            click.echo(f"{file.path}: trained with --reference-mask {mask}, {used}", err=True)


def _copy_image_prompts(jobs: Sequence[Job], output: Path) -> None:
    copies = {
        output / entry["image"]: subject.image
        for job in jobs
        for subject, entry in zip(job.request.subjects, job.record["objects"], strict=True)
        if isinstance(subject.image, Path)
    }
    for copy, image in copies.items():
        if not copy.is_file():
            write_bytes(copy, image.read_bytes())


def _made(output: Path, job: Job) -> bool:
    record = pictures.read_record(output / job.file_name)
    return record is not None and record.get("fingerprint") == job.record["fingerprint"]


def _sample(jobs: Sequence[Job], config: SampleConfig, output: Path) -> None:
    device = pick_device(config.device)
    pipe = RelationPipeline.from_pretrained(
        config.bundle,
        torch_dtype=DTYPES[pick_precision(config.precision, device)],
        device=config.device,
        lowvram=config.lowvram,
        vae=config.vae,
        local_tokens=config.local_tokens,
        local_grid=config.local_grid,
        local_injection=config.local_injection,
        pseudo_mask_step=config.pseudo_mask_step,
        attention=config.attention,
        reference_mask=config.reference_mask,
    )
    for job in jobs:
        for file, _ in job.loras:
            pipe.attach(file)
    if config.compile:
        pipe.compile()
    for job in jobs:
        if pipe.bundle.overlong(job.request.words, job.request.embeddings):
            names = [subject.name for subject in job.request.subjects]
            late = unread(pipe.bundle.tokenizer, job.request.words, names)
            lost = f": {', '.join(late)}; say them earlier, or shorten it" if late else ""
            click.echo(f"{job.record['source']}: too long for the text encoders; its end is not read{lost}", err=True)
        pipe.sampler.check(job.request)  # what is wrong with one is told before the first picture

    def finish(batch: Sequence[Job], latents: torch.Tensor) -> None:
        with torch.cuda.stream(stream):
            made = denoising.to_pictures(pipe.decode([job.request for job in batch], latents))
        for job, picture in zip(batch, made, strict=True):
            pictures.save_png(picture, output / job.file_name, _parameters(job), job.record)
            show(picture, config.show)
        bar.update(len(batch))

    # While a GPU denoises a batch, the one before is decoded and written; a CPU has no time to share.
    stream = torch.cuda.Stream(device) if device.type == "cuda" and not config.lowvram else None
    with progress(len(jobs), "sample", unit="picture") as bar, ThreadPoolExecutor(max_workers=1) as thread:
        before: Future[None] | None = None
        for batch in _batches(jobs, config.batch_size):
            first = batch[0]
            pipe.use(first.loras)
            latents = pipe.denoise([job.request for job in batch])
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


def _parameters(job: Job) -> str:
    request, record = job.request, job.record
    hashes = (record["lora_hash"] or "").split(",")
    loras = [
        pictures.UsedLora(file.path.stem, weight, any_lora.tensors_hash(file), file_hash)
        for (file, weight), file_hash in zip(job.loras, hashes, strict=False)
    ]
    return pictures.parameters_text(
        record["text"],
        negative_prompt=record["negative_prompt"],
        steps=request.steps,
        guidance_scale=request.guidance_scale,
        seed=request.seed,
        width=request.width,
        height=request.height,
        model=record["bundle"],
        scheduler=record["scheduler"],
        model_hash=record["bundle_fingerprint"],
        vae=record.get("vae"),
        vae_hash=record.get("vae_hash"),
        loras=loras,
        extras={
            "Relation": record["relation"],
            "TI": ", ".join(f"{e['token']}: {e['path']}" for e in record.get("embeddings", ())) or None,
        },
    )


def _write_grid(output: Path, jobs: Sequence[Job]) -> None:
    """Image prompts and pictures of each prompt in grid.png, grid-2.png and so on, each of a bounded size."""
    rows = []
    for _, group in itertools.groupby(jobs, key=lambda job: job.prompt_number):
        made = list(group)
        rows += [made[start : start + _ROW] for start in range(0, len(made), _ROW)]
    drawn = (
        pictures.sheet_row(
            [subject.picture() for subject in row[0].request.subjects],
            [read_image(output / job.file_name) for job in row],
            row[0].record["text"],
        )
        for row in rows
    )
    pictures.save_sheet(drawn, output / "grid.png", SHEET)
