r"""A1111's marks in a prompt, read as A1111 does: the words without them, and how much each of these counts.

``(word)`` counts 1.1 times, ``((word))`` 1.21 times, ``[word]`` 1 / 1.1 times and ``(word:1.2)`` 1.2 times; marks in
marks multiply. A bracket that is not closed reaches to the end, and ``\(`` is a plain bracket.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from rbctl.errors import InputError, abridged

MOST = 10.0
_DEEPEST = 64
_FACTORS = {"(": 1.1, "[": 1 / 1.1}
_OPENING = {")": "(", "]": "["}
_MARK = re.compile(
    r"""\\(?P<plain>[()\[\]\\|]|AND\b|BREAK\b|__|embedding:)
        |(?P<open>[(\[])
        |:\s*(?P<weight>[+-]?(?:[\d.]+(?:e[+-]?\d+)?|inf|nan))\s*\)
        |(?P<close>[)\]])""",
    re.VERBOSE | re.IGNORECASE,
)
# What A1111, Dynamic Prompts and ComfyUI read besides, and what to write here.
_UNSUPPORTED = {
    r"\bBREAK\b": r"begins a new part of the prompt in A1111; here it is one, so leave it out, or write \BREAK",
    r"\bAND\b": r"composes prompts in A1111, which is not done here; write 'and', or \AND for the word in capitals",
    r"\[[^\[\]|]*\|[^\[\]]*\]": r"alternates words in A1111, which is not done here; write one of them, or \[ and \]",
    r"\[[^\[\]]*:\s*[\d.]+\s*\]": r"changes the prompt at a step in A1111, which is not done here; write one of its "
    r"words, (word:0.8) for a weight, or \[ and \]",
    r"__[\w/*-]+__": r"draws words from a file in Dynamic Prompts, which is not done here; write words, or \__",
    r"\bembedding:[\w.-]+": "names an embedding in ComfyUI; name it with --embedding PATH and write its <token>",
}
_REFUSED = [(re.compile(rf"(?<!\\){form}"), why) for form, why in _UNSUPPORTED.items()]


@dataclass(frozen=True)
class WeightedText:
    """Words without marks.

    Attributes:
        weights: of each character of the words; empty where all are 1.
    """

    words: str
    weights: tuple[float, ...] = ()

    @property
    def fragments(self) -> list[tuple[str, float]]:
        """The words cut where the weight changes, each part with its weight; blank ones are left out."""
        weights = self.weights or (1.0,) * len(self.words)
        cuts = [k for k in range(1, len(weights)) if weights[k] != weights[k - 1]]
        parts = [(self.words[start:end], weights[start]) for start, end in itertools.pairwise([0, *cuts, len(weights)])]
        return [(part, weight) for part, weight in parts if part.strip()]

    def with_words(self, start: int, end: int, words: str) -> WeightedText:
        """Other words in the place [start, end); they count as the first of the old ones did."""
        weights = self.weights
        if weights:
            weights = weights[:start] + weights[start : start + 1] * len(words) + weights[end:]
        return WeightedText(self.words[:start] + words + self.words[end:], weights)


def read_weights(text: str, where: str, weighting: bool = True) -> WeightedText:
    """Read the marks of a prompt.

    Args:
        where: the place in which it stands, for errors.
        weighting: False takes marks as words.

    Raises:
        InputError: a weight is out of range, or what is written A1111 does and this project does not.
    """
    if not weighting:
        return WeightedText(text)
    for form, why in _REFUSED:
        if match := form.search(text):
            raise InputError(f"{where}: {abridged(match[0])} {why}")
    characters: list[str] = []
    weights: list[float] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}  # where those begin that are not closed yet

    def append(plain: str) -> None:
        characters.extend(plain)
        weights.extend([1.0] * len(plain))

    def weigh(start: int, factor: float) -> None:
        weights[start:] = [weight * factor for weight in weights[start:]]

    end = 0
    for match in _MARK.finditer(text):
        append(text[end : match.start()])
        end = match.end()
        opening = _OPENING[match[0][-1]] if match["weight"] or match["close"] else ""
        if match["open"]:
            opened[match["open"]].append(len(characters))
            if len(opened[match["open"]]) > _DEEPEST:
                raise InputError(rf"{where}: more than {_DEEPEST} brackets in each other; \( and \[ are plain brackets")
        elif opening and opened[opening]:
            start = opened[opening].pop()
            mark = abridged(f"({''.join(characters[start:])}{match[0]}")
            weigh(start, _number(match["weight"], f"{where}: {mark}") if match["weight"] else _FACTORS[opening])
        else:
            append(match["plain"] or match[0])
    append(text[end:])
    for opening, starts in opened.items():
        for start in starts:
            weigh(start, _FACTORS[opening])
    weights = [round(weight, 6) for weight in weights]  # ([word]) counts once
    if (most := max(weights, default=1.0)) > MOST:
        words = "".join(itertools.compress(characters, [weight == most for weight in weights]))
        raise InputError(f"{where}: {abridged(words)} counts {most:g} times by all its marks; {MOST:g} is the most")
    return _apart(characters, weights)


def _number(written: str, where: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= float(written) <= MOST:
            return float(written)
    raise InputError(rf"{where}: a weight from 0 to {MOST:g} was expected; \( and \) are plain brackets")


def _apart(characters: Sequence[str], weights: Sequence[float]) -> WeightedText:
    """One text of all; with a space inside a word that changes its weight, as each part has tokens of its own."""
    if all(weight == 1 for weight in weights):
        return WeightedText("".join(characters))
    words: list[str] = []
    own: list[float] = []
    for character, weight in zip(characters, weights, strict=True):
        if words and weight != own[-1] and _one_word(words[-1], character):
            words.append(" ")
            own.append(weight)
        words.append(character)
        own.append(weight)
    return WeightedText("".join(words), tuple(own))


def _one_word(before: str, after: str) -> bool:
    return not before.isspace() and not after.isspace() and before.isalnum() == after.isalnum()
