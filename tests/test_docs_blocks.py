"""Every command block of the pages under Start and How to runs, with few steps, or says what it needs."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import call

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / ".mkdocs.yml"

BLOCK = re.compile(
    r"(?P<need>^\*Needs: [^\n]+(?:\n[^\n]+)*\*\n\n)?^```(?P<language>\w*)\n(?P<body>.*?)^```$", re.M | re.S
)
PROGRAMS = "rbctl|make|git|pip|python|accelerate|torchrun|deepspeed|srun|exiftool|export|cp|[A-Z_]+=\\S+"
COMMAND = re.compile(rf"^(?:{PROGRAMS}) ", re.MULTILINE)

# So that a page takes seconds; of two of the same option the later one counts.
SHORT = {"finetune": ["--steps", "2"], "sample": ["--steps", "2"], "eval --bench": ["--steps", "2", "--cases", "1"]}


def section(name: str) -> list[str]:
    """The pages under a heading of the site's navigation."""

    class Plain(yaml.SafeLoader):
        pass

    Plain.add_multi_constructor("", lambda loader, tag, node: None)  # MkDocs' own tags
    nav: list[dict[str, Any]] = yaml.load(SITE.read_text(encoding="utf-8"), Plain)["nav"]
    (entries,) = (value for entry in nav for key, value in entry.items() if key == name)
    return [page for entry in entries for page in entry.values() if not page.startswith("source/")]


def blocks(page: str) -> tuple[list[str], list[str]]:
    """The command blocks of a page: those that need nothing, and those that say what they need."""
    free, needy = [], []
    for match in BLOCK.finditer((ROOT / "docs" / page).read_text(encoding="utf-8")):
        if match["language"] in ("", "bash", "sh") and COMMAND.search(match["body"]):
            (needy if match["need"] else free).append(match["body"])
    return free, needy


pytestmark = pytest.mark.skipif(not SITE.is_file(), reason="this runs the pages of a checkout")
PAGES = [*section("Start"), *section("How to")] if SITE.is_file() else []


def test_both_kinds_of_blocks_are_found() -> None:
    found = [blocks(page) for page in PAGES]
    assert sum(len(free) for free, _ in found) >= 12
    assert sum(len(needy) for _, needy in found) >= 12
    assert len(blocks("start.md")[0]) >= 5


def run(line: str) -> None:
    """One command, in this process where it is rbctl's."""
    if not line.startswith("rbctl "):
        programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        subprocess.run(["bash", "-c", line], check=True, env={**os.environ, "PATH": programs})
        return
    arguments = shlex.split(line, comments=True)[1:]
    short = [option for start, options in SHORT.items() if " ".join(arguments).startswith(start) for option in options]
    result = call(*arguments, *short)
    assert result.exit_code == 0, f"{line}: {result.output[-1000:]}"


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)[0]])
def test_the_blocks_of_a_page_run_one_after_the_other(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for folder in ("recipes", "bench"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    for body in blocks(page)[0]:
        for line in body.replace("\\\n", " ").splitlines():
            if line and not line.startswith("#"):
                run(line)
