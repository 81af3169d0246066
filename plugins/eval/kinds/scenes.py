"""Scenes with a cast."""

from __future__ import annotations

import itertools
import os.path
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated

from annotated_types import MinLen

from rbctl.errors import InputError, abridged, nearest, shortlist
from rbctl.files import read_json
from rbctl.paths import inside
from rbctl.plugins.eval.case import Case
from rbctl.plugins.eval.kinds.kind import Pictured, subject
from rbctl.relations import shipped
from rbctl.templates import fill, places


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A prompt with a place for each role, and who may stand there.

    Attributes:
        scene: the prompt, with {role} for each of ``roles``.
        casts: subjects in the order of the roles; each cast is a case.
    """

    scene: str
    roles: tuple[str, ...]
    casts: tuple[tuple[str, ...], ...]
    predicate: str = ""
    relation: str = ""

    def __post_init__(self) -> None:
        try:
            named = places(self.scene)
        except ValueError as error:
            raise ValueError(f"scene: {abridged(self.scene)}: {error}") from error
        if sorted(named) != sorted(self.roles):
            wanted = ", ".join(f"{{{role}}}" for role in self.roles)
            raise ValueError(f"{abridged(self.scene)} must hold each of {wanted} once")
        for cast in self.casts:
            if len(cast) != len(self.roles):
                raise ValueError(f"casts: {abridged(list(cast))} for roles {shortlist(self.roles)}")


@dataclass(frozen=True, kw_only=True)
class Scenes(Pictured):
    """Scenes with a cast; each subject's pictures lie in the folder of its name.

    Attributes:
        subjects: folder of pictures: words in the prompt.
        within: a folder of the data that holds those of the subjects, where there is one.
        prompts: a list in the data that takes the place of the casts, where there is one: objects with ``prompt``,
            ``sub1`` and perhaps ``sub2`` (the subjects' folders). Without ``sub2`` the prompt names the second subject.
    """

    subjects: Annotated[dict[str, str], MinLen(1)]
    scenes: Annotated[tuple[Scene, ...], MinLen(1)]
    within: str = ""
    prompts: str = ""

    def __post_init__(self) -> None:
        for number, scene in enumerate(self.scenes):
            for who in itertools.chain(*scene.casts):
                if who not in self.subjects:
                    raise ValueError(f"scenes[{number}].casts: no subject {abridged(who)}{nearest(who, self.subjects)}")

    def cases_in(self, path: Path, data: Path, follow_outside: bool) -> tuple[Case, ...]:
        folder = data / self.within if os.path.isdir(data / self.within) else data
        listed = self.prompts and next((f / self.prompts for f in (data, folder) if (f / self.prompts).is_file()), None)
        if not listed:
            return tuple(self._case(scene, cast, folder) for scene in self.scenes for cast in scene.casts)
        inside(data, os.path.relpath(listed, data), f"{path}: prompts", follow_outside)
        return tuple(self._listed(listed, folder))

    def _case(self, scene: Scene, cast: Sequence[str], folder: Path, text: str = "") -> Case:
        """A scene with a cast; ``text`` is its prompt where it is not the scene's own."""
        individuals = tuple(
            subject(who, self._words(who), folder / who, role) for who, role in zip(cast, scene.roles, strict=True)
        )
        words = {individual.role: individual.name for individual in individuals}
        return Case(
            id=f"{self.scenes.index(scene) + 1:02}-{'+'.join(cast)}",
            text=text or fill(_with_articles(scene.scene, words), **words),
            objects=individuals,
            predicate=scene.predicate,
            relation=scene.relation,
            spoken_to=scene.relation if scene.relation in shipped() else "",
            group=scene.relation,
        )

    def _words(self, who: str) -> str:
        return self.subjects.get(who) or re.sub(r"_\d+$", "", who).replace("_", " ")

    def _listed(self, source: Path, folder: Path) -> Iterator[Case]:
        """The cases of a list of prompts. A subject that it writes in one word ("plushiecow") is written in its words.

        Raises:
            InputError: it is no such list, or an entry's relation or second subject is none of the benchmark's.
        """
        entries = read_json(source)
        if not isinstance(entries, list) or not entries:
            raise InputError(f"{source}: a list of prompts was expected")
        for number, entry in enumerate(entries, 1):
            where = f"{source}: entry {number}"
            try:
                text = str(entry["prompt"])
                cast = [PurePosixPath(str(entry[key])).name for key in ("sub1", "sub2") if entry.get(key)]
            except (AttributeError, KeyError, TypeError) as error:
                raise InputError(f"{where}: an object with prompt and sub1 was expected") from error
            for words in {self._words(who) for who in (*self.subjects, *cast)}:
                text = re.sub(rf"\b{re.escape(words.replace(' ', ''))}\b", words, text)
            scene = next((scene for scene in self.scenes if scene.predicate and scene.predicate in text), None)
            if scene is None:
                raise InputError(f"{where}: {abridged(text)}: says no predicate of this benchmark")
            if len(cast) == 1 < len(scene.roles):
                cast += self._named(text.partition(scene.predicate)[2], besides=cast)
            if len(cast) != len(scene.roles):
                raise InputError(f"{where}: {abridged(text)}: no subject of this benchmark is its second; give sub2")
            yield self._case(scene, cast, folder, text)

    def _named(self, text: str, besides: Sequence[str]) -> list[str]:
        """The subject that a text begins with, after an article; the first that is called so."""
        called = re.sub(r"^\s*(an?|the)\s+", "", text)
        names = [who for who, words in self.subjects.items() if re.match(rf"{re.escape(words)}\b", called)]
        return [who for who in sorted(names, key=lambda n: -len(self.subjects[n])) if who not in besides][:1]


def _with_articles(text: str, words: dict[str, str]) -> str:
    """ "A {x}" becomes "An {x}" where the word in that place asks for it."""
    for place, word in words.items():
        if word[:1].lower() in tuple("aeiou"):
            text = re.sub(rf"\b([Aa]) (?={re.escape(f'{{{place}}}')})", r"\1n ", text)
    return text
