"""Where a phrase stands among the tokens of a prompt."""

from __future__ import annotations

from typing import Any

_TRAILING = ".!?,:"


def _bare(word: str) -> str:
    return word[:-1] if word and word[-1] in _TRAILING else word


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
    words, wanted = prompt.split(), phrase.split()
    if not wanted:
        return 0, 0

    def matches(at: int) -> bool:
        pairs = zip(words[at : at + len(wanted)], wanted, strict=True)
        return all(_bare(word) == want or f"-{want}" in word for word, want in pairs)

    places = [at for at in range(len(words) - len(wanted) + 1) if matches(at)]
    if not places:
        return 0, 0
    first = places[0]
    matched = words[first : first + len(wanted)]
    matched[-1] = _bare(matched[-1])  # only the last word loses its punctuation for counting

    def count(parts: list[str]) -> int:
        return sum(len(tokenizer(part, add_special_tokens=False)["input_ids"]) for part in parts)

    start = 1 + count(words[:first])
    return start, start + count(matched)
