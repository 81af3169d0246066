"""What references are called in a caption of :mod:`rbctl.instructions`, and reading such a caption back."""

from __future__ import annotations

import re
from dataclasses import dataclass

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
