"""Parity fixtures: folders <name>/<name>.{json,safetensors}; sizes and cases are read from them, never assumed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

BESIDE = Path(__file__).resolve().parents[3] / "shared" / "goldens"
OWN = Path(__file__).resolve().parents[1] / "goldens"


@dataclass
class Golden:
    """One fixture folder."""

    folder: Path
    facts: dict[str, Any]
    tensors: dict[str, torch.Tensor]

    def under(self, prefix: str) -> dict[str, torch.Tensor]:
        """Tensors below a prefix, without it."""
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}

    def close(self, actual: torch.Tensor, name: str, tolerance: dict[str, float] | None = None) -> None:
        limits = tolerance or self.facts["tolerance"]
        torch.testing.assert_close(
            actual.detach().float(), self.tensors[name].float(), msg=lambda m: f"{name}: {m}", **limits
        )


@pytest.fixture(scope="session")
def goldens(request: pytest.FixtureRequest) -> Path:
    chosen = request.config.getoption("--goldens")
    if chosen is not None and not chosen.is_dir():
        pytest.exit(f"--goldens {chosen}: no such folder", returncode=2)
    return chosen or (BESIDE if BESIDE.is_dir() else OWN)


@pytest.fixture(scope="session")
def golden(goldens: Path) -> Callable[[str], Golden]:
    def load(name: str) -> Golden:
        folder = goldens / name
        if not (folder / f"{name}.json").is_file():
            pytest.skip(f"{goldens} has no fixture {name}")
        facts = json.loads((folder / f"{name}.json").read_text())
        weights = folder / f"{name}.safetensors"
        return Golden(folder, facts, load_file(weights) if weights.is_file() else {})

    return load


@pytest.fixture(scope="session")
def base(goldens: Path, tiny_bundle: Path) -> Any:
    """SDXL's noise schedule and tokenizers, which the random bundle has too."""
    from rbctl.bundle.load import load

    folder = goldens / "tiny_sdxl" if (goldens / "tiny_sdxl").is_dir() else tiny_bundle
    return load(str(folder), torch.device("cpu"), torch.float32, encoders=False)


@pytest.fixture(scope="session")
def tiny_sdxl(goldens: Path) -> Any:
    """The bundle that the end-to-end fixtures were made with."""
    from rbctl.bundle.load import load

    if not (goldens / "tiny_sdxl").is_dir():
        pytest.skip(f"{goldens} has no tiny_sdxl")
    return load(str(goldens / "tiny_sdxl"), torch.device("cpu"), torch.float32)
