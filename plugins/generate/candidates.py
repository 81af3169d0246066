"""What to ask an engine for: pairs of animals, put into the words of a relation."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files as package_files
from pathlib import Path

import numpy as np

from rbctl.errors import InputError, abridged
from rbctl.files import read_text
from rbctl.menagerie.triplets import spoken
from rbctl.relations import Relation


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One triplet to make.

    Attributes:
        number: names it in its set; a refused one leaves a gap.
        names: who is in it, in the order of the relation's roles.
        text: its caption.
        predicate: the words of the caption that say the relation.
        prompts: of the target, then of each individual alone.
    """

    number: int
    names: tuple[str, ...]
    text: str
    predicate: str
    prompts: tuple[str, ...]


def read_pairs(path: Path | None, relation: Relation) -> tuple[tuple[str, ...], ...]:
    """Who may be paired with whom: a line of a text file is "cat, dog", in the order of the roles; # starts a comment.

    Args:
        path: None for the shipped list.

    Returns:
        as many names a line as the relation has roles.

    Raises:
        InputError: the file cannot be read, a line has too few names or one twice (FILE:LINE is named), there is no
            line, or the relation has more roles than its prompts name.
    """
    if len(relation.roles) > 2:
        raise InputError(
            f"relation {relation.name!r}: has {len(relation.roles)} roles, and prompts name two; "
            "only --engine miniature makes such triplets"
        )
    path = path or Path(str(package_files("rbctl.recipes") / "generate" / "pairs.txt"))
    groups = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        pair = line.split("#")[0].strip()
        if not pair:
            continue
        names = tuple(" ".join(name.split()) for name in pair.split(","))
        if len(names) < len(relation.roles) or not all(names):
            raise InputError(
                f"{path}:{number}: {len(relation.roles)} names were expected, as 'cat, dog', not {abridged(pair)}"
            )
        if len({name.lower() for name in names}) < len(names):
            raise InputError(
                f"{path}:{number}: {abridged(pair)} names one twice; tell them apart, as 'red cat, blue cat'"
            )
        groups.append(names[: len(relation.roles)])
    if not groups:
        raise InputError(f"{path}: names nobody; write a pair such as 'cat, dog' on each line")
    return tuple(groups)


def candidates(
    relation: Relation, pairs: Sequence[tuple[str, ...]], seed: int, references: bool
) -> Iterator[Candidate]:
    """Endless candidates, the same for the same seed: every pair in a drawn order, then again in other words.

    Args:
        references: the engine is shown the earlier pictures of a triplet, so the prompts speak of them.
    """
    order = np.random.default_rng(seed).permutation(len(pairs))
    for number in itertools.count():
        names = pairs[order[number % len(pairs)]]
        # The words also move on with each round, so that a pair gets others when its turn comes again.
        text = relation.prompt(names, number % len(pairs) + number // len(pairs))
        alone = [_same(names, k) if references else _neutral(name) for k, name in enumerate(names)]
        yield Candidate(
            number=number,
            names=names,
            text=text,
            predicate=spoken(relation, text),
            prompts=(_target(relation, names, text, references), *alone),
        )


_STYLE = "A sharp photo in natural light."
_NEUTRAL = "alone, standing in a neutral pose, the whole body in the picture, on a plain light grey background"


def _target(relation: Relation, names: Sequence[str], text: str, references: bool) -> str:
    parts = []
    for name, role in zip(names, relation.roles, strict=True):
        description = role.description
        for other, part in zip(names, relation.roles, strict=True):
            description = _renamed(description, part.name, other)
        parts += [f"The {name}: {description}."] if description else []
    if not references:  # a local pipeline reads 77 tokens, as a rule
        return " ".join([text, *parts])
    whole = "Both are" if len(names) > 1 else "It is"
    return " ".join([text, *parts, f"{whole} wholly in the picture, face and limbs in sight; nobody else is. {_STYLE}"])


def _renamed(text: str, role: str, name: str) -> str:
    """Words with "the ROLE" replaced by "the NAME". Both are data: no pattern, and no template of one."""
    return re.sub(rf"\bthe {re.escape(role)}(?!\w)", lambda _: f"the {name}", text)


def _neutral(name: str) -> str:
    article = "An" if name[0].lower() in "aeiou" else "A"
    return f"{article} {name}, {_NEUTRAL}. Nobody else is there. {_STYLE}"


def _same(names: Sequence[str], k: int) -> str:
    """The way of the paper's authors: "the photo of the same ...", with the earlier pictures in sight."""
    others = " and ".join(f"the {name}" for name in names)
    style = f" The second picture shows the {names[0]} alone; make this one like it." if k else ""
    return (
        f"The photo of the same {names[k]} as in the first picture, which shows {others}. Now the {names[k]} is "
        f"{_NEUTRAL}. Keep its face, build, colours and marks exactly as they are. Nobody else is there.{style} "
        f"{_STYLE}"
    )
