"""A kind of benchmark: what every YAML says, and how pictures in a folder become cases."""

from __future__ import annotations

import abc
import os.path
from dataclasses import dataclass, field
from pathlib import Path

from rbctl.errors import InputError, abridged, nearest
from rbctl.images import list_pictures
from rbctl.paths import inside
from rbctl.plugins.eval.case import Case, CaseObject, Number, Wanted
from rbctl.plugins.eval.config import Profile
from rbctl.templates import fill

MOST_CASES = 100_000


def pictures_in(folder: Path) -> tuple[Path, ...]:
    """The pictures of a folder by name; the folder itself stands for them where there are none."""
    return tuple(list_pictures(folder)) if os.path.isdir(folder) else ()


def subject(name: str, words: str, folder: Path, role: str = "") -> CaseObject:
    """A subject whose real pictures lie in a folder; the first is its image prompt."""
    real = pictures_in(folder)
    return CaseObject(name=words, image=real[0] if real else folder, references=real, subject=name, role=role)


def filled(where: str, template: str, /, *words: str, **named: str) -> str:
    """A prompt with its places filled.

    Raises:
        InputError: it has other places, or a bracket that is not closed.
    """
    try:
        return fill(template, *words, **named)
    except ValueError as error:
        raise InputError(f"{where}: {abridged(template)}: not a prompt with places in braces ({error})") from error


@dataclass(frozen=True, kw_only=True)
class Kind(abc.ABC):
    """A benchmark's YAML.

    Attributes:
        kind: how its pictures and lists are laid out.
        profiles: that score it unless others are asked for.
        data: folder of the pictures, from the YAML on.
        source: one line for the report.
        published: rows of a paper's tables: by "single" and "multi" (individuals of a case), what a row is called and
            its numbers by metric.
    """

    kind: str
    name: str = ""
    profiles: tuple[Profile, ...] = ("relationbench",)
    data: str = ""
    source: str = ""
    published: dict[Number, dict[str, dict[str, float]]] = field(default_factory=dict)

    @abc.abstractmethod
    def load(self, path: Path, wanted: Wanted) -> tuple[Case, ...]:
        """The cases that are wanted; whether their pictures are there is not asked.

        Args:
            path: of the YAML.

        Raises:
            InputError: the YAML or a list in its folder is wrong, or the folder is not there.
        """


class Pictured(Kind):
    """A benchmark whose pictures lie in a folder; the embedded world's are drawn."""

    @abc.abstractmethod
    def cases_in(self, path: Path, data: Path, follow_outside: bool) -> tuple[Case, ...]:
        """All cases of the YAML ``path``, with their pictures in the folder ``data``."""

    def load(self, path: Path, wanted: Wanted) -> tuple[Case, ...]:
        # The YAML is the user's own word, as a prompts file is; the lists in the folder that it names are not.
        data = wanted.data or (path.parent / self.data if self.data else None)
        if data is None:
            raise InputError(f"{path}: does not say where its pictures are; give their folder with --data")
        if not os.path.isdir(data):
            raise InputError(f"--data {data}: no such folder")
        cases = self.cases_in(path, data, wanted.follow_outside)
        people = [individual for case in cases for individual in case.objects]
        for image in dict.fromkeys(image for who in people for image in (who.image, *who.references)):
            name = os.path.relpath(image, data) if image.is_relative_to(data) else str(image)
            inside(data, name, f"{path}: a picture", wanted.follow_outside)
        groups = sorted({case.group for case in cases})
        for relation in wanted.relations:
            if relation not in groups:
                raise InputError(f"--relations {relation}: not in {path}{nearest(relation, groups)}")
        return tuple(case for case in cases if not wanted.relations or case.group in wanted.relations)
