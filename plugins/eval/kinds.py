"""The kinds of benchmarks: what each one's YAML may say, and how its pictures and lists become cases."""

from __future__ import annotations

import abc
import dataclasses
import itertools
import os.path
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated

from annotated_types import Interval, MinLen

from rbctl.errors import InputError, abridged, nearest, shortlist
from rbctl.files import read_json, read_text
from rbctl.images import list_pictures
from rbctl.menagerie.cases import DrawnCase, Stream, draw_cases, true_boxes
from rbctl.menagerie.oracle import look
from rbctl.paths import inside
from rbctl.plugins.eval.case import Case, CaseObject, Number, Wanted
from rbctl.plugins.eval.config import Profile
from rbctl.relations import Box, load_relation, shipped
from rbctl.templates import fill, places

_MOST_CASES = 100_000
_STREAM = 0xE7A1  # of the embedded world's cases


def pictures_in(folder: Path) -> tuple[Path, ...]:
    """The pictures of a folder by name; the folder itself stands for them where there are none."""
    return tuple(list_pictures(folder)) if os.path.isdir(folder) else ()


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
            raise InputError(f"{path}: says not where its pictures lie; give their folder with --data")
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


# --- the embedded world --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Menagerie(Kind):
    """Scenes that the embedded world draws, ``cases`` of every relation.

    Attributes:
        same_boxes: groups of relations. Their cases are asked for in the boxes of the first one's scenes, so that boxes
            do not tell which of them is meant. Others have none: ``rbctl sample`` places them.
    """

    relations: tuple[str, ...] = ()
    cases: Annotated[int, Interval(ge=1, le=_MOST_CASES)] = 24
    seed: Annotated[int, Interval(ge=0, le=2**63 - 1)] = 0
    same_boxes: tuple[Annotated[tuple[str, ...], MinLen(2)], ...] = ()

    def load(self, path: Path, wanted: Wanted) -> tuple[Case, ...]:
        if wanted.data:
            raise InputError(f"--data {wanted.data}: the embedded world draws the pictures; leave it out")
        names = wanted.relations or self.relations
        relations = [load_relation(name) for name in names]
        stream = Stream(_STREAM, (self.seed,), portraits=2)  # two for the ceiling of CLIP-I and DINO
        drawn = draw_cases(relations, wanted.cases or self.cases, wanted.drawn, stream)
        spoken_to = dict(zip((relation.name for relation in relations), names, strict=True))
        cases = [of_world(case, spoken_to[case.relation.name]) for case in drawn]
        first_of = {name: group[0] for group in self.same_boxes for name in group}
        count = wanted.cases or self.cases
        boxes: dict[str, list[tuple[Box, ...]]] = {}
        for number, case in enumerate(cases):
            if (first := first_of.get(case.relation)) is not None:
                if first not in boxes:
                    boxes[first] = true_boxes(draw_cases([load_relation(first)], count, wanted.drawn, stream))
                own = boxes[first][number % count]
                objects = [dataclasses.replace(who, box=box) for who, box in zip(case.objects, own, strict=True)]
                cases[number] = dataclasses.replace(case, objects=tuple(objects))
        return tuple(cases)


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


@dataclass(frozen=True, kw_only=True)
class DreamBench(Pictured):
    """DreamBench as its repository lays it out: a folder a subject, and prompts_and_classes.txt.

    Attributes:
        live: class words that take the prompts of live subjects.
        subjects: only these; empty for all.
    """

    live: tuple[str, ...] = ()
    subjects: tuple[str, ...] = ()

    def cases_in(self, path: Path, data: Path, follow_outside: bool) -> tuple[Case, ...]:
        source = data / "prompts_and_classes.txt"
        lists = read_dreambench_lists(source)
        cases = []
        for name, word in lists.classes.items():
            if self.subjects and name not in self.subjects:
                continue
            group = "live" if word in self.live else "object"
            for number, prompt in enumerate(lists.live if group == "live" else lists.objects):
                who = subject(name, word, data / name)
                text = _filled(str(source), prompt, word)
                cases.append(Case(id=f"{name}-{number:02}", text=text, objects=(who,), group=group))
        return tuple(cases)


# --- CustomConcept101 ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class CustomConcept101(Pictured):
    """CustomConcept101 as its repository lays it out: ``file`` lists concepts, their pictures and prompts."""

    file: str = "dataset.json"

    def cases_in(self, path: Path, data: Path, follow_outside: bool) -> tuple[Case, ...]:
        source = inside(data, self.file, f"{path}: file", follow_outside)
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
            individuals = tuple(
                subject(Path(folder).name, word, data / folder) for folder, word in zip(folders, words, strict=True)
            )
            if not prompts.is_file():
                missing[prompts] = None
                continue
            lines = [line.strip() for line in read_text(prompts).splitlines() if line.strip()]
            names = "+".join(individual.subject for individual in individuals)
            for k, line in enumerate(lines):
                text = _filled(str(prompts), line, *words)
                cases.append(Case(id=f"{number:03}-{names}-{k:02}", text=text, objects=individuals, group=names))
        if missing:
            raise InputError(f"{source}: {len(missing)} prompt lists are missing: {shortlist(missing)}")
        return tuple(cases)


# --- scenes with a cast --------------------------------------------------------------------------------------------


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


# --- all combinations of categories --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Combination:
    """A prompt for every way to take a picture of each category.

    Attributes:
        of: the categories; one that is named twice gives two of its pictures.
        prompt: with {0}, {1} ... for the subjects' words, and perhaps {place}.
        boxes: where each is asked for.
    """

    of: tuple[str, ...]
    prompt: str
    boxes: tuple[Box, ...]

    def __post_init__(self) -> None:
        if len(self.of) != len(self.boxes):
            raise ValueError(f"boxes: one for each of {shortlist(self.of)} was expected, not {len(self.boxes)}")
        try:
            fill(self.prompt, *self.of, place="")
        except ValueError as error:
            raise ValueError(f"prompt: {abridged(self.prompt)}: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Combinations(Pictured):
    """Each picture of DATA/CATEGORY is a subject, named by its file: "dog2.jpg" is a dog.

    Attributes:
        classes: words for files whose names do not say what they show.
        places: where {place} may be.
    """

    combinations: Annotated[tuple[Combination, ...], MinLen(1)]
    classes: dict[str, str] = field(default_factory=dict)
    places: tuple[str, ...] = ()

    def cases_in(self, path: Path, data: Path, follow_outside: bool) -> tuple[Case, ...]:
        cases: list[Case] = []
        for number, entry in enumerate(self.combinations, 1):
            for cast in _casts(entry.of, data):
                words = [self.classes.get(p.stem, p.stem.rstrip("0123456789")) for p in cast]
                individuals = tuple(
                    CaseObject(name=word, image=p, references=(p,), subject=f"{p.parent.name}/{p.stem}", box=box)
                    for word, p, box in zip(words, cast, entry.boxes, strict=True)
                )
                names, group = "+".join(p.stem for p in cast), "+".join(entry.of)
                for k, place in enumerate(self.places if "{place}" in entry.prompt else ("",)):
                    if len(cases) == _MOST_CASES:
                        raise InputError(
                            f"{path}: combination {number}: more than {_MOST_CASES:,} cases; put fewer pictures in the "
                            "folders"
                        )
                    text = fill(entry.prompt, *words, place=place)
                    cases.append(Case(id=f"{number:02}-{names}-{k}", text=text, objects=individuals, group=group))
        return tuple(cases)


def _casts(of: Sequence[str], data: Path) -> Iterator[list[Path]]:
    """Every way to take a picture of each category, in the order of ``of``."""
    choices: dict[str, Iterable[tuple[Path, ...]]] = {}
    for category, count in Counter(of).items():
        pictures = pictures_in(data / category)
        # Places of pictures that are not there, so that these are told or left out as all missing ones are.
        lacking = [data / category / f"(picture {k + 1})" for k in range(len(pictures), count)]
        choices[category] = itertools.combinations((*pictures, *lacking), count)
    for chosen in itertools.product(*choices.values()):
        left = {category: iter(own) for category, own in zip(choices, chosen, strict=True)}
        yield [next(left[category]) for category in of]


KINDS: dict[str, type[Kind]] = {
    "dreambench": DreamBench,
    "customconcept101": CustomConcept101,
    "scenes": Scenes,
    "combinations": Combinations,
    "menagerie": Menagerie,
}
