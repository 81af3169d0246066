"""How prompts and commands name LoRAs: "PATH:0.8,PATH", and A1111's "<lora:NAME:0.8>" in the text."""

from __future__ import annotations

import os.path
import re
from collections.abc import Callable
from dataclasses import dataclass

from rbctl.errors import abridged

_TAG = re.compile(r"\s*<(lora|lyco|lyc):([^<>:]+)(?::([^<>:]*))?(?::([^<>]*))?>", re.IGNORECASE)


@dataclass(frozen=True)
class NamedLora:
    """A LoRA as it is asked for.

    Attributes:
        path: of its file; in a tag its name.
        weight: None where none is said.
    """

    path: str
    weight: float | None = None


def split_loras(written: str) -> tuple[NamedLora, ...]:
    """ "A:0.5,B" taken apart; a comma or colon belongs to the path where that is a file.

    Raises:
        ValueError: a path is empty, or a weight is out of range.
    """
    if os.path.isfile(written) or os.path.isfile(_weighted(written).path):
        return (_weighted(written),)
    return tuple(_weighted(part.strip()) for part in written.split(",") if part.strip())


def map_paths(written: str, change: Callable[[str], str]) -> str:
    """The same text with every path changed; weights stay."""
    changed = [(change(entry.path), entry.weight) for entry in split_loras(written)]
    return ",".join(path if weight is None else f"{path}:{weight:g}" for path, weight in changed)


def _weighted(part: str) -> NamedLora:
    path, colon, weight = part.rpartition(":")
    try:
        number = float(weight)
    except ValueError:
        return NamedLora(part)
    if not colon or os.path.isfile(part):
        return NamedLora(part)
    if not path.strip():
        raise ValueError(f"words were expected, not {abridged(path)}")
    return NamedLora(path.strip(), _checked(number))


def _checked(weight: float) -> float:
    if not -10 <= weight <= 10:
        raise ValueError(f"a weight from -10 to 10 was expected, not {weight:g}")
    return weight


def take_tags(text: str) -> tuple[str, tuple[NamedLora, ...]]:
    """The text without <lora:NAME:WEIGHT>, and what those name.

    Raises:
        ValueError: a weight is no number of the range, or another one is given for the UNet.
    """
    tags = []
    for _, name, weight, other in _TAG.findall(text):
        tag = f"<lora:{abridged(name)}:{weight}>"
        if other not in ("", weight):  # A1111's form <lora:NAME:TEXT ENCODERS:UNET>
            raise ValueError(f"{tag}: also says {abridged(other)}; one weight holds for text encoders and UNet alike")
        try:
            tags.append(NamedLora(name.strip(), _checked(float(weight)) if weight.strip() else None))
        except ValueError as error:
            mend = "name the LoRA with --lora PATH:WEIGHT"
            raise ValueError(f"{tag}: {error}; {mend}") from error
    return _TAG.sub("", text).strip(), tuple(tags)
