"""Pictures of individuals that no training shows, and prompts that put them into a relation.

``python -m rbctl.plugins.demo.examples recipes/examples`` writes the shipped ones again.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rbctl.files import write_png, write_text
from rbctl.menagerie import Individual, draw_individual, portrait
from rbctl.menagerie.triplets import pictures
from rbctl.relations import Relation, load_relation

COUNT = 8
SIZE = 256  # pixels
_FIRST_SEED = 7  # of a prompt's picture


def individuals(count: int, seed: int) -> list[Individual]:
    """Held-out individuals, each of another species."""
    rng = np.random.default_rng(seed)
    by_species: dict[str, Individual] = {}
    while len(by_species) < count:
        individual = draw_individual(rng, held_out=True)
        by_species.setdefault(individual.species, individual)
    return list(by_species.values())


def groups(count: int, roles: int, seed: int) -> list[list[Individual]]:
    """Up to eight groups, as many individuals in each as there are roles; of pairs, the first four share nobody."""
    everyone = individuals(COUNT, seed)
    starts = [2 * number + number // (COUNT // 2) for number in range(count)]
    return [[everyone[(start + k) % COUNT] for k in range(roles)] for start in starts]


def name_of(individual: Individual) -> str:
    """``orange-cat.png``: species differ, so this is one picture's alone."""
    return f"{individual.coat}-{individual.species}.png"


def prompt_line(relation: Relation, group: Sequence[Individual], seed: int, folder: str = "") -> str:
    """A line of prompts.txt; ``folder`` is that of the pictures, with its slash."""
    text = relation.prompt([individual.species for individual in group])
    for individual in group:
        place = f"{{{individual.species}: {folder}{name_of(individual)}}}"
        text = re.sub(rf"\b{individual.species}\b", place, text, count=1)
    return f"{text.rstrip('.')} --d {seed}"


def write(folder: Path, relation: Relation, count: int = COUNT, seed: int = 0) -> None:
    """Write ``pictures/*.png`` and ``prompts.txt`` of ``count`` prompts."""
    everyone = individuals(COUNT, seed)
    # A generator each: the same individual looks the same, whoever else is drawn.
    scenes = [portrait(individual, np.random.default_rng((seed, k))) for k, individual in enumerate(everyone)]
    for individual, picture in zip(everyone, pictures(scenes, SIZE), strict=True):
        write_png(folder / "pictures" / name_of(individual), picture)
    lines = ["# Individuals that no training shows: {name: picture} marks one, --d is the seed."]
    for number, group in enumerate(groups(count, len(relation.roles), seed)):
        lines.append(prompt_line(relation, group, _FIRST_SEED + seed + number, "pictures/"))
    write_text(folder / "prompts.txt", "\n".join(lines) + "\n")


if __name__ == "__main__":
    write(Path(sys.argv[1]), load_relation("ride"))
