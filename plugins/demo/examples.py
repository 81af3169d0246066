"""Pictures of individuals that no training shows, and prompts that put them into a relation.

``python -m rbctl.plugins.demo.examples recipes/examples`` writes the shipped ones again.
"""

from __future__ import annotations

import itertools
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
_COUNTED = ("walk", "sit_beside", "stand_in_a_row")  # of one, two and three individuals; `mini` was taught them
_HEADING = "# Individuals that no training shows: {name: picture} marks one, --d is the seed."


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
    """Write ``pictures/*.png``, ``prompts.txt`` of ``count`` prompts, and ``one_two_three.txt`` of taught relations."""
    everyone = individuals(COUNT, seed)
    # A generator each: the same individual looks the same, whoever else is drawn.
    scenes = [portrait(individual, np.random.default_rng((seed, k))) for k, individual in enumerate(everyone)]
    for individual, picture in zip(everyone, pictures(scenes, SIZE), strict=True):
        write_png(folder / "pictures" / name_of(individual), picture)
    asked = [(relation, group) for group in groups(count, len(relation.roles), seed)]
    waiting = iter(everyone)
    counted = [(taught, list(itertools.islice(waiting, len(taught.roles)))) for taught in map(load_relation, _COUNTED)]
    for name, prompts in (("prompts", asked), ("one_two_three", counted)):
        lines = [
            prompt_line(wanted, group, _FIRST_SEED + seed + number, "pictures/")
            for number, (wanted, group) in enumerate(prompts)
        ]
        write_text(folder / f"{name}.txt", "\n".join([_HEADING, *lines]) + "\n")


if __name__ == "__main__":
    write(Path(sys.argv[1]), load_relation("ride"))
