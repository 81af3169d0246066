"""``rbctl eval ablate``: a recipe of variants -> LoRAs, pictures and scores of each, and tables that compare them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from rbctl.errors import InputError


@click.command("ablate")
@click.argument("recipe")
@click.option("--output", type=click.Path(path_type=Path), help="Output folder. [default: runs/ablate/NAME]")
@click.option("--tables", multiple=True, help='Instead of all tables of the recipe, as "Table 4"; repeatable.')
@click.option("--relations", multiple=True, help="Instead of the recipe's relations; repeatable.")
@click.option(
    "--seeds", multiple=True, type=click.IntRange(0, 2**63 - 10_001), help="Instead of the recipe's seeds; repeatable."
)
@click.option("--cases", type=click.IntRange(1, 100_000), help="Cases a relation, instead of the recipe's.")
@click.option("--bundle", help="Base model, instead of the recipe's.")
@click.option(
    "--triplets",
    multiple=True,
    help="RELATION=FOLDER: triplets that it is tuned on, instead of the recipe's; repeatable.",
)
@click.option(
    "--local-encoder",
    "local_encoders",
    multiple=True,
    help="NAME=FOLDER: a local encoder of rbctl distill that rows name, instead of the recipe's; repeatable.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Folder of the benchmark's pictures. [default: what its YAML says]",
)
@click.option(
    "--clip",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="CLIP that scores: a folder. [default: the bundle's]",
)
@click.option(
    "--dino",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="DINO that scores: a folder. [default: the bundle's own]",
)
@click.option("--jobs", type=click.IntRange(1, 256), default=1, show_default=True, help="Processes at once.")
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="Where to run."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON for a program to read.")
@click.option(
    "--figures",
    type=click.Path(path_type=Path),
    help="fullsize.json of bench/fullsize.py, for the GPU hours of --dry-run. [default: bench/out/fullsize.json]",
)
@click.option("--dry-run", is_flag=True, help="Print what would be done and what is there already, and stop.")
def command(
    recipe: str,
    output: Path | None,
    tables: tuple[str, ...],
    relations: tuple[str, ...],
    seeds: tuple[int, ...],
    cases: int | None,
    bundle: str | None,
    triplets: tuple[str, ...],
    local_encoders: tuple[str, ...],
    data: Path | None,
    clip: Path | None,
    dino: Path | None,
    jobs: int,
    device: Literal["auto", "cpu", "cuda"],
    as_json: bool,
    figures: Path | None,
    dry_run: bool,
) -> None:
    """Train, sample and score the variants of RECIPE, a YAML file or the name of a shipped one.

    Every variant is tuned on every relation with every seed and sampled on the same cases, in the same boxes, with the
    same noise. Out, in runs/ablate/NAME: tables.md and tables.json, with intervals and paired differences to the full
    method. The same command again makes only what is missing. docs/ablations.md tells the recipe's fields.

    \b
      rbctl eval ablate paper --dry-run
      rbctl eval ablate recipes/ablations/paper.yaml --jobs 2
      rbctl eval ablate paper --tables "Table 4"
      rbctl eval ablate mine.yaml --relations ride --seeds 0 --seeds 1 --cases 8
      rbctl eval ablate sdxl-paper --triplets hug=triplets/hug --relations hug --data downloads/relationbench
      rbctl eval ablate sdxl-paper --tables "Table 5" --local-encoder ViT-L-14=runs/distill/ViT-L-14/clipself ...
    """
    from rbctl.plugins.eval.ablate.recipe import read

    changes = {
        "relations": relations,
        "seeds": seeds,
        "cases": cases,
        "bundle": bundle,
        "data": _folders("--triplets", "RELATION", triplets),
        "local_encoders": _folders("--local-encoder", "NAME", local_encoders),
    }
    ablation = read(recipe, {key: value for key, value in changes.items() if value}, tables)
    from rbctl.plugins.eval.ablate import run  # heavy: a wrong recipe is told before it is loaded
    from rbctl.plugins.eval.stages import Stages

    place = output or run.ABLATIONS / ablation.path.stem
    work = run.Work(ablation, Stages(place, ablation.recipe.bundle, device, jobs), data, clip, dino)
    click.echo(work.plan(figures) if dry_run else work.run(as_json))


def _folders(flag: str, what: str, assignments: tuple[str, ...]) -> dict[str, str]:
    """Absolute folders by name, of a flag's NAME=FOLDER."""
    folders = {}
    for assignment in assignments:
        name, equals, folder = assignment.partition("=")
        if not (name and equals and Path(folder).is_dir()):
            raise InputError(f"{flag} {assignment}: write {what}=FOLDER, a folder that is there")
        folders[name] = str(Path(folder).resolve())
    return folders
