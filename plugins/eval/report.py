"""The report: one self-contained HTML page, the same in Markdown, and the table of the terminal."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rbctl.files import read_image
from rbctl.pages import render
from rbctl.plugins.eval.failures import TYPES
from rbctl.plugins.eval.rows import TRUTH, Row, by_case
from rbctl.plugins.eval.tables import aligned, cell, column_table, inert, markdown_table, number, win_table

_THUMBNAIL = 144  # pixels, longer side
_COLOURS = ("#1b6ca8", "#c8553d", "#3a7d44", "#8e5aa8", "#b08900", "#4d4d4d")
_EXTREMES = 4  # best and worst pictures of a run
_PLOT = 420.0, 300.0, 46.0  # width, height and margin of the scatter


# --- tables ---------------------------------------------------------------------------------------------------------


def _mark(content: dict[str, Any], run: str, column: str) -> str:
    """ "*" for the highest mean over shared cases, "**" where it differs from every other run."""
    winner = content["winners"][column]
    if not winner or run not in winner["runs"]:
        return ""
    return "**" if winner["significant"] else "*"


def table(
    content: dict[str, Any],
    part: dict[str, Any] | None = None,
    bounds: bool = True,
    published: Mapping[str, Mapping[str, float]] | None = None,
    judge: str = "",
) -> list[list[str]]:
    """Header and rows of the metric table: runs, published numbers, then floors and ceilings.

    Args:
        part: the cells of one group instead of all.
        published: rows of a paper on the same cases, in the profile of the benchmark.
        judge: the columns of this judge instead of those of no judge.
    """
    columns = {name: facts for name, facts in content["columns"].items() if facts["judge"] == judge}
    rows = [["run", "n", *_heads(columns)]]
    for run, cells in (part or content["table"]).items():
        marks = [_mark(content, run, column) if part is None else "" for column in columns]
        most = max((cell["n"] for cell in cells.values()), default=0)
        shown = [cell(cells[column]) + mark for column, mark in zip(columns, marks, strict=True)]
        rows.append([f"{run} (ceiling)" if run == TRUTH else run, str(most), *shown])
    for name, numbers in (published or {}).items():
        own = [f["profile"] == content["benchmark"]["profile"] for f in columns.values()]
        shown = [number(numbers.get(f["name"]) if k else None) for f, k in zip(columns.values(), own, strict=True)]
        rows.append([f"{name} (published)", "", *shown])
    if bounds:
        for bound, words in (("ceiling", "real pictures, same subject"), ("floor", "another subject, other words")):
            cells_ = [cell((content["bounds"].get(column) or {}).get(bound)) for column in columns]
            if any(text != "-" for text in cells_):
                rows.append([words, "", *cells_])
    return rows


def number_tables(content: dict[str, Any]) -> dict[str, list[list[str]]]:
    """The metric table of cases with one individual and of those with several; empty where all are alike."""
    published = content["benchmark"]["published"]
    return {
        f"{name}-subject cases": table(content, part, bounds=False, published=published.get(name))
        for name, part in content["numbers"].items()
    }


def _heads(columns: dict[str, Any]) -> list[str]:
    """The columns' names, with their profiles where two have the same name."""
    names = [facts["name"] for facts in columns.values()]
    return [f["name"] if names.count(f["name"]) == 1 else f"{f['name']} ({f['profile']})" for f in columns.values()]


def case_table(content: dict[str, Any], rows: Sequence[Row]) -> list[list[str]]:
    """Header and rows: the scores of every case by run, means over the run's pictures of it."""
    columns = content["columns"]
    by_run: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        by_run.setdefault(row.picture.case.id, {}).setdefault(row.picture.run, []).append(row)
    table = [["case", "prompt", "run", *_heads(columns)]]
    for case, runs in by_run.items():
        for run, own in runs.items():
            scores = [number(by_case(own, column).get(case)) for column in columns]
            table.append([case, own[0].picture.case.text, run, *scores])
    return table


def judge_tables(content: dict[str, Any]) -> dict[str, list[list[str]]]:
    """By judge: the share of its answers that pictures without fault would have, and which run wins how often."""
    tables = {}
    for judge in content["judges"].get("judges", ()):
        tables[f"Judge {judge}: share answered as of a faultless picture"] = table(content, bounds=False, judge=judge)
        tables[f"Judge {judge}: share of yes, and its measured error"] = _yes_table(content["judges"]["judges"][judge])
        if standing := content["wins"].get(judge):
            tables[f"Judge {judge}: who wins"] = win_table(standing)
    if agreement := content["judges"].get("agreement"):
        rows = [["judges", "question", "n", "alike", "kappa"]]
        rows += [
            [f"{row['a']}, {row['b']}", row["kind"], str(row["n"]), number(row["alike"]), number(row["kappa"])]
            for row in agreement
        ]
        tables["Agreement of judges"] = rows
    return tables


def _yes_table(said: dict[str, Any]) -> list[list[str]]:
    """Header and rows: by kind of question the judge's error, and by run the share of yes, as said and corrected."""
    runs = said["runs"]
    rows = [
        ["question", "sensitivity", "specificity", *(f"{run}{what}" for run in runs for what in ("", " corrected"))]
    ]
    for kind in dict.fromkeys(kind for counted in runs.values() for kind in counted):
        error = said["error"].get(kind)
        row = [kind, *(cell(error[name]) if error else "not measured" for name in ("sensitivity", "specificity"))]
        for counted in runs.values():
            own = counted.get(kind, {"asked": 0, "not_known": 0, "yes": 0})
            known = own["asked"] - own["not_known"]
            unknown = f", {own['not_known']} not known" if own["not_known"] else ""
            row.append(f"{own['yes']}/{known}{unknown}")
            row.append("worthless" if error and known and own["corrected"] is None else cell(own.get("corrected")))
        rows.append(row)
    return rows


def failure_table(content: dict[str, Any]) -> list[list[str]]:
    """Header and rows: by run, how many pictures fail in which way, of those where it is known."""
    rows = [["run", *TYPES]]
    for run, counts in content["failures"].items():
        shown = [counts[name] for name in TYPES]
        rows.append([run, *(f"{own['count']}/{own['known']}" if own["known"] else "not known" for own in shown)])
    return rows


def rank_line(content: dict[str, Any]) -> str:
    """How CLIP-R ranks pictures beside the oracle; "" where there is no oracle."""
    overall = content["rank_correlation"].get("all")
    if not overall:
        return ""
    if overall["rho"] is None:
        return "CLIP-R against the oracle: no rank correlation, one of them does not vary."
    parts = [f"{group} {number(v['rho'])}" for group, v in content["rank_correlation"]["by_group"].items()]
    interval = f"{number(overall['rho'])} [{number(overall['low'])}, {number(overall['high'])}]"
    return (
        f"CLIP-R against the oracle's probability of the relation: rank correlation {interval} within relations "
        f"(n = {overall['n']}; {', '.join(parts)})."
    )


def terminal(content: dict[str, Any], folder: Path) -> str:
    """The table as plain text, failures and rank correlation under it.

    Args:
        folder: of the report.
    """
    encoders = "; ".join(
        f"{name}: {os.path.abspath(folder / facts['folder'])} ({facts['hash'][:8]})"
        for name, facts in content["encoders"].items()
    )
    numbers = [f"{name}\n{aligned(rows)}" for name, rows in number_tables(content).items()]
    judges = [f"{name}\n{aligned(rows)}" for name, rows in judge_tables(content).items()]
    parts = [
        aligned(table(content)),
        *numbers,
        *judges,
        aligned(failure_table(content)),
        rank_line(content),
        _LEGEND,
        encoders,
    ]
    return "\n\n".join(part for part in parts if part)


_LEGEND = (
    "Means over cases with 95 % bootstrap intervals. * highest mean over the cases that all runs share, ** and "
    "different from every other run there (paired sign-flip test, p < 0.05, not corrected)."
)


# --- Markdown ------------------------------------------------------------------------------------------------------


def markdown(content: dict[str, Any], rows: Sequence[Row]) -> str:
    """The report without pictures."""
    parts = [f"# {inert(_title(content))}", inert(content["benchmark"]["source"])]
    parts += [markdown_table(table(content)), _LEGEND, inert(rank_line(content))]
    for name, own in number_tables(content).items():
        parts += [f"## {name}", markdown_table(own)]
    for name, own in judge_tables(content).items():
        parts += [f"## {inert(name)}", markdown_table(own)]
    for group, cells in content["groups"].items():
        parts += [f"## {inert(group)}", markdown_table(table(content, cells, bounds=False))]
    parts += ["## Failures", markdown_table(failure_table(content))]
    parts += ["## Best and worst"]
    for run, (best, worst) in extremes(rows, content).items():
        for words, some in (("best", best), ("worst", worst)):
            parts.append(
                inert(f"{run}, {words}: " + "; ".join(f"{r.picture.path.name}: {r.picture.case.text}" for r in some))
            )
    parts += ["## Cases", markdown_table(case_table(content, rows))]
    if content["left_out"]:
        parts += ["## Left out", "\n".join(f"- {inert(line)}" for line in content["left_out"])]
    parts += ["## What was run", markdown_table(_facts_table(content))]
    parts += ["## Columns", markdown_table(column_table(content["columns"]))]
    if len(tests := _test_table(content)) > 1:
        parts += ["## Paired tests", markdown_table(tests)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _title(content: dict[str, Any]) -> str:
    return content["benchmark"]["name"] or " and ".join(content["runs"])


def _facts_table(content: dict[str, Any]) -> list[list[str]]:
    bench = content["benchmark"]
    rows = [["what", "value"], ["cases", f"{bench['cases']} ({_said(bench['groups'])})"]]
    if bench["seeds"]:
        rows.append(["seeds", f"{bench['seeds'][0]} to {bench['seeds'][-1]} ({len(bench['seeds'])})"])
    for run, facts in content["runs"].items():
        rows.append([f"run {run}", f"{facts['pictures']} pictures in {facts['folder']}; {_said(facts['made_with'])}"])
    for name, facts in content["encoders"].items():
        rows.append([name, f"{facts['folder']}, {facts['hash'][:16]}; {facts['preparation']}"])
    rows.append(["predicates from", _said(content["predicates"])])
    rows.append(["recipe", _said({k: v for k, v in content["recipe"].items() if v not in (None, [], False)})])
    rows.append(["versions", _said(content["versions"])])
    return rows


def _said(facts: dict[str, Any]) -> str:
    return ", ".join(f"{key or 'no relation'}: {_shortened(value)}" for key, value in facts.items())


def _shortened(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 60 else f"{text[:16]}..."


# --- pictures ------------------------------------------------------------------------------------------------------


def standing(rows: Sequence[Row], content: dict[str, Any]) -> dict[int, float]:
    """How well a picture stands among all, by the number of its row: the mean of its standardised scores."""
    standardised: dict[int, list[float]] = {k: [] for k in range(len(rows))}
    for column in content["columns"]:
        values = np.array([np.nan if (v := row.scores[column]) is None else v for row in rows])
        known = np.isfinite(values)
        spread = values[known].std() if known.any() else 0.0
        if spread > 0:
            for k in np.flatnonzero(known):
                standardised[int(k)].append(float((values[k] - values[known].mean()) / spread))
    return {k: float(np.mean(values)) if values else 0.0 for k, values in standardised.items()}


def extremes(rows: Sequence[Row], content: dict[str, Any]) -> dict[str, tuple[list[Row], list[Row]]]:
    """By run its best and its worst pictures."""
    stand = standing(rows, content)
    shown = {}
    for run in content["runs"]:
        own = sorted((k for k, row in enumerate(rows) if row.picture.run == run), key=lambda k: -stand[k])
        if run != TRUTH:
            shown[run] = [rows[k] for k in own[:_EXTREMES]], [rows[k] for k in own[::-1][:_EXTREMES]]
    return shown


@dataclass(frozen=True)
class Dot:
    """A picture in the scatter, in the plot's own coordinates."""

    x: float
    y: float
    colour: str
    title: str


def scatter(rows: Sequence[Row], content: dict[str, Any]) -> dict[str, Any] | None:
    """Likeness to the image prompts against the relation's score; None where either is missing.

    Returns:
        dots, the axes' names and ends, and a colour for each run.
    """
    likeness = _first(content, "DINO", "CLIP-I", "DINO crop", "CLIP-I crop")
    relation = _first(content, "CLIP-R", "CLIP-T")
    judged = any(row.verdict is not None for row in rows)
    if not likeness or not (relation or judged):
        return None

    def relation_score(row: Row) -> float | None:
        if judged:
            return None if row.verdict is None else row.verdict.probability
        return row.scores[relation] if relation else None

    points = [(row, row.scores[likeness], relation_score(row)) for row in rows]
    known = [(row, x, y) for row, x, y in points if x is not None and y is not None]
    if not known:
        return None
    spans = [(min(v), max(v)) for v in ([x for _, x, _ in known], [y for _, _, y in known])]
    (x0, x1), (y0, y1) = [(low, high if high > low else low + 1) for low, high in spans]
    width, height, margin = _PLOT
    colours = {run: _COLOURS[k % len(_COLOURS)] for k, run in enumerate(content["runs"])}
    dots = [
        Dot(
            round(margin + (x - x0) / (x1 - x0) * (width - 2 * margin), 1),
            round(height - margin - (y - y0) / (y1 - y0) * (height - 2 * margin), 1),
            colours[row.picture.run],
            f"{row.picture.run}: {row.picture.case.text} ({number(x)}, {number(y)})",
        )
        for row, x, y in known
    ]
    return {
        "dots": dots,
        "colours": colours,
        "x": (content["columns"][likeness]["name"], number(x0), number(x1)),
        "y": (
            "oracle: probability of the relation" if judged else content["columns"][relation]["name"],
            number(y0),
            number(y1),
        ),
        "width": width,
        "height": height,
        "margin": margin,
    }


def _first(content: dict[str, Any], *names: str) -> str | None:
    for name in names:
        for column, facts in content["columns"].items():
            if facts["name"] == name:
                return str(column)
    return None


def html(content: dict[str, Any], rows: Sequence[Row], show: int) -> str:
    """The report as one page; its pictures are in it.

    Args:
        show: cases whose pictures are shown; they are spread over the groups.
    """
    return render(
        Path(__file__).with_name("report.html.jinja"),
        title=_title(content),
        content=content,
        table=table(content),
        numbers=number_tables(content) | judge_tables(content),
        groups={group: table(content, cells, bounds=False) for group, cells in content["groups"].items()},
        failures=failure_table(content),
        rank=rank_line(content),
        legend=_LEGEND,
        facts=_facts_table(content),
        columns=column_table(content["columns"]),
        tests=_test_table(content),
        plot=scatter(rows, content),
        extremes={
            run: {"best": [_card(row, content) for row in best], "worst": [_card(row, content) for row in worst]}
            for run, (best, worst) in extremes(rows, content).items()
        },
        cases=_grids(rows, content, show),
    )


def _test_table(content: dict[str, Any]) -> list[list[str]]:
    rows = [["column", "a", "b", "a - b", "p", "cases"]]
    for column, tests in content["tests"].items():
        for t in tests:
            if t["p"] is not None:
                difference = {"mean": t["difference"], "low": t["low"], "high": t["high"]}
                rows.append([column, t["a"], t["b"], cell(difference), f"{t['p']:.3g}", str(t["cases"])])
    return rows


def _card(row: Row, content: dict[str, Any]) -> dict[str, Any]:
    """A picture with what is said of it."""
    names = [(facts["name"], row.scores[column]) for column, facts in content["columns"].items()]
    return {
        "run": row.picture.run,
        "image": thumbnail(row.picture.path),
        "scores": ", ".join(f"{name} {number(value)}" for name, value in names if value is not None),
        "failures": [name for name, there in row.failures.items() if there],
        "text": row.picture.case.text,
    }


def _grids(rows: Sequence[Row], content: dict[str, Any], show: int) -> list[dict[str, Any]]:
    """Cases with image prompts and every run's pictures; as many of each group as of the others."""
    by_group: dict[str, list[str]] = {}
    by_case: dict[str, list[Row]] = {}
    for row in rows:
        case = row.picture.case
        if case.id not in by_case:
            by_group.setdefault(case.group, []).append(case.id)
        by_case.setdefault(case.id, []).append(row)
    turns = [
        ids[k] for k in range(max(map(len, by_group.values()), default=0)) for ids in by_group.values() if k < len(ids)
    ]
    return [
        {
            "id": name,
            "text": by_case[name][0].picture.case.text,
            "predicate": by_case[name][0].predicate,
            "prompts": [(t.name, thumbnail(t.image)) for t in by_case[name][0].picture.case.objects],
            "cards": [_card(row, content) for row in by_case[name]],
        }
        for name in turns[:show]
    ]


def thumbnail(path: Path) -> str:
    """A picture as a small JPEG in a data address."""
    image = read_image(path)
    image.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BICUBIC)
    encoded = io.BytesIO()
    image.save(encoded, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(encoded.getvalue()).decode()
