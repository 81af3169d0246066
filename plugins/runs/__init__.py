"""``rbctl runs``: what finetune, distill and eval left in their folders."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rbctl.errors import InputError
from rbctl.progress import print_table

if TYPE_CHECKING:
    from rbctl.plugins.runs.folder import RunFolder

_FOLDER = click.Path(path_type=Path)
_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for a program to read.")


@click.group(name="runs")
def command() -> None:
    """List, show, compare and clean the folders of finetune, distill and eval.

    \b
      rbctl runs list
      rbctl runs compare runs/finetune/ride runs/finetune/ride-rank8
    """


@command.command("list")
@click.argument("root", type=_FOLDER, default="runs")
@_as_json
def list_(root: Path, as_json: bool) -> None:
    """Show every run below ROOT (default: runs), the newest last."""
    from rbctl.plugins.runs.folder import read_run, run_folders

    runs = []
    for folder in run_folders(root):
        try:
            runs.append(read_run(folder))
        except InputError as error:  # one damaged run does not hide the others
            click.echo(str(error), err=True)
    if as_json:
        click.echo(json.dumps([_plain(run) for run in runs], indent=2))
        return
    rows = [[str(run.folder), run.stage, run.progress, run.loss_text, run.size_text, run.begun] for run in runs]
    print_table(["run", "stage", "steps", "loss", "size", "begun"], rows)


@command.command("show")
@click.argument("folder", type=_FOLDER)
@_as_json
def show_(folder: Path, as_json: bool) -> None:
    """Show one run: how far it is, its options, seeds, versions and the hashes of its inputs."""
    from rbctl.plugins.runs.folder import read_run

    run = read_run(folder)
    if as_json:
        click.echo(json.dumps(_plain(run), indent=2))
        return
    print_table([], [["stage", run.stage], ["steps", run.progress], ["loss", run.loss_text], ["size", run.size_text]])
    for title, values in (("options", run.options), ("record", run.facts())):
        click.echo(f"\n{title}")
        print_table([], [[f"  {name}", _text(value)] for name, value in values.items()])


@command.command("compare")
@click.argument("folders", type=_FOLDER, nargs=-1, required=True)
@_as_json
def compare_(folders: Sequence[Path], as_json: bool) -> None:
    """Show in what two or more runs differ: options, record, and the last row of metrics.jsonl."""
    from rbctl.plugins.runs.folder import differences, read_run

    runs = [read_run(folder) for folder in folders]
    rows = differences(runs)
    if as_json:
        click.echo(json.dumps(dict(rows), indent=2))
        return
    print_table(["", *(str(run.folder) for run in runs)], [[name, *map(_text, values)] for name, values in rows])


@command.command("clean")
@click.argument("folders", type=_FOLDER, nargs=-1, required=True)
@click.option("--all", "everything", is_flag=True, help="The newest checkpoint too: the run cannot go on from it.")
@click.option("--dry-run", is_flag=True, help="Only show what would be deleted.")
def clean_(folders: Sequence[Path], everything: bool, dry_run: bool) -> None:
    """Delete the checkpoints of runs, but for the newest of each. Results, logs and records stay."""
    from rbctl.bundle.catalogue import size_text
    from rbctl.files import sweep
    from rbctl.plugins.runs.folder import delete, read_run, superfluous
    from rbctl.runs import claim

    for folder in [read_run(folder).folder for folder in folders]:  # all are read before the first loses anything
        with claim(folder):
            if not dry_run:
                sweep(folder)
            for path, size in superfluous(folder, keep=0 if everything else 1):
                click.echo(f"{path}  {size_text(size)}")
                if not dry_run:
                    delete(path)


def _plain(run: RunFolder) -> dict[str, object]:
    return {**dataclasses.asdict(run), "folder": str(run.folder)}


def _text(value: object) -> str:
    """A value in one cell."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:.6g}"
    return json.dumps(value)
