"""What pictures of the OpenAI images API cost: the next one, those that were answered, and a set in all.

The table is of November 2026 and will grow old: ``--price`` takes its place. What a set has cost is counted by the
token usage in the answers; the prices of pictures serve for what lies ahead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rbctl.errors import InputError, abridged
from rbctl.files import read_json, write_text
from rbctl.plugins.generate.config import MOST_DOLLARS, GenerateConfig

RESPONSES = "responses"


@dataclass(frozen=True)
class Rates:
    """US dollars of one model.

    Attributes:
        text, image, output: of a million tokens of the prompt, of reference pictures, and of the picture made.
        pictures: of a picture of 1024 x 1024, by quality, without prompt and references.
    """

    text: float
    image: float
    output: float
    pictures: Mapping[str, float]


_GPT_IMAGE_2 = Rates(5, 8, 30, {"low": 0.006, "medium": 0.053, "high": 0.211})

TABLE: Mapping[str, Rates] = {
    # The same rates as gpt-image-2; what a picture takes differs somewhat.
    "gpt-image-2.5-sunburst": _GPT_IMAGE_2,
    "gpt-image-2.5-flare": _GPT_IMAGE_2,
    "gpt-image-2": _GPT_IMAGE_2,
    "gpt-image-1.5": Rates(5, 8, 32, {"low": 0.009, "medium": 0.034, "high": 0.133}),
    "gpt-image-1-mini": Rates(2, 2.5, 8, {"low": 0.005, "medium": 0.011, "high": 0.036}),
}

_REFERENCE = 4741  # tokens of a reference of 1024 x 1024 at high fidelity: 65, 129 for each of 4 tiles, 4160
_MILLION = 1e6
_MOST_TOKENS = 10_000_000  # of an answer; more is a mistake


def rates(config: GenerateConfig) -> Rates:
    """Rates of a model; a dated name, ``gpt-image-2-2026-04-21``, costs what its family does.

    Raises:
        InputError: nobody knows them, so no budget could be kept.
    """
    model, quality = config.openai["model"], config.quality
    known = TABLE.get(re.sub(r"-[0-9]{4}-[0-9]{2}-[0-9]{2}$", "", model))
    if known is None or quality not in known.pictures:
        raise InputError(
            f"--model {model} --quality {quality}: no price is known, so the budget cannot be kept; give --price, the "
            "dollars of a picture"
        )
    return known


def ahead(config: GenerateConfig, references: int) -> float:
    """About what the next picture will cost in US dollars, a bit high.

    Args:
        references: pictures shown with the prompt.

    Raises:
        InputError: see :func:`rates`.
    """
    if config.price is not None:
        return config.price
    known = rates(config)
    width, height = map(int, config.openai["size"].split("x"))
    larger = max(1.0, width * height / 1024**2)
    return larger * (known.pictures[config.quality] + references * _REFERENCE * known.image / _MILLION)


def billed(config: GenerateConfig, usage: Any, references: int) -> float:
    """What an answer cost in US dollars, by its ``usage``; where that holds no possible numbers, as :func:`ahead`."""
    if config.price is not None:
        return config.price
    try:
        details = usage["input_tokens_details"]
        text, image, output = details["text_tokens"], details["image_tokens"], usage["output_tokens"]
    except (LookupError, TypeError):
        return ahead(config, references)
    # No picture takes no tokens: a server that says so does not count them.
    if not all(_is_number(count, least, _MOST_TOKENS) for count, least in ((text, 0), (image, 0), (output, 1))):
        return ahead(config, references)
    known = rates(config)
    return (text * known.text + image * known.image + output * known.output) / _MILLION


def _is_number(value: Any, least: float, most: float) -> bool:
    """Whether a stranger's value is a number in this range: no NaN, no truth value, no text."""
    return type(value) in (int, float) and least <= value <= most


@dataclass
class Account:
    """What a set has cost, and what it may: the sum over its ``responses/NNNNN-PICTURE.json``.

    They hold every answer of the API without picture data, so a resumed run counts what went before. They are data as
    a set's pictures are: a cost that is none ends the run before anything is asked for.

    Attributes:
        budget: US dollars in all.
        most: pictures in all; None: any number.
        spent: US dollars so far.
        pictures: answers so far that were to hold one.
    """

    folder: Path
    budget: float
    most: int | None
    spent: float = field(init=False, default=0.0)
    pictures: int = field(init=False, default=0)
    _next: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        for path in (self.folder / RESPONSES).glob("*-*.json"):
            response, number = read_json(path), path.name.split("-")[0]
            cost: Any = response.get("cost") if isinstance(response, dict) else None
            if not _is_number(cost, 0, MOST_DOLLARS):
                raise InputError(f"{path}: cost: {abridged(cost)}; write how many US dollars the answer cost")
            self.spent += cost
            self.pictures += 1
            if number.isdecimal():
                self._next = max(self._next, int(number) + 1)

    def check(self, ahead: float) -> None:
        """Make sure that one more picture may be asked for.

        Args:
            ahead: about what it will cost, in US dollars.

        Raises:
            InputError: it would go beyond the budget; what exists is kept.
        """
        kept = "what exists is kept; raise it to go on where this stopped"
        if self.most is not None and self.pictures >= self.most:
            raise InputError(f"--max-pictures {self.most}: so many were asked for; {kept}")
        if self.spent + ahead > self.budget:
            raise InputError(
                f"--budget {self.budget:g}: ${self.spent:.2f} spent, the next picture costs about ${ahead:.2f}; {kept}"
            )

    def keep(self, picture: str, text: str, cost: float) -> None:
        """Write an answer down, before anything is made of it.

        Args:
            picture: stem of the picture it is for.
            text: JSON, with a field ``cost`` of the same number.

        Raises:
            ValueError: ``cost`` is none; a budget could not be kept.
        """
        if not _is_number(cost, 0, MOST_DOLLARS):
            raise ValueError(f"{cost} is no number of US dollars")
        write_text(self.folder / RESPONSES / f"{self._next:05}-{picture}.json", text)
        self._next += 1
        self.spent += cost
        self.pictures += 1
