"""Benchmarks as data: a YAML file names the kind of layout, where its pictures lie, and what is asked for."""

from __future__ import annotations

import dataclasses
import itertools
import os.path
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

from rbctl.errors import InputError, abridged, nearest
from rbctl.files import read_json, read_text, read_yaml
from rbctl.menagerie.cases import DrawnCase, Stream, draw_cases
from rbctl.menagerie.oracle import look
from rbctl.paths import inside
from rbctl.plugins.eval.case import Case, CaseObject
from rbctl.plugins.eval.metrics import PROFILES
from rbctl.relations import check_box, load_relation, shipped
from rbctl.templates import fill, places

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
_TEXT, _TEXTS, _CASES, _SEED = "text", "a list of texts", "a whole number from 1 to 100000", "a whole number below 2^63"
_MAPPING, _MAPPINGS = "a mapping", "a list of mappings"
_FORMS: dict[str, Callable[[Any], bool]] = {
    _TEXT: lambda value: isinstance(value, str),
    _TEXTS: lambda value: isinstance(value, list) and all(isinstance(part, str) for part in value),
    _MAPPING: lambda value: isinstance(value, dict),
    _MAPPINGS: lambda value: isinstance(value, list) and all(isinstance(part, dict) for part in value),
    _CASES: lambda value: type(value) is int and 1 <= value <= 100_000,
    _SEED: lambda value: type(value) is int and 0 <= value < 2**63,
}
_MOST_CASES = 100_000
_STREAM = 0xE7A1  # of the embedded world's cases
KEYS = {
    "dreambench": {"live": _TEXTS, "subjects": _TEXTS},
    "customconcept101": {"file": _TEXT},
    "scenes": {"subjects": _MAPPING, "scenes": _MAPPINGS},
    "combinations": {"classes": _MAPPING, "places": _TEXTS, "combinations": _MAPPINGS},
    "menagerie": {"relations": _TEXTS, "cases": _CASES, "seed": _SEED},
}
_COMMON = {"name": _TEXT, "kind": _TEXT, "profiles": _TEXTS, "data": _TEXT, "source": _TEXT}


@dataclass(frozen=True)
class Benchmark:
    """Cases and where they come from.

    Attributes:
        path: of the YAML.
        profiles: that score it unless others are asked for.
        source: one line for the report.
        left_out: cases left out for lack of pictures.
    """

    name: str
    path: Path
    profiles: tuple[str, ...]
    cases: tuple[Case, ...]
    source: str = ""
    left_out: int = 0


@dataclass(frozen=True)
class Wanted:
    """What of a benchmark is wanted.

    Attributes:
        data: folder of the pictures, instead of the YAML's.
        relations: only these (names, or for drawn benchmarks paths of YAML files too); empty for all.
        cases: a relation, where the benchmark draws them.
        partial: leave cases without pictures out.
        drawn: where drawn pictures go.
        follow_outside: pictures may lie outside of their folder.
    """

    data: Path | None = None
    relations: tuple[str, ...] = ()
    cases: int | None = None
    partial: bool = False
    drawn: Path = field(default_factory=lambda: Path("drawn"))
    follow_outside: bool = False


def find_benchmark(name: str) -> Path:
    """A benchmark's YAML by path, or by name among the shipped ones.

    Raises:
        InputError: neither is there; the nearest name is told.
    """
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise InputError(f"{name}: no such benchmark file")
        return Path(name)
    folder = package_files("rbctl.recipes") / "benchmarks"
    found = {Path(f.name).stem: Path(str(f)) for f in folder.iterdir() if f.name.endswith(".yaml")}
    if name not in found:
        raise InputError(f"--bench {name}: no such benchmark{nearest(name, found) or '; ' + ', '.join(sorted(found))}")
    return found[name]


def load_benchmark(name: str, wanted: Wanted) -> Benchmark:
    """All cases that are wanted, with their pictures checked.

    Raises:
        InputError: the YAML or its lists are wrong, or pictures are missing (all are named).
    """
    path = find_benchmark(name)
    content = read_yaml(path)
    kind = content.get("kind")
    if not isinstance(kind, str) or kind not in KEYS:
        raise InputError(f"{path}: kind: {abridged(kind)}; one of {', '.join(KEYS)}")
    known = _COMMON | KEYS[kind]
    for key, value in content.items():
        if key not in known:
            raise InputError(
                f"{path}: no key {abridged(key)}{nearest(str(key), known) or '; keys: ' + ', '.join(known)}"
            )
        if not _FORMS[known[key]](value):
            raise InputError(f"{path}: {key}: {known[key]} was expected, not {abridged(value)}")
    profiles = tuple(content.get("profiles", ("relationbench",)))
    for profile in profiles:
        if profile not in PROFILES:
            raise InputError(f"{path}: profiles: no {abridged(profile)}{nearest(str(profile), PROFILES)}")
    if kind == "menagerie":
        names = wanted.relations or tuple(content.get("relations", ()))
        stream = Stream(_STREAM, (content.get("seed", 0),), portraits=2)  # two for the ceiling of CLIP-I and DINO
        relations = [load_relation(relation) for relation in names]
        drawn = draw_cases(relations, wanted.cases or content.get("cases", 24), wanted.drawn, stream)
        told = dict(zip((relation.name for relation in relations), names, strict=True))
        cases = tuple(of_world(case, told[case.relation.name]) for case in drawn)
    else:
        # The YAML is the user's own word, as a prompts file is; the lists in the folder that it names are not.
        data = wanted.data or (path.parent / content["data"] if content.get("data") else None)
        if data is None:
            raise InputError(f"{path}: says not where its pictures lie; give their folder with --data")
        if not os.path.isdir(data):
            raise InputError(f"--data {data}: no such folder")
        cases = _READERS[kind](path, content, data, wanted.follow_outside)
        people = [who for case in cases for who in case.objects]
        for image in dict.fromkeys(image for who in people for image in (who.image, *who.references)):
            name = os.path.relpath(image, data) if image.is_relative_to(data) else str(image)
            inside(data, name, f"{path}: a picture", wanted.follow_outside)
        if wanted.relations:
            groups = sorted({case.group for case in cases})
            for relation in wanted.relations:
                if relation not in groups:
                    raise InputError(f"--relations {relation}: not in {path}{nearest(relation, groups)}")
            cases = tuple(case for case in cases if case.group in wanted.relations)
    here, missing = _present(cases)
    if missing and not wanted.partial:
        raise InputError(
            f"{path}: {len(missing)} pictures are missing: {', '.join(map(str, missing))}; "
            "put them there, or leave their cases out with --partial"
        )
    if not here:
        raise InputError(f"{path}: no case is left, the pictures of all are missing; give their folder with --data")
    return Benchmark(
        name=str(content.get("name", path.stem)),
        path=path,
        profiles=profiles,
        cases=here,
        source=str(content.get("source", "")),
        left_out=len(cases) - len(here),
    )


def of_world(drawn: DrawnCase, spoken_to: str) -> Case:
    """A case that the embedded world drew.

    Args:
        spoken_to: its relation as other stages are told of it, a name or a YAML's path.
    """
    relation = drawn.relation
    objects = tuple(
        CaseObject(
            name=individual.species,
            image=portraits[0],
            references=portraits,
            subject="|".join(map(str, (*look(individual), individual.proportions))),
            role=role.name,
        )
        for individual, portraits, role in zip(drawn.individuals, drawn.portraits, relation.roles, strict=True)
    )
    return Case(
        id=drawn.id,
        text=drawn.scene.caption,
        objects=objects,
        relation=relation.name,
        spoken_to=spoken_to,
        group=relation.name,
        seed=drawn.seed,
        truth=drawn,
    )


def _present(cases: Sequence[Case]) -> tuple[tuple[Case, ...], list[Path]]:
    """Cases whose pictures are all there, and the pictures that are not."""
    needed = dict.fromkeys(thing.image for case in cases for thing in case.objects)
    missing = [path for path in needed if not os.path.isfile(path)]
    absent = set(missing)
    return tuple(c for c in cases if not any(thing.image in absent for thing in c.objects)), missing


def pictures_in(folder: Path) -> tuple[Path, ...]:
    """The pictures of a folder by name; the folder itself stands for them where there are none."""
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in PICTURES) if os.path.isdir(folder) else []
    return tuple(found)


def subject(name: str, words: str, folder: Path, role: str = "") -> CaseObject:
    """A subject whose real pictures lie in a folder; the first is its image prompt."""
    real = pictures_in(folder)
    return CaseObject(name=words, image=real[0] if real else folder, references=real, subject=name, role=role)


def _filled(where: str, template: str, /, *words: str, **named: str) -> str:
    """A prompt with its places filled.

    Raises:
        InputError: it has other places, or a bracket that is not closed.
    """
    try:
        return fill(template, *words, **named)
    except ValueError as error:
        raise InputError(f"{where}: {abridged(template)}: not a prompt with places in braces ({error})") from error


# --- DreamBench ----------------------------------------------------------------------------------------------------

_PROMPT = re.compile(r"^[ \t]*'(.+)'\.format\(unique_token, class_token\)", re.MULTILINE)


@dataclass(frozen=True)
class DreamBenchLists:
    """What prompts_and_classes.txt says.

    Attributes:
        classes: class word by subject.
        objects, live: the two prompt lists, with {} for the class word, the rare token left out.
    """

    classes: dict[str, str]
    objects: tuple[str, ...]
    live: tuple[str, ...]


def read_dreambench_lists(path: Path) -> DreamBenchLists:
    """Read the official prompts_and_classes.txt.

    Raises:
        InputError: a section is missing.
    """
    text = read_text(path)
    head, _, rest = text.partition("Object Prompts")
    objects, _, live = rest.partition("Live Subject Prompts")
    rows = [line.split(",") for line in head.splitlines() if line.count(",") == 1]
    classes = {name.strip(): word.strip() for name, word in rows if name.strip() != "subject_name"}
    lists = [tuple(_plain_prompt(p) for p in _PROMPT.findall(part)) for part in (objects, live)]
    if not (classes and all(lists)):
        raise InputError(f"{path}: not DreamBench's prompts_and_classes.txt (classes, object prompts, live prompts)")
    return DreamBenchLists(classes, *lists)


def _plain_prompt(template: str) -> str:
    return " ".join(template.replace("{0}", "").replace("{1}", "{}").split())


def _dreambench(path: Path, content: dict[str, Any], data: Path, _follow_outside: bool) -> tuple[Case, ...]:
    source = data / "prompts_and_classes.txt"
    lists = read_dreambench_lists(source)
    living, only = content.get("live", ()), content.get("subjects")
    cases = []
    for name, word in lists.classes.items():
        if only and name not in only:
            continue
        group = "live" if word in living else "object"
        for number, prompt in enumerate(lists.live if group == "live" else lists.objects):
            who = subject(name, word, data / name)
            text = _filled(str(source), prompt, word)
            cases.append(Case(id=f"{name}-{number:02}", text=text, objects=(who,), group=group))
    return tuple(cases)


# --- CustomConcept101 ----------------------------------------------------------------------------------------------


def _customconcept101(path: Path, content: dict[str, Any], data: Path, follow_outside: bool) -> tuple[Case, ...]:
    source = inside(data, content.get("file", "dataset.json"), f"{path}: file", follow_outside)
    listed = read_json(source)
    if not isinstance(listed, list) or not listed:
        raise InputError(f"{source}: a list of concepts was expected")
    cases: list[Case] = []
    missing: dict[Path, None] = {}
    for number, entry in enumerate(listed):
        parts = entry if isinstance(entry, list) else [entry]
        try:
            concepts = [part for part in parts if "class_prompt" in part]
            folders = [str(part["instance_data_dir"]).removeprefix("./") for part in concepts]
            words = [str(part["class_prompt"]) for part in concepts]
            # A single concept names its own prompts; a pair's stand in an entry beside the two.
            key = "prompt_filename" if len(parts) == 1 else "prompt_filename_compose"
            (prompts,) = (
                inside(data, str(part[key]), f"{source}: {key}", follow_outside) for part in parts if key in part
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{source}: entry {number + 1} is no concept of CustomConcept101") from error
        things = tuple(
            subject(Path(folder).name, word, data / folder) for folder, word in zip(folders, words, strict=True)
        )
        if not prompts.is_file():
            missing[prompts] = None
            continue
        lines = [line.strip() for line in read_text(prompts).splitlines() if line.strip()]
        names = "+".join(thing.subject for thing in things)
        for k, line in enumerate(lines):
            text = _filled(str(prompts), line, *words)
            cases.append(Case(id=f"{number:03}-{names}-{k:02}", text=text, objects=things, group=names))
    if missing:
        raise InputError(f"{source}: {len(missing)} prompt lists are missing: {', '.join(map(str, missing))}")
    return tuple(cases)


# --- scenes with a cast --------------------------------------------------------------------------------------------


def _scenes(path: Path, content: dict[str, Any], data: Path, _follow_outside: bool) -> tuple[Case, ...]:
    if not (content.get("subjects") and content.get("scenes")):
        raise InputError(f"{path}: subjects and scenes were expected; docs/eval.md shows them")
    subjects, scenes = {str(name): str(words) for name, words in content["subjects"].items()}, content["scenes"]
    cases = []
    for number, scene in enumerate(scenes, 1):
        where = f"{path}: scene {number}"
        roles, casts, text = (scene.get(key) for key in ("roles", "casts", "scene"))
        if not (isinstance(text, str) and _FORMS[_TEXTS](roles) and isinstance(casts, list)):
            raise InputError(f"{where}: scene (a text), roles (words) and casts (a list) were expected")
        try:
            named = places(text)
        except ValueError as error:
            raise InputError(f"{where}: scene: {abridged(text)}: {error}") from error
        if sorted(named) != sorted(roles):
            raise InputError(f"{where}: {abridged(text)} must hold each of {', '.join(f'{{{r}}}' for r in roles)} once")
        relation = str(scene.get("relation") or "")
        for cast in casts:
            if not isinstance(cast, list) or len(cast) != len(roles):
                raise InputError(f"{where}: casts: {abridged(cast)} for roles {', '.join(roles)}")
            cast = [str(who) for who in cast]
            for who in cast:
                if who not in subjects:
                    raise InputError(f"{where}: casts: no subject {abridged(who)}{nearest(who, subjects)}")
            things = tuple(subject(who, subjects[who], data / who, role) for who, role in zip(cast, roles, strict=True))
            words = {thing.role: thing.name for thing in things}
            cases.append(
                Case(
                    id=f"{number:02}-{'+'.join(cast)}",
                    text=_filled(f"{where}: scene", _with_articles(text, words), **words),
                    objects=things,
                    predicate=str(scene.get("predicate") or ""),
                    relation=relation,
                    spoken_to=relation if relation in shipped() else "",
                    group=relation,
                )
            )
    return tuple(cases)


def _with_articles(text: str, words: dict[str, str]) -> str:
    """ "A {x}" becomes "An {x}" where the word in that place asks for it."""
    for place, word in words.items():
        if word[:1].lower() in tuple("aeiou"):
            text = re.sub(rf"\b([Aa]) (?={re.escape(f'{{{place}}}')})", r"\1n ", text)
    return text


# --- all combinations of categories --------------------------------------------------------------------------------


def _combinations(path: Path, content: dict[str, Any], data: Path, _follow_outside: bool) -> tuple[Case, ...]:
    """Each picture of DATA/CATEGORY is a subject, named by its file: "dog2.jpg" is a dog."""
    classes, scenery = content.get("classes", {}), content.get("places", ())
    if not content.get("combinations"):
        raise InputError(f"{path}: combinations (a list) was expected")
    cases: list[Case] = []
    for number, entry in enumerate(content["combinations"], 1):
        where = f"{path}: combination {number}"
        of, prompt, boxes = (entry.get(key) for key in ("of", "prompt", "boxes"))
        if not (_FORMS[_TEXTS](of) and isinstance(prompt, str) and isinstance(boxes, list) and len(of) == len(boxes)):
            raise InputError(f"{where}: of (categories), prompt and boxes, one for each, were expected")
        _filled(f"{where}: prompt", prompt, *of, place="")
        try:
            boxes = [check_box(box) for box in boxes]
        except ValueError as error:
            raise InputError(f"{where}: boxes: {error}") from error
        choices: dict[str, Iterable[tuple[Path, ...]]] = {}
        for category, count in Counter(of).items():  # a category that is named twice gives two of its pictures
            found = pictures_in(data / category)
            # Places of pictures that are not there, so that these are told or left out as all missing ones are.
            lacking = [data / category / f"(picture {k + 1})" for k in range(len(found), count)]
            choices[category] = itertools.combinations((*found, *lacking), count)
        for chosen in itertools.product(*choices.values()):
            left = {category: iter(own) for category, own in zip(choices, chosen, strict=True)}
            cast = [next(left[category]) for category in of]
            words = [str(classes.get(p.stem, p.stem.rstrip("0123456789"))) for p in cast]
            things = tuple(
                CaseObject(name=word, image=p, references=(p,), subject=f"{p.parent.name}/{p.stem}", box=box)
                for word, p, box in zip(words, cast, boxes, strict=True)
            )
            names = "+".join(p.stem for p in cast)
            for k, place in enumerate(scenery if "{place}" in prompt else ("",)):
                if len(cases) == _MOST_CASES:
                    raise InputError(f"{where}: more than {_MOST_CASES:,} cases; put fewer pictures in the folders")
                text = fill(prompt, *words, place=place)
                cases.append(Case(id=f"{number:02}-{names}-{k}", text=text, objects=things, group="+".join(of)))
    return tuple(cases)


_READERS: dict[str, Callable[[Path, dict[str, Any], Path, bool], tuple[Case, ...]]] = {
    "dreambench": _dreambench,
    "customconcept101": _customconcept101,
    "scenes": _scenes,
    "combinations": _combinations,
}


def of_relations(cases: Iterable[Case], names: Iterable[str]) -> tuple[Case, ...]:
    """The cases of some relations."""
    wanted = set(names)
    return tuple(case for case in cases if case.relation in wanted)


def seeded(cases: Sequence[Case]) -> tuple[Case, ...]:
    """The cases with seeds from their ids where none is given: a case's pictures hang on no other case."""
    return tuple(dataclasses.replace(case, seed=case.seed or zlib.crc32(case.id.encode())) for case in cases)
