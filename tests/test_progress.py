"""Progress and tables: live in a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

CODE = """
import sys, click
from rbctl.progress import print_table, progress
with progress(4, "sampling [a] hug", initial=1, unit="picture") as bar:
    for _ in range(3):
        bar.set_postfix({"loss": "0.25"}, refresh=False)
        bar.update()
    click.echo("a warning", err=True)
print_table(["run", "stage"], [["a[b]", "finetune"], ["longer", "eval"]])
"""


def test_plain_without_a_terminal() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout == "run     stage\na[b]    finetune\nlonger  eval\n"
    assert "sampling [a] hug" in done.stderr
    assert "a warning" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pseudo-terminals")
def test_live_in_a_terminal() -> None:
    import pty

    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", CODE],
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # Linux says so where the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(ours)
    assert process.wait() == 0
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    for words in ("sampling [a] hug", "4/4", "pictures", "loss 0.25", "a warning", "a[b]", "finetune"):
        assert words in text, words
    assert b"\x1b" in shown
