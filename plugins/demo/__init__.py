"""``rbctl demo``: everything needed to try the road without downloading anything."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(name="demo")
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path("runs/demo"), show_default=True, help="Folder to write."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the random weights.")
def command(output: Path, seed: int) -> None:
    """Write a tiny random bundle, five drawn triplets of "hug" and a prompts file, to try every command offline.

    The bundle's weights are random, so its pictures are noise: this shows the road, not the quality.

    \b
      rbctl demo
      rbctl data check runs/demo/hug
    """
    from .run import run

    run(output, seed)
