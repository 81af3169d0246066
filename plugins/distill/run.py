"""The work of ``rbctl distill``: the course of a run; its training loop is in ``loop``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from rbctl.bundle.fingerprints import local_encoder_hash
from rbctl.device import pick_device, pick_precision
from rbctl.errors import InputError
from rbctl.files import sha256
from rbctl.plugins.distill import checkpoint, pictures
from rbctl.plugins.distill.config import DistillConfig
from rbctl.plugins.distill.engine import build_teacher, consolidated, prepare_deepspeed, require_deepspeed
from rbctl.plugins.distill.evaluation import HeldOut, text_embeddings
from rbctl.plugins.distill.loop import EVALUATION, METRICS, UNREADABLE, Distillation
from rbctl.plugins.distill.tower import (
    find_tower,
    read_weights,
    trained_names,
    whole_clip,
    write_official,
    write_weights,
)
from rbctl.processes import divide_batch, together
from rbctl.runs import RUNS, Run

_RESULT, _PCA = "clipself", "local_tokens.png"

# Options that may differ when a run is taken up again. Data, weights and precision are compared as facts.
_FREE = {"output", "resume", "device", "workers", "micro_batch_size", "gradient_checkpointing", "zero_init", "offload"}
_FREE |= {"nvme_path", "checkpoint_every", "keep_checkpoints", "evaluate_every", "pca_pictures", "official_checkpoint"}
_FREE |= {"model", "weights", "data", "annotations", "evaluation_data", "evaluation_annotations", "precision"}
_FREE |= {"epochs", "steps", "estimate", "estimate_gpus"}


@dataclass(frozen=True)
class Data:
    """What is trained on, for how many steps, and what is evaluated on."""

    order: pictures.Order
    steps: int
    held_out: pictures.Pictures
    held_out_indices: list[int]


def find_data(config: DistillConfig) -> Data:
    """The data of a run.

    Raises:
        InputError: there are no pictures, or nothing to evaluate on, or nobody knows how many steps to make.
    """
    if config.data is None:
        raise InputError("--data: name a folder of pictures, or WebDataset shards")
    held_out = None
    if config.evaluation_data:
        folder = Path(config.evaluation_data)
        held_out = pictures.find_pictures(folder, config.evaluation_annotations, config.follow_outside)
        count = len(held_out.files)
        indices = pictures.permutation(config.seed, "held-out", 0, count)[: config.held_out].tolist()
    order: pictures.Order
    if (shards := pictures.find_shards(config.data)) and config.annotations is None:
        if held_out is None or config.steps is None:
            raise InputError("--data: shards need --evaluation-data (nothing is held out of them) and --steps")
        return Data(pictures.shard_order(shards, config.seed, config.batch_size), config.steps, held_out, indices)
    training = pictures.find_pictures(Path(config.data), config.annotations, config.follow_outside)
    training_indices = list(range(len(training.files)))
    if held_out is None:
        held_out = training
        training_indices, indices = pictures.split(training, config.held_out, config.seed)
    order = pictures.FolderOrder(training, training_indices, config.seed)
    steps = config.steps or math.ceil(config.epochs * order.count / config.batch_size)
    return Data(order, steps, held_out, indices)


def run(config: DistillConfig) -> Path | None:
    """Distil the tower; returns its folder (None on all processes but the first).

    Raises:
        InputError: DeepSpeed is not installed, or the input is at fault.
    """
    require_deepspeed()
    tower = find_tower(config)
    trained = trained_names(tower, config.train_blocks)
    data = find_data(config)
    device = pick_device(config.device)
    precision = pick_precision(config.precision, device)
    with together(device, timeout=None, even_alone=True) as world:
        device = world.device(device)
        divide_batch(config.batch_size, config.micro_batch_size, world.size)  # refuses numbers that do not fit
        prepare_deepspeed(device)
        run = Run(
            config.output or RUNS / "distill" / tower.name,
            "distill",
            config,
            free=_FREE,
            results=(_RESULT,),
            left=("checkpoints/step-*", _PCA, "epoch_*.pt"),
            checkpoint=checkpoint.COMPLETE,
            logs=(METRICS, EVALUATION, UNREADABLE),
            world=world,
        )
        with run.claimed():
            facts: dict[str, Any] = {
                "model": tower.fingerprint(),
                "weights": sha256(tower.weights) if world.first and tower.weights else "random",
                "data": data.order.fingerprint(),
                "evaluation": data.held_out.fingerprint(),
                "precision": precision,
            }
            if tower.adapter:
                facts["replaces"] = local_encoder_hash(tower.adapter.bundle)
            if config.lr_scheduler != "constant":  # the rate of a step depends on how many there are
                facts["total_steps"] = data.steps
            run.check(facts)
            weights = read_weights(tower, config.seed)
            teacher = build_teacher(tower, weights, device, precision)
            labels = data.held_out.label_names
            texts = text_embeddings(tower, labels) if labels else None
            run.begin(facts)  # only now is all the input known to be good
            if world.first:
                checkpoint.drop_torn(run)
            world.wait()
            held_out = HeldOut(
                data.held_out,
                data.held_out_indices,
                teacher,
                texts,
                config,
                tower.crop_size,
                world,
                device,
            )
            work = Distillation(run, tower, trained, data.order, data.steps, device, precision)
            engine = work.train(weights, teacher, held_out)
            if config.pca_pictures:
                engine.eval()
                held_out.write_sheet(engine, teacher, work.dtype, run.folder / _PCA, world.first)
            tensors = consolidated(engine, engine.module.visual, world)
            adapter_map = consolidated(engine, engine.module.to_adapter, world)
            world.wait()
            if not world.first:
                return None
            clip = whole_clip(tower, tensors)
            if len(clip) == len(tensors):
                click.echo("no text tower beside the weights: open_clip reads the result with strict=False", err=True)
            if config.official_checkpoint:
                write_official(run.folder / f"epoch_{config.epochs}.pt", clip, tower.name, config.epochs)
            metadata = {"rbctl.steps": str(data.steps), "rbctl.weights": facts["weights"]}
            return write_weights(run.folder / _RESULT, clip, tower.config, metadata, adapter_map)
