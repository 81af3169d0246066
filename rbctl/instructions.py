"""Captions as editors with several references read them: who is in which picture.

"A red cat is hugging a blue bear." becomes "The red cat of image 1 is hugging the blue bear of image 2."
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_ARTICLE = re.compile(r"\b(?P<article>an?|one|the)(?P<between>(?:\s+[\w-]+){0,2})\s+$", re.IGNORECASE)
_OTHER_DETERMINER = re.compile(r"\b(?:my|your|his|her|its|our|their|this|that)(?:\s+[\w-]+){0,2}\s+$", re.IGNORECASE)


def instruction(text: str, names: Sequence[str], numbers: Sequence[int]) -> str:
    """The text with each individual in its reference picture; as it is where a name does not stand in it.

    Args:
        names: of the individuals, as the text has them; equal ones stand in their order.
        numbers: of each one's picture, from 1.
    """
    return instruct(text, names, [f"image {number}" for number in numbers]) or text


def instruct(text: str, names: Sequence[str], where: Sequence[str]) -> str | None:
    """The text with each individual in its reference picture; None where a name does not stand in it.

    Args:
        names: of the individuals, as the text has them; equal ones stand in their order.
        where: the place of each, "image 1".
    """
    spans = _spans(text, names)
    if spans is None:
        return None
    written, end = "", 0
    for (start, stop), name, place in sorted(zip(spans, names, where, strict=True)):
        proper = name[0].isupper()
        written += f"{_certain(text[end:start], text[start:stop], proper, first=end == 0)} of {place}"
        end = stop
    return written + text[end:]


def _spans(text: str, names: Sequence[str]) -> list[tuple[int, int]] | None:
    """Where each name stands; in "a black cat hugs a cat" the name "cat" is the last word."""
    spans = dict[int, tuple[int, int]]()
    for number in sorted(range(len(names)), key=lambda k: -len(names[k])):  # the longer ones choose first
        words = r"\s+".join(map(re.escape, names[number].split()))
        for match in re.finditer(rf"(?<!\w){words}(?!\w)", text, re.IGNORECASE):
            if all(match.end() <= start or stop <= match.start() for start, stop in spans.values()):
                spans[number] = match.span()
                break
        else:
            return None
    return [spans[number] for number in range(len(names))]


def _certain(before: str, name: str, proper: bool, first: bool) -> str:
    """The words up to a name and the name, with "the": a picture shows one certain individual.

    Args:
        proper: it is a name as "Tom", which takes no article.
        first: nothing of the text stands before ``before``.
    """
    if article := _ARTICLE.search(before):
        the = "The" if article["article"][0].isupper() else "the"
        return f"{before[: article.start()]}{the}{article['between']} {name}"
    if proper or _OTHER_DETERMINER.search(before):
        return before + name
    if first and not before.strip():
        return f"{before}The {name[0].lower()}{name[1:]}"
    return f"{before}the {name}"
