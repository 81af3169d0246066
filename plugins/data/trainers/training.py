"""What a trainer of edit models is given, whichever it is: examples with captions, and prompts to sample by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rbctl.errors import InputError, abridged
from rbctl.files import read_image, sha256
from rbctl.images import open_image
from rbctl.instructions import instruct
from rbctl.plugins.data.trainers.instruction import places
from rbctl.relations import Relation, load_relation, shipped
from rbctl.roles import find_relation
from rbctl.triplets import Triplet, TripletObject

MOST = 3  # individuals that an example may have: what the editors take
_SAMPLES = 4
_SUFFIXES = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp"}  # what every trainer reads
_ORIENTATION = 0x0112  # EXIF
_SIDES = (256, 1024)  # the least and the most that is trained at, in pixels


@dataclass(frozen=True)
class Base:
    """An edit model as one trainer trains it.

    Attributes:
        model: its name on the hub.
        wording: what captions call a reference: "image", "Picture"; "panel" where the base or trainer takes one picture
            alone, so that the references stand side by side in it; "" where it takes none.
    """

    model: str
    wording: str


@dataclass(frozen=True, eq=False)
class Example:
    """A triplet to learn from.

    Attributes:
        stem: its name in the export, "000".
        individuals: the numbers of the triplet's objects, in the order of the references.
        caption: tells who is in which reference.
        suffixes: of the target and of each reference's picture; "" where programs may read the file differently.
    """

    stem: str
    triplet: Triplet
    individuals: tuple[int, ...]
    caption: str
    suffixes: tuple[str, ...]

    @property
    def count(self) -> int:
        """Individuals in it."""
        return len(self.individuals)

    def object(self, reference: int) -> TripletObject:
        """Who is in a reference, by its number from 0."""
        return self.triplet.objects[self.individuals[reference]]


@dataclass(frozen=True, eq=False)
class Sample:
    """A prompt to look at the LoRA by: individuals of several examples, where the relation is known.

    Attributes:
        stem: "0".
        references: each as an example and a reference of it, from 0.
    """

    stem: str
    caption: str
    references: tuple[tuple[Example, int], ...]

    @property
    def objects(self) -> tuple[TripletObject, ...]:
        """Who is in the references."""
        return tuple(example.object(reference) for example, reference in self.references)


@dataclass(frozen=True, eq=False)
class Training:
    """All that a trainer is told.

    Attributes:
        name: of the LoRA, "hug".
        base: the name of the base, "flux2-klein".
        trained: the base as this trainer has it.
        side: of the pictures it is trained at, in pixels.
        masks: the loss counts more on the individuals, where the trainer can.
    """

    name: str
    base: str
    trained: Base
    examples: tuple[Example, ...]
    samples: tuple[Sample, ...]
    side: int
    masks: bool


def make_training(
    triplets: Sequence[Triplet], base: str, trained: Base, relation: Relation | None = None, masks: bool = True
) -> Training:
    """Number the triplets, order their references and write the captions.

    A reference's number tells the role: the first is always the relation's first role. Where roles may change places,
    the order turns from triplet to triplet, so that nothing is learned of it.

    Args:
        relation: of all triplets; without one, each text tells its own, if the relation ships with rbctl.

    Raises:
        InputError: a triplet has more individuals than an editor takes, neither its text nor its relation tells who is
            meant, or a picture cannot be read.
    """
    known = [relation] if relation else [load_relation(name) for name in shipped()]
    digits = max(3, len(str(len(triplets) - 1)))
    examples, relations = list[Example](), list[Relation | None]()
    for number, triplet in enumerate(triplets):
        names = [individual.name for individual in triplet.objects]
        meant = relation or find_relation(triplet.prompt, known, names)
        meant = meant if meant and len(meant.roles) == len(names) else None
        examples.append(_example(f"{number:0{digits}d}", number, triplet, meant, trained.wording))
        relations.append(meant)
    single = {meant.name for meant in relations if meant}
    with read_image(triplets[0].target) as picture:
        side = int((picture.width * picture.height) ** 0.5) // 64 * 64
    return Training(
        name=single.pop() if len(single) == 1 else "relation",
        base=base,
        trained=trained,
        examples=tuple(examples),
        samples=tuple(_samples(examples, relations, trained.wording)),
        side=min(max(side, _SIDES[0]), _SIDES[1]),
        masks=masks,
    )


def _example(stem: str, number: int, triplet: Triplet, relation: Relation | None, wording: str) -> Example:
    count = len(triplet.objects)
    if count > MOST:
        raise InputError(f"triplet {triplet.id}: has {count} individuals, editors take {MOST}; leave it out")
    order = _in_order_of_roles(triplet, relation)
    if relation:
        turns = relation.orders()
        order = tuple(order[role] for role in turns[number % len(turns)])
    where = places(wording, count)
    names = [triplet.objects[k].name for k in order]
    caption = triplet.prompt if not wording else instruct(triplet.prompt, names, where)
    if caption is None and relation:  # "Two cats hug." names neither; the relation's own words do
        roles = [triplet.objects[k].name for k in _in_order_of_roles(triplet, relation)]
        caption = instruct(relation.prompt(roles, number), names, where)
    if caption is None:
        lacking = " and ".join(abridged(name) for name in names)
        raise InputError(
            f"triplet {triplet.id}: its text {abridged(triplet.prompt)} does not name {lacking}; "
            "write the names there, or give --relation"
        )
    pictures = [triplet.target, *(triplet.objects[k].image for k in order)]
    return Example(stem, triplet, order, " ".join(caption.split()), tuple(map(_plain_suffix, pictures)))


def _plain_suffix(picture: Path) -> str:
    """The suffix of a picture that all programs read alike; "" where a profile, turn, alpha or format is in the way."""
    with open_image(picture) as opened:
        plain = (
            opened.mode in ("RGB", "L")
            and not opened.has_transparency_data
            and "icc_profile" not in opened.info
            and opened.getexif().get(_ORIENTATION, 1) == 1
        )
        return _SUFFIXES.get(opened.format or "", "") if plain else ""


def _in_order_of_roles(triplet: Triplet, relation: Relation | None) -> tuple[int, ...]:
    """The numbers of a triplet's objects in the order of the relation's roles; as they stand where those are others."""
    roles = [individual.role for individual in triplet.objects]
    known = [role.name for role in relation.roles] if relation else []
    return tuple(roles.index(role) for role in known) if sorted(known) == sorted(roles) else tuple(range(len(roles)))


def _samples(examples: Sequence[Example], relations: Sequence[Relation | None], wording: str) -> list[Sample]:
    """Up to four prompts. With a known relation the individuals are of different examples: a pair no training saw."""
    samples = []
    for number, (example, relation) in enumerate(zip(examples[:_SAMPLES], relations, strict=False)):
        references = tuple((example, reference) for reference in range(example.count))
        if not relation:
            samples.append(Sample(str(number), example.caption, references))
            continue
        alike = [e for e, meant in zip(examples, relations, strict=True) if meant and meant.name == relation.name]
        mixed = []
        for role in range(example.count):
            other = alike[(alike.index(example) + role) % len(alike)]
            mixed.append((other, other.individuals.index(_in_order_of_roles(other.triplet, relation)[role])))
        if len({sha256(e.object(reference).image) for e, reference in mixed}) == example.count:
            references = tuple(mixed)
        else:  # the same individual twice would be a poor prompt
            own = _in_order_of_roles(example.triplet, relation)
            references = tuple((example, example.individuals.index(k)) for k in own)
        names = [e.object(reference).name for e, reference in references]
        text = relation.prompt(names, number)
        caption = instruct(text, names, places(wording, len(names))) if wording else text
        samples.append(Sample(str(number), caption or text, references))
    return samples
