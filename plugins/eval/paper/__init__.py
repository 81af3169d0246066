"""``rbctl eval tables``: the paper's tables, what is published beside what was measured here."""

from __future__ import annotations

import json
from pathlib import Path

import click

from rbctl.errors import InputError


@click.command("tables")
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--recipe", default="paper", show_default=True, help="Which tables and rows: a YAML file or a shipped name."
)
@click.option("--tables", multiple=True, help='Instead of all tables of the recipe, as "Table 4"; repeatable.')
@click.option("--output", type=click.Path(path_type=Path), help="Write them too: a .html, .md or .json file.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for a program to read.")
def command(runs: tuple[Path, ...], recipe: str, tables: tuple[str, ...], output: Path | None, as_json: bool) -> None:
    """Print the paper's tables, published and measured side by side.

    RUNS are finished folders of 'rbctl eval --bench' and 'rbctl eval ablate'. Without any, all in runs/eval and
    runs/ablate are taken. A run of eval stands in the row of its name, as in --lora DreamRelation:hug=PATH or
    --run MS-Diffusion=FOLDER. A row of an ablation is found by its table and label. Without a figure, a cell is "-".

    \b
      rbctl eval tables
      rbctl eval tables runs/eval/relationbench runs/ablate/sdxl-paper --output paper.html
      rbctl eval tables --tables "Table 4" --json
    """
    from rbctl.files import write_text
    from rbctl.plugins.eval.paper import run
    from rbctl.plugins.eval.paper.recipe import read

    writers = {".html": run.html, ".md": run.markdown, ".json": lambda content: json.dumps(content, indent=2)}
    if output and output.suffix not in writers:
        raise InputError(f"--output {output}: name a file that ends in {', '.join(writers)}")
    content = run.content(read(recipe, tables), runs or run.finished())
    if output:
        write_text(output, writers[output.suffix](content) + "\n")
    click.echo(json.dumps(content, indent=2, ensure_ascii=False) if as_json else run.terminal(content))
