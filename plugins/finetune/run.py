"""The work of ``rbctl finetune``."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import torch

from rbctl import lora
from rbctl.bundle.catalogue import resolve
from rbctl.bundle.load import Bundle, fingerprint, load, summary
from rbctl.device import DTYPES, pick_attention, pick_device, pick_precision
from rbctl.errors import InputError
from rbctl.files import read_jsonl, read_yaml, sha256, write_jsonl
from rbctl.layout import LayoutPrior
from rbctl.options import as_plain, to_yaml, write_recipe
from rbctl.plugins.finetune import checkpoint, frozen
from rbctl.plugins.finetune.config import FinetuneConfig
from rbctl.plugins.finetune.objective import Schedule, draw, training_loss
from rbctl.plugins.finetune.preview import preview
from rbctl.progress import progress
from rbctl.relations import Relation, load_relation
from rbctl.runs import RUNS, claim, write_record
from rbctl.triplets import Triplet, data_hash
from rbctl.triplets import load as load_triplets

# Fields that may differ when a run is taken up again: they change how it runs, not what it computes.
_FREE = {"output", "resume", "device", "checkpoint_every", "keep_checkpoints", "preview_every", "preview_steps"}
_FREE |= {"format", "tensorboard", "data", "steps"}


def run(config: FinetuneConfig) -> Path:
    """Tune the LoRA; returns its path. A finished run is not run again."""
    from accelerate import Accelerator

    relation = load_relation(config.relation)
    triplets = load_triplets(config.data)
    resolve(config.bundle)
    _check_predicates(config, triplets)
    output = config.output or RUNS / "finetune" / relation.name
    device = pick_device(config.device)
    precision = pick_precision(config.precision, device)
    if precision == "fp16" and device.type == "cpu":
        raise InputError("--precision fp16: training in fp16 needs CUDA; take bf16 or fp32")
    pick_attention(config.attention, device, DTYPES[precision])
    accelerator = Accelerator(
        mixed_precision="no" if precision == "fp32" else precision,
        cpu=device.type == "cpu",
        log_with="tensorboard" if config.tensorboard else None,
        project_dir=str(output),
    )
    with claim(output) if accelerator.is_main_process else contextlib.nullcontext():
        if accelerator.is_main_process:
            _begin(output, config)
        accelerator.wait_for_everyone()
        return _tune(config, relation, triplets, output, accelerator, precision)


def _check_predicates(config: FinetuneConfig, triplets: list[Triplet]) -> None:
    if config.attention_loss_weight:
        for triplet in triplets:
            if not triplet.predicate:
                raise InputError(
                    f"{config.data}: triplet {triplet.id!r} names no predicate, which --attention-loss-weight needs; "
                    "add it to the data or set the weight to 0"
                )


def _begin(output: Path, config: FinetuneConfig) -> None:
    """Make the run folder ready: either new, or one of the same recipe."""
    recipe = output / "recipe.yaml"
    if not config.resume:
        for old in (*checkpoint.found(output / "checkpoints"), output / "metrics.jsonl", *output.glob("*.safetensors")):
            old.unlink(missing_ok=True)
    elif recipe.is_file():
        before = read_yaml(recipe).get("finetune", {})
        now = {key: value for key, value in as_plain(config).items() if value is not None}
        for key in sorted((before.keys() | now.keys()) - _FREE):
            if before.get(key) != now.get(key):
                raise InputError(
                    f"{output}: holds a run with {key} {before.get(key)!r}, not {now.get(key)!r}; "
                    "choose another --output, or begin anew with --no-resume"
                )
    write_recipe(recipe, "finetune", config)


def _frozen(
    config: FinetuneConfig, triplets: list[Triplet], output: Path, device: torch.device, dtype: torch.dtype, main: bool
) -> tuple[Bundle, dict[str, torch.Tensor]]:
    """The bundle without its encoders, and what they said about the triplets (from disk where that is known)."""
    folder = resolve(config.bundle)
    resolution = config.resolution or summary(folder).resolution
    wanted = frozen.key(config, data_hash(triplets), folder, resolution, dtype)
    if stored := frozen.read(output / "frozen.safetensors", wanted):
        return load(config.bundle, device, dtype, encoders=False), stored
    bundle = load(config.bundle, device, dtype, local_encoder=config.local_tokens != "none")
    stored = frozen.encode(bundle, triplets, config, resolution)
    frozen.check_finite(stored, folder)
    if main:
        frozen.write(output / "frozen.safetensors", stored, wanted)
    bundle.drop_encoders()
    return bundle, stored


def _tune(
    config: FinetuneConfig,
    relation: Relation,
    triplets: list[Triplet],
    output: Path,
    accelerator: Any,
    precision: str,
) -> Path:
    from diffusers.optimization import get_scheduler

    main, device = accelerator.is_main_process, accelerator.device
    dtype = DTYPES[precision]
    bundle, stored = _frozen(config, triplets, output, device, dtype, main)
    unet = bundle.unet
    lora.add(unet, config.rank, config.alpha, config.seed)
    parameters = lora.named_parameters(unet)
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    if config.compile:
        unet.compile_repeated_blocks()
    unet.train()
    optimizer = torch.optim.AdamW(parameters.values(), lr=config.learning_rate, weight_decay=config.weight_decay)
    rates = get_scheduler(
        config.lr_scheduler,
        optimizer,
        num_warmup_steps=config.lr_warmup_steps,
        num_training_steps=config.steps,
    )
    rate_of = rates.lr_lambdas[0]

    checkpoints = output / "checkpoints"
    start, scaler_state = 0, None
    if earlier := checkpoint.found(checkpoints):
        start, scaler_state = checkpoint.restore(earlier[-1], parameters, optimizer)
    model, prepared = accelerator.prepare(unet, optimizer)
    scaler = accelerator.scaler
    if scaler is not None and scaler_state:
        scaler.load_state_dict(scaler_state)

    alphas, prediction_type = bundle.training_schedule()
    schedule = Schedule(alphas.to(device), prediction_type)
    gamma = bundle.gamma if config.gamma is None else config.gamma
    ranks, rank = accelerator.num_processes, accelerator.process_index
    if main:
        rows = [row for row in _rows(output / "metrics.jsonl") if row["step"] <= start]
        write_jsonl(output / "metrics.jsonl", rows)
        write_record(
            output,
            seed=config.seed,
            data=data_hash(triplets),
            bundle=fingerprint(bundle.folder),
            precision=precision,
            device=str(device),
            processes=ranks,
        )
    if config.tensorboard:
        accelerator.init_trackers(output.name)

    def save(step: int) -> None:
        if main:
            state = None if scaler is None else scaler.state_dict()
            checkpoint.save(checkpoints, step, parameters, optimizer, state, config.keep_checkpoints)

    with (
        _stop_signals() as stop,
        progress(config.steps, f"finetune {relation.name}", initial=start) as bar,
        (output / "metrics.jsonl").open("a") if main else contextlib.nullcontext() as metrics,
    ):
        if main and config.preview_every and start == 0:
            preview(bundle, unet, stored, config, output / "previews" / "step-000000.png")
        for step in range(start, config.steps):
            begun = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * rate_of(step)
            totals: dict[str, torch.Tensor] = {}
            for micro in range(config.gradient_accumulation):
                first = ((step * config.gradient_accumulation + micro) * ranks + rank) * config.batch_size
                batch = draw(stored, range(first, first + config.batch_size), config.seed, len(alphas), device)
                last = micro == config.gradient_accumulation - 1
                with contextlib.nullcontext() if last else accelerator.no_sync(model):
                    loss, parts = training_loss(model, batch, schedule, config, gamma, bundle.levels)
                    accelerator.backward(loss / config.gradient_accumulation)
                for name, value in {"loss": loss.detach(), **parts}.items():
                    totals[name] = totals.get(name, torch.zeros_like(value)) + value / config.gradient_accumulation
            norm = accelerator.clip_grad_norm_(parameters.values(), config.max_grad_norm)
            prepared.step()
            prepared.zero_grad()
            row = {name: float(accelerator.reduce(value, "mean")) for name, value in totals.items()}
            if not all(map(_finite, row.values())) and precision != "fp16":
                raise InputError(f"{output}: the loss became NaN at step {step + 1}; lower --learning-rate")
            row |= {"grad_norm": float(norm), "lr": optimizer.param_groups[0]["lr"]}
            row["seconds"] = round(time.perf_counter() - begun, 4)
            if device.type == "cuda":
                row["memory_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
            done = step + 1
            if metrics is not None:
                metrics.write(json.dumps({"step": done, **row}) + "\n")
                metrics.flush()
            accelerator.log(row, step=done)
            bar.set_postfix(loss=f"{row['loss']:.4f}", kml=f"{row['kml']:.3f}", refresh=False)
            bar.update()
            if (
                stop.requested
                or done == config.steps
                or (config.checkpoint_every and done % config.checkpoint_every == 0)
            ):
                save(done)
            if main and config.preview_every and done % config.preview_every == 0:
                preview(bundle, unet, stored, config, output / "previews" / f"step-{done:06d}.png")
            if stop.requested and done < config.steps:
                raise KeyboardInterrupt
    if config.tensorboard:
        accelerator.end_training()
    path = output / "lora.safetensors"
    if main:
        tensors = {name: parameter.detach().cpu() for name, parameter in parameters.items()}
        lora.save(path, tensors, _metadata(config, relation, triplets, bundle, stored), config.alpha, config.format)
    return path


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")


def _rows(path: Path) -> list[dict[str, Any]]:
    """Metrics so far; a last line that a kill cut short is dropped."""
    if not path.is_file():
        return []
    text = path.read_text()
    if not text.endswith("\n"):
        path.write_text(text[: text.rfind("\n") + 1])
    return read_jsonl(path)


class _Stop:
    requested = False


@contextlib.contextmanager
def _stop_signals() -> Iterator[_Stop]:
    """SIGINT and SIGTERM end the run after the current step, with a checkpoint; a second SIGINT ends it at once."""
    stop = _Stop()

    def handle(number: int, _frame: Any) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True
        click.echo("finishing this step, then saving (again to stop at once)", err=True)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _metadata(
    config: FinetuneConfig,
    relation: Relation,
    triplets: list[Triplet],
    bundle: Bundle,
    stored: dict[str, torch.Tensor],
) -> dict[str, str]:
    """The LoRA file's metadata: modelspec and kohya's keys for other tools, ``rbctl.*`` for ours. No date, so that the
    same run gives the same file."""
    resolution = stored["latents_mean"].shape[-1] * bundle.latent_scale
    most = max(len(triplet.objects) for triplet in triplets)
    full = [triplet for triplet in triplets if len(triplet.objects) == most]
    roles = [thing.role for thing in full[0].objects]
    prior = LayoutPrior.from_boxes([[thing.box for thing in triplet.objects] for triplet in full], roles)
    predicate = full[0].predicate or relation.predicate
    local = bundle.folder / "clipself" / "model.safetensors"
    recipe = to_yaml("finetune", dataclasses.replace(config, output=None))
    metadata = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": f"{relation.name} relation LoRA",
        "modelspec.description": f"RelationLoRA: two individuals, one of which {relation.predicate} the other.",
        "modelspec.trigger_phrase": predicate,
        "modelspec.resolution": f"{resolution}x{resolution}",
        "modelspec.prediction_type": bundle.scheduler_config.get("prediction_type", "epsilon"),
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(config.rank),
        "ss_network_alpha": str(config.alpha),
        "ss_steps": str(config.steps),
        "rbctl.relation": relation.name,
        "rbctl.predicate": predicate,
        "rbctl.roles": json.dumps(roles),
        "rbctl.layout_prior": prior.to_json(),
        "rbctl.trigger_prompt": triplets[0].prompt,
        "rbctl.recipe": recipe,
        "rbctl.data_hash": data_hash(triplets),
        "rbctl.bundle": fingerprint(bundle.folder),
        "rbctl.local_tokens": config.local_tokens,
    }
    if config.local_tokens != "none" and local.is_file():
        metadata["rbctl.local_encoder_hash"] = sha256(local)
    return metadata
