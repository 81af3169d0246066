"""What computing the frozen results once saves: a training step, against re-encoding at every step.

The baseline does what the official script does: it runs the text encoders, the image encoders and the VAE on every
sample of every step. Both sides run the same loss and backward pass, on a bundle of random weights.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rbctl import lora
from rbctl.bundle.bundle import Bundle
from rbctl.bundle.load import load
from rbctl.bundle.random_weights import write_tiny
from rbctl.menagerie.triplets import draw_triplets
from rbctl.plugins.finetune import encodings
from rbctl.plugins.finetune.config import FinetuneConfig
from rbctl.plugins.finetune.objective import Objective
from rbctl.plugins.finetune.samples import micro_batch, triplet_of
from rbctl.relations import load_relation
from rbctl.triplets import Triplet
from rbctl.triplets import load as load_triplets

BATCH, RESOLUTION = 4, 128


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, list[Triplet], FinetuneConfig]:
    folder = tmp_path_factory.mktemp("bench")
    write_tiny(folder / "bundle")
    draw_triplets(load_relation("hug"), 5, 0, folder / "hug", size=256)
    bundle = load(str(folder / "bundle"), torch.device("cpu"), torch.float32)
    lora.add(bundle.unet, 4, 4, seed=0)
    bundle.unet.train()
    config = FinetuneConfig(relation="hug", data=Path(folder / "hug"), resolution=RESOLUTION)
    return bundle, load_triplets(folder / "hug"), config


def step(bundle: Bundle, results: dict[str, torch.Tensor], config: FinetuneConfig, first: int) -> float:
    objective = Objective.of(bundle, config)
    batch = micro_batch(results, None, range(first, first + BATCH), config, objective.timesteps, bundle.device)
    loss, _ = objective.loss(bundle.unet, batch)
    loss.backward()
    return float(loss.detach())


def re_encoding_step(bundle: Bundle, triplets: list[Triplet], config: FinetuneConfig, first: int) -> float:
    """The same step without anything kept: each of its samples goes through the frozen networks."""
    chosen = [triplets[triplet_of(config.seed, first + slot, len(triplets))] for slot in range(BATCH)]
    return step(bundle, encodings.encode(bundle, chosen, [], config, RESOLUTION), config, first)


def test_step(compare: Callable[..., Any], setting: Any) -> None:
    bundle, triplets, config = setting
    results = encodings.encode(bundle, triplets, [], config, RESOLUTION)
    compare(
        f"finetune, one step of {BATCH}, encoded once / at every step",
        lambda: step(bundle, results, config, 0),
        lambda: re_encoding_step(bundle, triplets, config, 0),
        rounds=5,
        memory=True,
    )
