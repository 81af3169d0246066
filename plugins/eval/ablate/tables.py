"""Scores of variants -> the tables: a row a variant, a column a metric, 95 % intervals, and differences to the full."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rbctl.plugins.eval.ablate.recipe import Ablation, Variant
from rbctl.plugins.eval.intervals import interval, paired
from rbctl.plugins.eval.rows import Column, mean_by_case, rounded
from rbctl.plugins.eval.summary import SIGNIFICANT
from rbctl.plugins.eval.tables import aligned, cell, column_table, markdown_table, number

COLOUR = "oracle colour"
_LEGEND = (
    "Means over cases (a case's pictures of all seeds are averaged first) with 95 % bootstrap intervals over cases. "
    f"* differs from the full method on the same cases, paired sign-flip test, p < {SIGNIFICANT}, not corrected."
)

Scored = Mapping[str, Any]  # a cell's scores.json, of the form of ``Scores``


@dataclass(frozen=True)
class ScoredPicture:
    """A row of scores.json."""

    case: str
    relation: str
    seed: int
    scores: dict[str, float | None]


@dataclass(frozen=True)
class Scores:
    """scores.json, as far as tables are made of it.

    Attributes:
        columns: facts of each metric, by its name in the rows.
        lacking: why a metric is left out.
    """

    columns: dict[str, dict[str, str]]
    lacking: tuple[str, ...]
    rows: tuple[ScoredPicture, ...]


def columns(scored: Sequence[Column]) -> dict[str, Any]:
    """What is said of every column; the oracle's main colours stand behind its other answers."""
    facts = {column.id: column.facts() for column in scored}
    own = {name: column for name, column in facts.items() if column["profile"] == "oracle"}
    if own:
        definition = "share of the individuals whose main colour is right, by the embedded world's oracle"
        own[COLOUR] = {**next(iter(own.values())), "name": "colour", "definition": definition}
    return {**own, **facts}


def content(ablation: Ablation, scored: Mapping[str, Sequence[Scored]]) -> dict[str, Any]:
    """Everything that the tables say, as plain data.

    Args:
        scored: by key of the variant, the scores of its cells.
    """
    rows = {key: [row for cell in cells for row in cell["rows"]] for key, cells in scored.items()}
    first = next(iter(scored.values()))[0]
    shown = {c: facts for c, facts in first["columns"].items() if any(_values(some, c) for some in rows.values())}
    full = rows[ablation.full.key]
    names, recipe = _names(ablation.variants), ablation.recipe
    return {
        "recipe": ablation.path.name,
        "bench": recipe.bench,
        "bundle": recipe.bundle,
        "relations": list(recipe.relations),
        "seeds": list(recipe.seeds),
        "cases": recipe.cases,
        "full": names[ablation.full.key],
        "columns": shown,
        "left_out": first["lacking"],
        "variants": {
            names[key]: {
                "changes": variant.changes,
                "finetune": variant.finetune,
                "sample": variant.sample,
                "cells": {c: _cell(rows[key], c) for c in shown},
                "minus_full": {c: _difference(rows[key], full, c) for c in shown},
            }
            for key, variant in ablation.variants.items()
        },
        "tables": [
            {"name": t.name, "title": t.title, "note": t.note, "rows": {k: names[v] for k, v in t.rows.items()}}
            for t in ablation.tables
        ],
    }


def _names(variants: Mapping[str, Variant]) -> dict[str, str]:
    """A name for each key; two variants of one label (in two tables) are told apart by their keys."""
    labels = [variant.name for variant in variants.values()]
    return {key: v.name if labels.count(v.name) == 1 else f"{v.name} ({key})" for key, v in variants.items()}


def _values(rows: Iterable[Mapping[str, Any]], column: str) -> dict[str, float]:
    """Mean over the seeds, by case."""
    return mean_by_case((row["case"], row["scores"].get(column)) for row in rows)


def _cell(rows: Sequence[Mapping[str, Any]], column: str) -> dict[str, Any]:
    parts = {
        f"by_{key}": {
            str(part): rounded(float(np.mean(list(values.values()))))
            for part in dict.fromkeys(row[key] for row in rows)
            if (values := _values([row for row in rows if row[key] == part], column))
        }
        for key in ("relation", "seed")
    }
    return {**rounded(interval(list(_values(rows, column).values()))), **parts}


def _difference(rows: Sequence[Mapping[str, Any]], full: Sequence[Mapping[str, Any]], column: str) -> dict[str, Any]:
    one, other = _values(rows, column), _values(full, column)
    both = [case for case in one if case in other]
    return rounded(paired([one[case] for case in both], [other[case] for case in both]))


# --- words ---------------------------------------------------------------------------------------------------------


def _rows(content: Mapping[str, Any], table: Mapping[str, Any]) -> list[list[str]]:
    """Header and rows of one table."""
    rows = [["variant", "cases", *(facts["name"] for facts in content["columns"].values())]]
    for label, name in table["rows"].items():
        variant = content["variants"][name]
        cells = []
        for column in content["columns"]:
            p = variant["minus_full"][column]["p"]
            mark = "*" if name != content["full"] and p is not None and p < SIGNIFICANT else ""
            cells.append(cell(variant["cells"][column]) + mark)
        most = max(cell["cases"] for cell in variant["cells"].values())
        rows.append([label, str(most), *cells])
    return rows


def _differences(content: Mapping[str, Any], table: Mapping[str, Any]) -> list[list[str]]:
    """Header and rows: what every variant has more than the full method, on the same cases."""
    rows = [["minus the full method", *(facts["name"] for facts in content["columns"].values())]]
    for label, name in table["rows"].items():
        if name != content["full"]:
            difference = content["variants"][name]["minus_full"]
            cells = [{**difference[column], "mean": difference[column]["difference"]} for column in content["columns"]]
            rows.append([label, *map(cell, cells)])
    return rows


def _spread(content: Mapping[str, Any]) -> list[list[str]]:
    """Header and rows: the first column's mean in every relation and with every seed."""
    first = next(iter(content["columns"]))
    parts = ("by_relation", "by_seed")
    means = {name: [variant["cells"][first][part] for part in parts] for name, variant in content["variants"].items()}
    heads = [[*by] for by in next(iter(means.values()))]
    rows = [["variant", *heads[0], *(f"seed {seed}" for seed in heads[1])]]
    return rows + [[name, *(number(v) for by in some for v in by.values())] for name, some in means.items()]


def _what(content: Mapping[str, Any]) -> str:
    return (
        f"Bundle {content['bundle']}, {content['bench']}, {content['cases']} cases of each relation "
        f"({', '.join(content['relations'])}), LoRAs of seeds {', '.join(map(str, content['seeds']))}."
    )


def _title(table: Mapping[str, Any]) -> str:
    return f"{table['name']}: {table['title']}" if table["title"] else str(table["name"])


def terminal(content: Mapping[str, Any]) -> str:
    """The tables as plain text."""
    parts = []
    for table in content["tables"]:
        parts += [_title(table), aligned(_rows(content, table)), table["note"]]
    return "\n\n".join(part for part in [*parts, _what(content), _LEGEND] if part)


def markdown(content: Mapping[str, Any]) -> str:
    """The tables, the differences, and what every column is."""
    parts = [f"# Ablations: {content['recipe']}", _what(content), _LEGEND]
    for table in content["tables"]:
        parts += [f"## {_title(table)}", markdown_table(_rows(content, table)), table["note"]]
        if len(differences := _differences(content, table)) > 1:
            parts.append(markdown_table(differences))
    first = next(iter(content["columns"].values()))["name"]
    parts += [f"## Column {first!r} by relation and seed", markdown_table(_spread(content))]
    parts += ["## Columns", markdown_table(column_table(content["columns"]))]
    parts.append("\n".join(f"- left out: {line}" for line in content["left_out"]))
    return "\n\n".join(part for part in parts if part) + "\n"
