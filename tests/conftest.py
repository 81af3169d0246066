"""Where test data lies: the parity fixtures (--goldens), and the real data set beside a checkout, if it is there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples at every run in CI: a new one must not fail somebody else's change. Elsewhere they are drawn anew.
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("default", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "default")

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--goldens", type=Path, default=None, help="folder of parity fixtures (default: tests/goldens)")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tests run beside each other: on small inputs more threads only take turns."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def real_hug() -> Path:
    """The official triplets of 'hug'."""
    folder = SHARED / "data" / "dreamrelation" / "hug"
    if not folder.is_dir():
        pytest.skip("the official hug triplets are not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete SDXL-shaped bundle of random weights."""
    from rbctl.bundle.random_weights import write_tiny

    folder = tmp_path_factory.mktemp("bundle") / "tiny-sdxl"
    write_tiny(folder)
    return folder
