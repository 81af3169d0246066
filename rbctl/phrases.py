"""Where a phrase stands in a prompt, and among its tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_TRAILING = ".!?,:"


def _bare(word: str) -> str:
    return word[:-1] if word and word[-1] in _TRAILING else word


def place_of(prompt: str, phrases: Sequence[str]) -> tuple[int, int] | None:
    """The first place [start, end) of the longest of the phrases that a prompt holds; None without one.

    Phrases are found as whole words, whatever their case.
    """
    for phrase in sorted(phrases, key=len, reverse=True):
        if match := re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", prompt, re.IGNORECASE):
            return match.span()
    return None


def replaced(prompt: str, phrases: Sequence[str], words: str) -> str | None:
    """The prompt with ``words`` in the :func:`place_of` the phrases; None without one."""
    place = place_of(prompt, phrases)
    return None if place is None else prompt[: place[0]] + words + prompt[place[1] :]


def unread(tokenizer: Any, prompt: str, phrases: Sequence[str]) -> list[str]:
    """The phrases of a prompt that a text encoder does not read to their end, since they stand too late.

    Args:
        tokenizer: a CLIP tokenizer of transformers; what is behind its ``model_max_length`` is not read.
        phrases: found as whole words, whatever their case; one that the prompt lacks is left out.
    """
    late = []
    for phrase in phrases:
        place = place_of(prompt, [phrase])
        if place and len(tokenizer(prompt[: place[1]])["input_ids"]) > tokenizer.model_max_length:
            late.append(phrase)
    return late


def token_span(tokenizer: Any, prompt: str, phrase: str) -> tuple[int, int]:
    """Token range [start, end) of ``phrase`` in the CLIP-tokenised prompt; position 0 is the start token.

    Matching goes by whitespace words, case-sensitive; one trailing ``. ! ? , :`` is ignored on the prompt's side, and a
    word also matches one that contains it behind a hyphen (the rules of the official code, on whose spans its
    attention-map loss was tuned).

    Args:
        tokenizer: a CLIP tokenizer of transformers.

    Returns:
        The range of the first place, or (0, 0) where the phrase is not found.
    """
    return token_spans(tokenizer, prompt, [phrase])[0]


def token_spans(tokenizer: Any, prompt: str, phrases: Sequence[str]) -> list[tuple[int, int]]:
    """:func:`token_span` of several phrases, each at a place of its own.

    The second of two equal phrases gets the second place, and in "a black cat hugs a cat" the phrase "cat" gets the
    last word, as "black cat" has the first one.
    """
    words = prompt.split()
    spans = [(0, 0)] * len(phrases)
    taken: set[int] = set()
    for number in sorted(range(len(phrases)), key=lambda k: -len(phrases[k].split())):  # the longer ones choose first
        wanted = phrases[number].split()
        for at in range(len(words) - len(wanted) + 1) if wanted else ():
            place = range(at, at + len(wanted))
            if _matches([words[k] for k in place], wanted) and taken.isdisjoint(place):
                taken.update(place)
                spans[number] = _span(tokenizer, words, place)
                break
    return spans


def _matches(words: Sequence[str], wanted: Sequence[str]) -> bool:
    return all(_bare(word) == want or f"-{want}" in word for word, want in zip(words, wanted, strict=True))


def _span(tokenizer: Any, words: Sequence[str], place: range) -> tuple[int, int]:
    def count(parts: Sequence[str]) -> int:
        return sum(len(tokenizer(part, add_special_tokens=False)["input_ids"]) for part in parts)

    start = 1 + count(words[: place.start])
    # Only the last word loses its punctuation for counting.
    return start, start + count([*words[place.start : place.stop - 1], _bare(words[place.stop - 1])])
