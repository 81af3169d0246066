"""Whole commands under an audit: no socket, no program but our own workers, no code of the data, no write elsewhere.

Libraries ask a few things of the machine as they are imported, whatever the data is. ``PROBES`` lists them all, so that
a new one is seen.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rbctl.runs import COMMAND

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
TRAPS = ("click", "yaml", "torch", "numpy", "PIL", "diffusers", "rbctl", "sitecustomize", "usercustomize")
PROBES = (
    re.escape("subprocess.Popen: ['/sbin/ldconfig', '-p']"),  # where is libdl? (cuda-pathfinder, imported by torch)
    r"socket\.bind: \(\('::1', 0\),\)",  # is there IPv6? (urllib3); nothing is sent
    r"socket\.bind: \(\('127\.0\.0\.1', 0\),\)",  # which port is free for torch.distributed? (distill)
    r"os\.symlink: \w+\.safetensors",  # lora.safetensors, a run's older name of the LoRA beside it (finetune)
    r"subprocess\.Popen: \['[\w/]*gcc', .*test\.(c|o)'.*\]",  # is there libaio? (DeepSpeed; a file of its own)
)


@dataclass(frozen=True)
class Place:
    """A stranger's data, which a command works in, and the folders that it may write."""

    data: Path
    output: Path
    home: Path

    def audited(
        self, *arguments: object, writable: tuple[Path, ...] = (), launcher: tuple[str, ...] = COMMAND
    ) -> list[str]:
        """Run a command with the data as its current folder; what it did that it may not."""
        told = self.home / "audit.txt"
        told.write_text("")
        allowed = (self.output, self.home, *writable)
        surroundings = {
            **{name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "VIRTUAL_ENV")},
            "PYTHONPATH": str(HERE / "audited"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": str(self.home),
            "TMPDIR": str(self.home),
            "OMP_NUM_THREADS": "1",
            "RBCTL_AUDIT": str(told),
            "RBCTL_AUDIT_WRITABLE": ":".join(map(str, allowed)),
            "RBCTL_AUDIT_DATA": str(self.data),
        }
        done = subprocess.run(
            [*launcher, *map(str, arguments)],
            cwd=self.data,
            env=surroundings,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return [line for line in told.read_text().splitlines() if not any(re.fullmatch(p, line) for p in PROBES)]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path / "data", tmp_path / "output", tmp_path / "home")
    for folder in (place.data, place.output, place.home):
        folder.mkdir()
    for name in TRAPS:  # a module of the stranger's, which the current folder would put before ours
        (place.data / f"{name}.py").write_text("")
    return place


def workers(events: list[str]) -> tuple[list[str], list[str]]:
    """Starts of our own workers, and everything else."""
    ours = [event for event in events if event.startswith("subprocess.Popen: ") and repr(COMMAND[2])[1:-1] in event]
    return ours, [event for event in events if event not in ours]


def test_the_audit_sees_what_it_is_for(place: Place) -> None:
    code = (
        "import socket, subprocess, os, click\n"
        "open('evil.txt', 'w').close(); os.mkdir('evil')\n"
        "subprocess.run(['true'])\n"
        "try: socket.create_connection(('127.0.0.1', 1), timeout=1)\n"
        "except OSError: pass\n"
    )
    events = place.audited(launcher=(sys.executable, "-c", code))
    kinds = {event.partition(":")[0] for event in events}
    assert kinds >= {"open", "os.mkdir", "subprocess.Popen", "socket.connect", "exec", "import"}


def test_generate_and_annotate(place: Place) -> None:
    raw = place.output / "raw"
    assert place.audited("generate", "--relation", "hug", "--number", 2, "--output", raw) == []
    shutil.rmtree(raw / "masks", ignore_errors=True)
    assert place.audited("annotate", raw) == []
    assert place.audited("annotate", raw, "--review") == []


def test_finetune_and_sample(place: Place, small_hug: Path, tiny_bundle: Path) -> None:
    shutil.copytree(small_hug, place.data / "set")
    shutil.copytree(tiny_bundle, place.data / "bundle")
    run, pictures = place.output / "run", place.output / "pictures"
    few = ("--steps", 2, "--batch-size", 1, "--micro-batch-size", 8, "--preview-every", 1, "--preview-steps", 1)
    finetune = ("finetune", "--relation", "hug", "--data", "set", "--bundle", "bundle", "--output", run)
    assert place.audited(*finetune, *few) == []
    names = sorted(path.name for path in (place.data / "set" / "images").iterdir())[:2]
    text = f"A {{cat: set/images/{names[0]}}} hugs a {{dog: set/images/{names[1]}}}"
    (place.data / "p.txt").write_text(text)
    lora = ("--lora", run / "lora.safetensors", "--steps", 1)
    assert place.audited("sample", "p.txt", "--bundle", "bundle", *lora, "--output", pictures) == []
    assert place.audited("data", "check", "set") == []
    assert place.audited("data", "show", "set", "--output", place.output / "sheet.png") == []


@pytest.mark.slow
def test_eval_starts_our_own_workers_alone(place: Place) -> None:
    (place.output / "features").mkdir()
    bench = ("--bench", "relationbench-mini", "--relations", "hug", "--cases", 1, "--steps", 1)
    flags = ("--output", place.output / "report", "--cache", place.output / "features")
    ours, others = workers(place.audited("eval", *bench, *flags))
    assert others == []
    assert len(ours) == 1


def test_distill(place: Place) -> None:
    from open_clip.model import CLIP

    from rbctl.files import write_json, write_safetensors

    vision = {"image_size": 32, "layers": 2, "width": 48, "head_width": 12, "mlp_ratio": 2.0, "patch_size": 8}
    text = {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1}
    config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}
    write_json(place.data / "clip" / "open_clip_config.json", config)
    write_safetensors(place.data / "clip" / "model.safetensors", CLIP(**config).state_dict(), {})
    (place.data / "photographs").mkdir()
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(place.data / "photographs" / f"{number}.png")
    few = ("--steps", 1, "--batch-size", 1, "--micro-batch-size", 1, "--held-out", 2, "--image-size", 64)
    command = ("distill", "--data", "photographs", "--model", "clip", "--train-blocks", 1, "--workers", 0, *few)
    assert place.audited(*command, "--output", place.output / "tower") == []


@pytest.mark.slow
def test_demo(place: Place, tiny_bundle: Path) -> None:
    steps = ("--steps", 1, "--sampling-steps", 1, "--pairs", 1)
    assert place.audited("demo", "--bundle", tiny_bundle, "--output", place.output / "demo", *steps) == []
