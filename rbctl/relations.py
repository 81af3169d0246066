"""A relation as data: what it is called, which words express it, which roles it has and where they lie.

One YAML file is one relation; the shipped ones lie in recipes/relations/, a user's own is given by path.
"""

from __future__ import annotations

import dataclasses
import os.path
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

from rbctl.errors import InputError, abridged, nearest
from rbctl.files import read_yaml
from rbctl.templates import fill, places

Box = tuple[float, float, float, float]

_NAME = re.compile(r"[a-z0-9]+(_[a-z0-9]+)*")
_PLACES = ("subject", "object")


def check_box(value: Any) -> Box:
    """Four numbers as a relative xyxy box.

    Raises:
        ValueError: not four numbers, outside [0, 1], or with no area.
    """
    if not isinstance(value, list | tuple) or len(value) != 4:
        raise ValueError(f"four numbers x0, y0, x1, y1 were expected, not {abridged(value)}")
    if any(isinstance(v, bool) for v in value):
        raise ValueError(f"four numbers x0, y0, x1, y1 were expected, not {abridged(value)}")
    try:
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


@dataclasses.dataclass(frozen=True)
class Role:
    """One part in a relation.

    Attributes:
        name: "rider".
        box: where it lies by default, relative xyxy in [0, 1].
        description: one line for a person.
    """

    name: str
    box: Box
    description: str = ""


@dataclasses.dataclass(frozen=True)
class Relation:
    """A relation between the objects of a picture.

    Attributes:
        name: "shake_hands".
        predicate: the words between subject and object, "is riding".
        forms: words and phrases that express it in a prompt; the predicate counts without being repeated here.
        prompts: templates with {subject} and, where there are two roles or more, {object}.
        roles: in the order of the objects: the subject first.
        symmetric: subject and object may change places.
        scene: pose rules by which the embedded world draws it (rbctl.menagerie.scenes reads them); None where nobody
            wrote any.
    """

    name: str
    predicate: str
    forms: tuple[str, ...]
    prompts: tuple[str, ...]
    roles: tuple[Role, ...]
    symmetric: bool = False
    scene: Mapping[str, Any] | None = None

    def prompt(self, names: Sequence[str], number: int = 0) -> str:
        """Template ``number`` (counted round) with the objects' names in it; "a" becomes "an" where it must."""
        template = self.prompts[number % len(self.prompts)]
        for place, name in zip(_PLACES, names, strict=False):
            article = r"\1n " if name[:1].lower() in tuple("aeiou") else r"\1 "
            template = re.sub(rf"\b([Aa]) (?={{{place}}})", article, template)
        return fill(template, **dict(zip(_PLACES, names, strict=False)))


def shipped() -> list[str]:
    """Names of the relations that come with rbctl."""
    return sorted(_shipped_files())


def load_relation(name_or_path: str | Path) -> Relation:
    """A shipped relation by name ("shake_hands", "shake hands", "shake-hands"), or one's own by the path of its YAML.

    Raises:
        InputError: there is no such relation or file, or the file does not describe one; the key is named.
    """
    given = str(name_or_path)
    if os.path.isfile(given):
        return _read(Path(given))
    name = _plain(given).replace(" ", "_")
    found = _shipped_files()
    if name in found:
        return _read(found[name])
    if given.endswith((".yaml", ".yml")):
        raise InputError(f"{given}: no such relation file")
    meant = find_relation(given, [_read(path) for path in found.values()])
    hint = f"; did you mean {meant.name!r}?" if meant else nearest(name, found)
    mend = hint or f"; give the path of a YAML file, or one of: {', '.join(sorted(found))}"
    raise InputError(f"{abridged(given)}: no such relation{mend}")


def find_relation(text: str, relations: Iterable[Relation]) -> Relation | None:
    """The relation that a prompt expresses, by whole words, whatever their case and hyphens.

    A form that lies inside a longer one's match does not count ("sits" inside "sits on"). None where no form is found,
    or where the forms left belong to different relations ("rides and hugs").
    """
    words = _plain(text)
    matches: list[tuple[int, int, Relation]] = []
    for relation in relations:
        for form in (relation.predicate, *relation.forms):
            # "is chased by" turns the roles round, so it is not a match where the roles differ.
            active = "" if relation.symmetric else "(?! by )"
            pattern = rf"(?<!\S){re.escape(_plain(form))}(?!\S){active}"
            matches += [(m.start(), m.end(), relation) for m in re.finditer(pattern, words)]

    left: dict[str, Relation] = {}
    last = (0, 0)  # of the matches that lie inside of no other
    for start, end, relation in sorted(matches, key=lambda match: (match[0], -match[1])):
        if end > last[1] or (start, end) == last:
            left[relation.name], last = relation, (start, end)
    return next(iter(left.values())) if len(left) == 1 else None


def _plain(text: str) -> str:
    """Lower-case words with single spaces between them; hyphens and punctuation gone."""
    return " ".join(re.findall(r"[^\W_]+(?:['’][^\W_]+)*", text.lower()))


def _shipped_files() -> dict[str, Path]:
    folder = package_files("rbctl.recipes") / "relations"
    return {Path(f.name).stem: Path(str(f)) for f in folder.iterdir() if f.name.endswith(".yaml")}


def _read(path: Path) -> Relation:
    content = read_yaml(path)
    known = [field.name for field in dataclasses.fields(Relation)]
    for key in content:
        if key not in known:
            mend = nearest(str(key), known) or f"; keys: {', '.join(known)}"
            raise InputError(f"{path}: no key {abridged(key)}{mend}")
    for key in ("predicate", "prompts", "roles"):
        if key not in content:
            raise InputError(f"{path}: {key} is missing")
    name = _words(path, "name", content.get("name", path.stem))
    if not _NAME.fullmatch(name):
        raise InputError(f"{path}: name: {abridged(name)} must be lower-case words joined by '_', as in 'shake_hands'")
    symmetric = content.get("symmetric", False)
    if not isinstance(symmetric, bool):
        raise InputError(f"{path}: symmetric: true or false was expected, not {abridged(symmetric)}")
    scene = content.get("scene")
    if scene is not None and not isinstance(scene, dict):
        raise InputError(f"{path}: scene: a mapping was expected, not {abridged(scene)}")
    roles = tuple(_role(path, number, role) for number, role in enumerate(_listed(path, "roles", content["roles"]), 1))
    if len({role.name for role in roles}) < len(roles):
        raise InputError(f"{path}: roles: two roles have the same name")
    return Relation(
        name=name,
        predicate=_words(path, "predicate", content["predicate"]),
        forms=tuple(
            _words(path, "forms", form) for form in _listed(path, "forms", content.get("forms", []), empty=True)
        ),
        prompts=tuple(_template(path, prompt, len(roles)) for prompt in _listed(path, "prompts", content["prompts"])),
        roles=roles,
        symmetric=symmetric,
        scene=scene,
    )


def _listed(path: Path, key: str, value: Any, empty: bool = False) -> list[Any]:
    if not isinstance(value, list) or not (value or empty):
        raise InputError(f"{path}: {key}: a list was expected, not {abridged(value)}")
    return value


def _words(path: Path, key: str, value: Any) -> str:
    if not isinstance(value, str) or not _plain(value):
        raise InputError(f"{path}: {key}: words were expected, not {abridged(value)}")
    return value


def _template(path: Path, value: Any, roles: int) -> str:
    template = _words(path, "prompts", value)
    try:
        named = set(places(template))
    except ValueError as error:
        raise InputError(f"{path}: prompts: {abridged(template)}: {error}") from error
    wanted = set(_PLACES[:roles])
    if named != wanted:
        must = " and ".join(f"{{{place}}}" for place in sorted(wanted))
        raise InputError(f"{path}: prompts: {abridged(template)} must hold {must}")
    return template


def _role(path: Path, number: int, value: Any) -> Role:
    where = f"{path}: role {number}"
    known = [field.name for field in dataclasses.fields(Role)]
    if not isinstance(value, dict):
        raise InputError(f"{where}: a mapping of name, box and description was expected, not {abridged(value)}")
    for key in value:
        if key not in known:
            raise InputError(f"{where}: no key {abridged(key)}{nearest(str(key), known)}")
    for key in ("name", "box"):
        if key not in value:
            raise InputError(f"{where}: {key} is missing")
    description = value.get("description", "")
    if not isinstance(description, str):
        raise InputError(f"{where}: description: words were expected, not {abridged(description)}")
    try:
        box = check_box(value["box"])
    except ValueError as error:
        raise InputError(f"{where}: box: {error}") from error
    return Role(_words(path, f"role {number}: name", value["name"]), box, description)
