"""The work of ``rbctl distill``."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from torch import distributed

from rbctl.device import DTYPES, pick_device, pick_precision
from rbctl.errors import InputError
from rbctl.files import append_line, sha256
from rbctl.metrics import cut, rows
from rbctl.plugins.distill import checkpoint, folder, pictures
from rbctl.plugins.distill.batches import Cut, cell_count, loader, normalised
from rbctl.plugins.distill.config import DistillConfig
from rbctl.plugins.distill.draws import draw_size
from rbctl.plugins.distill.engine import (
    build_student,
    build_teacher,
    consolidated,
    deepspeed_config,
    micro_steps,
    start_engine,
)
from rbctl.plugins.distill.evaluation import HeldOut, text_embeddings
from rbctl.plugins.distill.launch import World, join
from rbctl.plugins.distill.objective import clipself_loss, crop_embeddings, learning_rate, resized
from rbctl.plugins.distill.tower import Tower, find_tower, read_weights, trained_names
from rbctl.progress import progress
from rbctl.runs import RUNS, claim, stop_signals

_UNREADABLE = 0.01  # of the pictures; more stop the run


@dataclass(frozen=True)
class Material:
    """What is trained on and what is evaluated on."""

    order: pictures.Order
    held_out: pictures.Pictures
    held_out_indices: list[int]
    steps: int


def find_material(config: DistillConfig) -> Material:
    """The data of a run.

    Raises:
        InputError: there are no pictures, or nothing to evaluate on, or nobody knows how many steps to make.
    """
    if config.data is None:
        raise InputError("--data: name a folder of pictures, or WebDataset shards")
    evaluation = None
    if config.evaluation_data:
        evaluation = pictures.find_pictures(
            Path(config.evaluation_data), config.evaluation_annotations, config.follow_outside
        )
    order: pictures.Order
    if (shards := pictures.find_shards(config.data)) and config.annotations is None:
        if evaluation is None or config.steps is None:
            raise InputError("--data: shards need --evaluation-data (nothing is held out of them) and --steps")
        order = pictures.shard_order(shards, config.seed, config.batch_size)
    else:
        found = pictures.find_pictures(Path(config.data), config.annotations, config.follow_outside)
        training = list(range(len(found.files)))
        if evaluation is None:
            training, kept = pictures.split(found, config.held_out, config.seed)
            evaluation, indices = found, kept
        order = pictures.FolderOrder(found, training, config.seed)
    if config.evaluation_data:
        count = len(evaluation.files)
        indices = pictures.permutation(config.seed, "held-out", 0, count)[: config.held_out].tolist()
    steps = config.steps or math.ceil(config.epochs * (order.count or 0) / config.batch_size)
    return Material(order, evaluation, indices, steps)


def run(config: DistillConfig) -> Path | None:
    """Distil the tower; returns its folder (None on all processes but the first)."""
    tower = find_tower(config)
    trained = trained_names(tower, config.train_blocks)
    material = find_material(config)
    device = pick_device(config.device)
    precision = pick_precision(config.precision, device)
    with _peers():
        world = join(device)
        if device.type == "cuda":
            device = torch.device("cuda", world.local_rank)
        micro_steps(config, world.size)
        output = config.output or RUNS / "distill" / tower.name
        with claim(output) if world.main else contextlib.nullcontext():
            if world.main:
                facts: dict[str, Any] = {
                    "model": tower.fingerprint(),
                    "weights": sha256(tower.weights) if tower.weights else "random",
                    "data": material.order.fingerprint(),
                    "evaluation": material.held_out.fingerprint(),
                    "precision": precision,
                }
                if config.lr_scheduler != "constant":  # the rate of a step depends on how many there are
                    facts["total_steps"] = material.steps
                folder.check(output, config, facts)
            weights = read_weights(tower, config.seed)
            teacher = build_teacher(tower, weights, device, precision)
            texts = None
            if material.held_out.label_names:
                texts = text_embeddings(tower, material.held_out.label_names)
            if world.main:  # only now is all the input known to be good
                folder.begin(output, config, facts)
            distributed.barrier()
            work = Distillation(config, tower, trained, material, output, world, device, precision)
            held_out = HeldOut(
                material.held_out,
                material.held_out_indices,
                teacher,
                texts,
                config,
                tower.crop_size,
                world,
                device,
            )
            engine = work.train(weights, teacher, held_out)
            if config.pca_pictures:
                engine.eval()
                held_out.draw(engine, teacher, work.dtype, output / folder.PCA, world.main)
            tensors = consolidated(engine, world)
            distributed.barrier()
            distributed.destroy_process_group()
            if not world.main:
                return None
            if config.official_checkpoint:
                folder.write_official(output, tensors, tower.name, config.epochs)
            told = {"rbctl.steps": str(material.steps), "rbctl.weights": facts["weights"]}
            return folder.write_tower(output, tensors, tower.config, told)


@contextlib.contextmanager
def _peers() -> Iterator[None]:
    """Tell in one line what stops a process from outside: too little memory, or the end of another process."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise InputError(
            "the device's memory is used up; lower --micro-batch-size, take --gradient-checkpointing, a higher "
            "--zero-stage or --offload cpu, or more processes (--estimate tells what they need)"
        ) from error
    except RuntimeError as error:
        signs = ("connection closed by peer", "connection reset by peer", "gloo", "nccl", "timed out")
        if any(sign in str(error).lower() for sign in signs):
            raise InputError(
                "another process of the run has ended, by an error that it tells or by a kill; the same command again "
                "goes on from the last checkpoint"
            ) from error
        raise


@dataclass
class Distillation:
    """One run: its settings, and where it writes."""

    config: DistillConfig
    tower: Tower
    trained: frozenset[str]
    material: Material
    output: Path
    world: World
    device: torch.device
    precision: str

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.precision]

    def train(self, weights: dict[str, torch.Tensor], teacher: Any, held_out: HeldOut) -> Any:
        """The training loop, from the last checkpoint on; returns DeepSpeed's engine with the student."""
        config, world, output, steps = self.config, self.world, self.output, self.material.steps
        checkpoints = output / folder.CHECKPOINTS
        last = next(reversed(checkpoint.found(checkpoints)), None)
        universal = checkpoint.needs_universal(last, world, config)
        settings = deepspeed_config(config, world.size, self.precision, universal)
        student = build_student(self.tower, weights, self.trained, config, settings)
        weights.clear()
        engine = start_engine(student, self.tower, config, settings)
        start = 0
        if last is not None:
            checkpoint.restore(engine, last, world, universal)
            start = last.step
        if start > steps:
            raise InputError(f"{output}: {start} steps are done, more than {steps}; choose another --output")
        if world.main:
            for name in (folder.METRICS, folder.EVALUATION, folder.UNREADABLE):
                cut(output / name, start)
        distributed.barrier()
        unreadable = {row["name"] for row in rows(output / folder.UNREADABLE)}
        with stop_signals() as stop, self._bar(start) as bar:
            if start == 0:
                self._evaluate(engine, held_out, 0)
            batches = loader(
                self.material.order,
                config,
                self.tower.crop_size,
                world.size,
                world.rank,
                range(start, steps),
                pin=self.device.type == "cuda",
            )
            for step in range(start, steps):
                begun, done = time.perf_counter(), step + 1
                rate = learning_rate(step, steps, config.learning_rate, config.warmup_steps, config.lr_scheduler)
                for group in engine.optimizer.param_groups:
                    group["lr"] = rate
                loss, skipped = self._step(engine, teacher, batches, step)
                fresh = {name: why for name, why in skipped.items() if name not in unreadable}
                # A signal may reach one process alone; all have to stop at the same step.
                told = torch.stack([loss.double(), *torch.tensor([stop.requested, len(fresh)]).to(self.device)])
                distributed.all_reduce(told)
                value, stopping = float(told[0]), bool(told[1])
                if told[2]:
                    self._skip(fresh, unreadable, done)
                if not math.isfinite(value):
                    raise InputError(f"{output}: the loss became {value} at step {done}; lower --learning-rate")
                row = self._row(value, rate, engine, time.perf_counter() - begun)
                if world.main:
                    append_line(output / folder.METRICS, json.dumps({"step": done, **row}))
                bar.set_postfix(loss=f"{value:.4f}", refresh=False)
                bar.update()
                due = config.checkpoint_every and done % config.checkpoint_every == 0
                saved = stopping or due or done == steps
                if saved and not checkpoint.finite(engine):
                    raise InputError(
                        f"{output}: the weights became NaN or infinite by step {done} and are not saved; lower "
                        "--learning-rate"
                    )
                if done == steps or (config.evaluate_every and done % config.evaluate_every == 0):
                    self._evaluate(engine, held_out, done)
                if saved:
                    checkpoint.save(engine, checkpoints, done, world, config.keep_checkpoints)
                if stopping and done < steps:
                    raise KeyboardInterrupt
        return engine

    def _step(
        self, engine: Any, teacher: Any, batches: Iterator[Cut], step: int
    ) -> tuple[torch.Tensor, dict[str, str]]:
        """One optimizer step; this process's part of the loss, and what it could not read."""
        config = self.config
        micros = micro_steps(config, self.world.size)
        regions = cell_count(config, step)
        size = draw_size(config.seed, step, config.multiscale_sizes, config.image_size)
        part, skipped = torch.zeros((), device=self.device), dict[str, str]()
        engine.train()
        for _ in range(micros):
            batch = next(batches)
            skipped |= dict(batch.unreadable)
            wanted = crop_embeddings(teacher, normalised(batch.crops, self.device, self.dtype))
            pixels = resized(normalised(batch.pixels, self.device, self.dtype), size)
            student = engine(pixels, [boxes.to(self.device) for boxes in batch.boxes])
            loss = clipself_loss(student, wanted, regions)
            # DeepSpeed takes the mean over micro-steps and processes, and these are parts of a sum.
            engine.backward(loss * (micros * self.world.size))
            engine.step()
            part += loss.detach()
        return part, skipped

    def _row(self, loss: float, rate: float, engine: Any, seconds: float) -> dict[str, float]:
        row = {"loss": loss, "lr": rate, "seconds": round(seconds, 4)}
        row["images_per_second"] = round(self.config.batch_size / seconds, 3)
        norm = engine.get_global_grad_norm()
        if norm is not None:
            row["grad_norm"] = float(norm)
        if self.device.type == "cuda":
            row["memory_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
        return row

    def _skip(self, fresh: dict[str, str], unreadable: set[str], done: int) -> None:
        """Note pictures that could not be read, in all processes alike.

        Raises:
            InputError: they are too many.
        """
        everywhere: list[dict[str, str]] = [{} for _ in range(self.world.size)]
        distributed.all_gather_object(everywhere, fresh)
        found = {name: why for one in everywhere for name, why in one.items()}
        for name, why in sorted(found.items()):
            unreadable.add(name)
            if self.world.main:
                click.echo(f"skipped: {why}", err=True)
                append_line(self.output / folder.UNREADABLE, json.dumps({"step": done, "name": name, "why": why}))
        # Nobody counted the pictures in shards: the first thousands of them are taken for a sample.
        count = self.material.order.count or max(done * self.config.batch_size, 1000)
        if len(unreadable) > _UNREADABLE * count:
            raise InputError(
                f"--data {self.config.data}: {len(unreadable)} of {count} pictures cannot be read, more than 1 %; they "
                f"are named in {self.output / folder.UNREADABLE}; mend or remove them"
            )

    def _evaluate(self, engine: Any, held_out: HeldOut, done: int) -> None:
        engine.eval()
        found = held_out.measure(engine, self.dtype)
        if self.world.main:
            append_line(self.output / folder.EVALUATION, json.dumps({"step": done, **found}))
            told = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in found.items())
            click.echo(f"held out, step {done}: {told}", err=True)

    def _bar(self, start: int) -> Any:
        if self.world.main:
            return progress(self.material.steps, f"distill {self.tower.name}", initial=start)
        return _Silent()


class _Silent:
    """In place of a bar."""

    def __enter__(self) -> _Silent:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def set_postfix(self, **_: object) -> None:
        pass

    def update(self) -> None:
        pass
