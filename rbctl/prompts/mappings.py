"""Prompts in YAML: ours, and the configurations of the official code."""

from __future__ import annotations

import dataclasses
import os.path
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import MinLen

from rbctl import formats
from rbctl.errors import InputError
from rbctl.files import read_text
from rbctl.formats import Words
from rbctl.parsing import compose_yaml, construct_yaml, line_of
from rbctl.prompts.fields import Entry, Prompt, PromptObject, Settings, build
from rbctl.prompts.lines import split_text
from rbctl.relations import Box


@dataclass(frozen=True)
class PromptsFile:
    """Prompts, each with what it needs.

    Attributes:
        prompts: one for each picture, or for several of different seeds.
        defaults: settings of those prompts that do not name them.
    """

    prompts: tuple[Entry, ...]
    defaults: Settings | None = None


def read_mappings(path: Path) -> tuple[Prompt, ...]:
    """The prompts of a YAML file, or the one of an official configuration; every error names the line."""
    root = compose_yaml(read_text(path), str(path))
    content = construct_yaml(root, str(path))
    if isinstance(content, dict) and "images_path" in content and "prompts" not in content:
        return (read_official_config(path),)
    formats.read_nodes(PromptsFile, root, path)
    prompts = []
    for number, written in enumerate(content["prompts"]):
        where = f"{path}:{line_of(root, ('prompts', number))}"
        entry = formats.read(Entry, {**(content.get("defaults") or {}), **written}, where)
        text, objects, _ = split_text(entry.text, where, with_options=False)
        if objects and entry.objects is not None:
            raise InputError(f"{where}: objects: given in the text and as a list; leave one out")
        prompts.append(build(entry, text, entry.objects or objects, path.parent, where))
    return tuple(prompts)


def _unbatched(value: Any) -> Any:
    """The official form is a batch of one: [[cat, bear]], [[box, box]]."""
    if value is None:
        return ()
    if isinstance(value, list):
        batch = len(value) == 1 and isinstance(value[0], list) and any(isinstance(v, str | list) for v in value[0])
        return tuple(value[0] if batch else value)
    return value


@dataclass(frozen=True, kw_only=True)
class _OfficialConfig:
    prompt: Words
    images_path: Annotated[tuple[Words, ...], MinLen(1)]
    class_names: Annotated[tuple[Words, ...], formats.Check(_unbatched, before=True)] = ()
    phrases: Annotated[tuple[Words, ...], formats.Check(_unbatched, before=True)] = ()
    boxes: Annotated[tuple[Box, ...], formats.Check(_unbatched, before=True)] = ()
    lora_weights: Words | None = None


def read_official_config(path: Path, root: Path | None = None) -> Prompt:
    """Read one inference configuration of the official code (``prompt``, ``class_names``, ``images_path``, ``boxes``).

    A picture is looked for under ``root``, the file's folder and the folders above it, first by its whole path, then
    with leading folders dropped ("assets/image_prompts/dog.jpg" finds "image_prompts/dog.jpg"). The LoRA's path stays
    as written.

    Raises:
        InputError: a key is unknown, missing or wrong, or a picture is not found; the key is named.
    """
    path = Path(path)
    config = formats.read_yaml(_OfficialConfig, path)
    pictures, names = config.images_path, config.phrases or config.class_names
    if len(names) != len(pictures):
        raise InputError(f"{path}: images_path: {len(pictures)} pictures for {len(names)} names; give one for each")
    objects = [PromptObject(name=n, image=_search(path, root, p)) for n, p in zip(names, pictures, strict=True)]
    prompt = build(Entry(boxes=config.boxes or None), config.prompt.strip(), objects, Path(), str(path))
    return dataclasses.replace(prompt, lora=config.lora_weights)


def _search(path: Path, root: Path | None, name: str) -> Path:
    folders = [*([root] if root else []), path.parent, *path.resolve().parent.parents]
    parts = Path(name).parts
    for dropped in range(max(len(parts) - 1, 1)):  # a bare file name might match anything, so its folder stays
        for folder in folders:
            candidate = folder / Path(*parts[dropped:])
            if os.path.isfile(candidate):
                return candidate
    raise InputError(f"{path}: images_path: no picture {name} in {folders[0]} or above; give the folder it lies in")
