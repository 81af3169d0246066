"""Captions that tell an editor which individual is in which reference picture, and reading them back.

"A red cat is hugging a blue bear." becomes "The red cat of image 1 is hugging the blue bear of image 2."
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_ARTICLE = re.compile(r"\b(?P<article>an?|one|the)(?P<between>(?:\s+[\w-]+){0,2})\s+$", re.IGNORECASE)
_OTHER_DETERMINER = re.compile(r"\b(?:my|your|his|her|its|our|their|this|that)(?:\s+[\w-]+){0,2}\s+$", re.IGNORECASE)
_DETERMINERS = r"(?:[Tt]he|[Aa]n?|[Oo]ne|[Mm]y|[Yy]our|[Hh]is|[Hh]er|[Ii]ts|[Oo]ur|[Tt]heir|[Tt]his|[Tt]hat)"

# What a picture is called whose panels are the references, by how many there are.
_PANELS = {
    1: ("the picture",),
    2: ("the left panel", "the right panel"),
    3: ("the left panel", "the middle panel", "the right panel"),
}
_PLACE = r"(?:[Ii]mage|[Pp]icture) (?P<number>\d)|the (?P<panel>left|middle|right) panel|the picture"
# A name has no determiner in it; one without a determiner before it is capitalised, "Tom".
_MENTION = re.compile(
    rf"(?:\b{_DETERMINERS}\s+(?P<name>(?:(?!\b{_DETERMINERS}\b)[^,;:.!?])+?)"
    rf"|\b(?P<proper>[A-Z][\w'-]*(?: [A-Z][\w'-]*)*))(?P<whole> of (?:{_PLACE}))\b"
)


@dataclass(frozen=True)
class Mention:
    """An individual that a caption names.

    Attributes:
        reference: the number of its picture among the references, from 0.
    """

    name: str
    reference: int


def places(wording: str, count: int) -> tuple[str, ...]:
    """What the references are called, in their order.

    Args:
        wording: "image" and "Picture" are counted; "panel" is a part of the only picture.
        count: of references, one to three.
    """
    return _PANELS[count] if wording == "panel" else tuple(f"{wording} {k + 1}" for k in range(count))


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
    for (start, stop), place in sorted(zip(spans, where, strict=True)):
        written += _with_article(text[end:start], text[start:stop], at_start=end == 0)
        written, end = f"{written} of {place}", stop
    return written + text[end:]


def read_instruction(caption: str) -> tuple[str, tuple[Mention, ...]]:
    """The text without the places, and who is in which reference, by the references' order."""
    panels = max((len(_PANELS) if m["panel"] == "middle" else 2 for m in _MENTION.finditer(caption)), default=1)
    mentions = []
    for match in _MENTION.finditer(caption):
        if match["number"]:
            reference = int(match["number"]) - 1
        else:
            reference = {"left": 0, "middle": 1, "right": panels - 1, None: 0}[match["panel"]]
        mentions.append(Mention((match["name"] or match["proper"]).strip(), reference))
    text = _MENTION.sub(lambda match: match[0].removesuffix(match["whole"]), caption)
    return text, tuple(sorted(mentions, key=lambda mention: mention.reference))


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


def _with_article(before: str, name: str, at_start: bool) -> str:
    """The words up to a name and the name, with "the": the picture shows one certain individual."""
    if article := _ARTICLE.search(before):
        the = "The" if article["article"][0].isupper() else "the"
        return f"{before[: article.start()]}{the}{article['between']} {name}"
    if _OTHER_DETERMINER.search(before):
        return before + name
    if at_start and not before.strip():
        return f"{before}The {name[0].lower()}{name[1:]}"
    return before + (name if name[0].isupper() else f"the {name}")
