"""``rbctl eval leaderboard``: methods of several evaluations in one order, by who beats whom."""

from __future__ import annotations

import json
from pathlib import Path

import click

from rbctl.errors import InputError


@click.command("leaderboard")
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--by", help="Column that decides, as scores.json names it. [default: the first judge's relation, else the first]"
)
@click.option("--output", type=click.Path(path_type=Path), help="Write the page too: a .html, .md or .json file.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for a program to read.")
def command(folders: tuple[Path, ...], by: str | None, output: Path | None, as_json: bool) -> None:
    """Order the methods of finished evaluations, FOLDERS of 'rbctl eval', by their strength.

    On every case that two methods share, the one with the higher score wins. The wins give strengths (Bradley-Terry)
    with intervals, so methods with different parts of a benchmark stand in one order. The folders must have scored with
    the same models.

    \b
      rbctl eval leaderboard runs/eval/relationbench
      rbctl eval leaderboard runs/eval/ours runs/eval/theirs --by "relationbench CLIP-T" --output leaderboard.html
    """
    from rbctl.files import write_text
    from rbctl.plugins.eval.leaderboard import run

    writers = {".html": run.html, ".md": run.markdown, ".json": lambda content: json.dumps(content, indent=2)}
    if output and output.suffix not in writers:
        raise InputError(f"--output {output}: name a file that ends in {', '.join(writers)}")
    content = run.content(folders, by)
    if output:
        write_text(output, writers[output.suffix](content) + "\n")
    click.echo(json.dumps(content, indent=2, ensure_ascii=False) if as_json else run.terminal(content))
