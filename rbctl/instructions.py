"""Captions as editors with several references read them: who is in which picture.

"A red cat is hugging a blue bear." becomes "The red cat of image 1 is hugging the blue bear of image 2."
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_ARTICLE = re.compile(r"\b(an?|one|the)((?:\s+[\w-]+){0,2}\s+)$", re.IGNORECASE)
_OTHER_DETERMINER = re.compile(r"\b(?:my|your|his|her|its|our|their|this|that)(?:\s+[\w-]+){0,2}\s+$", re.IGNORECASE)


def instruction(text: str, names: Sequence[str], numbers: Sequence[int]) -> str:
    """The text with each individual in its reference picture; as it is where a name does not stand in it.

    Args:
        names: of the individuals, as the text has them; equal ones stand in their order.
        numbers: of each one's picture, from 1.
    """
    places = _places(text, names)
    if places is None:
        return text
    written, end = "", 0
    for (start, stop), number in sorted(zip(places, numbers, strict=True)):
        written += f"{_certain(text[end:start], text[start:stop])} of image {number}"
        end = stop
    return written + text[end:]


def _places(text: str, names: Sequence[str]) -> list[tuple[int, int]] | None:
    """Where each name stands [start, end); in "a black cat hugs a cat" the name "cat" is the last word."""
    places: dict[int, tuple[int, int]] = {}
    for number in sorted(range(len(names)), key=lambda k: -len(names[k])):  # the longer ones choose first
        words = r"\s+".join(map(re.escape, names[number].split()))
        found = (match.span() for match in re.finditer(rf"(?<!\w){words}(?!\w)", text, re.IGNORECASE))
        free = (span for span in found if all(span[1] <= s or e <= span[0] for s, e in places.values()))
        place = next(free, None)
        if place is None:
            return None
        places[number] = place
    return [places[number] for number in range(len(names))]


def _certain(before: str, name: str) -> str:
    """The words before a name, and the name with "the": a picture shows one certain individual."""
    if article := _ARTICLE.search(before):
        the = "The" if article[1][0].isupper() else "the"
        return f"{before[: article.start()]}{the}{article[2]}{name}"
    if _OTHER_DETERMINER.search(before) or name[:1].isupper():
        return before + name
    return f"{before}the {name}"
