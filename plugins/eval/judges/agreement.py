"""Whether two judges say the same. Pure functions of their answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def agreement(first: Sequence[bool], second: Sequence[bool]) -> tuple[float | None, float | None]:
    """Share of the questions that two judges answer alike, and Cohen's kappa: what of it is no chance.

    Args:
        first, second: (n,) yes or no to the same questions.

    Returns:
        Both None without questions; kappa alone where both always say the same word.
    """
    if not len(first):
        return None, None
    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    alike = float((a == b).mean())
    by_chance = float(a.mean() * b.mean() + (1 - a.mean()) * (1 - b.mean()))
    return alike, None if by_chance == 1 else (alike - by_chance) / (1 - by_chance)
