"""A relation as data: what it is called, which words express it, which roles it has and where they lie.

One YAML file is one relation; the shipped ones lie in recipes/relations/, a user's own is given by path.
"""

from __future__ import annotations

import functools
import itertools
import os.path
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from annotated_types import MinLen

from rbctl import formats
from rbctl.errors import InputError, abridged, nearest, shortlist
from rbctl.paths import shipped_yaml
from rbctl.templates import fill, places

_NAME = r"[a-z0-9]+(_[a-z0-9]+)*"
_PLACES = ("subject", "object")


def check_box(value: Any) -> Box:
    """Four numbers as a relative xyxy box.

    Raises:
        ValueError: not four numbers, outside [0, 1], or with no area.
    """
    try:
        if not isinstance(value, list | tuple) or any(isinstance(v, bool) for v in value):
            raise TypeError
        x0, y0, x1, y1 = (float(v) for v in value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"four numbers x0, y0, x1, y1 were expected, not {abridged(value)}") from error
    shown = f"{x0:g},{y0:g},{x1:g},{y1:g}"
    # Written so that nan fails too.
    if not all(0 <= v <= 1 for v in (x0, y0, x1, y1)):
        raise ValueError(f"{shown} lies outside [0, 1]; boxes are relative to the picture")
    if not (x0 < x1 and y0 < y1):
        raise ValueError(f"{shown} has no area; the order is x0,y0,x1,y1 with x0 < x1 and y0 < y1")
    return x0, y0, x1, y1


Box = Annotated[tuple[float, float, float, float], formats.Check(check_box, before=True)]


def _check_name(name: str) -> str:
    if not re.fullmatch(_NAME, name):
        raise ValueError(f"{abridged(name)} must be lower-case words joined by '_', as in 'shake_hands'")
    return name


def _check_words(text: str) -> str:
    if not _plain(text):
        raise ValueError(f"words were expected, not {abridged(text)}")
    return text


_Words = Annotated[str, formats.Check(_check_words, schema={"pattern": r"\w"})]


@dataclass(frozen=True)
class Role:
    """One part in a relation.

    Attributes:
        name: "rider".
        box: where it lies by default, relative xyxy in [0, 1].
        description: one line for a person.
    """

    name: _Words
    box: Box
    description: str = ""


@dataclass(frozen=True, kw_only=True)
class Questions:
    """How a judge is asked, where the first prompt does not make a good question.

    Attributes:
        relation: names every role, as prompts do: "Is the {rider} on the back of the {mount}?".
        contact: of two that should touch, {subject} and {object}: "Does the {subject} hold the hand of the {object}?".
    """

    relation: str = ""
    contact: str = ""


@dataclass(frozen=True, kw_only=True)
class Relation:
    """A relation between the objects of a picture.

    Attributes:
        name: "shake_hands".
        predicate: the words between subject and object, "is riding".
        forms: words and phrases that express it in a prompt; the predicate counts without being repeated here.
        prompts: templates that name every role by its name in braces: "A {rider} rides a {mount}."; {subject} is the
            first role, {object} the second.
        roles: in the order of the objects: the subject first.
        symmetric: all roles may change places.
        alike: names of the roles that may change places, where others may not: the two that carry a third.
        inverse: name of the relation that says the same with the two roles turned: "is chasing" of "is fleeing from".
        questions: of a judge; the first prompt and the scene's contacts make those that are not given.
        scene: pose rules by which the embedded world draws it (rbctl.menagerie.scenes reads them); None where nobody
            wrote any.
    """

    name: Annotated[str, formats.Check(_check_name, schema={"pattern": f"^{_NAME}$"})]
    predicate: _Words
    forms: tuple[_Words, ...] = ()
    prompts: Annotated[tuple[_Words, ...], MinLen(1)]
    roles: Annotated[tuple[Role, ...], MinLen(1)]
    symmetric: bool = False
    alike: tuple[_Words, ...] = ()
    inverse: Annotated[str, formats.Check(_check_name, schema={"pattern": f"^{_NAME}$"})] | None = None
    questions: Questions = field(default_factory=Questions)
    scene: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if len({role.name for role in self.roles}) < len(self.roles):
            raise ValueError("roles: two have the same name")
        for name in self.alike:
            if name not in {role.name for role in self.roles}:
                raise ValueError(f"alike: no role {abridged(name)}")
        numbers = self._places()
        shown = [f"{{{place}}}" for place in (*_PLACES, *map(_place, self.roles[2:]))][: len(self.roles)]
        for template in self.prompts:
            if {numbers.get(place) for place in _named("prompts", template)} != set(numbers.values()):
                raise ValueError(f"prompts: {abridged(template)} must hold {' and '.join(shown)}")
        asked = self.questions
        if asked.relation and {numbers.get(place) for place in _named("questions", asked.relation)} != {
            *numbers.values()
        }:
            raise ValueError(f"questions: relation: {abridged(asked.relation)} must hold {' and '.join(shown)}")
        if asked.contact and set(_named("questions", asked.contact)) != set(_PLACES):
            raise ValueError(f"questions: contact: {abridged(asked.contact)} must hold {{subject}} and {{object}}")

    def prompt(self, names: Sequence[str], number: int = 0) -> str:
        """Template ``number`` (counted round) with the objects' names in it; "a" becomes "an" where it must."""
        return self.filled(self.prompts[number % len(self.prompts)], names)

    def filled(self, template: str, names: Sequence[str]) -> str:
        """A template of this relation's places with the objects' names in it, as in :meth:`prompt`."""
        words = {place: names[role] for place, role in self._places().items() if role < len(names)}
        for place, name in words.items():
            vowel = name.lstrip("{")[:1].lower() in tuple("aeiou")  # "an {elephant}": braces mark an individual
            article = r"\1n " if vowel else r"\1 "
            template = re.sub(rf"\b([Aa]) (?={{{place}}})", article, template)
        return fill(template, **words)

    def orders(self) -> list[tuple[int, ...]]:
        """Every order of the roles' numbers that says the same; the first is as they are listed."""
        numbers = range(len(self.roles))
        free = [k for k in numbers if self.symmetric or self.roles[k].name in self.alike]
        orders = []
        for turned in itertools.permutations(free):
            to = dict(zip(free, turned, strict=True))
            orders.append(tuple(to.get(k, k) for k in numbers))
        return orders

    def _places(self) -> dict[str, int]:
        """The names that a template may have in braces -> the role's number."""
        own = {_place(role): number for number, role in enumerate(self.roles)}
        return own | dict(zip(_PLACES[: len(self.roles)], range(len(_PLACES)), strict=False))


def _named(where: str, template: str) -> list[str]:
    try:
        return places(template)
    except ValueError as error:
        raise ValueError(f"{where}: {abridged(template)}: {error}") from error


def _place(role: Role) -> str:
    """How a template names a role: "front rider" as {front_rider}."""
    return _plain(role.name).replace(" ", "_")


def shipped() -> list[str]:
    """Names of the relations that come with rbctl."""
    return sorted(shipped_yaml("relations"))


def load_relation(name_or_path: str | Path) -> Relation:
    """A shipped relation by name ("shake_hands", "shake hands", "shake-hands"), or one's own by the path of its YAML.

    Raises:
        InputError: there is no such relation or file, or the file does not describe one; the key is named.
    """
    spelling, paths = str(name_or_path), shipped_yaml("relations")
    if spelling.endswith((".yaml", ".yml")):  # no other file is opened: a prompts file may be a stranger's
        if os.path.isfile(spelling):
            return _read(Path(spelling))
        raise InputError(f"{spelling}: no such relation file")
    name = _plain(spelling).replace(" ", "_")
    if name in paths:
        return _read_shipped(paths[name])
    everyone = [_read_shipped(path) for path in paths.values()]
    meant = [r.name for r in everyone if _plain(spelling) in map(_plain, (r.predicate, *r.forms))]
    hint = f"; did you mean {meant[0]!r}?" if meant else nearest(name, paths)
    mend = hint or f"; give the path of a YAML file, or one of: {shortlist(sorted(paths))}"
    raise InputError(f"{abridged(spelling)}: no such relation{mend}")


def _plain(text: str) -> str:
    """Lower-case words with single spaces between them; hyphens and punctuation gone."""
    return " ".join(re.findall(r"[^\W_]+(?:['’][^\W_]+)*", text.lower()))


@functools.cache  # they are read again and again: whose words does a sentence say?
def _read_shipped(path: Path) -> Relation:
    return _read(path)


def _read(path: Path) -> Relation:
    return formats.read_yaml(Relation, path, defaults={"name": path.stem})
