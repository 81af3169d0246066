"""``rbctl doctor --rehearse``: the stages themselves on random weights, with time and memory of each part."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from rbctl import rehearsal
from rbctl.bundle import random_weights
from rbctl.cli import main
from rbctl.measurements import Measurement, read_measurements

pytestmark = pytest.mark.usefixtures("one_thread")

PARTS = [
    ("rehearse", "write random weights"),
    ("finetune", "load the bundle"),
    ("finetune", "encode the triplets"),
    ("finetune", "train"),
    ("sample", "load the bundle"),
    ("sample", "encode the prompts"),
    ("sample", "denoise"),
    ("sample", "decode"),
]


def rehearse(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["doctor", "--rehearse", *map(str, arguments)], catch_exceptions=False)


@pytest.fixture
def tiny_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_weights, "full_size", lambda: random_weights.TINY)


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_sizes")
def test_every_part_has_its_time_and_memory_and_nothing_stays(tmp_path: Path) -> None:
    result = rehearse("--folder", tmp_path / "rehearsal", "--device", "cpu", "--json")
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert [(row["command"], row["part"]) for row in content["parts"]] == PARTS
    assert all(row["seconds"] > 0 and row["gpu_memory"] is None for row in content["parts"])
    if sys.platform == "linux":
        assert all(1e8 < row["memory"] < 1e10 for row in content["parts"])
    assert len(content["losses"]) == 2
    assert content["picture"] == [256, 256]
    assert [path.name for path in (tmp_path / "rehearsal").iterdir()] == [".lock"]


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_sizes")
def test_kept_weights_are_used_again(tmp_path: Path) -> None:
    random_weights.write_tiny(tmp_path / "bundle")
    before = (tmp_path / "bundle" / "bundle.json").stat().st_mtime_ns
    result = rehearse("--folder", tmp_path, "--device", "cpu", "--keep")
    assert result.exit_code == 0, result.output
    header, *rows, words = result.stdout.splitlines()
    assert header.split()[:2] == ["command", "part"]
    assert [row.split()[0] for row in rows] == [command for command, _ in PARTS[1:]]
    assert "LoRA of 136 tensors" in words
    assert (tmp_path / "bundle" / "bundle.json").stat().st_mtime_ns == before


@pytest.mark.usefixtures("tiny_sizes")
def test_a_full_disk_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10))
    result = rehearse("--folder", tmp_path)
    assert result.exit_code == 2
    assert "the random weights need" in result.stderr
    assert "choose another --folder" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


KILLED = """
import os, signal
from pathlib import Path
from rbctl.measurements import measured
with measured("load the bundle"):
    pass
with measured("train"):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_killed_command_is_told_with_what_it_was_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random_weights.write_json(tmp_path / "bundle" / "bundle.json", {})

    def start(arguments: list[str], **options: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", KILLED], **options)

    monkeypatch.setattr(rehearsal, "start", start)
    result = rehearse("--folder", tmp_path, "--keep", "--device", "cpu")
    assert result.exit_code == 2
    assert "rbctl finetune was killed, most likely because the memory was used up at 'train'" in result.stderr


MEASURED = """
from rbctl.measurements import measured

with measured("train"):
    pixels = bytearray(200_000_000)
del pixels
with measured("decode"):
    pass
"""


def test_nothing_is_measured_unless_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "measurements.jsonl"
    environment = {name: value for name, value in os.environ.items() if name != "RBCTL_MEASUREMENTS"}
    # A process of its own: in a long test run freed memory is used again, so nothing is added to the peak.
    subprocess.run([sys.executable, "-c", MEASURED], env=environment, cwd=tmp_path, check=True)
    assert list(tmp_path.iterdir()) == []
    environment["RBCTL_MEASUREMENTS"] = str(path)
    subprocess.run([sys.executable, "-c", MEASURED], env=environment, cwd=tmp_path, check=True)
    train, decode = read_measurements(path)
    assert (train.part, decode.part) == ("train", "decode")
    if sys.platform == "linux":
        assert train.memory - decode.memory > 150_000_000  # type: ignore[operator]


def test_a_row_of_the_table() -> None:
    row = rehearsal.line("finetune", Measurement(part="train", seconds=12.34, memory=7_300_000_000))
    assert row.split() == ["finetune", "train", "12.3", "7.30", "-"]


@pytest.mark.slow
def test_full_size_is_that_of_the_published_networks() -> None:
    unet, vae, text, text_2 = 2_567_463_684, 83_653_863, 123_060_480, 694_659_840
    clip_vision = local_encoder = 1_844_907_264
    resampler, keys_and_values, dummies = 118_943_616, 340_787_200, 4 * 2048
    networks = unet + vae + text + text_2 + clip_vision + local_encoder
    counted = sum(random_weights.count_weights(random_weights.full_size()).values())
    assert counted == networks + resampler + keys_and_values + dummies
