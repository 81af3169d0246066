"""A training step: what computing the frozen results once saves, what mini's recipe does, and mixed precision.

The first one's baseline does what the official script does: it runs the text encoders, the image encoders and the VAE
on every sample of every step. Both sides run the same loss and backward pass, on a bundle of random weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rbctl import lora
from rbctl.bundle.bundle import Bundle
from rbctl.bundle.load import load
from rbctl.bundle.random_weights import write_tiny
from rbctl.device import pick_training_precision, products_in_bf16
from rbctl.menagerie.triplets import draw_triplets
from rbctl.plugins.finetune import encodings
from rbctl.plugins.finetune.config import FinetuneConfig
from rbctl.plugins.finetune.objective import Objective
from rbctl.plugins.finetune.samples import micro_batch, triplet_of
from rbctl.relations import load_relation
from rbctl.triplets import Triplet
from rbctl.triplets import load as load_triplets

BATCH, RESOLUTION = 4, 128
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, list[Triplet], FinetuneConfig]:
    folder = tmp_path_factory.mktemp("bench")
    write_tiny(folder / "bundle")
    draw_triplets(load_relation("hug"), 5, 0, folder / "hug", size=256)
    bundle = load(str(folder / "bundle"), CPU, torch.float32)
    lora.add(bundle.unet, 4, 4, seed=0)
    bundle.unet.train()
    config = FinetuneConfig(relation="hug", data=Path(folder / "hug"), resolution=RESOLUTION)
    return bundle, load_triplets(folder / "hug"), config


def step(
    bundle: Bundle,
    results: dict[str, torch.Tensor],
    config: FinetuneConfig,
    first: int,
    count: int = BATCH,
    prior: dict[str, torch.Tensor] | None = None,
) -> float:
    objective = Objective.of(bundle, config)
    batch = micro_batch(results, prior, range(first, first + count), config, objective.timesteps, bundle.device)
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
        rounds=3,
        memory=True,
    )


@pytest.fixture(scope="module")
def hugs(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, torch.Tensor], FinetuneConfig]:
    """Triplets as ``mini`` encodes them."""
    folder = tmp_path_factory.mktemp("bench")
    draw_triplets(load_relation("hug"), 4, 0, folder)
    config = FinetuneConfig(relation="hug", data=folder)
    return encodings.encode(load("mini", CPU, torch.float32), load_triplets(folder), [], config, RESOLUTION), config


def tuned(layers: str) -> Bundle:
    """``mini`` with a LoRA of its recipe's rank."""
    bundle = load("mini", CPU, torch.float32)
    lora.add(bundle.unet, 16, 16, seed=0, targets=bundle.lora_targets(layers))
    bundle.unet.train()
    return bundle


def test_recipe(compare: Callable[..., Any], hugs: Any) -> None:
    """100 steps of mini's recipe against 300 on attn2, whose relation score they pass (docs/performance.md).

    A quarter of the samples is of a prior set. The recipe asks the base what it predicts for them.
    """
    results, config = hugs
    bundle, before = tuned("transformer"), tuned("attn2")
    recipe, count = dataclasses.replace(config, prior_target="base"), config.batch_size
    compare(
        "finetune on mini, a step of the recipe / three on attn2",
        lambda: step(bundle, results, recipe, 0, count, results),
        lambda: [step(before, results, config, first, count, results) for first in range(3)],
        rounds=3,
    )


@pytest.mark.skipif(pick_training_precision("auto", CPU) == "fp32", reason="this CPU does not multiply bf16")
def test_mixed_precision(compare: Callable[..., Any], hugs: Any) -> None:
    """A step of mini's recipe with its products in bf16, as ``auto`` takes them where there is AMX, against float32."""
    results, config = hugs
    bundle = tuned("transformer")

    def mixed() -> float:
        with products_in_bf16([bundle.unet], CPU, enabled=True):
            return step(bundle, results, config, 0, config.batch_size)

    compare(
        f"finetune, one step of {config.batch_size} on mini, mixed precision / float32",
        mixed,
        lambda: step(bundle, results, config, 0, config.batch_size),
        rounds=3,
    )
