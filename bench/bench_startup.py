"""How long a word of help takes, against importing torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

RBCTL = str(Path(sys.executable).with_name("rbctl"))


@pytest.mark.parametrize("arguments", ["--help", "finetune --help"])
def test_help(compare: Callable[..., Any], arguments: str) -> None:
    def call(*command: str) -> None:
        subprocess.run(command, check=True, capture_output=True)

    compare(
        f"rbctl {arguments} / import torch",
        lambda: call(RBCTL, *arguments.split()),
        lambda: call(sys.executable, "-c", "import torch"),
    )
