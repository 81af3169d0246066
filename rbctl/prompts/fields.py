"""``Prompt`` and the fields of one, however it was written."""

from __future__ import annotations

import contextlib
import dataclasses
import os.path
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Interval, MinLen, MultipleOf

from rbctl import formats
from rbctl.errors import InputError, abridged
from rbctl.formats import Words
from rbctl.prompts.loras import NamedLora, map_paths, split_loras, take_tags
from rbctl.prompts.weights import read_weights
from rbctl.relations import Box, load_relation
from rbctl.schedulers import check_scheduler


def _unquoted(value: Any) -> Any:
    """The number that a text stands for, as a line of prompts.txt has it; what is none stays as it is."""
    if isinstance(value, str):
        for kind in (int, float):
            with contextlib.suppress(ValueError):
                return kind(value)
    return value


def _listed(value: Any) -> Any:
    """One value or several, as "1,2" in a line of prompts.txt."""
    values = value.split(",") if isinstance(value, str) else value
    return tuple(_unquoted(each) for each in values) if isinstance(values, list) else (values,)


def _path_like(written: str) -> str:
    if not split_loras(written):
        raise ValueError(f"words were expected, not {abridged(written)}")
    return written


_Text = formats.Check(_unquoted, before=True)
_List = formats.Check(_listed, before=True, schema={"type": ["array", "number", "string"]})
_Seed = Annotated[int, Interval(ge=0, le=2**63 - 10_001)]  # those of more images count up
_Pixels = Annotated[int, Interval(ge=0, le=65536), _Text]
_Side = Annotated[int, Interval(ge=64, le=8192), MultipleOf(8), _Text]
_Scale = Annotated[float, Interval(ge=0, le=10), _Text]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a prompt is drawn. None stands for "not given"; the stage's defaults fill it in.

    Attributes:
        width, height: pixels, multiples of 8.
        relation: a shipped relation's name, or the path of a relation file.
        seed: of the first picture, the next ones count up; or a list, one of each picture.
        lora: LoRAs, PATH[:WEIGHT] with commas between.
        lora_weight: one for all of these LoRAs, or for the one the stage finds; or a list, one for each.
        embedding: learned embeddings, PATH[:TOKEN] with commas between.
        scale: weight of the image branch (gamma).
        images: number of pictures, with seeds from ``seed`` on.
        scheduler: a sampler and perhaps a schedule, "DPM++ 2M Karras".
        original_width, original_height, crop_top, crop_left: SDXL's micro-conditioning, pixels; the picture's own size
            and zeros where not given.
    """

    negative_prompt: str | None = None
    width: _Side | None = None
    height: _Side | None = None
    seed: Annotated[tuple[_Seed, ...], MinLen(1), _List] | None = None
    guidance_scale: Annotated[float, Interval(ge=0, le=100), _Text] | None = None
    steps: Annotated[int, Interval(ge=1, le=1000), _Text] | None = None
    relation: Words | None = None
    lora: Annotated[Words, formats.Check(_path_like)] | None = None
    lora_weight: Annotated[tuple[Annotated[float, Interval(ge=-10, le=10)], ...], MinLen(1), _List] | None = None
    embedding: Words | None = None
    scale: _Scale | None = None
    images: Annotated[int, Interval(ge=1, le=10_000), _Text] | None = None
    scheduler: Annotated[str, formats.Check(check_scheduler)] | None = None
    original_width: _Pixels | None = None
    original_height: _Pixels | None = None
    crop_top: _Pixels | None = None
    crop_left: _Pixels | None = None


@dataclass(frozen=True, kw_only=True)
class PromptObject:
    """One individual to be shown.

    Attributes:
        name: the words for it in the prompt, "plush bear".
        image: its picture.
        box: where it goes, relative xyxy; None: the layout decides.
        subject_scale: weight of its own image tokens; None: the common scale.
    """

    name: Annotated[Words, formats.Check(str.strip)]
    image: Path
    box: Box | None = None
    subject_scale: _Scale | None = None


@dataclass(frozen=True, kw_only=True)
class Prompt(Settings):
    """One prompt.

    Attributes:
        text: the prompt with the objects' names in place.
        written: the same with its marks of weights, where it has some; see :meth:`weighed`.
        weights: of each character of the text; empty where all are 1.
        objects: N objects; either all have a box or none has.
        lora_tags: what <lora:NAME:WEIGHT> in the text named; they are gone from it.
        source: where it stands, "folder/prompts.txt:3".
    """

    text: str
    objects: tuple[PromptObject, ...] = ()
    lora_tags: tuple[NamedLora, ...] = ()
    written: str = ""
    weights: tuple[float, ...] = ()
    source: str = ""

    def weighed(self) -> Prompt:
        """The same with A1111's marks taken out of the text, as its weights.

        Raises:
            InputError: they are wrong, or of a kind that is not supported.
        """
        read = read_weights(self.text, self.source)
        if read.words == self.text and not read.weights:
            return self
        if not read.words.strip():
            raise InputError(f"{self.source}: the prompt is empty; write what the picture shows")
        objects = tuple(
            dataclasses.replace(o, name=read_weights(o.name, self.source).words.strip()) for o in self.objects
        )
        return dataclasses.replace(self, text=read.words, weights=read.weights, written=self.text, objects=objects)


@dataclass(frozen=True, kw_only=True)
class Entry(Settings):
    """A prompt as it is written.

    Attributes:
        text: the prompt; {name: picture} marks an individual, {{ and }} are plain braces.
        objects: the individuals, where the text marks none.
        boxes: relative xyxy, one for each individual in their order, or none.
        subject_scale: weight of each individual's own image tokens.
    """

    text: str = ""
    objects: tuple[PromptObject, ...] | None = None
    boxes: tuple[Box | None, ...] | None = None
    subject_scale: tuple[_Scale | None, ...] | None = None


def build(
    entry: Entry,
    text: str,
    objects: Sequence[PromptObject],
    folder: Path,
    where: str,
    names: Mapping[str, str] | None = None,
) -> Prompt:
    """The prompt that an entry stands for.

    Args:
        text, objects: of the entry, with the objects taken out of the text.
        folder: what the paths are relative to.
        names: a field's name as the user wrote it.

    Raises:
        InputError: fields do not go together, or a picture or relation is missing.
    """
    names = names or {}
    objects = _once(objects, max(len(listed) for listed in (entry.boxes or (), entry.subject_scale or ())))
    try:
        text, tags = take_tags(text)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error
    if not text:
        raise InputError(f"{where}: the prompt is empty; write what the picture shows")
    settings = {field.name: getattr(entry, field.name) for field in dataclasses.fields(Settings)}
    for field in ("embedding", "relation"):
        if settings[field]:
            settings[field] = _near(folder, settings[field])
    if settings["lora"]:
        near = str(folder / settings["lora"]) if os.path.isfile(folder / settings["lora"]) else ""
        settings["lora"] = near or map_paths(settings["lora"], lambda path: _near(folder, path))
    _check_seeds(settings, where, names)
    if settings["relation"]:
        try:
            relation = load_relation(settings["relation"])
        except InputError as error:
            raise InputError(f"{where}: {names.get('relation', 'relation')}: {error}") from error
        if not os.path.isfile(settings["relation"]):
            settings["relation"] = relation.name
    for field, key in (("boxes", "box"), ("subject_scale", "subject_scale")):
        listed, name = getattr(entry, field), names.get(field, field)
        if listed is None:
            continue
        if len(listed) != len(objects):
            count = f"{len(listed)} given, {len(objects)} expected"
            raise InputError(f"{where}: {name}: {count}; give one per object, or none")
        if any(getattr(individual, key) is not None for individual in objects):
            raise InputError(f"{where}: {name}: given here and at the objects; leave one out")
        objects = [dataclasses.replace(o, **{key: value}) for o, value in zip(objects, listed, strict=True)]
    if len({individual.box is None for individual in objects}) > 1:
        raise InputError(f"{where}: some objects have a box and some have none; give one for each, or none")
    for individual in objects:
        if not os.path.isfile(folder / individual.image):
            what = f"no picture {str(folder / individual.image)[:500]}; paths are relative to the prompts file"
            raise InputError(f"{where}: {individual.name[:60]}: {what}")
    placed = tuple(dataclasses.replace(individual, image=folder / individual.image) for individual in objects)
    return Prompt(text=text, objects=placed, lora_tags=tags, source=where, **settings)


def _once(objects: Sequence[PromptObject], settings: int) -> Sequence[PromptObject]:
    """An individual that is marked twice, by name and picture, is one; unless each mark has settings of its own."""
    return objects if settings == len(objects) else list(dict.fromkeys(objects))


def _check_seeds(settings: Mapping[str, Any], where: str, names: Mapping[str, str]) -> None:
    """Raises InputError where a list of seeds is not one for each picture."""
    seeds, images = settings["seed"] or (), settings["images"]
    if len(seeds) > 1 and images not in (None, len(seeds)):
        name = names.get("seed", "seed")
        raise InputError(f"{where}: {name}: {len(seeds)} seeds for {images} images; leave the number of images out")


def _near(folder: Path, written: str) -> str:
    """Paths with commas between, those of files in ``folder`` made whole; a token's ":<name>" stays."""
    if os.path.isfile(folder / written):
        return str(folder / written)

    def whole(part: str) -> str:
        path = part.partition(":<")[0]
        return str(folder / path) + part[len(path) :] if os.path.isfile(folder / path) else part

    return ",".join(whole(part.strip()) for part in written.split(","))
