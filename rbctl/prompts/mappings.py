"""Prompts in YAML: ours, and the configurations of the official code."""

from __future__ import annotations

import dataclasses
import os.path
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from rbctl.errors import InputError, abridged
from rbctl.files import read_text, read_yaml
from rbctl.parsing import compose_yaml
from rbctl.prompts.fields import CHECKS, Prompt, PromptObject, build, check_field, known_keys, words
from rbctl.prompts.lines import split_text


def read_mappings(path: Path, content: Mapping[str, Any]) -> tuple[Prompt, ...]:
    """The prompts of a YAML file; every error names the line where its prompt starts."""
    known_keys(str(path), content, ("prompts", "defaults"))
    listed, defaults = content.get("prompts"), content.get("defaults") or {}
    if not isinstance(listed, list):
        raise InputError(f"{path}: prompts: a list was expected; write '- text: ...' for each")
    if not isinstance(defaults, dict):
        raise InputError(f"{path}: defaults: a mapping was expected, not {abridged(defaults)}")
    known_keys(f"{path}: defaults", defaults, CHECKS)
    prompts = []
    lines = _item_lines(path)
    for number, entry in enumerate(listed):
        line = lines[number] if number < len(lines) else 1  # a list merged in by << has no line here
        where = f"{path}:{line}"
        if not isinstance(entry, dict):
            raise InputError(f"{where}: a mapping was expected, not {abridged(entry)}; write '- text: ...'")
        known_keys(where, entry, ("text", "objects", "boxes", "subject_scale", *CHECKS))
        values = {**defaults, **entry}
        text, inline, _ = split_text(
            check_field(words, values.pop("text", ""), where, "text"), where, with_options=False
        )
        objects: Any = values.pop("objects", None)
        if objects is None:
            objects = [{"name": name, "image": picture} for name, picture in inline]
        elif inline:
            raise InputError(f"{where}: objects: given in the text and as a list; leave one out")
        else:
            _check_objects(objects, where)
        given = {key: value for key, value in values.items() if value is not None}
        prompts.append(build(text, objects, given, path.parent, where, {}))
    return tuple(prompts)


def _check_objects(objects: Any, where: str) -> None:
    if not isinstance(objects, list) or not all(isinstance(entry, dict) for entry in objects):
        raise InputError(f"{where}: objects: a list of mappings with name and image was expected")
    for number, entry in enumerate(objects, 1):
        known_keys(f"{where}: object {number}", entry, [field.name for field in dataclasses.fields(PromptObject)])
        for key in ("name", "image"):
            if key not in entry:
                raise InputError(f"{where}: object {number}: {key} is missing")


def _item_lines(path: Path) -> list[int]:
    """Line numbers, from 1, of the items of the list ``prompts``; none where it is not written out."""
    root = compose_yaml(read_text(path), str(path))
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    items = [value.value for key, value in pairs if key.value == "prompts"]
    return [item.start_mark.line + 1 for item in items[-1]] if items else []


def read_official_config(path: Path, root: Path | None = None) -> Prompt:
    """Read one inference configuration of the official code (``prompt``, ``class_names``, ``images_path``, ``boxes``).

    A picture is looked for under ``root``, the file's folder and the folders above it, first by its whole path, then
    with leading folders dropped ("assets/image_prompts/dog.jpg" finds "image_prompts/dog.jpg"). The LoRA's path stays
    as written.

    Raises:
        InputError: a key is unknown, missing or wrong, or a picture is not found; the key is named.
    """
    path = Path(path)
    content = read_yaml(path)
    known_keys(str(path), content, ("lora_weights", "class_names", "prompt", "images_path", "boxes", "phrases"))
    for key in ("prompt", "images_path"):
        if key not in content:
            raise InputError(f"{path}: {key} is missing")
    pictures = _strings(path, "images_path", content["images_path"])
    phrases = content.get("phrases")
    if isinstance(phrases, list) and len(phrases) == 1 and isinstance(phrases[0], list):
        phrases = phrases[0]  # the official form is a batch of one
    names = _strings(path, "phrases", phrases) if phrases else _strings(path, "class_names", content.get("class_names"))
    if len(names) != len(pictures):
        raise InputError(f"{path}: images_path: {len(pictures)} pictures for {len(names)} names; give one for each")
    boxes = content.get("boxes")
    if isinstance(boxes, list) and len(boxes) == 1 and isinstance(boxes[0], list) and len(boxes[0]) == len(names):
        boxes = boxes[0]
    found = [{"name": n, "image": str(_search(path, root, p))} for n, p in zip(names, pictures, strict=True)]
    values = {"boxes": boxes or None, "lora": content.get("lora_weights")}
    text = check_field(words, content["prompt"], str(path), "prompt").strip()
    given = {key: value for key, value in values.items() if value is not None}
    prompt = build(text, found, given, Path(), str(path), {"lora": "lora_weights"})
    return dataclasses.replace(prompt, lora=content.get("lora_weights"))


def _strings(path: Path, key: str, value: Any) -> list[str]:
    if not isinstance(value, list) or not value or not all(isinstance(v, str) and v.strip() for v in value):
        raise InputError(f"{path}: {key}: a list of words was expected, not {abridged(value)}")
    return value


def _search(path: Path, root: Path | None, given: str) -> Path:
    folders = [*([root] if root else []), path.parent, *path.resolve().parent.parents]
    parts = Path(given).parts
    for dropped in range(max(len(parts) - 1, 1)):  # a bare file name might match anything, so its folder stays
        for folder in folders:
            candidate = folder / Path(*parts[dropped:])
            if os.path.isfile(candidate):
                return candidate
    raise InputError(f"{path}: images_path: no picture {given} in {folders[0]} or above; give the folder it lies in")
