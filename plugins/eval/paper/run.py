"""The work of ``rbctl eval tables``: published rows and measured ones beside them, as text, Markdown and HTML."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rbctl import formats
from rbctl.errors import InputError
from rbctl.files import read_object
from rbctl.pages import render
from rbctl.plugins.eval.case import Number
from rbctl.plugins.eval.paper.recipe import PaperTable, PaperTables
from rbctl.plugins.eval.tables import aligned, cell, markdown_table, number
from rbctl.runs import RUNS

_SCORES, _TABLES = "scores.json", "tables.json"  # what is read of a run of eval, of an ablation


@dataclass(frozen=True)
class Column:
    """What is said of a metric."""

    name: str
    profile: str


@dataclass(frozen=True)
class Mean:
    """A measured figure; without an interval where it is of one case, without anything where there is none."""

    mean: float | None
    low: float | None
    high: float | None
    cases: int


Cells = dict[str, Mean]  # by column


@dataclass(frozen=True)
class Bench:
    """The benchmark of a run; no name where pictures were just given."""

    name: str | None


@dataclass(frozen=True)
class Scores:
    """scores.json, as far as it is read: means by run, of all cases and of those with one individual or several."""

    benchmark: Bench
    columns: dict[str, Column]
    table: dict[str, Cells]
    numbers: dict[Number, dict[str, Cells]]


@dataclass(frozen=True)
class AblationTable:
    """Labels of its rows, and the variants that they stand for."""

    name: str
    rows: dict[str, str]


@dataclass(frozen=True)
class Variant:
    """Its means."""

    cells: Cells


@dataclass(frozen=True)
class Ablation:
    """tables.json of an ablation, as far as it is read."""

    bench: str
    columns: dict[str, Column]
    variants: dict[str, Variant]
    tables: tuple[AblationTable, ...]


@dataclass(frozen=True)
class Measured:
    """A row that was measured: what it is called, on which benchmark, where it lies, and the figures by metric."""

    label: str
    bench: str
    folder: str
    figures: Mapping[str, Mean]


def finished() -> list[Path]:
    """Every folder of runs/eval and runs/ablate that has its scores or tables."""
    files = [*RUNS.glob(f"eval/*/{_SCORES}"), *RUNS.glob(f"ablate/*/{_TABLES}")]
    return sorted(file.parent for file in files)


def content(recipe: PaperTables, folders: Sequence[Path]) -> dict[str, Any]:
    """Everything that the tables say, as plain data.

    Raises:
        InputError: a folder holds no finished run, or a damaged one.
    """
    runs = [(folder, _read(folder)) for folder in folders]
    tables = []
    for table in recipe.tables:
        measured = [row for folder, run in runs for row in _rows(recipe, table, folder, run)]
        tables.append({"name": table.name, "title": table.title, "note": table.note, "rows": _beside(table, measured)})
    return {"source": recipe.source, "columns": list(recipe.columns), "tables": tables}


def _read(folder: Path) -> Scores | Ablation:
    scores, tables = folder / _SCORES, folder / _TABLES
    if scores.is_file():
        return formats.read(Scores, read_object(scores), str(scores), ignore_others=True)
    if tables.is_file():
        return formats.read(Ablation, read_object(tables), str(tables), ignore_others=True)
    raise InputError(f"{folder}: no {_SCORES} and no {_TABLES}; give finished folders of rbctl eval or eval ablate")


def _rows(recipe: PaperTables, table: PaperTable, folder: Path, run: Scores | Ablation) -> Iterator[Measured]:
    """The rows of a run that belong into a table."""
    ids = {c.name: name for name, c in run.columns.items() if c.profile == recipe.profile and c.name in recipe.columns}
    rows: dict[str, Cells] = {}
    bench = run.bench if isinstance(run, Ablation) else run.benchmark.name
    if isinstance(run, Ablation) and table.ablation:
        for own in run.tables:
            if own.name == table.name:
                rows |= {label: run.variants[key].cells for label, key in own.rows.items() if key in run.variants}
    elif isinstance(run, Scores) and not table.ablation and bench == table.bench:
        rows = run.numbers.get(table.individuals, {}) if table.individuals else run.table
    for label, cells in rows.items():
        figures = {metric: cells[name] for metric, name in ids.items() if name in cells}
        yield Measured(label, bench or "", str(folder), figures)


def _beside(table: PaperTable, measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """The rows of the paper, each with what was measured of it; what has no row there comes behind."""
    left, rows = list(measured), list[dict[str, Any]]()
    for label in table.rows:
        own = [row for row in left if _plain(row.label) == _plain(label)]
        left = [row for row in left if row not in own]
        rows += [_row(label, table.published[label], row) for row in own]
        rows += [] if own else [_row(label, table.published[label], None)]
    return rows + [_row(row.label, {}, row) for row in left]


def _plain(label: str) -> str:
    """What counts of a name: "MS-Diffusion" is ms_diffusion, as a folder may be called."""
    return re.sub(r"[\W_]+", "", label.casefold())


def _row(label: str, published: Mapping[str, float], measured: Measured | None) -> dict[str, Any]:
    figures = {metric: vars(mean) for metric, mean in measured.figures.items()} if measured else {}
    return {
        "row": label,
        "published": dict(published),
        "measured": figures,
        "bench": measured.bench if measured else None,
        "folder": measured.folder if measured else None,
    }


# --- words ---------------------------------------------------------------------------------------------------------


def _cells(content: Mapping[str, Any], table: Mapping[str, Any]) -> list[list[str]]:
    """Header and rows: of each metric what is published, then what was measured."""
    rows = [["", *(f"{metric}{kind}" for metric in content["columns"] for kind in (" published", " measured"))]]
    for row in table["rows"]:
        cells = []
        for metric in content["columns"]:
            cells += [number(row["published"].get(metric)), cell(row["measured"].get(metric))]
        rows.append([row["row"], *cells])
    return rows


def _title(table: Mapping[str, Any]) -> str:
    return f"{table['name']}: {table['title']}"


def _sources(content: Mapping[str, Any]) -> list[str]:
    rows = [row for table in content["tables"] for row in table["rows"] if row["folder"]]
    measured = dict.fromkeys(f"{row['folder']} (on {row['bench']})" for row in rows)
    return [f"Published: {content['source']}.", f"Measured: {', '.join(measured) or 'nothing yet'}."]


def terminal(content: Mapping[str, Any]) -> str:
    """The tables as plain text."""
    parts = [part for table in content["tables"] for part in _parts(table, aligned(_cells(content, table)))]
    return "\n\n".join([*parts, "\n".join(_sources(content))])


def _parts(table: Mapping[str, Any], shown: str, mark: str = "") -> list[str]:
    return [part for part in (f"{mark}{_title(table)}", shown, table["note"]) if part]


def markdown(content: Mapping[str, Any]) -> str:
    """The tables as Markdown."""
    parts = [part for t in content["tables"] for part in _parts(t, markdown_table(_cells(content, t)), "## ")]
    return "\n\n".join([*parts, *_sources(content)])


def html(content: Mapping[str, Any]) -> str:
    """The tables as one page."""
    tables = [(_title(table), _cells(content, table), table["note"]) for table in content["tables"]]
    template = Path(__file__).parents[1] / "tables.html.jinja"
    return render(template, title="The paper's tables", tables=tables, sources=_sources(content))
