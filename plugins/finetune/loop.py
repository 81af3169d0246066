"""The training loop: one for every method, over samples that are numbered through the whole run."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rbctl.errors import InputError
from rbctl.measurements import measured
from rbctl.plugins.finetune import checkpoint
from rbctl.plugins.finetune.config import Callback
from rbctl.processes import divide_batch
from rbctl.progress import progress
from rbctl.runs import Run, stop_signals


@dataclass(frozen=True)
class Task:
    """What is trained.

    Attributes:
        name: of the progress bar, and what the names of its files begin with.
        parameters: what is learned, parameters of ``model``; all others of it are frozen.
        loss: called with the model as accelerate prepares it and the numbers of a micro-batch's samples; the mean
            loss, and its parts for the metrics.
        preview: writes a preview picture into a file.
        metadata: what a file of a step says of itself.
        export: writes what is learned by a step into a file.
    """

    name: str
    model: torch.nn.Module
    parameters: Mapping[str, torch.nn.Parameter]
    loss: Callable[[Any, Sequence[int]], tuple[torch.Tensor, dict[str, torch.Tensor]]]
    preview: Callable[[Path], None] | None = None
    metadata: Callable[[int], Mapping[str, str]] = lambda step: {}
    export: Callable[[Path, int], None] | None = None


@measured("train")
def train(run: Run, task: Task, accelerator: Any, facts: Mapping[str, Any], callback: Callback | None) -> int:
    """Train the parameters from the last checkpoint on, to ``config.steps`` steps or until the callback stops it.

    Args:
        facts: what the run depends on besides the options; a checkpoint made from anything else is not taken up.

    Returns:
        The steps that are done.

    Raises:
        InputError: the folder's run is longer, or the loss or the weights became NaN; no such weights are saved.
        KeyboardInterrupt: a signal asked to stop; a checkpoint is written.
    """
    from diffusers.optimization import get_scheduler

    config, parameters, device = run.config, task.parameters, accelerator.device
    size, micro_steps = divide_batch(config.batch_size, config.micro_batch_size, run.world.size)
    optimizer = torch.optim.AdamW(parameters.values(), lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = get_scheduler(
        config.lr_scheduler,
        optimizer,
        num_warmup_steps=config.lr_warmup_steps,
        num_training_steps=config.steps,
    )
    rate_of = schedule.lr_lambdas[0]

    model, prepared_optimizer = accelerator.prepare(task.model, optimizer)
    # Not before: accelerate would move AdamW's step counts onto the GPU, and every step would wait for each of them.
    start, scaler_state = checkpoint.restore(run.checkpoints(), parameters, optimizer, facts)
    if start > config.steps:
        mend = "choose another --output"
        raise InputError(f"{run.folder}: {start} steps are done, more than --steps {config.steps}; {mend}")
    scaler = accelerator.scaler
    if scaler is not None and scaler_state:
        scaler.load_state_dict(scaler_state)
    run.cut(start)
    if config.tensorboard:
        accelerator.init_trackers(run.folder.name)

    def tidy() -> None:
        for old in run.superseded() if run.world.first else ():
            old.unlink()

    def save(step: int) -> None:
        moments = [value for p in parameters.values() for value in optimizer.state[p].values()]
        if not all(bool(tensor.isfinite().all()) for tensor in (*parameters.values(), *moments)):
            what = f"the weights became NaN or infinite by step {step} and are not saved"
            raise InputError(f"{run.folder}: {what}; lower --learning-rate")
        if run.world.first:
            path = run.folder / "checkpoints" / f"step-{step:06d}.safetensors"
            scaling = {} if scaler is None else scaler.state_dict()
            checkpoint.save(path, step, parameters, optimizer, scaling, facts, task.metadata(step))
            tidy()

    def preview(step: int) -> None:
        path = run.folder / "previews" / f"step-{step:06d}.png"
        due = config.preview_every and step % config.preview_every == 0
        # That of a checkpoint is there, unless a kill came between the two.
        if run.world.first and task.preview and due and not (0 < step == start and path.is_file()):
            task.preview(path)

    def export(step: int) -> None:
        path = run.folder / f"{task.name}-{step:06d}.safetensors"
        due = config.save_every and 0 < step < config.steps and step % config.save_every == 0
        if run.world.first and task.export and due:
            task.export(path, step)

    done = start
    with stop_signals() as stop, progress(config.steps, f"finetune {task.name}", initial=start) as bar:
        tidy()  # a kill comes between any two of these
        preview(start)
        export(start)
        for step in range(start, config.steps):
            begun, done = time.perf_counter(), step + 1
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * rate_of(step)
            totals: dict[str, torch.Tensor] = {}
            for micro in range(micro_steps):
                first = step * config.batch_size + (micro * run.world.size + run.world.rank) * size
                numbers = range(first, first + size)
                last = micro == micro_steps - 1
                with contextlib.nullcontext() if last else accelerator.no_sync(model):
                    loss, parts = task.loss(model, numbers)
                    accelerator.backward(loss / micro_steps)
                for part, value in {"loss": loss.detach(), **parts}.items():
                    totals[part] = totals.get(part, torch.zeros_like(value)) + value / micro_steps
            norm = accelerator.clip_grad_norm_(parameters.values(), config.max_grad_norm or math.inf)
            prepared_optimizer.step()
            prepared_optimizer.zero_grad()
            row = {part: float(accelerator.reduce(value, "mean")) for part, value in totals.items()}
            if scaler is None and not all(map(math.isfinite, row.values())):
                raise InputError(f"{run.folder}: the loss became NaN at step {done}; lower --learning-rate")
            row |= {"grad_norm": float(norm), "lr": optimizer.param_groups[0]["lr"]}
            row["seconds"] = round(time.perf_counter() - begun, 4)
            if device.type == "cuda":
                row["memory_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
            try:
                run.log(done, row)
            except InputError:  # the disk is full; a checkpoint is more than a row
                save(done)
                raise
            accelerator.log(row, step=done)
            bar.set_postfix({part: f"{row[part]:.4f}" for part in totals}, refresh=False)
            bar.update()
            enough = callback is not None and bool(callback(done, row))
            stopped = run.world.anywhere(stop.requested or enough, device)
            if stopped or done == config.steps or (config.checkpoint_every and done % config.checkpoint_every == 0):
                save(done)
            preview(done)
            export(done)
            if stopped and done < config.steps:
                if enough:
                    break
                raise KeyboardInterrupt
    if config.tensorboard:
        accelerator.end_training()
    return done
