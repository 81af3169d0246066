"""The training loop of ``rbctl distill``."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import click
import torch
from torch import distributed

from rbctl import metrics
from rbctl.device import DTYPES
from rbctl.errors import InputError
from rbctl.paths import relative
from rbctl.plugins.distill import checkpoint
from rbctl.plugins.distill.batches import Cut, cell_count, loader, normalised
from rbctl.plugins.distill.engine import build_student, deepspeed_config, start_engine
from rbctl.plugins.distill.evaluation import HeldOut
from rbctl.plugins.distill.grid import random_size
from rbctl.plugins.distill.objective import Teacher, clipself_loss, learning_rate, resized
from rbctl.plugins.distill.pictures import Order
from rbctl.plugins.distill.tower import Tower
from rbctl.processes import divide_batch
from rbctl.progress import progress
from rbctl.runs import Run, stop_signals

METRICS, EVALUATION, UNREADABLE = "metrics.jsonl", "evaluation.jsonl", "unreadable.jsonl"

_MOST_UNREADABLE = 0.01  # of the pictures; more stop the run


@dataclass(frozen=True)
class Distillation:
    """What is trained, on what, where and for how long.

    Attributes:
        trained: names of the parameters that train.
        order: which picture is which sample.
    """

    run: Run
    tower: Tower
    trained: frozenset[str]
    order: Order
    steps: int
    device: torch.device
    precision: str

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.precision]

    def train(self, weights: dict[str, torch.Tensor], teacher: Teacher, held_out: HeldOut) -> Any:
        """The training loop, from the last checkpoint on; returns DeepSpeed's engine with the student."""
        run, config, world, steps = self.run, self.run.config, self.run.world, self.steps
        engine, start = self._engine(weights)
        if start > steps:
            raise InputError(f"{run.folder}: {start} steps are done, more than {steps}; choose another --output")
        run.cut(start)
        world.wait()
        unreadable = {row["name"] for row in metrics.rows(run.folder / UNREADABLE)}
        label = f"distill {self.tower.name}"
        with stop_signals() as stop, progress(steps, label, initial=start, disable=not world.first) as bar:
            if start == 0:
                self._evaluate(engine, held_out, 0)
            pin = self.device.type == "cuda"
            batches = loader(self.order, config, self.tower.crop_size, world, range(start, steps), pin)
            for step in range(start, steps):
                begun, done = time.perf_counter(), step + 1
                # Matrices and vectors of the tower, and the linear map where there is one.
                peaks = (config.learning_rate, config.learning_rate, config.map_learning_rate)
                for group, peak in zip(engine.optimizer.param_groups, peaks, strict=False):
                    group["lr"] = learning_rate(step, steps, peak, config.warmup_steps, config.lr_scheduler)
                part, skipped = self._step(engine, teacher, batches, step)
                fresh = {name: why for name, why in skipped.items() if name not in unreadable}
                # A signal may reach one process alone; all have to stop at the same step.
                sums = torch.cat([part.double(), torch.tensor([stop.requested, len(fresh)]).to(self.device)])
                distributed.all_reduce(sums)
                loss, map_loss, stopping = float(sums[0]), float(sums[1]), bool(sums[2])
                if sums[3]:
                    self._skip(fresh, unreadable, done)
                if not math.isfinite(loss + map_loss):
                    what = f"the loss became {loss + map_loss} at step {done}"
                    raise InputError(f"{run.folder}: {what}; lower --learning-rate")
                losses = {"loss": loss} | ({"map_loss": map_loss} if self.tower.adapter else {})
                run.log(done, self._row(losses, engine, time.perf_counter() - begun))
                bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
                bar.update()
                due = config.checkpoint_every and done % config.checkpoint_every == 0
                saved = stopping or due or done == steps
                if saved and not checkpoint.finite(engine):
                    what = f"the weights became NaN or infinite by step {done} and are not saved"
                    raise InputError(f"{run.folder}: {what}; lower --learning-rate")
                if done == steps or (config.evaluate_every and done % config.evaluate_every == 0):
                    self._evaluate(engine, held_out, done)
                if saved:
                    checkpoint.save(engine, run, done)
                if stopping and done < steps:
                    raise KeyboardInterrupt
        return engine

    def _engine(self, weights: dict[str, torch.Tensor]) -> tuple[Any, int]:
        """DeepSpeed's engine with the student as of the last checkpoint, and the steps that are done."""
        config, world, last = self.run.config, self.run.world, checkpoint.last(self.run)
        # Another number of processes divided it.
        universal = last is not None and config.zero_stage > 0 and last.processes != world.size
        settings = deepspeed_config(config, world.size, self.precision, universal)
        student = build_student(self.tower, weights, self.trained, config, settings)
        weights.clear()
        engine = start_engine(student, self.tower, config, settings)
        if last is None:
            return engine, 0
        checkpoint.restore(engine, last, world, universal)
        return engine, last.step

    def _step(
        self, engine: Any, teacher: Teacher, batches: Iterator[Cut], step: int
    ) -> tuple[torch.Tensor, dict[str, str]]:
        """One optimizer step; this process's part of the losses of tower and map, and what it could not read."""
        config, size = self.run.config, self.run.world.size
        _, micros = divide_batch(config.batch_size, config.micro_batch_size, size)
        regions = cell_count(config, step)
        side = random_size(config.seed, step, config.multiscale_sizes, config.image_size)
        part, skipped = torch.zeros(2, device=self.device), dict[str, str]()
        engine.train()
        for _ in range(micros):
            batch = next(batches)
            skipped |= dict(batch.unreadable)
            wanted = teacher.of_crops(normalised(batch.crops, self.device, self.dtype))
            whole = normalised(batch.pixels, self.device, self.dtype)
            boxes = [each.to(self.device) for each in batch.boxes]
            student, local = engine(resized(whole, side), boxes)
            losses = [clipself_loss(student, wanted, regions)]
            if (wanted_local := teacher.of_regions(whole, boxes)) is not None:
                losses.append(clipself_loss(local, wanted_local, regions))
            # DeepSpeed takes the mean over micro-steps and processes, and these are parts of a sum.
            engine.backward(sum(losses) * (micros * size))
            engine.step()
            part[: len(losses)] += torch.stack(losses).detach()
        return part, skipped

    def _row(self, losses: dict[str, float], engine: Any, seconds: float) -> dict[str, float]:
        row = {**losses, "lr": engine.optimizer.param_groups[0]["lr"], "seconds": round(seconds, 4)}
        row["images_per_second"] = round(self.run.config.batch_size / seconds, 3)
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
        config, run = self.run.config, self.run
        data = str(config.data)
        reasons = {name: why for part in run.world.gathered(fresh) for name, why in part.items()}
        for name, why in sorted(reasons.items()):
            unreadable.add(name)
            run.log(done, {"name": name, "why": why.replace(data, relative(data, run.folder))}, UNREADABLE)
            if run.world.first:
                click.echo(f"skipped: {why}", err=True)
        # Nobody counted the pictures in shards: the first thousands of them are taken for a sample.
        count = self.order.count or max(done * config.batch_size, 1000)
        if len(unreadable) > _MOST_UNREADABLE * count:
            raise InputError(
                f"--data {config.data}: {len(unreadable)} of {count} pictures cannot be read, more than 1 %; they are "
                f"named in {run.folder / UNREADABLE}; mend or remove them"
            )

    def _evaluate(self, engine: Any, held_out: HeldOut, done: int) -> None:
        engine.eval()
        scores = held_out.measure(engine, self.dtype)
        self.run.log(done, scores, EVALUATION)
        if self.run.world.first:
            line = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in scores.items())
            click.echo(f"held out, step {done}: {line}", err=True)
