"""The recipe of an ablation: tables of variants, each what it changes in ``rbctl finetune`` and ``rbctl sample``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rbctl.errors import InputError, abridged, nearest
from rbctl.files import read_yaml
from rbctl.options import find_recipe
from rbctl.plugins.eval.stages import OURS, Options, complete, digest
from rbctl.relations import load_relation

FULL = "full"  # the variant that changes nothing, which all others are compared with
MOST_SEED, MOST_CASES = 2**63 - 10_001, 100_000  # the stages' own
DATA = ("relation", "unrelated", "subjects")
_KEYS = ("bench", "bundle", "relations", "seeds", "cases", "finetune", "sample", "tables")
_TABLE_KEYS = ("name", "title", "note", "rows")
_VARIANT_KEYS = ("finetune", "sample", "data")


@dataclass(frozen=True)
class Variant:
    """One way of tuning and sampling.

    Attributes:
        name: its first row's.
        changes: what it says differently from the full method, as written.
        finetune, sample: every option of the two stages, resolved.
        data: "relation": triplets that show it; "unrelated": triplets that say it but show something else; "subjects":
            the pictures of each subject of each case, for methods that learn subjects.
    """

    name: str
    changes: Options
    finetune: Options
    sample: Options
    data: str

    @property
    def key(self) -> str:
        """Variants of one key are the same, whatever they are called."""
        return digest([self.finetune, self.sample, self.data])


@dataclass(frozen=True)
class Table:
    """Rows (label -> key of a variant) in their order, and words about them."""

    name: str
    title: str
    note: str
    rows: dict[str, str]


@dataclass(frozen=True)
class Ablation:
    """What is compared, on what.

    Attributes:
        relations: names, or paths of relations' YAML files.
        cases: of each relation.
        variants: by key; the first is the full method.
    """

    path: Path
    bench: str
    bundle: str
    relations: tuple[str, ...]
    seeds: tuple[int, ...]
    cases: int
    variants: dict[str, Variant]
    tables: tuple[Table, ...]

    @property
    def full(self) -> Variant:
        """The full method."""
        return next(iter(self.variants.values()))


def read(name: str, given: Mapping[str, Any], chosen: Sequence[str] = ()) -> Ablation:
    """Read a recipe and have the two stages check every variant's options.

    Args:
        name: path, or name of a shipped one.
        given: values that win over the recipe's.
        chosen: names of the tables that are wanted; none for all.

    Raises:
        InputError: a key, an option, a value or a relation is wrong; table, row and key are named.
    """
    path = find_recipe(name, "ablations")
    content = {"bench": "relationbench-mini", "bundle": "mini", "cases": 24, **read_yaml(path)}
    _known(str(path), content, _KEYS)
    content.update(given)
    for key, kind in (("relations", str), ("seeds", int)):
        _listed(f"{path}: {key}", content.get(key), kind)
    for seed in content["seeds"]:
        _whole(f"{path}: seeds", seed, 0, MOST_SEED)
    _whole(f"{path}: cases", content["cases"], 1, MOST_CASES)
    for relation in content["relations"]:
        load_relation(relation)
    stages = _Stages(content)
    full = stages.variant(f"{path}: the full method", FULL, {})
    variants, tables, names = {full.key: full}, list[Table](), list[str]()
    if not isinstance(content.get("tables"), list) or not content["tables"]:
        raise InputError(f"{path}: tables: a list of tables was expected; docs/ablations.md shows one")
    for number, table in enumerate(content["tables"], 1):
        where = f"{path}: table {number}"
        if not isinstance(table, dict) or not isinstance(table.get("rows"), dict) or not table["rows"]:
            raise InputError(f"{where}: a mapping with rows was expected; docs/ablations.md shows one")
        _known(where, table, _TABLE_KEYS)
        words = {key: " ".join(str(table.get(key) or "").split()) for key in ("name", "title", "note")}
        words["name"], rows = words["name"] or f"Table {number}", {}
        names.append(words["name"])
        if chosen and words["name"] not in chosen:
            continue
        for label, changes in table["rows"].items():
            found = stages.variant(f"{path}: {words['name']}: {label}", str(label), changes or {})
            rows[str(label)] = variants.setdefault(found.key, found).key
        tables.append(Table(**words, rows=rows))
    if unknown := sorted(set(chosen) - set(names)):
        raise InputError(f"--tables: {path} has no {unknown[0]!r}; its tables: {', '.join(names)}")
    return Ablation(
        path=path,
        bench=str(content["bench"]),
        bundle=str(content["bundle"]),
        relations=tuple(content["relations"]),
        seeds=tuple(content["seeds"]),
        cases=content["cases"],
        variants=variants,
        tables=tuple(tables),
    )


class _Stages:
    """Has options checked and completed by the stages themselves; the same ones once."""

    def __init__(self, content: Options) -> None:
        self.content = content
        self.known: dict[str, Options] = {}

    def variant(self, where: str, label: str, changes: Any) -> Variant:
        if not isinstance(changes, dict):
            raise InputError(f"{where}: a mapping was expected, not {abridged(changes)}")
        _known(where, changes, _VARIANT_KEYS)
        data = changes.get("data", DATA[0])
        if data not in DATA:
            raise InputError(f"{where}: data: {abridged(data)}; one of {', '.join(DATA)}")
        complete = {stage: self._complete(where, stage, changes) for stage in ("finetune", "sample")}
        return Variant(label, changes, complete["finetune"], complete["sample"], data)

    def _complete(self, where: str, stage: str, changes: Options) -> Options:
        common, own = self.content.get(stage) or {}, changes.get(stage) or {}
        for options in (common, own):
            if not isinstance(options, dict):
                raise InputError(
                    f"{where}: {stage}: a mapping of options to values was expected, not {abridged(options)}"
                )
            for key in options:
                if key in OURS[stage]:
                    raise InputError(f"{where}: {stage}: {key} is not a variant's to say, the ablation sets it")
        options = {**common, **own}
        asked = digest([stage, repr(options)])
        if asked not in self.known:
            before = {"finetune": ("--relation", str(self.content["relations"][0])), "sample": ("prompts.yaml",)}[stage]
            self.known[asked] = complete(stage, options, str(self.content["bundle"]), where, *before)
        return self.known[asked]


def _known(where: str, content: Mapping[Any, Any], keys: Sequence[str]) -> None:
    for key in content:
        if key not in keys:
            raise InputError(
                f"{where}: no key {abridged(key)}{nearest(str(key), keys) or '; keys: ' + ', '.join(keys)}"
            )


def _listed(where: str, value: Any, kind: type) -> None:
    if not isinstance(value, list) or not value or any(type(one) is not kind for one in value):
        words = {str: "names", int: "whole numbers"}[kind]
        raise InputError(f"{where}: a list of {words} was expected, not {abridged(value)}")
    if len(set(value)) < len(value):
        raise InputError(f"{where}: {abridged(value)} says one of them twice")


def _whole(where: str, value: Any, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise InputError(f"{where}: {abridged(value)}; a whole number from {low} to {high} was expected")
