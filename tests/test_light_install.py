"""Without DeepSpeed and xformers: what needs neither works, and what needs one says what to install."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # each is a process of its own

ROOT = Path(__file__).resolve().parents[1]
# A module that is None is one that cannot be found.
HIDDEN = "import sys; sys.modules.update(deepspeed=None, xformers=None); "


def light(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """``rbctl ARGUMENTS`` where neither package can be imported."""
    code = HIDDEN + "from rbctl.cli import main; main(prog_name='rbctl')"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, timeout=300)


def test_finetuning_and_sampling_need_neither(tmp_path: Path) -> None:
    tuned = light("finetune", "--relation", "hug", "--steps", 1, "--device", "cpu", cwd=tmp_path)
    assert tuned.returncode == 0, tuned.stderr
    prompts = ROOT / "recipes" / "examples" / "prompts.txt"
    options = ("--relation", "hug", "--steps", 2, "--device", "cpu", "--output", "out")
    sampled = light("sample", prompts, *options, cwd=tmp_path)
    assert sampled.returncode == 0, sampled.stderr
    assert list((tmp_path / "out").rglob("*.png"))


def test_distilling_says_what_to_install(tmp_path: Path) -> None:
    done = light("distill", "--recipe", "mini", "--data", tmp_path, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        "Error: rbctl distill needs the package deepspeed (Linux only); pip install 'rbctl[distill]'\n"
    )


def test_attention_that_is_named_says_that_xformers_is_absent(tmp_path: Path) -> None:
    code = HIDDEN + (
        "import torch; from rbctl.kernels import BACKENDS; "
        "(named,) = [backend for backend in BACKENDS if backend.name == 'xformers']; "
        "print(named.why_not(torch.device('cuda'), torch.float16))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    why = done.stdout.strip()
    assert why.startswith("xformers cannot be imported")
    assert why.endswith("pip install xformers")
