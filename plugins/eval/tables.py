"""Tables of numbers: how a number is written, and rows of text for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Rows = Sequence[Sequence[str]]  # the header, then the rows


def number(value: float | None) -> str:
    """Short enough for a table: 28.9, 0.754; "-" for None."""
    if value is None:
        return "-"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def cell(mean: Mapping[str, Any] | None) -> str:
    """``28.9 [27.1, 30.2]``, of a mean with its interval; of one case without."""
    if mean is None or mean.get("mean") is None:
        return "-"
    if mean["low"] is None:
        return number(mean["mean"])
    return f"{number(mean['mean'])} [{number(mean['low'])}, {number(mean['high'])}]"


def column_table(columns: Mapping[str, Mapping[str, str]]) -> list[list[str]]:
    """Header and rows: what every column of a report is."""
    rows = [["column", "profile", "definition", "model"]]
    return rows + [[c["name"], c["profile"], c["definition"], c["hash"][:16]] for c in columns.values()]


def win_table(standing: Mapping[str, Any]) -> list[list[str]]:
    """Header and rows: strengths with intervals, the strongest run first, and how often it beats every other."""
    runs, strengths = standing["runs"], standing["strengths"]
    order = sorted(range(len(runs)), key=lambda k: -strengths[runs[k]]["mean"])
    rows = [["run", "cases", "strength", *(f"beats {runs[k]}" for k in order)]]
    for k in order:
        rates = ["" if k == other else number(standing["rates"][k][other]) for other in order]
        rows.append([runs[k], str(standing["cases"]), cell(strengths[runs[k]]), *rates])
    return rows


def aligned(rows: Rows) -> str:
    """Plain text, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def markdown_table(rows: Rows) -> str:
    """A Markdown table; what cells hold stays text."""
    header, *others = [[inert(text).replace("|", "\\|") for text in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *others))


def inert(text: str) -> str:
    """Text from data as one line of Markdown without HTML, links and pictures, which a viewer would fetch."""
    return " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace("](", "]\\(")
