"""The work of ``rbctl finetune``."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch

from rbctl import attention, kept, lora
from rbctl.bundle.catalogue import resolve
from rbctl.bundle.load import Bundle, generator_fingerprint, load, summary
from rbctl.device import DTYPES
from rbctl.errors import InputError
from rbctl.plugins.finetune import folder, forgetting, frozen, material
from rbctl.plugins.finetune.config import FinetuneConfig
from rbctl.plugins.finetune.loop import accelerated, train
from rbctl.plugins.finetune.lora_file import metadata
from rbctl.plugins.finetune.objective import Schedule, draw, training_loss
from rbctl.plugins.finetune.preview import preview
from rbctl.relations import Relation, load_relation
from rbctl.runs import claim, tuned
from rbctl.triplets import Triplet, data_hash
from rbctl.triplets.check import check as check_triplets


def run(config: FinetuneConfig) -> Path | None:
    """Tune the LoRA; returns its path (None on all ranks but the first)."""
    if config.relation is None:
        raise InputError("--relation: say which, a shipped name (ride, hug, ...) or the path of a relation's YAML")
    relation = load_relation(config.relation)
    output = config.output or tuned(relation.name, config.bundle)
    found = material.find(config, relation, output)
    base = resolve(config.bundle)
    resolution = config.resolution or summary(base).resolution
    accelerator, precision = accelerated(config, output)
    main = accelerator.is_main_process
    facts: dict[str, Any] = {
        "bundle": generator_fingerprint(base),
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
        parameters = tune(config, relation, bundle, own, others, output, accelerator, facts)
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
    path, made_from = output / "frozen.safetensors", frozen.made_from(config, facts, resolution, dtype)
    sizes = len(triplets) + len(prior), config.augmentation_draws, resolution
    if stored := kept.load(path, made_from, lambda tensors: frozen.fit(tensors, *sizes)):
        return load(config.bundle, device, dtype, encoders=False), stored
    bundle = load(config.bundle, device, dtype, local_encoder=config.local_tokens != "none")
    stored = frozen.encode(bundle, triplets, config, resolution, prior)
    frozen.check_finite(stored, bundle.folder)
    if accelerator.is_main_process:
        kept.save(path, stored, made_from)
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
    facts: dict[str, Any],
) -> dict[str, torch.nn.Parameter]:
    """Train a relation LoRA on the frozen results; returns its parameters.

    Args:
        stored, prior: frozen results of the relation's triplets and of the prior set.
        facts: what the run depends on besides the options, for its checkpoints.
    """
    device, unet = accelerator.device, bundle.unet
    lora.add(unet, config.rank, config.alpha, config.seed, targets=lora.LAYERS[config.lora_layers])
    parameters = lora.named_parameters(unet)
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    if config.compile:
        attention.compile_blocks(unet)
    unet.train()
    schedule, gamma = _schedule(bundle, device), bundle.gamma if config.gamma is None else config.gamma
    timesteps = len(schedule.alphas_cumprod)

    def loss_of(prepared: Any, numbers: Sequence[int]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        batch = draw(stored, numbers, config, timesteps, device, prior)
        return training_loss(prepared, batch, schedule, config, gamma, bundle.levels)

    def show(path: Path) -> None:
        preview(bundle, unet, stored, config, path)

    train(config, relation.name, unet, parameters, loss_of, output, accelerator, facts, show)
    return parameters


def _schedule(bundle: Bundle, device: torch.device) -> Schedule:
    alphas, prediction_type = bundle.training_schedule()
    return Schedule(alphas.to(device), prediction_type)


def _forgotten(
    config: FinetuneConfig, bundle: Bundle, prior: dict[str, torch.Tensor], device: torch.device
) -> dict[str, Any]:
    gamma = bundle.gamma if config.gamma is None else config.gamma
    return forgetting.measure(bundle.unet, prior, _schedule(bundle, device), config, gamma, bundle.levels)
