"""Benchmarks as data: a YAML file names the kind of layout, where its pictures lie, and what is asked for."""

from __future__ import annotations

import dataclasses
import os.path
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rbctl import formats
from rbctl.errors import InputError, abridged, nearest, shortlist
from rbctl.files import read_yaml
from rbctl.paths import shipped_yaml
from rbctl.plugins.eval.case import Case, Number, Wanted
from rbctl.plugins.eval.kinds import KINDS
from rbctl.plugins.eval.kinds.kind import Kind


@dataclass(frozen=True)
class Benchmark:
    """Cases and where they come from.

    Attributes:
        profiles: that score it unless others are asked for.
        source: one line for the report.
        published: rows of a paper's tables, by the number of individuals.
        left_out: cases left out for lack of pictures.
    """

    name: str
    profiles: tuple[str, ...]
    cases: tuple[Case, ...]
    source: str = ""
    published: Mapping[Number, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    left_out: int = 0


def find_benchmark(name: str) -> Path:
    """A benchmark's YAML by path, or by name among the shipped ones.

    Raises:
        InputError: neither is there; the nearest name is told.
    """
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise InputError(f"{name}: no such benchmark file")
        return Path(name)
    paths = shipped_yaml("benchmarks")
    if name not in paths:
        raise InputError(
            f"--bench {abridged(name)}: no such benchmark{nearest(name, paths) or '; ' + shortlist(sorted(paths))}"
        )
    return paths[name]


def read_benchmark(name: str) -> Kind:
    """What a benchmark's YAML says; none of its pictures or lists is looked at.

    Raises:
        InputError: the YAML is not there, or wrong.
    """
    path = find_benchmark(name)
    kind = read_yaml(path).get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise InputError(f"{path}: kind: {abridged(kind)}; one of {', '.join(KINDS)}")
    return formats.read_yaml(KINDS[kind], path)


def load_benchmark(name: str, wanted: Wanted) -> Benchmark:
    """All cases that are wanted, with their pictures checked.

    Raises:
        InputError: the YAML or its lists are wrong, or pictures are missing; how many, and the first are told.
    """
    path, listed = find_benchmark(name), read_benchmark(name)
    cases = listed.load(path, wanted)
    pictures = dict.fromkeys(individual.image for case in cases for individual in case.objects)
    missing = dict.fromkeys(picture for picture in pictures if not os.path.isfile(picture))
    if missing and not wanted.partial:
        raise InputError(
            f"{path}: {len(missing)} pictures are missing: {shortlist(missing)}; "
            "put them there, or leave their cases out with --partial"
        )
    here = tuple(case for case in cases if not any(individual.image in missing for individual in case.objects))
    if not here:
        raise InputError(f"{path}: no case is left, the pictures of all are missing; give their folder with --data")
    return Benchmark(
        listed.name or path.stem, listed.profiles, here, listed.source, listed.published, len(cases) - len(here)
    )


def of_relations(cases: Iterable[Case], names: Iterable[str]) -> tuple[Case, ...]:
    """The cases of some relations."""
    wanted = set(names)
    return tuple(case for case in cases if case.relation in wanted)


def seeded(cases: Sequence[Case]) -> tuple[Case, ...]:
    """The cases with seeds from their ids where none is given: a case's pictures hang on no other case."""
    return tuple(dataclasses.replace(case, seed=case.seed or zlib.crc32(case.id.encode())) for case in cases)
