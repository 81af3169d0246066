"""What texts of part ``clip`` say of pictures: descriptions and captions, true ones and wrong ones.

A text that happens to be true of another picture of the batch is no negative of it (:func:`true_of`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rbctl.menagerie import COATS, PATTERNS, SPECIES
from rbctl.menagerie.scenes import PLACES
from rbctl.relations import Relation

UNTOLD = -1  # of a look that a text does not speak of
SIZES = (len(SPECIES), len(COATS), len(COATS), len(PATTERNS))
_COATS, _PLACES = tuple(COATS), tuple(PLACES.values())
_LIKE = {"plain": "plain", "spots": "spotted", "stripes": "striped", "patches": "patchy"}


@dataclass(frozen=True)
class Text:
    """What a picture may be described by, and what that claims.

    Attributes:
        looks: (species, coat, second, pattern) as indices of menagerie's tables, for one individual or per role.
        relation: index, or UNTOLD in a text on one individual.
        background: index, or UNTOLD.
    """

    words: str
    looks: tuple[tuple[int, ...], ...]
    relation: int = UNTOLD
    background: int = UNTOLD


def describe(look: Sequence[int], words: int) -> tuple[str, tuple[int, ...]]:
    """Name an individual with more or fewer words, without an article; and what of its look that tells.

    Args:
        look: indices of species, coat, second coat and pattern.
        words: 0 species; 1 coat and species; 2 pattern and species; 3 pattern, coat and species; 4 all, as
            ``Individual.description`` has it; 5 all, with the pattern said twice.
    """
    species, coat, second, pattern = (int(v) for v in look)
    animal, colour, like = SPECIES[species], _COATS[coat], _LIKE[PATTERNS[pattern]]
    if words == 0:
        return animal, (species, UNTOLD, UNTOLD, UNTOLD)
    if words == 1:
        return f"{colour} {animal}", (species, coat, UNTOLD, UNTOLD)
    if words == 2:
        return f"{like} {animal}", (species, UNTOLD, UNTOLD, pattern)
    whole = (species, coat, second, pattern)
    if PATTERNS[pattern] == "plain":  # its second coat is its first
        return f"plain {colour} {animal}", whole
    if words == 3:
        return f"{like} {colour} {animal}", (species, coat, UNTOLD, pattern)
    start = colour if words == 4 else f"{like} {colour}"
    return f"{start} {animal} with {_COATS[second]} {PATTERNS[pattern]}", whole


def with_article(name: str) -> str:
    """A name behind its indefinite article."""
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def individual_text(look: Sequence[int], rng: np.random.Generator) -> Text:
    """A description of one individual; bare names too, for that is how a bundle tells its adapter who is meant."""
    name, claim = describe(look, int(rng.choice(6, p=(0.15, 0.15, 0.1, 0.15, 0.3, 0.15))))
    return Text(with_article(name) if rng.random() < 0.6 else name, (claim,))


def scene_text(
    relation: Relation, number: int, looks: Sequence[Sequence[int]], background: int, rng: np.random.Generator
) -> Text:
    """A caption of a scene: species, half the time with coats, half the time with the background."""
    words = int(rng.choice((0, 1, 4), p=(0.5, 0.35, 0.15)))
    named = [describe(look, words) for look in looks]
    caption = relation.prompt([name for name, _ in named], int(rng.integers(len(relation.prompts))))
    text = Text(caption, tuple(claim for _, claim in named), number)
    if rng.random() < 0.5:
        return replace(text, words=f"{caption.rstrip('.')} {_PLACES[background]}.", background=background)
    return text


def wrong_individual_text(look: Sequence[int], rng: np.random.Generator) -> Text:
    """A full description that errs in one thing."""
    wrong = [int(v) for v in look]
    part = int(rng.integers(4))
    wrong[part] = (wrong[part] + 1 + int(rng.integers(SIZES[part] - 1))) % SIZES[part]
    if PATTERNS[wrong[3]] == "plain":
        wrong[2] = wrong[1]
    elif PATTERNS[look[3]] == "plain" and part == 3:  # a pattern needs a second coat
        wrong[2] = (wrong[1] + 1 + int(rng.integers(len(COATS) - 1))) % len(COATS)
    name, claim = describe(wrong, 4)
    return Text(with_article(name), (claim,))


def wrong_scene_text(
    relations: Sequence[Relation],
    number: int,
    looks: Sequence[Sequence[int]],
    background: int,
    rng: np.random.Generator,
) -> Text | None:
    """A caption with the roles changed about, or of another relation of as many; None where there is none."""
    roles = len(looks)
    if roles > 1 and not relations[number].symmetric and rng.random() < 0.5:
        return scene_text(relations[number], number, looks[::-1], background, rng)
    others = [k for k, relation in enumerate(relations) if k != number and len(relation.roles) == roles]
    if not others:
        return None
    other = others[int(rng.integers(len(others)))]
    return scene_text(relations[other], other, looks, background, rng)


def true_of(
    texts: Sequence[Text],
    looks: np.ndarray,
    relation: np.ndarray,
    background: np.ndarray,
    symmetric: np.ndarray,
) -> np.ndarray:
    """Which texts are true of which pictures, (pictures, texts) bool.

    A text on one individual is true of every picture that shows such a one, a scene's caption of scenes alone.

    Args:
        looks: (pictures, N, 4) of whom a picture shows, in the order of the roles; ``NOBODY`` where it shows fewer.
        relation: (pictures,), UNTOLD in pictures of one individual.
        background: (pictures,).
        symmetric: (relations,) bool.
    """
    count = looks.shape[1]
    untold = (UNTOLD,) * len(SIZES)
    claimed = np.array([(*text.looks, *[untold] * (count - len(text.looks))) for text in texts])  # (texts, N, 4)
    fits = ((claimed[None, :, None] == UNTOLD) | (claimed[None, :, None] == looks[:, None, :, None])).all(-1)
    # fits: (pictures, texts, individual shown, individual claimed)
    claimed_relation = np.array([text.relation for text in texts])
    claimed_background = np.array([text.background for text in texts])
    claims = range(count)
    ordered = fits[:, :, claims, claims].all(-1)
    changed = np.any([fits[:, :, order, claims].all(-1) for order in itertools.permutations(claims)], axis=0)
    changed &= symmetric[claimed_relation] & (claimed_relation != UNTOLD)
    scene = (claimed_relation != UNTOLD)[None] & (claimed_relation[None] == relation[:, None])
    scene &= (claimed_background == UNTOLD)[None] | (claimed_background[None] == background[:, None])
    individual = (claimed_relation == UNTOLD)[None] & fits[:, :, :, 0].any(-1)
    return individual | (scene & (ordered | changed))
