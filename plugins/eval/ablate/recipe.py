"""The recipe of an ablation: tables of variants, each what it changes in ``rbctl finetune`` and ``rbctl sample``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import click
from annotated_types import Interval, MinLen

from rbctl import formats
from rbctl.defaults import BUNDLE
from rbctl.errors import InputError, abridged, shortlist
from rbctl.options import find_recipe
from rbctl.plugins.eval.stages import OURS, SEED, Options, complete, digest
from rbctl.relations import load_relation

FULL = "full"  # the variant that changes nothing, which all others are compared with


def _different(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) < len(values):
        raise ValueError(f"{abridged(list(values))} says one of them twice")
    return values


@dataclass(frozen=True)
class Row:
    """What a variant says differently from the full method.

    Attributes:
        data: "relation": triplets that show it; "unrelated": triplets that say it but show something else; "subjects":
            the pictures of each subject of each case, for methods that learn subjects.
        local_encoder: in the place of the bundle's own, by its name in ``Recipe.local_encoders``.
    """

    finetune: Options = field(default_factory=dict)
    sample: Options = field(default_factory=dict)
    data: Literal["relation", "unrelated", "subjects"] = "relation"
    local_encoder: str = ""

    def changes(self) -> Options:
        """As plain data, without what it leaves as it is."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value not in ({}, "relation", "")}


@dataclass(frozen=True)
class WrittenTable:
    """Rows by their labels."""

    rows: Annotated[dict[str, Row | None], MinLen(1)]
    name: str = ""
    title: str = ""
    note: str = ""


@dataclass(frozen=True)
class Recipe:
    """An ablation as it is written.

    Attributes:
        relations: names, or paths of relations' YAML files.
        cases: of each relation, at most.
        data: folder of triplets of a relation, from the recipe on; those of others are drawn.
        local_encoders: folders by name, as ``rbctl distill`` writes them, from the recipe on; rows whose encoder has
            none are left out.
        finetune, sample: options of the full method, and so of all variants.
    """

    relations: Annotated[tuple[str, ...], MinLen(1), formats.Check(_different)]
    seeds: Annotated[tuple[Annotated[int, SEED], ...], MinLen(1), formats.Check(_different)]
    tables: Annotated[tuple[WrittenTable, ...], MinLen(1)]
    bench: str = "relationbench-mini"
    bundle: str = BUNDLE
    cases: Annotated[int, Interval(ge=1, le=100_000)] = 24
    data: dict[str, str] = field(default_factory=dict)
    local_encoders: dict[str, str] = field(default_factory=dict)
    finetune: Options = field(default_factory=dict)
    sample: Options = field(default_factory=dict)


@dataclass(frozen=True)
class Variant:
    """One way of tuning and sampling.

    Attributes:
        name: its first row's.
        changes: what it says differently from the full method, as written.
        finetune, sample: every option of the two stages, resolved.
        data: as in ``Row``.
        local_encoder: its folder; None for the bundle's own.
    """

    name: str
    changes: Options
    finetune: Options
    sample: Options
    data: str
    local_encoder: Path | None = None

    @property
    def key(self) -> str:
        """Variants of one key are the same, whatever they are called."""
        encoder = [str(self.local_encoder)] if self.local_encoder else []
        return digest([self.finetune, self.sample, self.data, *encoder])


@dataclass(frozen=True)
class Table:
    """Rows (label -> key of a variant) in their order, and words about them."""

    name: str
    title: str
    note: str
    rows: dict[str, str]


@dataclass(frozen=True)
class Ablation:
    """A recipe whose variants the stages have checked.

    Attributes:
        variants: by key; the first is the full method.
        tables: those that are wanted.
    """

    path: Path
    recipe: Recipe
    variants: dict[str, Variant]
    tables: tuple[Table, ...]

    @property
    def full(self) -> Variant:
        """The full method."""
        return next(iter(self.variants.values()))


def read(name: str, changes: Mapping[str, Any], chosen: Sequence[str] = ()) -> Ablation:
    """Read a recipe and have the two stages check every variant's options.

    Args:
        name: path, or name of a shipped one.
        changes: values that win over the recipe's.
        chosen: names of the tables that are wanted; none for all.

    Raises:
        InputError: a key, an option, a value or a relation is wrong; table, row and key are named.
    """
    path = find_recipe(name, "ablations")
    recipe = dataclasses.replace(formats.read_yaml(Recipe, path), **changes)
    for relation in recipe.relations:
        try:
            load_relation(relation)
        except InputError as error:
            raise InputError(f"{path}: relations: {error}") from error
    if (strange := sorted(recipe.data.keys() - set(recipe.relations))) and "relations" not in changes:
        raise InputError(f"{path}: data: {abridged(strange[0])} is none of its relations")
    known: dict[str, Options] = {}  # the stages are asked once about the same options

    def completed(where: str, stage: Literal["finetune", "sample"], row: Row) -> Options:
        options = {**getattr(recipe, stage), **getattr(row, stage)}
        for key in options:
            if key in OURS[stage]:
                raise InputError(f"{where}: {stage}: {key} is not a variant's to say, the ablation sets it")
        asked = digest([stage, repr(options)])
        if asked not in known:
            needed = {"finetune": ("--relation", recipe.relations[0]), "sample": ("prompts.yaml",)}[stage]
            known[asked] = complete(stage, options, recipe.bundle, where, *needed)
        return known[asked]

    def variant(where: str, label: str, row: Row) -> Variant:
        finetune, sample = completed(where, "finetune", row), completed(where, "sample", row)
        folder = path.parent / recipe.local_encoders[row.local_encoder] if row.local_encoder else None
        if folder and not (folder / "model.safetensors").is_file():
            raise InputError(f"{where}: local_encoder: {folder} holds none; 'rbctl distill' writes such a folder")
        return Variant(label, row.changes(), finetune, sample, row.data, folder)

    full = variant(f"{path}: the full method", FULL, Row())
    variants, tables = {full.key: full}, list[Table]()
    names = [table.name or f"Table {number}" for number, table in enumerate(recipe.tables, 1)]
    if unknown := sorted(set(chosen) - set(names)):
        raise InputError(f"--tables: {path} has no {unknown[0]!r}; its tables: {shortlist(names)}")
    for title, table in zip(names, recipe.tables, strict=True):
        if chosen and title not in chosen:
            continue
        rows = {}
        for label, row in table.rows.items():
            if row and row.local_encoder not in ("", *recipe.local_encoders):
                named = f"--local-encoder {row.local_encoder}=FOLDER"
                click.echo(f"{title}: without {label!r}, whose encoder is not named; {named}", err=True)
                continue
            own = variant(f"{path}: {title}: {label}", label, row or Row())
            if own.data == "unrelated" and recipe.data:
                raise InputError(f"{path}: {title}: {label}: unrelated triplets are drawn, but 'data' names pictures")
            rows[label] = variants.setdefault(own.key, own).key
        if rows:
            tables.append(Table(title, " ".join(table.title.split()), " ".join(table.note.split()), rows))
    return Ablation(path, recipe, variants, tuple(tables))
