"""The training loop of every part: cosine, averaged weights, checkpoints that go on as if nothing had been.

Under torchrun each process is one rank with one thread and gradients are averaged over gloo: on a busy machine two
threads of one process collapse where two processes do not. All that is random is a function of (seed, rank, step).
"""

from __future__ import annotations

import abc
import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from torch import nn

from rbctl import kept
from rbctl.device import pick_training_precision, products_in_bf16
from rbctl.draws import generator
from rbctl.errors import InputError
from rbctl.plugins.pretrain import renders
from rbctl.plugins.pretrain.config import PretrainConfig
from rbctl.plugins.pretrain.optimizer import MuonAdamW, sum_over_processes
from rbctl.processes import World, together
from rbctl.runs import Run, stop_signals

WARMUP = 100  # steps
LAST_RATE = 0.02  # of the learning rate, at the end of the cosine
REPORT_EVERY = 50  # steps
CHECKPOINT = "checkpoint.safetensors"
_SUM = "sum."  # what the names of a report's sums begin with in a checkpoint


class Part(abc.ABC):
    """What is trained. It is built with its weights already drawn, equal in every process.

    Attributes:
        name: as in the options.
        device: where its modules are and its loss runs; products are in bf16 where that is faster.
        batch_size: samples per process and step.
        learning_rate: the highest of the schedule.
        kinds: of its scenes, as :func:`rbctl.plugins.pretrain.renders.scenes` names them.
        plain: parameters whose steps are left to AdamW though they are matrices (first and last layers).
        bundle: folder of what it makes.
        scenes, portraits, unseen: what it learns from, and scenes of held-out individuals.
    """

    name: str
    kinds: Sequence[str] = ("all",)
    plain: Sequence[torch.Tensor] = ()

    def __init__(self, config: PretrainConfig, device: torch.device) -> None:
        self.device = device
        self.batch_size: int = getattr(config, f"{self.name}_batch_size")
        self.learning_rate: float = getattr(config, f"{self.name}_learning_rate")
        self.bundle, folder = config.work / "bundle", config.work / "renders"
        self.scenes, self.portraits = renders.scenes(folder, *self.kinds), renders.portraits(folder)
        self.unseen = renders.scenes(folder, "held_out")

    @abc.abstractmethod
    def modules(self) -> dict[str, nn.Module]:
        """Name -> module. Their parameters that require gradients are trained; all they hold is in the checkpoint."""

    @abc.abstractmethod
    def loss(self, step: int, chance: torch.Generator) -> tuple[torch.Tensor, Mapping[str, Any]]:
        """A scalar to minimise, and numbers (float or detached scalar tensor) for the metrics.

        Args:
            step: from 0.
            chance: on the CPU; everything random is drawn from it.
        """

    @abc.abstractmethod
    def preview(self, folder: Path, step: int) -> Mapping[str, float]:
        """Measure how far it is, with the averaged weights in place; pictures go to the folder, numbers to metrics."""

    @abc.abstractmethod
    def finish(self) -> None:
        """Write the final weights; the averaged ones are in place. Called in the first process alone."""


def rate(step: int, steps: int, decay: float = 1.0) -> float:
    """Factor on the learning rate at a step: linear warm-up, 1, then a cosine from 1 to ``LAST_RATE``.

    Args:
        decay: share of the steps that the cosine takes; 0 for none.
    """
    if step < WARMUP:
        return (step + 1) / WARMUP
    first = max(WARMUP, round((1 - decay) * steps))
    progress = min(1.0, max(0, step - first) / max(1, steps - first))
    return LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * progress))


def average_decay(step: int) -> float:
    """How much the averaged weights keep at a step: 0.998, less at first so that the random start is forgotten."""
    return min(0.998, (1 + step) / (10 + step))


class _State:
    """All that a checkpoint holds: the modules of a part, the average of their weights, the optimizer, the step.

    Attributes:
        sums: of the numbers of the steps since the last report, how many those are among them; a report has the means.
    """

    def __init__(self, part: Part, muon: bool) -> None:
        self.modules = part.modules()
        self.parameters = {
            f"{prefix}.{name}": parameter
            for prefix, module in self.modules.items()
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }
        layers = [layer for module in self.modules.values() for layer in module.modules()]
        weights = {id(layer.weight) for layer in layers if muon and isinstance(layer, nn.Linear | nn.Conv2d)}
        weights -= {id(parameter) for parameter in part.plain}
        matrices = [name for name, parameter in self.parameters.items() if id(parameter) in weights]
        self.optimizer = MuonAdamW(self.parameters, matrices, part.learning_rate)
        self.averages = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self.done = torch.tensor(0)  # steps
        self.sums: dict[str, Any] = {}

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Move the weights by their gradients, and their averages after them."""
        self.optimizer.step(learning_rate)
        averages, parameters = list(self.averages.values()), [p.detach() for p in self.parameters.values()]
        torch._foreach_lerp_(averages, parameters, 1 - average_decay(int(self.done)))
        self.done += 1

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

    def _swap(self) -> None:
        for name, parameter in self.parameters.items():
            parameter.data, self.averages[name] = self.averages[name], parameter.data

    def tensors(self) -> dict[str, torch.Tensor]:
        """All of it by name, as it is, not copied."""
        modules = {
            f"{prefix}.{name}": tensor
            for prefix, module in self.modules.items()
            for name, tensor in (*module.named_parameters(), *module.named_buffers())
        }
        averages = {f"average.{name}": average for name, average in self.averages.items()}
        return {"done": self.done, **modules, **averages, **self.optimizer.tensors()}

    def add(self, numbers: Mapping[str, Any]) -> None:
        """Add a step's numbers, floats or scalar tensors, to the sums."""
        for name, value in {"steps": 1.0, **numbers}.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        """The means of the sums, which begin anew."""
        sums = {name: float(value) for name, value in self.sums.items()}
        self.sums, steps = {}, sums.pop("steps")
        return {name: value / steps for name, value in sums.items()}

    def save(self, path: Path, facts: kept.Facts) -> None:
        """Write a checkpoint."""
        sums = {
            f"{_SUM}{name}": value if isinstance(value, torch.Tensor) else torch.tensor(value, dtype=torch.float64)
            for name, value in self.sums.items()
        }
        tensors = {name: tensor.detach().clone() for name, tensor in {**self.tensors(), **sums}.items()}
        kept.save(path, tensors, facts)

    @torch.no_grad()
    def restore(self, path: Path, facts: kept.Facts) -> None:
        """Go on from a checkpoint.

        Raises:
            InputError: it is damaged, or of another network.
        """
        try:
            stored = kept.read(path, facts)
        except InputError as error:
            raise InputError(f"{error}; remove it to start again") from error
        self.sums = {name.removeprefix(_SUM): stored.pop(name) for name in list(stored) if name.startswith(_SUM)}
        tensors = self.tensors()
        if {name: t.shape for name, t in stored.items()} != {name: t.shape for name, t in tensors.items()}:
            raise InputError(f"{path}: a checkpoint of another network or optimizer; remove it to start again")
        for name, tensor in tensors.items():
            tensor.copy_(stored[name])


def train(part: Part, config: PretrainConfig) -> None:
    """Train a part and write its final weights; the same call again goes on from the last checkpoint.

    A later call may name another number of steps, or run in more or fewer processes: it goes on by the new plan.

    Raises:
        InputError: the checkpoint is damaged or of something else, or the loss or the weights are no numbers any more;
            no such weights are saved.
    """
    with together() as world:
        _train(part, config, world)


def _train(part: Part, config: PretrainConfig, world: World) -> None:
    run = Run(config.work / part.name, "pretrain", config, world=world)
    run.folder.mkdir(parents=True, exist_ok=True)
    checkpoint, facts = run.folder / CHECKPOINT, {"seed": config.seed}
    steps: int = getattr(config, f"{part.name}_steps")
    precision = pick_training_precision(config.precision, part.device)
    state = _State(part, config.optimizer == "muon")
    if checkpoint.is_file():
        state.restore(checkpoint, facts)
    start = int(state.done)
    run.cut(start)

    def save() -> None:
        if kept.not_finite(state.tensors()) is not None:
            raise InputError(
                f"{run.folder}: the weights became NaN or infinite by step {state.done} and are not saved; lower its "
                f"learning rate (--{part.name}-learning-rate)"
            )
        if world.first:
            state.save(checkpoint, facts)

    def report(numbers: Mapping[str, float]) -> None:
        rounded = {name: float(f"{value:.5g}") for name, value in numbers.items()}
        run.log(int(state.done), {**rounded, "precision": precision})
        if world.first:
            click.echo(f"step {state.done}  " + "  ".join(f"{name} {value:g}" for name, value in rounded.items()))

    for module in state.modules.values():
        module.train()
    gradient = state.optimizer.gradient
    begun = reported = time.monotonic()
    last = start  # step of the last report of this call
    with stop_signals() as stop:
        for step in range(start, steps):
            spent = config.minutes is not None and time.monotonic() - begun > 60 * config.minutes
            if world.anywhere(stop.requested or spent):
                break
            with products_in_bf16(state.modules.values(), part.device, precision == "mixed"):
                loss, numbers = part.loss(step, generator(config.seed, world.rank, step))
            loss.backward()
            sum_over_processes(gradient)
            gradient /= world.size
            norm = gradient.norm()
            gradient.div_(norm.clamp(min=1.0))
            learning_rate = part.learning_rate * rate(step, steps, config.decay)
            state.step(learning_rate)
            state.add({"loss": loss.detach(), **numbers, "gradient_norm": norm})
            done = step + 1
            if done % REPORT_EVERY == 0 or done == steps:
                row = state.means()
                if not math.isfinite(row["loss"]):
                    raise InputError(f"{run.folder}: the loss became NaN by step {done}; lower its learning rate")
                now = time.monotonic()
                row["samples_per_second"] = (done - last) * part.batch_size * world.size / (now - reported)
                report({**row, "learning_rate": learning_rate})
                last, reported = done, now
            if world.first and config.preview_every and done % config.preview_every == 0:
                before = time.monotonic()
                with state.averaged():
                    report(part.preview(run.folder, done))
                reported += time.monotonic() - before  # a preview's time is no training time
            # Behind the preview, which a kill between them would lose.
            if config.checkpoint_every and done % config.checkpoint_every == 0 and done < steps:
                save()
    if state.done > start:
        save()
    if stop.requested:
        raise KeyboardInterrupt
    if world.first:
        with state.averaged():
            part.finish()
