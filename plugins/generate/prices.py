"""What pictures of the OpenAI images API cost.

The table is of November 2026 and will grow old: ``--price`` takes its place. What a set has cost is counted by the
token usage in the answers; the prices of pictures serve for what lies ahead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rbctl.errors import InputError
from rbctl.plugins.generate.config import OPENAI_MODEL, OPENAI_SIDE, GenerateConfig


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


@dataclass(frozen=True, kw_only=True)
class Prices:
    """Tells prices of one model at one quality and size.

    Attributes:
        model: a dated name, ``gpt-image-2-2026-04-21``, costs what its family does.
        width, height: pixels.
        fixed: the user's own price of any picture, in US dollars; None: the table tells.
    """

    model: str
    quality: str
    width: int
    height: int
    fixed: float | None

    def ahead(self, references: int) -> float:
        """About what the next picture will cost in US dollars, a bit high.

        Args:
            references: pictures shown with the prompt.
        """
        if self.fixed is not None:
            return self.fixed
        rates = TABLE[_family(self.model)]
        larger = max(1.0, self.width * self.height / 1024**2)
        return larger * (rates.pictures[self.quality] + references * _REFERENCE * rates.image / _MILLION)

    def billed(self, usage: Any, references: int) -> float:
        """What an answer cost in US dollars, by its ``usage``; where that holds no possible numbers, as ``ahead``."""
        if self.fixed is not None:
            return self.fixed
        try:
            details = usage["input_tokens_details"]
            text, image, output = details["text_tokens"], details["image_tokens"], usage["output_tokens"]
        except (LookupError, TypeError):
            return self.ahead(references)
        # No picture takes no tokens: a server that says so does not count them.
        if not (_is_count(text, 0) and _is_count(image, 0) and _is_count(output, 1)):
            return self.ahead(references)
        rates = TABLE[_family(self.model)]
        return (text * rates.text + image * rates.image + output * rates.output) / _MILLION


def _is_count(value: Any, least: int) -> bool:
    """Whether a server's word is a number of tokens: no NaN, nothing negative, no truth value, no text."""
    return type(value) in (int, float) and least <= value <= _MOST_TOKENS


def _family(model: str) -> str:
    return re.sub(r"-[0-9]{4}-[0-9]{2}-[0-9]{2}$", "", model)


def prices_of(config: GenerateConfig) -> Prices:
    """What the pictures of a set will cost.

    Raises:
        InputError: nobody knows, so no budget could be kept.
    """
    prices = Prices(
        model=config.model or OPENAI_MODEL,
        quality=config.quality,
        width=config.width or OPENAI_SIDE,
        height=config.height or OPENAI_SIDE,
        fixed=config.price,
    )
    rates = TABLE.get(_family(prices.model))
    if prices.fixed is None and (rates is None or prices.quality not in rates.pictures):
        raise InputError(
            f"--model {prices.model} --quality {prices.quality}: no price is known, so the budget cannot be kept; give "
            "--price, the dollars of a picture"
        )
    return prices
