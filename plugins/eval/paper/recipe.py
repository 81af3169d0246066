"""The recipe of a paper's tables: their rows, what is published of them, and which runs are their counterparts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from annotated_types import MinLen

from rbctl import formats
from rbctl.errors import InputError, shortlist
from rbctl.formats import Words
from rbctl.options import find_recipe
from rbctl.plugins.eval.benchmarks import read_benchmark
from rbctl.plugins.eval.case import Number

Figures = dict[str, float]  # by metric


@dataclass(frozen=True)
class PaperTable:
    """A table, or a part of one.

    Attributes:
        name: "Table 4"; a row of an ablation's table of this name stands here.
        bench: benchmark whose published rows are taken. Without ``ablation``, its scores are the measured rows.
        individuals: the part of its cases.
        ablation: measured rows are those of ``rbctl eval ablate``.
        rows: what a row is called here -> what its published row is called; null: none is published.
        published: rows that the benchmark's YAML does not have.
        note: words under the table.
    """

    name: Words
    title: str
    rows: Annotated[dict[str, str | None], MinLen(1)]
    bench: str = ""
    individuals: Number | None = None
    ablation: bool = False
    published: dict[str, Figures] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class PaperTables:
    """A paper's tables.

    Attributes:
        source: of the published figures.
        columns: metrics, in their order.
        profile: the columns of scores that are the paper's.
    """

    source: str
    columns: Annotated[tuple[str, ...], MinLen(1)]
    tables: Annotated[tuple[PaperTable, ...], MinLen(1)]
    profile: str = "relationbench"


def read(name: str, chosen: Sequence[str] = ()) -> PaperTables:
    """Read a recipe; ``published`` of its tables then holds the figures of each row by what it is called here.

    Args:
        name: path, or name of a shipped one.
        chosen: names of the tables that are wanted; none for all.

    Raises:
        InputError: a key or a value is wrong, or a row is called after no published one.
    """
    path = find_recipe(name, "tables")
    recipe = formats.read_yaml(PaperTables, path)
    names = [table.name for table in recipe.tables]
    if unknown := sorted(set(chosen) - set(names)):
        raise InputError(f"--tables: {path} has no {unknown[0]!r}; its tables: {shortlist(dict.fromkeys(names))}")
    tables = [table for table in recipe.tables if not chosen or table.name in chosen]
    return dataclasses.replace(recipe, tables=tuple(_with_figures(path, table) for table in tables))


def _with_figures(path: Path, table: PaperTable) -> PaperTable:
    known = dict(table.published)
    if table.bench:
        for part, rows in read_benchmark(table.bench).published.items():
            known |= rows if table.individuals in (None, part) else {}
    for label, name in table.rows.items():
        if name is not None and name not in known:
            raise InputError(f"{path}: {table.name}: {label}: no published row {name!r}; there are {shortlist(known)}")
    figures = {label: known[name] if name else {} for label, name in table.rows.items()}
    return dataclasses.replace(table, published=figures)
