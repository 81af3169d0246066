"""What sampling may leave out to be faster, and the named qualities that stand for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from rbctl.errors import InputError, abridged

Quality: TypeAlias = Literal["draft", "standard", "best"]
QUALITY: Quality = "standard"
# What each takes where a recipe has no section of this name.
QUALITIES: Mapping[Quality, Mapping[str, Any]] = {
    "draft": {"guidance_stop": 0.6, "cache_start": 0.2, "cache_span": 0.2},
    "standard": {"cache_start": 0.2, "cache_span": 0.1},
    "best": {},
}
SECTION = "qualities"


@dataclass(frozen=True)
class Shortcuts:
    """Work of the sampling loop that is left out; by default none.

    Attributes:
        guidance_start, guidance_stop: shares of the steps between which there is guidance, [start, stop); without it
            the unconditional rows are left out (Kynkaanniemi et al. 2024, arXiv 2404.07724).
        cache_start, cache_span: from the one share of the steps on, the UNet's deep features are kept for the other
            (:mod:`rbctl.deep_cache`). The first steps decide what is where. Few steps are far apart, so that a run of a
            step-distilled LoRA keeps nothing for long.

    Raises:
        ValueError: one is no share.
    """

    guidance_start: float = 0.0
    guidance_stop: float = 1.0
    cache_start: float = 0.0
    cache_span: float = 0.0

    def __post_init__(self) -> None:
        for name, share in vars(self).items():
            if not 0 <= share <= 1:
                raise ValueError(f"{name}: a share from 0 to 1 was expected, not {share}")

    @property
    def always_guided(self) -> bool:
        return self.guidance_start <= 0 and self.guidance_stop >= 1

    def guided(self, share: float) -> bool:
        """Whether there is guidance in the step behind this share of the steps, in [0, 1)."""
        return self.guidance_start <= share < self.guidance_stop


NO_SHORTCUTS = Shortcuts()


def options_of(quality: str, recipe: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The options of ``rbctl sample`` that a quality stands for: the recipe's section, else those of every bundle.

    Args:
        recipe: all sections. where: its file, for errors.

    Raises:
        InputError: the section is no mapping of qualities to options; values are not checked.
    """
    qualities = recipe.get(SECTION, QUALITIES)
    if not isinstance(qualities, Mapping) or set(qualities) != set(QUALITIES):
        raise InputError(f"{where}: {SECTION}: {', '.join(QUALITIES)} were expected, each with options of sample")
    options = qualities[quality]
    if not isinstance(options, Mapping):
        raise InputError(
            f"{where}: {SECTION}: {quality}: a mapping of options to values was expected, not {abridged(options)}"
        )
    return dict(options)
