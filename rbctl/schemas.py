"""JSON Schemas of the files that people write by hand, for their editors."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import operator
import pkgutil
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from rbctl import formats
from rbctl.files import sweep, write_json
from rbctl.prompts.mappings import PromptsFile
from rbctl.relations import Relation
from rbctl.shortcuts import QUALITIES, SECTION


def schemas() -> dict[str, dict[str, Any]]:
    """The schemas by name: relation, prompts, recipe, and what a stage's module names in ``FORMATS``.

    ``FORMATS`` are where the dataclasses of a stage's own files lie, {"benchmark": "package.module:Benchmark"}; a
    dictionary there holds several, by what their key ``kind`` says.
    """
    whole = {"relation": formats.schema(Relation), "prompts": formats.schema(PromptsFile)}
    whole["relation"]["$defs"]["Relation"]["required"].remove("name")  # the file's own name stands in for it
    stages = {entry.name: entry for entry in sorted(entry_points(group="rbctl.plugins"))}
    for entry in stages.values():
        places = getattr(importlib.import_module(entry.module), "FORMATS", {})
        whole |= {name: _schema(pkgutil.resolve_name(place)) for name, place in places.items()}
    commands = {name: entry.load() for name, entry in stages.items()}
    configs = {name: getattr(command.callback, "config_type", None) for name, command in commands.items()}
    sections = {name: _section(config) for name, config in configs.items() if config}
    of_quality = {
        "type": "object",
        "properties": {name: {"type": "object"} for name in QUALITIES},
        "required": [*QUALITIES],
    }
    properties = sections | {SECTION: of_quality | {"additionalProperties": False}}
    recipe = {"$schema": formats.DIALECT, "type": "object", "properties": properties, "additionalProperties": False}
    return {**whole, "recipe": recipe}


def _schema(kind: Any) -> dict[str, Any]:
    if not isinstance(kind, dict):
        return formats.schema(kind)
    schema = formats.schema(functools.reduce(operator.or_, kind.values()))
    for name, own in kind.items():
        schema["$defs"][own.__name__]["properties"]["kind"] |= {"const": name}
    return schema


def _section(config: type) -> dict[str, Any]:
    """What a recipe may say of a stage: any of its options."""
    section = formats.schema(config)["$defs"][config.__name__]
    for field in dataclasses.fields(config):
        limits = {"description": "help", "minimum": "min", "maximum": "max"}
        values = {word: field.metadata.get(key) for word, key in limits.items()}
        section["properties"][field.name] |= {word: value for word, value in values.items() if value is not None}
    return {key: section[key] for key in ("type", "properties", "additionalProperties")}


def write_schemas(folder: Path) -> list[Path]:
    """Write NAME.json of each schema; returns their paths."""
    whole = schemas()
    sweep(folder)
    for name, schema in whole.items():
        write_json(folder / f"{name}.json", schema)
    return [folder / f"{name}.json" for name in whole]
