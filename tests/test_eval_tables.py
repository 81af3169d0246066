"""``rbctl eval tables``: the paper's tables with what was measured beside what is published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from rbctl.cli import main
from rbctl.plugins.eval.paper.recipe import read


def tables(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["eval", "tables", *map(str, arguments)], catch_exceptions=False)


def cell(mean: float | None) -> dict[str, Any]:
    return {"mean": mean, "low": mean, "high": mean, "cases": 4, "n": 8}


def scored(folder: Path, bench: str | None, rows: dict[str, float]) -> Path:
    """The folder of a run of rbctl eval, as far as it is read: its scores of cases with two individuals."""
    columns = {f"{profile} CLIP-R": {"name": "CLIP-R", "profile": profile} for profile in ("relationbench", "crops")}
    cells = {
        run: {"relationbench CLIP-R": cell(mean), "crops CLIP-R": cell(0.5), "other": cell(None)}
        for run, mean in rows.items()
    }
    content = {"benchmark": {"name": bench}, "columns": columns, "table": cells, "numbers": {"multi": cells}}
    folder.mkdir(parents=True)
    (folder / "scores.json").write_text(json.dumps(content))
    return folder


def rows_of(content: dict[str, Any], name: str) -> list[tuple[str, float | None, float | None]]:
    """Label, published and measured CLIP-R of the last table of this name."""
    rows = [table for table in content["tables"] if table["name"] == name][-1]["rows"]
    return [(r["row"], r["published"].get("CLIP-R"), r["measured"].get("CLIP-R", {}).get("mean")) for r in rows]


def test_all_eight_tables_are_printed_without_any_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shown = tables().stdout
    assert [f"Table {number}:" in shown for number in range(1, 9)] == [True] * 8
    lines = shown.split("Table 4:")[1].splitlines()
    full = next(line for line in lines if line.startswith("full "))
    assert full.split() == ["full", "28.9", "-", "20.4", "-", "75.4", "-", "62.1", "-"]
    assert "Measured: nothing yet." in shown


def test_a_run_stands_in_the_row_of_its_name_and_others_behind(tmp_path: Path) -> None:
    run = scored(tmp_path / "run", "relationbench", {"base": 15.0, "ms_diffusion": 17.5, "DreamRelation": 21.0})
    other = scored(tmp_path / "other", "dreambench", {"DreamRelation": 99.0})
    content = json.loads(tables(run, other, "--tables", "Table 1", "--json").stdout)
    rows = rows_of(content, "Table 1")
    assert rows[-3:] == [("MS-Diffusion", None, 17.5), ("DreamRelation", 20.4, 21.0), ("base", None, 15.0)]
    assert "99" not in json.dumps(content)
    shown = tables(run, "--tables", "Table 1").stdout
    assert f"Measured: {run} (on relationbench)." in shown


def test_rows_of_two_runs_stand_one_under_the_other(tmp_path: Path) -> None:
    runs = [scored(tmp_path / str(k), "relationbench", {"DreamRelation": 20.0 + k}) for k in range(2)]
    content = json.loads(tables(*runs, "--tables", "Table 1", "--json").stdout)
    assert rows_of(content, "Table 1")[-2:] == [("DreamRelation", 20.4, 20.0), ("DreamRelation", 20.4, 21.0)]


def test_rows_of_an_ablation_are_found_by_table_and_label(tmp_path: Path) -> None:
    columns = {"c": {"name": "CLIP-R", "profile": "relationbench"}}
    content = {
        "bench": "relationbench-mini",
        "columns": columns,
        "variants": {"full": {"cells": {"c": cell(43.3)}}, "v": {"cells": {"c": cell(42.7)}}},
        "tables": [
            {"name": "Table 4", "rows": {"full": "full", "without KML": "v", "of ours": "v"}},
            {"name": "Table 9", "rows": {"without KML": "full"}},
        ],
    }
    (tmp_path / "tables.json").write_text(json.dumps(content))
    found = json.loads(tables(tmp_path, "--json").stdout)
    rows = rows_of(found, "Table 4")
    assert rows[0] == ("full", 20.4, 43.3)
    assert rows[-2:] == [("without KML", 18.2, 42.7), ("of ours", None, 42.7)]
    assert all(measured is None for number in (5, 6, 7, 8) for *_, measured in rows_of(found, f"Table {number}"))


@pytest.mark.parametrize("suffix", [".html", ".md", ".json"])
def test_the_tables_are_written_as_the_ending_says(suffix: str, tmp_path: Path) -> None:
    run = scored(tmp_path / "run", "relationbench", {"<b>x</b>": 19.25, "DreamRelation": 20.0})
    path = tmp_path / f"paper{suffix}"
    assert tables(run, "--output", path).exit_code == 0
    written = path.read_text()
    assert "Table 8" in written
    assert "19.2" in written
    assert suffix == ".json" or "<b>" not in written
    assert suffix != ".html" or "Content-Security-Policy" in written


def test_what_is_wrong_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    recipe = tmp_path / "own.yaml"
    content = {"source": "s", "columns": ["CLIP-R"], "tables": [{"name": "T", "title": "t", "rows": {"a": "b"}}]}
    recipe.write_text(yaml.safe_dump(content))
    broken = scored(tmp_path / "broken", "relationbench", {})
    (broken / "scores.json").write_text('{"benchmark": {"name": 3}}')
    for arguments, told in (
        ([tmp_path / "empty"], "no scores.json and no tables.json"),
        (["--tables", "Table 12"], "has no 'Table 12'; its tables: Table 1, Table 2"),
        (["--recipe", recipe], "T: a: no published row 'b'"),
        (["--output", tmp_path / "paper.pdf"], "name a file that ends in .html, .md, .json"),
        ([broken], "scores.json: benchmark.name"),
    ):
        result = tables(*arguments)
        assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1), result.stderr
        assert told in result.stderr


def test_the_shipped_ablation_has_rows_of_the_papers_tables() -> None:
    """What rbctl eval ablate sdxl-paper measures stands in a row of the paper's own."""
    from rbctl.options import find_recipe

    ablation = yaml.safe_load(find_recipe("sdxl-paper", "ablations").read_text())
    paper = {table.name: table.rows.keys() for table in read("paper").tables if table.ablation}
    for table in ablation["tables"]:
        assert table["rows"].keys() <= paper[table["name"]]
