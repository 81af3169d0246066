"""The training loop of every part: Muon, cosine, averaged weights, checkpoints that go on as if nothing had been.

Muon moves the matrices of linear and convolution layers in orthogonal steps; AdamW moves the rest. From random weights
that needs far fewer samples: the VAE's squared error after 150 steps of 16 pictures is 0.036, with AdamW alone 0.054.

Under torchrun each process is one rank with one thread and gradients are averaged over gloo: on a busy machine two
threads of one process collapse where two processes do not. All that is random is a function of (seed, rank, step).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import click
import torch
from torch import distributed, nn

from rbctl import kept
from rbctl.errors import InputError
from rbctl.files import append_line
from rbctl.metrics import cut
from rbctl.runs import stop_signals

WARMUP = 100  # steps
LAST_RATE = 0.02  # of the learning rate, at the end of the cosine
REPORT_EVERY = 50  # steps
CHECKPOINT = "checkpoint.safetensors"
_ORTHOGONAL_FROM = 32  # rows and columns; steps of narrower matrices are left to AdamW
_ORTHOGONAL_STEP = 0.6  # root mean square of an orthogonal step, in learning rates; AdamW's is near 1 at first
_MOMENTUM = 0.95
_DECAY = 0.01  # of matrices, in learning rates


class Part(Protocol):
    """What is trained. It is built with its weights already drawn, equal in every process.

    Attributes:
        device: where its modules are and its loss runs; on CUDA the loss is computed under bf16 autocast.
        batch_size: samples per process and step, for the speed that is told.
        learning_rate: the highest of the schedule.
        plain: parameters whose steps are left to AdamW though they are matrices (first and last layers); may be absent.
    """

    device: torch.device
    batch_size: int
    learning_rate: float

    def modules(self) -> dict[str, nn.Module]:
        """Name -> module. Their parameters that require gradients are trained; these and all buffers are kept."""
        ...

    def loss(self, step: int, generator: torch.Generator) -> tuple[torch.Tensor, Mapping[str, Any]]:
        """A scalar to minimise, and numbers (float or detached scalar tensor) to tell with it.

        Args:
            step: from 0.
            generator: on the CPU; everything random is drawn from it.
        """
        ...

    def preview(self, folder: Path, step: int) -> Mapping[str, float] | None:
        """Write a picture of how far it is, with the averaged weights in place; numbers returned go to the metrics."""
        ...

    def finish(self, folder: Path) -> None:
        """Write the final weights; the averaged ones are in place. Called in the first process alone."""
        ...


def rank() -> int:
    """Number of this process among those that torchrun started; 0 without it."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def draws(*key: object) -> torch.Generator:
    """A CPU generator seeded by the key."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def rate(step: int, steps: int, warmup: int = WARMUP) -> float:
    """Factor on the learning rate at a step: linear warm-up, then a cosine from 1 to ``LAST_RATE``."""
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * progress))


def average_decay(step: int) -> float:
    """How much the averaged weights keep at a step: 0.998, less at first so that the random start is forgotten."""
    return min(0.998, (1 + step) / (10 + step))


def orthogonalised(matrices: torch.Tensor) -> torch.Tensor:
    """The nearest orthogonal matrices, roughly: singular values between 0.7 and 1.2 (Muon's Newton-Schulz steps).

    Args:
        matrices: (k, rows, columns).
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    if x.shape[-1] < 2 * x.shape[-2]:
        for _ in range(5):
            x = _newton_schulz(x @ x.mT) @ x
    else:  # x is wide: all steps are polynomials of its Gram matrix, which is smaller
        gram, product = x @ x.mT, None
        for number in range(5):
            factor = _newton_schulz(gram)
            product = factor if product is None else factor @ product
            if number < 4:
                gram = factor @ gram @ factor
        assert product is not None
        x = product @ x
    return (x.mT if tall else x).contiguous()


def _newton_schulz(gram: torch.Tensor) -> torch.Tensor:
    """What one step multiplies its matrix with."""
    factor = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
    factor.diagonal(dim1=-2, dim2=-1).add_(3.4445)
    return factor


def _orthogonal(part: Part, parameters: Mapping[str, nn.Parameter]) -> list[str]:
    """Names of the parameters that Muon moves: matrices inside the networks, neither embeddings nor narrow ones."""
    layers = (nn.Linear, nn.Conv2d)
    weights = {id(m.weight) for module in part.modules().values() for m in module.modules() if isinstance(m, layers)}
    plain = {id(p) for p in getattr(part, "plain", ())}
    return [
        name
        for name, p in parameters.items()
        if id(p) in weights - plain and min(p.shape[0], p[0].numel()) >= _ORTHOGONAL_FROM
    ]


class _State:
    """Parameters of a part with their gradients, averages and optimizer."""

    def __init__(self, part: Part) -> None:
        self.modules = part.modules()
        self.parameters: dict[str, nn.Parameter] = {}
        seen: set[int] = set()
        for prefix, module in self.modules.items():
            for name, parameter in module.named_parameters():
                if parameter.requires_grad and id(parameter) not in seen:  # text encoders may share theirs
                    seen.add(id(parameter))
                    self.parameters[f"{prefix}.{name}"] = parameter
        self.averages = {name: p.detach().clone() for name, p in self.parameters.items()}
        # One flat gradient: one all_reduce, one norm. Each view has the strides of its parameter (channels_last).
        parameters = list(self.parameters.values())
        self.gradient = torch.zeros(sum(p.numel() for p in parameters), device=part.device)
        first = 0
        for p in parameters:
            p.grad = self.gradient.as_strided(p.shape, p.stride(), first)
            first += p.numel()
        self.momenta = {name: torch.zeros_like(self.parameters[name]) for name in _orthogonal(part, self.parameters)}
        plain = [p for name, p in self.parameters.items() if name not in self.momenta]
        matrices, others = ([p for p in plain if (p.ndim > 1) == wanted] for wanted in (True, False))
        groups = [{"params": matrices, "weight_decay": _DECAY}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=part.learning_rate, betas=(0.9, 0.99), fused=True)

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Move all parameters by their gradients, and leave these at zero."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        moves = self._moves()
        for name, move in moves.items():
            p = self.parameters[name]
            size = _ORTHOGONAL_STEP * learning_rate * max(p.shape[0], p[0].numel()) ** 0.5
            p.mul_(1 - _DECAY * learning_rate).sub_(move.view(p.shape), alpha=size)
        self.gradient.zero_()

    def _moves(self) -> dict[str, torch.Tensor]:
        """The orthogonal steps by name; processes share their making, else a quarter of a training step."""
        names = list(self.momenta)
        gradients = [g for name in names if (g := self.parameters[name].grad) is not None]
        momenta = [self.momenta[name] for name in names]
        torch._foreach_lerp_(momenta, gradients, 1 - _MOMENTUM)
        flat = torch.zeros(sum(m.numel() for m in momenta), device=self.gradient.device)
        moves = dict(zip(names, flat.split([m.numel() for m in momenta]), strict=True))
        mine: dict[tuple[int, int], list[int]] = {}
        for number in sorted(range(len(names)), key=lambda k: (momenta[k].numel(), names[k]))[rank() :: world_size()]:
            m = momenta[number]
            mine.setdefault((m.shape[0], m[0].numel()), []).append(number)
        for numbers in mine.values():
            ahead = torch.stack([gradients[k].lerp(momenta[k], _MOMENTUM).flatten(1) for k in numbers])
            for k, move in zip(numbers, orthogonalised(ahead), strict=True):
                moves[names[k]].copy_(move.flatten())
        if distributed.is_initialized():
            _summed(flat)
        return moves

    def buffers(self) -> dict[str, torch.Tensor]:
        return {f"{prefix}.{name}": b for prefix, m in self.modules.items() for name, b in m.named_buffers()}

    @torch.no_grad()
    def average(self, step: int) -> None:
        averages: list[torch.Tensor] = list(self.averages.values())
        parameters: list[torch.Tensor] = list(self.parameters.values())
        torch._foreach_lerp_(averages, parameters, 1 - average_decay(step))

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The averaged weights in place of the trained ones, and the modules in eval mode."""
        self._swap()
        for module in self.modules.values():
            module.eval()
        try:
            yield
        finally:
            self._swap()
            for module in self.modules.values():
                module.train()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self.parameters.items():
            kept = parameter.detach().clone()
            parameter.copy_(self.averages[name])
            self.averages[name].copy_(kept)

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that a checkpoint holds besides the step, by name."""
        moments = {n: {"momentum": m} for n, m in self.momenta.items()}
        moments |= {n: dict(self.optimizer.state[p]) for n, p in self.parameters.items() if n not in moments}
        return {
            **{f"parameters.{name}": parameter.detach() for name, parameter in self.parameters.items()},
            **{f"averages.{name}": average for name, average in self.averages.items()},
            **{f"buffers.{name}": buffer.clone() for name, buffer in self.buffers().items()},  # some are shared
            **{f"{key}.{name}": value for name, state in moments.items() for key, value in state.items()},
        }

    def save(self, path: Path, step: int, facts: kept.Facts) -> None:
        kept.save(path, {"step": torch.tensor(step), **self.tensors()}, facts)

    def restore(self, path: Path, facts: kept.Facts) -> int:
        """Load a checkpoint; returns its step. Raises InputError when it is damaged or of another network."""
        mend = "remove it to begin anew"
        try:
            tensors = kept.read(path, facts)
        except InputError as error:
            raise InputError(f"{error}; {mend}") from error
        shapes = {f"{kind}.{n}": p.shape for n, p in self.parameters.items() for kind in ("parameters", "averages")}
        for name, parameter in self.parameters.items():
            kinds = ("momentum",) if name in self.momenta else ("exp_avg", "exp_avg_sq")
            shapes |= {f"{kind}.{name}": parameter.shape for kind in kinds}
            shapes |= {} if name in self.momenta else {f"step.{name}": torch.Size()}
        buffers = {f"buffers.{name}": buffer for name, buffer in self.buffers().items()}
        shapes |= {"step": torch.Size()} | {name: buffer.shape for name, buffer in buffers.items()}
        if {name: tensor.shape for name, tensor in tensors.items()} != shapes:
            raise InputError(f"{path}: a checkpoint of another network or optimizer; {mend}")
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[f"parameters.{name}"])
                self.averages[name].copy_(tensors[f"averages.{name}"])
                if name in self.momenta:
                    self.momenta[name].copy_(tensors[f"momentum.{name}"])
                    continue
                # AdamW keeps its step count in float32; the moments have the strides of their parameter.
                self.optimizer.state[parameter] = {"step": tensors[f"step.{name}"].to(parameter.device)} | {
                    key: torch.empty_like(parameter).copy_(tensors[f"{key}.{name}"])
                    for key in ("exp_avg", "exp_avg_sq")
                }
            for name, buffer in buffers.items():
                buffer.copy_(tensors[name])
        return int(tensors["step"])


def train(
    part: Part,
    folder: Path,
    *,
    minutes: float | None,
    steps: int,
    checkpoint_every: int,
    preview_every: int,
    seed: int,
) -> None:
    """Train a part and write its final weights; the same call again goes on from the last checkpoint.

    Args:
        folder: for the checkpoint, metrics.jsonl and previews.
        minutes: stop after so long even if steps are left (0: only finish what is there); a later call goes on.
        steps: length of the schedule. A later call may name another length, or run in more or fewer processes: it
            goes on from there by the new plan.
        checkpoint_every, preview_every: in steps; 0 for none but the last checkpoint.

    Raises:
        InputError: the checkpoint in ``folder`` is damaged or of something else, or the loss or the weights are no
            numbers any more; no such weights are saved.
    """
    main, ranks = rank() == 0, world_size()
    started_here = ranks > 1 and not distributed.is_initialized()
    if started_here:
        distributed.init_process_group("gloo")
    try:
        _train(part, folder, minutes, steps, checkpoint_every, preview_every, seed, main, ranks)
    finally:
        if started_here:
            distributed.destroy_process_group()


def _train(
    part: Part,
    folder: Path,
    minutes: float | None,
    steps: int,
    checkpoint_every: int,
    preview_every: int,
    seed: int,
    main: bool,
    ranks: int,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    state, path, metrics, facts = _State(part), folder / CHECKPOINT, folder / "metrics.jsonl", {"seed": seed}
    start = state.restore(path, facts) if path.is_file() else 0
    if main:
        cut(metrics, start)

    def save(step: int) -> None:
        if kept.not_finite(state.tensors()):
            raise InputError(
                f"{folder}: the weights became NaN or infinite by step {step} and are not saved; lower its learning "
                f"rate (--{folder.name}-learning-rate)"
            )
        if main:
            state.save(path, step, facts)

    for module in state.modules.values():
        module.train()
    autocast = torch.autocast("cuda", torch.bfloat16, enabled=part.device.type == "cuda")
    begun = last_told = time.monotonic()
    sums: dict[str, Any] = {}
    counted, done = 0, start
    with stop_signals() as stop:
        for step in range(start, steps):
            spent = minutes is not None and time.monotonic() - begun > 60 * minutes
            if _anywhere(stop.requested or spent, ranks):
                break
            with autocast:
                loss, told = part.loss(step, draws(seed, rank(), step))
            loss.backward()
            if ranks > 1:
                _summed(state.gradient)
                state.gradient /= ranks
            norm = state.gradient.norm()
            state.gradient.div_(norm.clamp(min=1.0))
            state.step(part.learning_rate * rate(step, steps))
            state.average(step)
            done = step + 1
            for name, value in {"loss": loss.detach(), **told, "gradient_norm": norm}.items():
                sums[name] = sums.get(name, 0.0) + value
            counted += 1
            if done % REPORT_EVERY == 0 or done == steps:
                row = {name: float(value) / counted for name, value in sums.items()}
                if not math.isfinite(row["loss"]):
                    raise InputError(f"{folder}: the loss became NaN by step {done}; lower its learning rate")
                now = time.monotonic()
                row["samples_per_second"] = counted * part.batch_size * ranks / (now - last_told)
                row["learning_rate"] = part.learning_rate * rate(step, steps)
                sums, counted, last_told = {}, 0, now
                if main:
                    _tell(metrics, done, row)
            if main and preview_every and done % preview_every == 0:
                before = time.monotonic()
                with state.averaged():
                    row = dict(part.preview(folder, done) or {})
                if row:
                    _tell(metrics, done, row)
                last_told += time.monotonic() - before  # a preview's time is no training time
            # Behind the preview, which a kill between them would lose.
            if checkpoint_every and done % checkpoint_every == 0 and done < steps:
                save(done)
    if done > start:
        save(done)
    if main and not stop.requested:
        with state.averaged():
            part.finish(folder)
    if stop.requested:
        raise KeyboardInterrupt


def _summed(values: torch.Tensor) -> None:
    """Sum over processes, in place."""
    if values.device.type == "cpu":
        distributed.all_reduce(values)
        return
    shared = values.cpu()
    distributed.all_reduce(shared)
    values.copy_(shared)


def _anywhere(flag: bool, ranks: int) -> bool:
    """Whether the flag is raised in any process: all have to stop at the same step."""
    if ranks == 1:
        return flag
    raised = torch.tensor(float(flag))
    distributed.all_reduce(raised)
    return bool(raised > 0)


def _tell(metrics: Path, step: int, row: Mapping[str, float]) -> None:
    rounded = {name: float(f"{value:.5g}") for name, value in row.items()}
    append_line(metrics, json.dumps({"step": step, **rounded}))
    click.echo(f"step {step}  " + "  ".join(f"{name} {value:g}" for name, value in rounded.items()))
