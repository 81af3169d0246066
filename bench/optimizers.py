"""What relation LoRAs of ``mini`` learn in the recipe's steps with other optimizers and losses, by the oracle.

``python -m bench.optimizers FOLDER [--ways adamw muon ...] [--seed 0]``: LoRAs of five held-out verbs from six triplets
each, 20 scenes of new individuals a verb; about five minutes a way on two idle cores. Prodigy wants
``pip install prodigyopt``. What FOLDER holds is not made again.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from bench.scored_loras import SCORES, gates, scores
from rbctl import losses
from rbctl.plugins.finetune import finetune

SCENES = 20  # of a verb
RATIO = 4  # of LoRA+: the rate of B over that of A
MOMENTUM = 0.9  # of Muon
DECAY, STEPS = 0.95, 100  # of averaged weights
GAMMA = 5.0  # of min-SNR

Optimizer = Callable[..., torch.optim.Optimizer]


class LoraPlus(torch.optim.AdamW):
    """LoRA+ (arXiv 2402.12354): B learns ``RATIO`` times as fast as A."""

    def __init__(self, parameters: Any, lr: float, weight_decay: float) -> None:
        everything = list(parameters)
        ups = [p for p in everything if p.shape[0] > p.shape[1]]  # B is (outputs, rank)
        downs = [p for p in everything if p.shape[0] <= p.shape[1]]
        super().__init__([{"params": downs}, {"params": ups}], lr=lr, weight_decay=weight_decay)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.param_groups[1]["lr"] *= RATIO  # the loop sets both anew before every step
        super().step(closure)


class Averaged(torch.optim.AdamW):
    """AdamW; after the last step averages of the weights take their place."""

    def __init__(self, parameters: Any, lr: float, weight_decay: float) -> None:
        self.weights, self.done = list(parameters), 0
        self.averages = [p.detach().clone() for p in self.weights]
        super().__init__(self.weights, lr=lr, weight_decay=weight_decay)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step(closure)
        self.done += 1
        decay = min(DECAY, (1 + self.done) / (10 + self.done))
        for average, p in zip(self.averages, self.weights, strict=True):
            average.lerp_(p, 1 - decay)
            if self.done == STEPS:
                p.copy_(average)


def muon(parameters: Any, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Muon, whose steps are as large as AdamW's."""
    options: dict[str, Any] = {"momentum": MOMENTUM, "adjust_lr_fn": "match_rms_adamw"}
    return torch.optim.Muon(list(parameters), lr=lr, weight_decay=weight_decay, **options)


def prodigy(parameters: Any, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Prodigy (arXiv 2306.06101), which finds its rate itself; the schedule's cosine stays."""
    from prodigyopt import Prodigy

    class Kept(Prodigy):
        def step(self, closure: Any = None) -> None:
            super().step(closure)
            for state in self.state.values():  # a checkpoint holds tensors
                state.update({name: torch.as_tensor(value) for name, value in state.items()})

    options: dict[str, Any] = {"betas": (0.9, 0.99), "d0": 1e-5, "use_bias_correction": True}
    optimizer: torch.optim.Optimizer = Kept(list(parameters), lr=lr, weight_decay=weight_decay, **options)
    return optimizer


@contextlib.contextmanager
def min_snr() -> Iterator[None]:
    """Denoising losses weighted as in arXiv 2303.09556, for v-prediction."""
    noised, denoising = losses.noised, losses.denoising
    levels: list[torch.Tensor] = []

    def remember(latents: torch.Tensor, noise: torch.Tensor, alphas: torch.Tensor, kind: str) -> Any:
        levels[:] = [alphas]
        return noised(latents, noise, alphas, kind)

    def weighted(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        ratio = levels[0] / (1 - levels[0]).clamp(min=1e-8)
        return denoising(output, target) * 2 * ratio.clamp(max=GAMMA) / (ratio + 1)

    with mock.patch.object(losses, "noised", remember), mock.patch.object(losses, "denoising", weighted):
        yield


@dataclasses.dataclass(frozen=True)
class Way:
    """What takes AdamW's place, and the options of ``rbctl finetune`` that go with it."""

    optimizer: Optimizer = torch.optim.AdamW
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    loss: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext


WAYS = {
    "adamw": Way(),
    "lora+": Way(LoraPlus, {"learning_rate": 2.5e-3}),
    "muon": Way(muon, {"learning_rate": 5e-3}),
    "muon 1e-2": Way(muon, {"learning_rate": 1e-2}),
    "prodigy": Way(prodigy, {"learning_rate": 1.0}),
    "min-snr": Way(loss=min_snr),
    "averaged": Way(Averaged, {"steps": STEPS}),
}


def score(folder: Path, way: Way, seed: int) -> dict[str, float]:
    """Tune, sample and judge; the mean of the verbs' means."""
    recipe = gates()
    loras = []
    for relation in recipe.relations:
        options = {**recipe.finetune, **way.options, "bundle": recipe.bundle, "seed": seed}
        with mock.patch("torch.optim.AdamW", way.optimizer), way.loss():
            loras.append((relation, finetune(relation, output=folder / "loras" / f"{relation}-s{seed}", **options)))
    scored = scores(folder / f"scores-s{seed}", loras, SCENES)
    return {name: float(np.mean([values[name] for values in scored])) for name in SCORES}


def main() -> None:
    """Print a row a way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for name in arguments.ways:
        values = score(arguments.folder / name.replace(" ", "-"), WAYS[name], arguments.seed)
        print(f"{name:12}" + "".join(f"{key} {value:.3f}  " for key, value in values.items()), flush=True)


if __name__ == "__main__":
    main()
