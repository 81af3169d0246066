"""Templates of prompts from data: plain names in braces, and nothing else that ``str.format`` can do."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator

_NAME = re.compile(r"\w*")


def _parts(template: str) -> Iterator[tuple[str, str | None]]:
    """Text, and the place behind it; None behind the last."""
    for text, place, form, conversion in string.Formatter().parse(template):
        # "{x:>20000000000}" would take 20 GB, "{x.__class__}" reads what is none of the template's business.
        if form or conversion or not (place is None or _NAME.fullmatch(place)):
            raise ValueError("a place is a plain name in braces")
        yield text, place


def places(template: str) -> list[str]:
    """The names in braces, in their order; "" for ``{}``.

    Raises:
        ValueError: a brace is not closed, or there is more than a name in it.
    """
    return [place for _, place in _parts(template) if place is not None]


def fill(template: str, *words: str, **named: str) -> str:
    """The template with ``{}`` and ``{0}`` filled by position and ``{name}`` by name, as ``str.format`` does.

    Raises:
        ValueError: what :func:`places` raises, or a place is not among those given.
    """
    filled, position = list[str](), 0
    for text, place in _parts(template):
        filled.append(text)
        if place is None:
            continue
        if place == "":
            place, position = str(position), position + 1
        if place.isdecimal() and int(place) < len(words):
            filled.append(words[int(place)])
        elif place in named:
            filled.append(named[place])
        else:
            raise ValueError(f"there is nothing for {{{place}}}")
    return "".join(filled)
