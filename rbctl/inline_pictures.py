"""Pictures in the terminal, in the protocol that it speaks: kitty's graphics, or iTerm2's inline images.

Sources: sw.kovidgoyal.net/kitty/graphics-protocol and iterm2.com/documentation-images.html. The environment variables
say which terminal it is. To ask the terminal itself, its answer would have to be read among the user's keys.
"""

from __future__ import annotations

import base64
import io
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import click

from rbctl.progress import print_above_bar

if TYPE_CHECKING:
    from PIL import Image

Protocol = Literal["kitty", "iterm2"]
Choice = Literal["auto", "kitty", "iterm2", "none"]
CHOICE_HELP = (
    "Draw each picture in the terminal too, by this protocol. auto: the one that the terminal is known to speak. "
    "Nothing is drawn into files, pipes and CI."
)

_ROWS = 14  # of text, that one picture is high
_PIXELS = 40  # of a row at most, as on a fine screen; the terminal scales to its own
_CHUNK = 4096  # characters of one command of kitty's
_KITTY = ("kitty", "ghostty")  # in $TERM or $TERM_PROGRAM
_ITERM2 = ("iTerm.app", "WezTerm", "mintty", "rio")  # $TERM_PROGRAM
_PASSES_NOTHING_ON = ("screen", "tmux", "dumb")  # start of $TERM


def protocol_of(environment: Mapping[str, str]) -> Protocol | None:
    """What the terminal of these environment variables speaks; None where it is not known, and in CI."""
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    if "CI" in environment or "TMUX" in environment or term.startswith(_PASSES_NOTHING_ON):
        return None
    if any(name in term or name == program for name in _KITTY) or "KONSOLE_VERSION" in environment:
        return "kitty"
    if program in _ITERM2 or environment.get("LC_TERMINAL") == "iTerm2":
        return "iterm2"
    return None


def encoded(image: Image.Image, protocol: Protocol, rows: int = _ROWS) -> str:
    """The control sequence that draws a picture at the cursor, so many rows of text high."""
    small = image.convert("RGB")
    small.thumbnail((4 * rows * _PIXELS, rows * _PIXELS))
    png = io.BytesIO()
    small.save(png, format="PNG")
    content = base64.b64encode(png.getvalue()).decode()
    if protocol == "iterm2":
        return f"\x1b]1337;File=inline=1;size={png.tell()};height={rows};preserveAspectRatio=1:{content}\a"
    chunks = [content[start : start + _CHUNK] for start in range(0, len(content), _CHUNK)]
    # a=T: transmit and show; f=100: PNG; q=2: no answer; m=1: more follows
    keys = [f"a=T,f=100,q=2,r={rows},", *[""] * (len(chunks) - 1)]
    more = [*[1] * (len(chunks) - 1), 0]
    return "".join(f"\x1b_G{k}m={m};{chunk}\x1b\\" for k, m, chunk in zip(keys, more, chunks, strict=True))


def show(image: Image.Image, choice: Choice = "auto", rows: int = _ROWS) -> None:
    """Draw a picture where stdout is a terminal that can; elsewhere nothing is written.

    Args:
        choice: a protocol, or "auto" for the one that :func:`protocol_of` finds.
    """
    if choice == "none" or not sys.stdout.isatty():
        return
    protocol = protocol_of(os.environ) if choice == "auto" else choice
    if protocol is None:
        return
    sequence = encoded(image, protocol, rows)
    if not print_above_bar(sequence):
        click.echo(sequence)
