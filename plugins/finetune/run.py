"""The work of ``rbctl finetune``."""

from __future__ import annotations

import contextlib
import json
import math
import time
from pathlib import Path
from typing import Any

import click
import torch

from rbctl import attention, lora
from rbctl.bundle.catalogue import resolve
from rbctl.bundle.load import Bundle, fingerprint, load, summary
from rbctl.device import DTYPES, pick_attention, pick_device, pick_precision
from rbctl.errors import InputError
from rbctl.files import append_line
from rbctl.plugins.finetune import checkpoint, folder, forgetting, frozen, material
from rbctl.plugins.finetune.config import FinetuneConfig
from rbctl.plugins.finetune.lora_file import metadata
from rbctl.plugins.finetune.objective import Schedule, draw, training_loss
from rbctl.plugins.finetune.preview import preview
from rbctl.progress import progress
from rbctl.relations import Relation, load_relation
from rbctl.runs import RUNS, claim, stop_signals
from rbctl.triplets import Triplet, data_hash
from rbctl.triplets.check import check as check_triplets


def run(config: FinetuneConfig) -> Path | None:
    """Tune the LoRA; returns its path (None on all ranks but the first)."""
    from accelerate import Accelerator

    relation = load_relation(config.relation)
    output = config.output or RUNS / "finetune" / relation.name
    found = material.find(config, relation, output)
    base = resolve(config.bundle)
    resolution = config.resolution or summary(base).resolution
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
    main = accelerator.is_main_process
    facts: dict[str, Any] = {
        "bundle": fingerprint(base),
        "precision": precision,
        "processes": accelerator.num_processes,
    }
    with claim(output) if main else contextlib.nullcontext():
        if main:
            folder.check(output, config, facts)
            material.draw(found, config, relation, resolution)
        accelerator.wait_for_everyone()
        triplets, prior = found.load()
        facts |= {"data": data_hash(triplets), "prior": data_hash(prior) if prior else None}
        if main:
            _warn(config, found.data, triplets)
            folder.check(output, config, facts)
        accelerator.wait_for_everyone()
        bundle, stored = _frozen(config, triplets, prior, resolution, output, accelerator, facts)
        if main:  # only now is all the input known to be good
            folder.begin(output, config, facts)
        accelerator.wait_for_everyone()
        own, others = frozen.split(stored, len(triplets))
        parameters = tune(config, relation, bundle, own, others, output, accelerator)
        if not main:
            return None
        tensors = {name: parameter.detach().cpu() for name, parameter in parameters.items()}
        told = metadata(config, relation, triplets, bundle, own, facts)
        path = output / "lora.safetensors"
        lora.save(path, tensors, told, config.alpha, config.format)
        if others:
            forgetting.report(output / "forgetting.json", _forgotten(config, bundle, others, accelerator.device))
        return path


def _warn(config: FinetuneConfig, data: Path, triplets: list[Triplet]) -> None:
    """Say what is doubtful about the triplets but does not stop a run."""
    for problem in check_triplets(data):
        if problem.level == "warning":
            click.echo(f"warning: {problem}", err=True)
    for triplet in triplets:
        if config.kml_weight and not any((thing.target_keypoints[:, 2] > 0).any() for thing in triplet.objects):
            click.echo(f"warning: triplet {triplet.id!r} has no keypoints, so KML does nothing for it", err=True)


def _frozen(
    config: FinetuneConfig,
    triplets: list[Triplet],
    prior: list[Triplet],
    resolution: int,
    output: Path,
    accelerator: Any,
    facts: dict[str, Any],
) -> tuple[Bundle, dict[str, torch.Tensor]]:
    """The bundle without its encoders, and what they said about the triplets (from disk where that is known)."""
    device, dtype = accelerator.device, DTYPES[facts["precision"]]
    wanted = frozen.key(config, facts, resolution, dtype)
    if stored := frozen.read(output / "frozen.safetensors", wanted):
        return load(config.bundle, device, dtype, encoders=False), stored
    bundle = load(config.bundle, device, dtype, local_encoder=config.local_tokens != "none")
    stored = frozen.encode(bundle, triplets, config, resolution, prior)
    frozen.check_finite(stored, bundle.folder)
    if accelerator.is_main_process:
        frozen.write(output / "frozen.safetensors", stored, wanted)
    bundle.drop_encoders()
    return bundle, stored


def tune(
    config: FinetuneConfig,
    relation: Relation,
    bundle: Bundle,
    stored: dict[str, torch.Tensor],
    prior: dict[str, torch.Tensor] | None,
    output: Path,
    accelerator: Any,
) -> dict[str, torch.nn.Parameter]:
    """The training loop; returns the LoRA's parameters.

    Args:
        stored, prior: frozen results of the relation's triplets and of the prior set.
    """
    from diffusers.optimization import get_scheduler

    main, device = accelerator.is_main_process, accelerator.device
    unet = bundle.unet
    lora.add(unet, config.rank, config.alpha, config.seed)
    parameters = lora.named_parameters(unet)
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    if config.compile:
        attention.compile_blocks(unet)
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
    start, scaler_state = checkpoint.restore(checkpoints, parameters, optimizer)
    if start > config.steps:
        raise InputError(f"{output}: {start} steps are done, more than --steps {config.steps}; choose another --output")
    model, prepared = accelerator.prepare(unet, optimizer)
    scaler = accelerator.scaler
    if scaler is not None and scaler_state:
        scaler.load_state_dict(scaler_state)

    schedule, gamma = _schedule(bundle, device), bundle.gamma if config.gamma is None else config.gamma
    timesteps = len(schedule.alphas_cumprod)
    ranks, rank = accelerator.num_processes, accelerator.process_index
    metrics = output / "metrics.jsonl"
    if main:
        folder.cut_metrics(metrics, start)
    if config.tensorboard:
        accelerator.init_trackers(output.name)

    def save(step: int) -> None:
        if main:
            state = None if scaler is None else scaler.state_dict()
            checkpoint.save(checkpoints, step, parameters, optimizer, state, config.keep_checkpoints)

    with stop_signals() as stop, progress(config.steps, f"finetune {relation.name}", initial=start) as bar:
        if main and config.preview_every and start == 0:
            preview(bundle, unet, stored, config, output / "previews" / "step-000000.png")
        for step in range(start, config.steps):
            begun = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * rate_of(step)
            totals: dict[str, torch.Tensor] = {}
            for micro in range(config.gradient_accumulation):
                first = ((step * config.gradient_accumulation + micro) * ranks + rank) * config.batch_size
                numbers = range(first, first + config.batch_size)
                batch = draw(stored, numbers, config, timesteps, device, prior)
                last = micro == config.gradient_accumulation - 1
                with contextlib.nullcontext() if last else accelerator.no_sync(model):
                    loss, parts = training_loss(model, batch, schedule, config, gamma, bundle.levels)
                    accelerator.backward(loss / config.gradient_accumulation)
                for name, value in {"loss": loss.detach(), **parts}.items():
                    totals[name] = totals.get(name, torch.zeros_like(value)) + value / config.gradient_accumulation
            norm = accelerator.clip_grad_norm_(parameters.values(), config.max_grad_norm or math.inf)
            prepared.step()
            prepared.zero_grad()
            done = step + 1
            row = {name: float(accelerator.reduce(value, "mean")) for name, value in totals.items()}
            if scaler is None and not all(map(math.isfinite, row.values())):
                raise InputError(f"{output}: the loss became NaN at step {done}; lower --learning-rate")
            row |= {"grad_norm": float(norm), "lr": optimizer.param_groups[0]["lr"]}
            row["seconds"] = round(time.perf_counter() - begun, 4)
            if device.type == "cuda":
                row["memory_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
            if main:
                try:
                    append_line(metrics, json.dumps({"step": done, **row}))
                except InputError:
                    save(done)
                    raise
            accelerator.log(row, step=done)
            bar.set_postfix(loss=f"{row['loss']:.4f}", kml=f"{row['kml']:.3f}", refresh=False)
            bar.update()
            # A signal may reach one rank alone; all have to stop at the same step.
            stopping = bool(accelerator.reduce(torch.tensor(float(stop.requested), device=device), "sum") > 0)
            if stopping or done == config.steps or (config.checkpoint_every and done % config.checkpoint_every == 0):
                save(done)
            if main and config.preview_every and done % config.preview_every == 0:
                preview(bundle, unet, stored, config, output / "previews" / f"step-{done:06d}.png")
            if stopping and done < config.steps:
                raise KeyboardInterrupt
    if config.tensorboard:
        accelerator.end_training()
    return parameters


def _schedule(bundle: Bundle, device: torch.device) -> Schedule:
    alphas, prediction_type = bundle.training_schedule()
    return Schedule(alphas.to(device), prediction_type)


def _forgotten(
    config: FinetuneConfig, bundle: Bundle, prior: dict[str, torch.Tensor], device: torch.device
) -> dict[str, Any]:
    gamma = bundle.gamma if config.gamma is None else config.gamma
    return forgetting.measure(bundle.unet, prior, _schedule(bundle, device), config, gamma, bundle.levels)
