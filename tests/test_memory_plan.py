"""``rbctl doctor --plan``: what is counted on the meta device is what real tensors hold."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from rbctl import memory_plan
from rbctl.bases.published import PUBLISHED
from rbctl.bundle import random_weights
from rbctl.cli import main
from rbctl.memory_plan import Memory, peak_bytes
from tests.commands import call, refused

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # bench is no part of the distribution
    sys.path.insert(0, str(ROOT))

from bench.conftest import peak_mb  # noqa: E402

_GB = 10**9
# Like SDXL's, rounded.
SDXL = Memory(
    unet=6 * _GB,
    vae=_GB // 3,
    texts=2 * _GB,
    encoders=8 * _GB,
    local=4 * _GB,
    step=_GB // 2,
    decoding=3 * _GB,
    encoding=3 * _GB,
    tuning=6 * _GB,
    checkpointed=_GB // 2,
)


def test_the_peak_is_that_of_real_tensors() -> None:
    def work(device: str) -> None:
        layers = [nn.Linear(64, 64, device=device) for _ in range(3)]
        x = torch.ones(512, 64, device=device)
        for layer in layers:
            x = layer(x).relu()
        x.square().sum().backward()

    counted = peak_bytes(lambda: work("meta"))
    assert counted == pytest.approx(1e6 * peak_mb(lambda: work("cpu")), rel=0.1)


def test_what_was_there_before_does_not_count() -> None:
    weight = torch.empty(1000, device="meta")
    assert peak_bytes(lambda: weight.view(10, 100).t()) == 0
    assert peak_bytes(lambda: [weight + 1 for _ in range(5)]) == 5 * 4000
    assert peak_bytes(lambda: [(weight + 1).shape for _ in range(5)]) == 4000


def flags(card: float) -> list[str | None]:
    return [plan.flags for plan in memory_plan.fitting(SDXL, [card])]


def test_a_larger_card_needs_fewer_flags() -> None:
    assert flags(80) == ["", "--micro-batch-size 8"]
    assert flags(24) == ["", "--micro-batch-size 2"]
    assert flags(12) == ["--lowvram", "--lowvram --micro-batch-size 8 --gradient-checkpointing"]
    assert flags(8) == [
        "--lowvram --local-tokens none",
        "--lowvram --micro-batch-size 2 --gradient-checkpointing --local-tokens none",
    ]
    assert flags(4) == [None, None]


@pytest.mark.slow
def test_editors_have_a_plan_too() -> None:
    rows = json.loads(call("doctor", "--plan", 24, "--base", "flux2-klein-4b", "--json").stdout)
    sample, finetune = rows
    assert sample["flags"] == ""
    assert finetune["flags"] == "--micro-batch-size 2 --gradient-checkpointing"
    assert 16 * _GB < sample["needed"] < 24 * _GB  # the weights alone have 16.1 (bench/base_sizes.py)
    (offered,) = (option.type.choices for option in main.commands["doctor"].params if option.name == "base")
    assert set(offered) == {"sdxl", *PUBLISHED}
    refused(call("doctor", "--base", "flux2-klein-4b"), "give --plan GB too")


@pytest.mark.slow
def test_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_weights, "full_size", lambda: random_weights.TINY)
    result = call("doctor", "--plan", 8, "--plan", 24, "--json")
    rows = json.loads(result.stdout)
    assert [(row["card"], row["command"], row["flags"]) for row in rows] == [
        (card, command, some)
        for card in (8, 24)
        for command, some in (("sample", ""), ("finetune", "--micro-batch-size 8"))
    ]
    assert all(0 < row["needed"] < 8 * _GB for row in rows)
    refused(call("doctor", "--plan", 0), "--plan")
