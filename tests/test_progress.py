"""Progress, tables and pictures: live in a terminal, plain lines elsewhere."""

from __future__ import annotations

import base64
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rbctl.inline_pictures import encoded, protocol_of

ROOT = Path(__file__).resolve().parents[1]
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
# A picture of noise is drawn while a bar is live.
PICTURES = """
import sys, numpy, click
from PIL import Image
from rbctl.inline_pictures import show
from rbctl.progress import progress
noise = numpy.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=numpy.uint8)
with progress(2, "sample", unit="picture") as bar:
    show(Image.fromarray(noise), sys.argv[1])
    bar.update(2)
click.echo("runs/sample/prompts")
"""
KITTY = {"TERM": "xterm-kitty"}
ITERM2 = {"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}
TERMINAL = ("CI", "TMUX", "TERM", "TERM_PROGRAM", "LC_TERMINAL", "KONSOLE_VERSION")


def test_plain_without_a_terminal() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout == "run     stage\na[b]    finetune\nlonger  eval\n"
    assert "sampling [a] hug" in done.stderr
    assert "a warning" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr


def in_terminal(code: str, *arguments: str, variables: dict[str, str], err: Any = None) -> bytes:
    """What a pseudo-terminal is sent by code of Python.

    Args:
        err: where stderr goes instead.
    """
    import pty

    ours, theirs = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name not in TERMINAL}
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=theirs,
        stderr=theirs if err is None else err,
        env={**environment, "COLUMNS": "120", **variables},
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
    assert process.wait() == 0, shown
    return shown


needs_pty = pytest.mark.skipif(os.name == "nt", reason="Windows has no pseudo-terminals")


@needs_pty
def test_live_in_a_terminal() -> None:
    shown = in_terminal(CODE, variables={"TERM": "xterm"})
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    for words in ("sampling [a] hug", "4/4", "pictures", "loss 0.25", "a warning", "a[b]", "finetune"):
        assert words in text, words
    assert b"\x1b" in shown


@needs_pty
@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "start"), [(["doctor"], "  default for finetuning"), (["models", "list"], "  clip_vision")]
)
def test_a_table_of_a_command_fits_a_narrow_terminal(arguments: list[str], start: str) -> None:
    """rich wraps cells within their columns and leaves nothing out; plain text has a row a line, however long."""
    code = "import sys; from rbctl.cli import main; main(sys.argv[1:], prog_name='rbctl')"
    shown = in_terminal(code, *arguments, variables={"TERM": "xterm", "COLUMNS": "60"}).decode()
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown).splitlines()
    plain = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True).stdout
    row = next(line for line in plain.splitlines() if line.startswith(start))
    first = next(number for number, line in enumerate(lines) if line.startswith(start))
    wrapped = lines[first : first + 6]
    assert len(row) > 60
    assert max(map(len, wrapped)) <= 60
    letters = "".join(row.split())
    assert sorted("".join("".join(wrapped).split())[: len(letters)]) == sorted(letters)


# --- pictures


def drawn(shown: bytes) -> list[tuple[dict[str, str], Image.Image]]:
    """The pictures among what a terminal was sent, as the two protocols are specified, and the keys of each."""
    found = []
    waiting = b""
    keys: dict[str, str] = {}
    for graphics, arguments, content in re.findall(
        rb"\x1b_G([^;]*);([^\x1b]*)\x1b\\|\x1b\]1337;File=([^\a]*\a)", shown
    ):
        if content:
            words, _, encoded_png = content.rstrip(b"\a").partition(b":")
            keys = dict(pair.split("=") for pair in words.decode().split(";"))
            png = base64.b64decode(encoded_png, validate=True)
            assert len(png) == int(keys["size"])
        else:
            now = dict(pair.split("=") for pair in graphics.decode().split(","))
            assert len(arguments) <= 4096
            assert len(arguments) % 4 == 0
            keys, waiting = (keys if waiting else now), waiting + arguments
            if now["m"] == "1":
                continue
            png, waiting = base64.b64decode(waiting, validate=True), b""
        found.append((keys, Image.open(io.BytesIO(png), formats=["PNG"])))
    return found


@pytest.mark.parametrize("protocol", ["kitty", "iterm2"])
def test_what_is_sent_is_the_picture(protocol: Any) -> None:
    image = Image.effect_noise((300, 200), 90).convert("RGB")
    ((keys, received),) = drawn(encoded(image, protocol, rows=9).encode())
    assert received.tobytes() == image.tobytes()
    expected = {"a": "T", "f": "100", "q": "2", "r": "9"} if protocol == "kitty" else {"inline": "1", "height": "9"}
    assert expected.items() <= keys.items()
    ((_, small),) = drawn(encoded(Image.new("RGB", (2048, 1024)), protocol, rows=10).encode())
    assert small.size == (800, 400)


@needs_pty
@pytest.mark.parametrize(
    ("variables", "choice", "count"),
    [
        (KITTY, "auto", 1),
        ({"TERM": "xterm-ghostty"}, "auto", 1),
        (ITERM2, "auto", 1),
        (ITERM2, "none", 0),
        ({"TERM": "xterm-256color"}, "auto", 0),
        ({"TERM": "xterm-256color"}, "kitty", 1),
        ({**KITTY, "CI": "true"}, "auto", 0),
        ({**ITERM2, "TMUX": "/socket"}, "auto", 0),
    ],
)
def test_a_terminal_that_can_is_sent_the_picture(variables: dict[str, str], choice: str, count: int) -> None:
    shown = in_terminal(PICTURES, choice, variables=variables)
    assert [image.size for _, image in drawn(shown)] == [(96, 64)] * count
    assert (b"\x1b_G" in shown or b"\x1b]1337" in shown) == bool(count)
    assert b"2/2" in shown
    assert b"runs/sample/prompts" in shown


@needs_pty
def test_a_picture_goes_to_stdout_where_stderr_is_a_file(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        shown = in_terminal(PICTURES, "auto", variables=KITTY, err=log)
    assert len(drawn(shown)) == 1
    assert b"\x1b" not in (tmp_path / "log").read_bytes()


@pytest.mark.parametrize("choice", ["auto", "kitty", "iterm2"])
def test_a_pipe_is_sent_no_picture(choice: str) -> None:
    command = [sys.executable, "-c", PICTURES, choice]
    done = subprocess.run(command, capture_output=True, check=True, env={**os.environ, **KITTY})
    assert done.stdout.split() == [b"runs/sample/prompts"]
    assert b"\x1b" not in done.stderr


@pytest.mark.parametrize(
    ("variables", "protocol"),
    [
        ({}, None),
        (KITTY, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "ghostty"}, "kitty"),
        ({"TERM": "xterm-256color", "KONSOLE_VERSION": "220400"}, "kitty"),
        (ITERM2, "iterm2"),
        ({"TERM_PROGRAM": "WezTerm"}, "iterm2"),
        ({"TERM": "xterm-256color", "LC_TERMINAL": "iTerm2"}, "iterm2"),
        ({"TERM": "screen-256color", "LC_TERMINAL": "iTerm2"}, None),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "Apple_Terminal"}, None),
        ({"TERM": "dumb", "TERM_PROGRAM": "iTerm.app"}, None),
    ],
)
def test_the_variables_of_a_terminal_tell_its_protocol(variables: dict[str, str], protocol: str | None) -> None:
    assert protocol_of(variables) == protocol


@needs_pty
@pytest.mark.slow
def test_sampling_draws_each_picture(tmp_path: Path) -> None:
    prompts = ROOT / "recipes" / "examples" / "one_two_three.txt"
    code = "import sys; from rbctl.cli import main; main(sys.argv[1:], prog_name='rbctl')"
    asked = ("sample", str(prompts), "--lora", "none", "--steps", "1", "--output", str(tmp_path / "out"))
    shown = in_terminal(code, *asked, variables={**KITTY, "OMP_NUM_THREADS": "1"})
    pictures = [image for _, image in drawn(shown)]
    assert len(pictures) == 3
    made = [Image.open(path, formats=["PNG"]).tobytes() for path in (tmp_path / "out").glob("*.png")]
    assert all(picture.tobytes() in made for picture in pictures)
