"""The training loop: one for every method, over samples that are numbered through the whole run."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rbctl.device import DTYPES, pick_attention, pick_device, pick_precision
from rbctl.errors import InputError
from rbctl.files import append_line
from rbctl.metrics import cut
from rbctl.plugins.finetune import checkpoint
from rbctl.plugins.finetune.config import FinetuneConfig
from rbctl.progress import progress
from rbctl.runs import stop_signals


def accelerated(config: FinetuneConfig, output: Path) -> tuple[Any, str]:
    """An Accelerator as the options ask for it, and the precision picked.

    Raises:
        InputError: device, precision or attention backend are not to be had.
    """
    from accelerate import Accelerator

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
    return accelerator, precision


def train(
    config: FinetuneConfig,
    name: str,
    model: torch.nn.Module,
    parameters: Mapping[str, torch.nn.Parameter],
    loss_of: Callable[[Any, Sequence[int]], tuple[torch.Tensor, dict[str, torch.Tensor]]],
    output: Path,
    accelerator: Any,
    facts: Mapping[str, Any],
    preview: Callable[[Path], None] | None = None,
) -> None:
    """Train the parameters from the last checkpoint on, to ``config.steps`` steps.

    Args:
        name: of the progress bar.
        parameters: what is learned, parameters of ``model``; all others of it are frozen.
        loss_of: called with the model as accelerate prepares it and the numbers of a micro-batch's samples; the mean
            loss, and its parts for the metrics.
        facts: what the run depends on besides the options; a checkpoint made from anything else is not taken up.
        preview: draws a preview picture into a file.

    Raises:
        InputError: the folder's run is longer, or the loss or the weights became NaN; no such weights are saved.
        KeyboardInterrupt: a signal asked to stop; a checkpoint is written.
    """
    from diffusers.optimization import get_scheduler

    main, device = accelerator.is_main_process, accelerator.device
    optimizer = torch.optim.AdamW(parameters.values(), lr=config.learning_rate, weight_decay=config.weight_decay)
    rates = get_scheduler(
        config.lr_scheduler,
        optimizer,
        num_warmup_steps=config.lr_warmup_steps,
        num_training_steps=config.steps,
    )
    rate_of = rates.lr_lambdas[0]

    prepared_model, prepared_optimizer = accelerator.prepare(model, optimizer)
    # Not before: accelerate would move AdamW's step counts onto the GPU, and every step would wait for each of them.
    checkpoints = output / "checkpoints"
    start, scaler_state = checkpoint.restore(checkpoints, parameters, optimizer, facts)
    if start > config.steps:
        raise InputError(f"{output}: {start} steps are done, more than --steps {config.steps}; choose another --output")
    scaler = accelerator.scaler
    if scaler is not None and scaler_state:
        scaler.load_state_dict(scaler_state)

    ranks, rank = accelerator.num_processes, accelerator.process_index
    metrics = output / "metrics.jsonl"
    if main:
        cut(metrics, start)
    if config.tensorboard:
        accelerator.init_trackers(output.name)

    def save(step: int) -> None:
        moments = [value for p in parameters.values() for value in optimizer.state[p].values()]
        if not all(bool(tensor.isfinite().all()) for tensor in (*parameters.values(), *moments)):
            raise InputError(
                f"{output}: the weights became NaN or infinite by step {step} and are not saved; lower --learning-rate"
            )
        if main:
            state = {} if scaler is None else scaler.state_dict()
            checkpoint.save(checkpoints, step, parameters, optimizer, state, config.keep_checkpoints, facts)

    def show(step: int) -> None:
        path = output / "previews" / f"step-{step:06d}.png"
        due = config.preview_every and step % config.preview_every == 0
        # That of a checkpoint is there, unless a kill came between the two.
        if main and preview and due and not (0 < step == start and path.is_file()):
            preview(path)

    with stop_signals() as stop, progress(config.steps, f"finetune {name}", initial=start) as bar:
        show(start)
        for step in range(start, config.steps):
            begun = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * rate_of(step)
            totals: dict[str, torch.Tensor] = {}
            for micro in range(config.gradient_accumulation):
                first = ((step * config.gradient_accumulation + micro) * ranks + rank) * config.batch_size
                numbers = range(first, first + config.batch_size)
                last = micro == config.gradient_accumulation - 1
                with contextlib.nullcontext() if last else accelerator.no_sync(prepared_model):
                    loss, parts = loss_of(prepared_model, numbers)
                    accelerator.backward(loss / config.gradient_accumulation)
                for part, value in {"loss": loss.detach(), **parts}.items():
                    totals[part] = totals.get(part, torch.zeros_like(value)) + value / config.gradient_accumulation
            norm = accelerator.clip_grad_norm_(parameters.values(), config.max_grad_norm or math.inf)
            prepared_optimizer.step()
            prepared_optimizer.zero_grad()
            done = step + 1
            row = {part: float(accelerator.reduce(value, "mean")) for part, value in totals.items()}
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
            bar.set_postfix({part: f"{row[part]:.4f}" for part in totals}, refresh=False)
            bar.update()
            # A signal may reach one rank alone; all have to stop at the same step.
            stopping = bool(accelerator.reduce(torch.tensor(float(stop.requested), device=device), "sum") > 0)
            if stopping or done == config.steps or (config.checkpoint_every and done % config.checkpoint_every == 0):
                save(done)
            show(done)
            if stopping and done < config.steps:
                raise KeyboardInterrupt
    if config.tensorboard:
        accelerator.end_training()
