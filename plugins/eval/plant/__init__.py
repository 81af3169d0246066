"""``rbctl eval plant``: cut-outs pasted into photographs, with faults whose truth is known."""

from __future__ import annotations

from pathlib import Path

import click

from rbctl.errors import InputError


@click.command("plant")
@click.argument("cutouts", nargs=-1, required=True, metavar="NAME=PICTURE...")
@click.option(
    "--scene", "scenes", multiple=True, required=True, type=click.Path(path_type=Path),
    help="A photograph that they are pasted into; repeatable, taken in turns.",
)  # fmt: skip
@click.option("--relation", "relations", multiple=True, default=("stand_on",), show_default=True, help="Repeatable.")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Folder of the pictures.")
@click.option("--size", type=click.IntRange(64, 2048), default=512, show_default=True, help="Side of a picture.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Seed of the positions.")
def command(
    cutouts: tuple[str, ...], scenes: tuple[Path, ...], relations: tuple[str, ...], output: Path, size: int, seed: int
) -> None:
    """Paste cut-outs into photographs, rightly and with faults, for 'rbctl eval judge-check FOLDER'.

    Each two individuals of different names are pasted as the relation's boxes lie: right, with roles exchanged, one
    missing, one there twice, apart, and one on the other. A cut-out is a picture with transparency, or on plain ground,
    which is then cut away; look at OUTPUT/cutouts. Out: pictures, masks/, metadata.csv and answers.csv.

    \b
      rbctl eval plant dog=dog.png "duck toy=duck.jpg" --scene beach.jpg --scene table.jpg --output runs/eval/pasted
      rbctl eval judge-check runs/eval/pasted --judge boxes
    """
    from rbctl.plugins.eval.plant.run import run

    named = []
    for cutout in cutouts:
        name, _, path = cutout.partition("=")
        if not name.strip() or not path:
            raise InputError(f"{cutout}: write NAME=PICTURE, as in dog=dog.png")
        named.append((name.strip(), Path(path)))
    click.echo(run(named, scenes, relations, output, size, seed))
