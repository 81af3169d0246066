"""How long a word of help and the first imports take, against importing torch; and those of sampling against all.

Importing torch is the least a command line takes that imports its libraries at once. PyTorch's figure of memory means
nothing in another process: peaks are the whole resident set of each.
"""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

RBCTL = str(Path(sys.executable).with_name("rbctl"))
TORCH = (sys.executable, "-c", "import torch")
# What `rbctl sample` imports for a picture, and what it and its libraries imported before rbctl.imports.
NETWORKS = """
    from rbctl.plugins.sample import run
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
    from open_clip.model import CLIPVisionCfg
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection
"""
SAMPLE = (sys.executable, "-c", f"from rbctl.imports import deferred\nwith deferred():{NETWORKS}")
EVERYTHING = (
    sys.executable,
    "-c",
    f"import diffusers, open_clip, peft, torchvision, transformers, xformers.ops\nif True:{NETWORKS}",
)

# Started by a small process: on Linux the peak of one that this process starts would count its own memory too.
_PEAK = """
import os, sys
nothing = (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)
_, status, used = os.wait4(os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=[nothing]), 0)
print(used.ru_maxrss * (1 if sys.platform == "darwin" else 1024))
sys.exit(os.waitstatus_to_exitcode(status))
"""


def call(*command: str) -> bytes:
    return subprocess.run(command, check=True, capture_output=True).stdout


@functools.cache
def resident_mb(*command: str) -> float:
    """The most memory that a process held at once."""
    return int(call(sys.executable, "-IS", "-c", _PEAK, *command)) / 1e6


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("rbctl --help", (RBCTL, "--help")),
        ("rbctl finetune --help", (RBCTL, "finetune", "--help")),
        ("import rbctl", (sys.executable, "-c", "import rbctl")),
        ("import rbctl.options", (sys.executable, "-c", "import rbctl.options")),  # what a stage's config imports
    ],
)
def test_start(compare: Callable[..., Any], name: str, command: tuple[str, ...]) -> None:
    compare(
        f"{name} / import torch",
        lambda: call(*command),
        lambda: call(*TORCH),
        rounds=1,
        memory=(resident_mb(*command), resident_mb(*TORCH)),
    )


def test_start_of_sampling(compare: Callable[..., Any]) -> None:
    compare(
        "imports of rbctl sample / of whole libraries, user CPU time",
        lambda: call(*SAMPLE),
        lambda: call(*EVERYTHING),
        rounds=1,
        processes=True,
        warm_up=0,
    )
