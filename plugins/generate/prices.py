"""What pictures of the OpenAI images API cost.

The table is of November 2026 and will grow old: ``--price`` takes its place. What a set has cost is counted by the
token usage in the answers; the prices of pictures serve for what lies ahead.
"""

from __future__ import annotations

import math
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

    def ahead(self, references: int) -> float | None:
        """About what the next picture will cost in US dollars, a bit high; None where nobody knows.

        Args:
            references: pictures shown with the prompt.
        """
        if self.fixed is not None:
            return self.fixed
        rates = self._rates()
        if rates is None or self.quality not in rates.pictures:
            return None
        larger = max(1.0, self.width * self.height / 1024**2)
        return larger * (rates.pictures[self.quality] + references * _REFERENCE * rates.image / _MILLION)

    def billed(self, usage: Any, references: int) -> float | None:
        """What an answer cost in US dollars, by its ``usage``; where it has none, as ``ahead``."""
        if self.fixed is not None:
            return self.fixed
        rates = self._rates()
        try:
            told = usage["input_tokens_details"]
            tokens = float(told["text_tokens"]), float(told["image_tokens"]), float(usage["output_tokens"])
        except (KeyError, TypeError, ValueError):
            return self.ahead(references)
        if rates is None:
            return None
        text, image, output = tokens
        return (text * rates.text + image * rates.image + output * rates.output) / _MILLION

    def _rates(self) -> Rates | None:
        return TABLE.get(re.sub(r"-\d{4}-\d\d-\d\d$", "", self.model))


def prices_of(config: GenerateConfig) -> Prices:
    """What the pictures of a set will cost.

    Raises:
        InputError: nobody knows, and there is a budget.
    """
    known = Prices(
        model=config.model or OPENAI_MODEL,
        quality=config.quality,
        width=config.width or OPENAI_SIDE,
        height=config.height or OPENAI_SIDE,
        fixed=config.price,
    )
    if known.ahead(0) is None and config.budget != math.inf:
        raise InputError(
            f"--model {known.model} --quality {known.quality}: no price is known, so the budget cannot be kept; give "
            "--price, the dollars of a picture, or --budget inf"
        )
    return known
