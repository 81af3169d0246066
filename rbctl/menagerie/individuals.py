"""Who lives in the embedded world: species, coats, patterns, and individuals made of them."""

from __future__ import annotations

import dataclasses
import math
import statistics
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np

RGB = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """Proportions of a species; lengths and radii in trunk lengths, angles in degrees (0 right, 90 up)."""

    size: float = 1.0
    rump: float = 0.27
    chest: float = 0.27
    neck: float = 0.16
    neck_radius: float = 0.17
    head: float = 0.36
    snout: float = 0.16
    snout_radius: float = 0.17
    nose: float = 0.07
    ears: Literal["pointed", "round", "long", "floppy", "fan", "horns"] = "pointed"
    ear_size: float = 0.3
    leg: float = 0.56
    leg_radius: float = 0.115
    tail: float = 0.6
    tail_radius: tuple[float, float] = (0.07, 0.05)
    tail_angle: float = 50.0
    trunk: float = 0.0
    mane: bool = False


ANATOMY: Mapping[str, Anatomy] = {
    "bear": Anatomy(
        size=1.08, rump=0.37, chest=0.35, neck=0.1, neck_radius=0.25, head=0.40, snout=0.2, snout_radius=0.16,
        ears="round", ear_size=0.13, leg=0.46, leg_radius=0.155, tail=0.1, tail_radius=(0.1, 0.1),
    ),
    "cat": Anatomy(
        size=0.94, rump=0.23, chest=0.22, head=0.39, snout=0.08, snout_radius=0.15, nose=0.05, ears="pointed",
        ear_size=0.32, leg=0.54, leg_radius=0.09, tail=0.85, tail_radius=(0.06, 0.055), tail_angle=75,
    ),
    "dog": Anatomy(
        rump=0.24, chest=0.27, neck=0.2, head=0.35, snout=0.3, snout_radius=0.15, nose=0.085, ears="floppy",
        ear_size=0.42, leg=0.6, leg_radius=0.105, tail=0.5, tail_radius=(0.07, 0.03), tail_angle=60,
    ),
    "elephant": Anatomy(
        size=1.16, rump=0.4, chest=0.4, neck=0.1, neck_radius=0.26, head=0.42, snout=0.1, snout_radius=0.17, nose=0.0,
        ears="fan", ear_size=0.36, leg=0.5, leg_radius=0.17, tail=0.34, tail_radius=(0.035, 0.03), tail_angle=-60,
        trunk=0.62,
    ),
    "fox": Anatomy(
        size=0.94, rump=0.22, chest=0.22, neck=0.16, head=0.35, snout=0.34, snout_radius=0.09, nose=0.06,
        ears="pointed", ear_size=0.42, leg=0.52, leg_radius=0.085, tail=0.75, tail_radius=(0.08, 0.2), tail_angle=20,
    ),
    "giraffe": Anatomy(
        size=0.98, rump=0.23, chest=0.25, neck=0.74, neck_radius=0.12, head=0.29, snout=0.24, snout_radius=0.13,
        ears="horns", ear_size=0.24, leg=0.82, leg_radius=0.085, tail=0.42, tail_radius=(0.035, 0.05), tail_angle=-60,
    ),
    "lion": Anatomy(
        size=1.06, rump=0.25, chest=0.29, neck=0.16, head=0.35, snout=0.16, snout_radius=0.17, nose=0.08, ears="round",
        ear_size=0.1, leg=0.54, leg_radius=0.12, tail=0.75, tail_radius=(0.045, 0.11), tail_angle=40, mane=True,
    ),
    "mouse": Anatomy(
        size=0.84, rump=0.29, chest=0.23, neck=0.1, head=0.39, snout=0.26, snout_radius=0.09, nose=0.075, ears="round",
        ear_size=0.27, leg=0.34, leg_radius=0.08, tail=1.0, tail_radius=(0.04, 0.025), tail_angle=35,
    ),
    "pig": Anatomy(
        size=0.98, rump=0.38, chest=0.36, neck=0.08, neck_radius=0.25, head=0.39, snout=0.18, snout_radius=0.17,
        nose=0.15, ears="floppy", ear_size=0.2, leg=0.34, leg_radius=0.115, tail=0.22, tail_radius=(0.05, 0.04),
        tail_angle=70,
    ),
    "rabbit": Anatomy(
        size=0.9, rump=0.3, chest=0.24, neck=0.1, head=0.37, snout=0.1, snout_radius=0.16, nose=0.055, ears="long",
        ear_size=0.68, leg=0.42, leg_radius=0.1, tail=0.14, tail_radius=(0.13, 0.13), tail_angle=30,
    ),
}  # fmt: skip
SPECIES: tuple[str, ...] = tuple(ANATOMY)

COATS: Mapping[str, RGB] = {
    "red": (0.84, 0.18, 0.17),
    "orange": (0.95, 0.54, 0.13),
    "yellow": (0.97, 0.84, 0.27),
    "green": (0.30, 0.66, 0.28),
    "teal": (0.13, 0.62, 0.62),
    "blue": (0.24, 0.42, 0.88),
    "purple": (0.55, 0.27, 0.76),
    "pink": (0.96, 0.56, 0.73),
    "brown": (0.50, 0.31, 0.17),
    "black": (0.17, 0.17, 0.20),
    "gray": (0.56, 0.58, 0.61),
    "white": (0.95, 0.94, 0.91),
}
PATTERNS: tuple[str, ...] = ("plain", "spots", "stripes", "patches")
PROPORTIONS = ("legs", "girth", "head")
_CONTRAST = 0.55  # a second coat nearer than this (in RGB) cannot be told from the first in a small picture
_HELD_OUT_ONE_IN = 8


@dataclass(frozen=True)
class Individual:
    """One animal that can be told from all others.

    Attributes:
        species: one of ``SPECIES``.
        coat, second: of ``COATS``; a plain coat has no second colour, there ``second`` equals ``coat``.
        pattern: one of ``PATTERNS``.
        proportions: factors in [0.9, 1.1] on the species' legs, girth and head.
    """

    species: str
    coat: str
    second: str
    pattern: str
    proportions: tuple[float, ...] = (1.0, 1.0, 1.0)

    @property
    def description(self) -> str:
        """ "a plain red fox", "an orange cat with blue stripes"."""
        if self.pattern == "plain":
            return f"a plain {self.coat} {self.species}"
        article = "an" if self.coat[0] in "aeiou" else "a"
        return f"{article} {self.coat} {self.species} with {self.second} {self.pattern}"

    @property
    def held_out(self) -> bool:
        """Whether this combination of species, coats and pattern is kept from every training (about one in eight)."""
        name = "|".join((self.species, self.coat, self.second, self.pattern))
        return zlib.crc32(name.encode()) % _HELD_OUT_ONE_IN == 0

    def to_json(self) -> dict[str, Any]:
        """Plain data, for a file."""
        return dataclasses.asdict(self)


def _contrast(a: RGB, b: RGB) -> float:
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) ** 0.5


def unlike(first: str) -> list[str]:
    """All species from ``first`` on, each the one whose body is least like those before it.

    Farthest-first traversal in the lengths of ``Anatomy``, each in units of its spread over the species.
    """
    lengths = [part.name for part in dataclasses.fields(Anatomy) if part.type == "float" and part.name != "tail_angle"]
    columns = [[getattr(body, name) for body in ANATOMY.values()] for name in lengths]
    scaled = [[value / statistics.pstdev(column) for value in column] for column in columns]
    bodies = dict(zip(SPECIES, zip(*scaled, strict=True), strict=True))
    order = [first]
    while len(order) < len(SPECIES):
        rest = [name for name in SPECIES if name not in order]
        order.append(max(rest, key=lambda name: min(math.dist(bodies[name], bodies[one]) for one in order)))
    return order


def draw_individual(rng: np.random.Generator, held_out: bool = False) -> Individual:
    """A random individual; those with ``held_out`` never occur without it, and the other way round."""
    while True:
        coat = str(rng.choice(list(COATS)))
        pattern = str(rng.choice(PATTERNS))
        seconds = [name for name, colour in COATS.items() if _contrast(colour, COATS[coat]) > _CONTRAST]
        individual = Individual(
            species=str(rng.choice(SPECIES)),
            coat=coat,
            second=coat if pattern == "plain" else str(rng.choice(seconds)),
            pattern=pattern,
            proportions=tuple(round(float(f), 3) for f in rng.uniform(0.9, 1.1, len(PROPORTIONS))),
        )
        if individual.held_out == held_out:
            return individual
