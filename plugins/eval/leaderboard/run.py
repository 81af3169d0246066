"""The work of ``rbctl eval leaderboard``: scores of finished evaluations -> strengths, as text, Markdown and HTML."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rbctl import formats
from rbctl.errors import InputError, nearest, shortlist
from rbctl.files import read_jsonl, read_object
from rbctl.pages import render
from rbctl.plugins.eval.intervals import interval
from rbctl.plugins.eval.judges.comparing import compare, standing
from rbctl.plugins.eval.rows import TRUTH, mean_by_case, rounded
from rbctl.plugins.eval.tables import aligned, cell, inert, markdown_table, win_table


@dataclass(frozen=True)
class Column:
    """What is said of a column."""

    hash: str
    judge: str = ""


@dataclass(frozen=True)
class Scores:
    """scores.json, as far as it is read."""

    columns: dict[str, Column]


@dataclass(frozen=True)
class Scored:
    """A line of pictures.jsonl, as far as it is read."""

    run: str
    case: str
    scores: dict[str, float | None]


def content(folders: Sequence[Path], by: str | None) -> dict[str, Any]:
    """Everything that a leaderboard says, as plain data.

    Args:
        by: the column that decides.

    Raises:
        InputError: a folder holds no finished evaluation, or a damaged one; none has the column; two were scored with
            different models, or share no case.
    """
    columns: dict[str, Column] = {}
    runs: dict[str, list[Scored]] = {}
    for folder in folders:
        path = folder / "scores.json"
        if not path.is_file():
            raise InputError(f"{folder}: no scores.json; give a finished folder of rbctl eval")
        for name, column in formats.read(Scores, read_object(path), str(path), ignore_others=True).columns.items():
            if columns.setdefault(name, column).hash != column.hash:
                raise InputError(
                    f"{path}: {name}: scored with another model than in {folders[0]}; score one of them again"
                )
        names: dict[str, str] = {}
        for number, line in enumerate(read_jsonl(folder / "pictures.jsonl"), 1):
            where = f"{folder / 'pictures.jsonl'}:{number}"
            scored = formats.read(Scored, line, where, ignore_others=True)
            if scored.run != TRUTH:
                label = names.setdefault(scored.run, f"{folder}/{scored.run}" if scored.run in runs else scored.run)
                runs.setdefault(label, []).append(scored)
    if not columns:
        raise InputError(f"{folders[0] / 'scores.json'}: columns: none; evaluate again")
    decisive = by or _decisive(columns)
    if decisive not in columns:
        raise InputError(
            f"--by {by}: no such column{nearest(decisive, columns) or f'; one of {shortlist(list(columns))}'}"
        )
    means = {
        name: {run: mean_by_case((s.case, s.scores.get(name)) for s in own) for run, own in runs.items()}
        for name in columns
    }
    of_case = means[decisive]
    done = [
        (case, a, b, share)
        for (a, first), (b, second) in itertools.combinations(enumerate(of_case.values()), 2)
        for case in sorted(first.keys() & second.keys())
        if (share := compare(first[case], second[case])) is not None
    ]
    if not done:
        where = ", ".join(map(str, folders))
        raise InputError(
            f"{where}: no two runs have a case with {decisive} in common; give evaluations of one benchmark"
        )
    return {
        "by": decisive,
        "folders": [str(folder) for folder in folders],
        **standing(list(runs), done),
        "means": {
            name: {run: rounded(interval(list(own.values()))) for run, own in of_runs.items()}
            for name, of_runs in means.items()
        },
    }


def _decisive(columns: Mapping[str, Column]) -> str:
    of_judges = [name for name, column in columns.items() if column.judge and name.endswith(" relation")]
    return (of_judges or list(columns))[0]


def _tables(content: Mapping[str, Any]) -> dict[str, list[list[str]]]:
    """By title: who beats whom by the column that decides, and the means of all columns in the same order."""
    wins = win_table(content)
    rows = [["run", *content["means"]]]
    for run, *_ in wins[1:]:
        rows.append([run, *(cell(of_runs[run]) for of_runs in content["means"].values())])
    return {f"Strength by {content['by']}": wins, "Means": rows}


_LEGEND = (
    "A run is stronger by 1 where it wins 73 % of the cases that two share (Bradley-Terry, 0 is the mean of all). 95 % "
    "bootstrap intervals over cases."
)


def terminal(content: Mapping[str, Any]) -> str:
    """The leaderboard as plain text."""
    return "\n\n".join([*(f"{title}\n{aligned(rows)}" for title, rows in _tables(content).items()), _LEGEND])


def markdown(content: Mapping[str, Any]) -> str:
    """The leaderboard as Markdown."""
    return "\n\n".join(
        [*(f"## {inert(title)}\n\n{markdown_table(rows)}" for title, rows in _tables(content).items()), _LEGEND]
    )


def html(content: Mapping[str, Any]) -> str:
    """The leaderboard as one page."""
    tables = [(title, rows, "") for title, rows in _tables(content).items()]
    sources = [_LEGEND, f"Evaluations: {', '.join(content['folders'])}."]
    return render(Path(__file__).parents[1] / "tables.html.jinja", title="Leaderboard", tables=tables, sources=sources)
