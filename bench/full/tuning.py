"""Finetuning a relation LoRA, by the stage's own loop."""

from __future__ import annotations

import functools
import statistics
import tempfile
import time
from pathlib import Path

import torch

from bench.full.clocks import Row, gigabytes, peak
from bench.full.floors import tuning_floor
from bench.full.results import Bench
from bench.full.sizes import TOTAL_BATCH
from rbctl import lora
from rbctl.bundle.bundle import Bundle
from rbctl.bundle.load import load
from rbctl.files import read_jsonl
from rbctl.kernels import choose
from rbctl.menagerie.triplets import draw_triplets
from rbctl.plugins.finetune import encodings
from rbctl.plugins.finetune.config import FinetuneConfig
from rbctl.plugins.finetune.loop import train
from rbctl.plugins.finetune.objective import Objective
from rbctl.plugins.finetune.relation_lora import relation_task
from rbctl.plugins.finetune.run import prepare
from rbctl.plugins.finetune.samples import micro_batch
from rbctl.relations import load_relation
from rbctl.runs import Run
from rbctl.triplets import load as load_triplets

TRIPLETS, STEPS, WARM_UP = 6, 5, 2


def measure(bench: Bench) -> None:
    """``rbctl finetune``'s own loop, frozen results encoded once; then where a step spends its time."""
    scale, data, stored = bench.scale, bench.work / "hug", dict[str, torch.Tensor]()
    draw_triplets(load_relation("hug"), TRIPLETS, 0, data, size=min(512, scale.resolution))
    bundle = bench.bundle
    with bench.row("finetune", f"encoding {TRIPLETS} triplets, once a run") as row:
        encode = functools.partial(
            encodings.encode, bundle, load_triplets(data), [], _tuning(bench, 1), scale.resolution
        )
        encode()  # cuDNN and cuBLAS look around at the first call
        begun = time.perf_counter()
        stored, most = peak(encode, bench.device)
        row["s"] = time.perf_counter() - begun
        row.update(gigabytes(most))
    del bundle, encode
    bench.drop()
    if not stored:
        return
    took: dict[int, float] = {}
    for size in scale.micro_batches:
        with bench.row("finetune", f"{TOTAL_BATCH // size} micro-batches of {size}, {_default(bench)}") as row:
            took[size] = _tune(bench, stored, row, size, "auto")
        if size not in took:  # larger ones will not fit either
            break
    if not took:
        return
    best = min(took, key=lambda size: took[size])
    for name in bench.backends:
        if name not in (_default(bench), "eager"):
            with bench.row("finetune", f"{TOTAL_BATCH // best} micro-batches of {best}, {name}") as row:
                _tune(bench, stored, row, best, name)
    bundle = load(str(bench.folder), bench.device, bench.dtype, encoders=False)
    lora.add(bundle.unet, 4, 4.0, seed=0)
    bundle.unet.train()
    title = f"where finetuning spends its time: a micro-batch of {best}"
    bench.profile(title, functools.partial(_micro_step, bench, bundle, stored, best))


def _default(bench: Bench) -> str:
    return choose(bench.device, bench.dtype).name


def _tuning(bench: Bench, micro_batch: int, backend: str = "auto") -> FinetuneConfig:
    return FinetuneConfig(
        relation="hug",
        bundle=str(bench.folder),
        steps=STEPS,
        batch_size=TOTAL_BATCH,
        micro_batch_size=micro_batch,
        resolution=bench.scale.resolution,
        prior="none",
        device=bench.device.type,  # type: ignore[arg-type]
        precision=bench.precision,
        attention=backend,  # type: ignore[arg-type]
    )


def _tune(bench: Bench, stored: dict[str, torch.Tensor], row: Row, micro_batch: int, backend: str) -> float:
    """Train a few steps as a run does, and fill a row; returns the median seconds a step."""
    from accelerate import Accelerator

    config = _tuning(bench, micro_batch, backend)
    mixed = "no" if bench.precision == "fp32" else bench.precision
    accelerator = Accelerator(mixed_precision=mixed, cpu=bench.device.type == "cpu")
    bundle = load(str(bench.folder), bench.device, bench.dtype, encoders=False)
    output = Path(tempfile.mkdtemp(dir=bench.work))
    prepare(bundle, config)
    task = relation_task("hug", bundle, stored, None, config)
    training = functools.partial(train, Run(output, "finetune", config), task, accelerator, {}, None)
    _, most = peak(training, bench.device)
    steps = [line["seconds"] for line in read_jsonl(output / "metrics.jsonl")]
    step = statistics.median(steps[WARM_UP:])
    row.update({"steps/s": 1 / step, "s for 500 steps": 500 * step})
    row["MFU"] = TOTAL_BATCH * tuning_floor(bench.scale).flops / step / bench.rates.flops
    row.update(gigabytes(most))
    return step


def _micro_step(bench: Bench, bundle: Bundle, stored: dict[str, torch.Tensor], size: int) -> None:
    """Forward and backward pass of one micro-batch."""
    config = _tuning(bench, size)
    objective = Objective.of(bundle, config)
    batch = micro_batch(stored, None, range(size), config, objective.timesteps, bench.device)
    with torch.autocast(bench.device.type, bench.dtype, enabled=bench.precision != "fp32"):
        loss, _ = objective.loss(bundle.unet, batch)
    loss.backward()
