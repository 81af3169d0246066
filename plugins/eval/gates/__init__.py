"""``rbctl eval gates``: a recipe of figures with limits -> what a bundle can do in the embedded world."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click


@click.command("gates")
@click.argument("recipe", default="mini")
@click.option("--only", metavar="A,B", default="", help="Sections, with commas between. [default: all]")
@click.option("--output", type=click.Path(path_type=Path), help="Output folder. [default: runs/gates/RECIPE]")
@click.option("--keep", type=click.Path(path_type=Path), help="Write the result here too, beside the sections there.")
@click.option("--bundle", help="What is measured, instead of the recipe's: a name or a folder.")
@click.option("--oracle", type=click.Path(path_type=Path), help="Oracle that judges. [default: the bundle's]")
@click.option("--scenes", type=click.IntRange(1, 100_000), help="Scenes of a section, instead of the recipe's.")
@click.option("--relations", multiple=True, help="Tune LoRAs on these instead of the recipe's; repeatable.")
@click.option(
    "--seeds", multiple=True, type=click.IntRange(0, 2**63 - 10_001), help="Instead of the recipe's seeds; repeatable."
)
@click.option(
    "--jobs", type=click.IntRange(1, 256), default=2, show_default=True, help="Processes at once, of one thread each."
)
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="Where to run."
)
@click.option("--quick", is_flag=True, help="A smoke test: one scene each, one relation, two steps.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for a program to read.")
def command(
    recipe: str,
    only: str,
    output: Path | None,
    keep: Path | None,
    bundle: str | None,
    oracle: Path | None,
    scenes: int | None,
    relations: tuple[str, ...],
    seeds: tuple[int, ...],
    jobs: int,
    device: Literal["auto", "cpu", "cuda"],
    quick: bool,
    as_json: bool,
) -> None:
    """Measure what a bundle of the embedded world can do, and hold it against the limits of RECIPE.

    RECIPE is a YAML file or the name of a shipped one. Out, in runs/gates/RECIPE: gates.json, section by section, with
    intervals, LoRAs, pictures and sheets. The same command again makes only what is missing.

    \b
      rbctl eval gates --only oracle,vae
      rbctl eval gates --relations ride --seeds 0 --scenes 40 --only lora
      rbctl eval gates mine.yaml --bundle build/pretrain/bundle
    """
    from rbctl.plugins.eval.gates.recipe import read_gates

    changes = {"bundle": bundle, "scenes": scenes, "relations": relations, "seeds": seeds}
    sections = [name for name in only.split(",") if name]
    gates = read_gates(recipe, {key: value for key, value in changes.items() if value}, sections)
    from rbctl.plugins.eval.gates import run  # heavy: a wrong recipe is told before it is loaded

    place = output or run.GATES / Path(recipe).stem
    click.echo(run.run(gates, place, oracle, jobs, device, keep, quick, as_json))
