"""Where test data lies: the parity fixtures (--goldens), and the real data set beside a checkout, if it is there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:  # more threads only take turns with another worker's
    os.environ.setdefault("OMP_NUM_THREADS", "1")

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


def _drawn(folder: Path, **options: int) -> Path:
    from rbctl.menagerie.triplets import draw_triplets
    from rbctl.relations import load_relation

    draw_triplets(load_relation("hug"), 4, 3, folder, **options)
    return folder


@pytest.fixture(scope="session")
def drawn_hug(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four triplets of the embedded world; copy them before you change them."""
    return _drawn(tmp_path_factory.mktemp("drawn") / "hug")


@pytest.fixture(scope="session")
def small_hug(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of 64 pixels."""
    return _drawn(tmp_path_factory.mktemp("small") / "hug", size=64)


@pytest.fixture(scope="session")
def annotated_hug(drawn_hug: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same four, annotated from their pictures; copy them before you change them."""
    from triplet_sets import annotate, as_raw

    folder = as_raw(drawn_hug, tmp_path_factory.mktemp("raw") / "hug")
    result = annotate(folder)
    assert (result.exit_code, result.stdout) == (0, f"{folder}\n"), result.output
    return folder
