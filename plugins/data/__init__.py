"""``rbctl data``: bring in, check and show triplets."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rbctl.errors import InputError, nearest, shortlist
from rbctl.paths import FOLLOW_OUTSIDE

if TYPE_CHECKING:
    from rbctl.triplets.problem import Problem

_FOLDER = click.Path(path_type=Path)
_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for a program to read.")
_follow_outside = click.option("--follow-outside", is_flag=True, help=FOLLOW_OUTSIDE)


@click.group(name="data")
def command() -> None:
    """Fetch, bring in, check and show triplets, the data of one relation.

    A triplet is a target picture that shows the relation, a picture of each individual alone, and a prompt. It is
    annotated with masks, boxes and keypoints. Four to six triplets teach a relation.

    \b
      rbctl data check triplets/hug
      rbctl data show triplets/hug
    """


@command.command("pull")
@click.argument("name")
@click.option("--output", type=_FOLDER, help="Folder to write; default: downloads/NAME.")
def pull_(name: str, output: Path | None) -> None:
    """Download data NAME of the catalogue from the hub, check every file, record commits and hashes.

    'rbctl models list' shows what there is. After an interruption, the same command resumes.

    \b
      rbctl data pull relationbench
      rbctl eval --bench relationbench --data downloads/relationbench
    """
    from rbctl.bundle.catalogue import RELEASES
    from rbctl.bundle.download import pull_release

    names = [name for name, release in RELEASES.items() if release.kind == "dataset"]
    if name not in names:
        raise InputError(f"{name}: not in the catalogue{nearest(name, names) or '; it has ' + ', '.join(names)}")
    folder = output or Path("downloads") / name
    licence = pull_release(RELEASES[name], folder)
    click.echo(f"licence: {licence}", err=True)
    click.echo(folder)


@command.command("import")
@click.argument("source", type=_FOLDER)
@click.argument("dest", type=_FOLDER)
@click.option("--predicate", default="", help="Words of the relation, for triplets that state none.  [example: hug]")
@_as_json
@_follow_outside
def import_(source: Path, dest: Path, predicate: str, as_json: bool, follow_outside: bool) -> None:
    """Copy triplets of the official layout (prompts.json, videos/, masks/) to a folder with metadata.jsonl.

    An export for a trainer comes back too. One that has lost its triplets.jsonl becomes a raw set, for rbctl annotate.

    \b
      rbctl data import downloads/hug triplets/hug
      rbctl data import downloads/shaking_hands triplets/shake --predicate "shaking hands"
      rbctl data import triplets/hug-musubi triplets/hug-again
    """
    from rbctl.plugins.data.trainers.found import find_examples, trainer_of, write_raw_set
    from rbctl.runs import claim
    from rbctl.triplets import data_hash, load
    from rbctl.triplets.check import check as find_problems
    from rbctl.triplets.folder import write
    from rbctl.triplets.layouts import has_triplets

    if dest.resolve() == source.resolve():
        raise InputError(f"{dest}: is the source itself; choose another folder")
    if not has_triplets(source) and (trainer := trainer_of(source)):
        examples = find_examples(source, trainer)
        with claim(dest):
            write_raw_set(examples, source, dest)
        click.echo(f"{source}: has no triplets.jsonl; annotate the raw set: rbctl annotate {dest}", err=True)
        click.echo(json.dumps({"folder": str(dest), "triplets": len(examples), "raw": True}) if as_json else dest)
        return
    triplets = load(source, predicate, follow_outside)
    problems = find_problems(source, follow_outside)
    _tell(problems, err=True)
    if errors := [problem for problem in problems if problem.level == "error"]:
        raise InputError(f"{source}: {len(errors)} errors; `rbctl data fix {source} {dest}` brings it in, mended")
    with claim(dest):
        write(triplets, dest)
    if as_json:
        click.echo(json.dumps({"folder": str(dest), "triplets": len(triplets), "data_hash": data_hash(triplets)}))
    else:
        click.echo(dest)


@command.command()
@click.argument("folder", type=_FOLDER)
@click.option("--bundle", help="Count words as this bundle's tokenizer does: a name or a folder.")
@_as_json
@_follow_outside
@click.pass_context
def check(ctx: click.Context, folder: Path, bundle: str | None, as_json: bool, follow_outside: bool) -> None:
    """Print everything that is wrong with FOLDER, one line each; exit with 2 if something must be fixed.

    FOLDER may have either layout. A warning does not fail.

    \b
      rbctl data check triplets/hug
      rbctl data check triplets/hug --json
    """
    from rbctl.triplets.check import check as find_problems

    tokenizer = None
    if bundle:
        from rbctl.bases.load import load_tokenizer

        tokenizer = load_tokenizer(bundle)
    problems = find_problems(folder, follow_outside, tokenizer=tokenizer)
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(p) for p in problems], indent=2, ensure_ascii=False))
    else:
        _tell(problems)
        if not problems:
            click.echo(f"{folder}: nothing is wrong")
    if any(problem.level == "error" for problem in problems):
        ctx.exit(2)


@command.command()
@click.argument("folder", type=_FOLDER)
@click.argument("dest", type=_FOLDER, required=False)
@_follow_outside
@click.pass_context
def fix(ctx: click.Context, folder: Path, dest: Path | None, follow_outside: bool) -> None:
    """Write a mended copy of FOLDER to DEST (FOLDER-fixed), and print what was mended and what is left.

    It puts right keypoints that two individuals have of each other, that are (y, x) or relative to a crop; masks that
    are white outside of their object; boxes that are not their masks'; predicates that only the prompt says. FOLDER may
    have either layout and stays as it is. The exit status is 2 if something is left that must be fixed.

    \b
      rbctl data fix downloads/hug triplets/hug
    """
    from rbctl.runs import claim
    from rbctl.triplets import load
    from rbctl.triplets.check import check as find_problems
    from rbctl.triplets.fix import fix as write_mended

    dest = dest or folder.resolve().with_name(f"{folder.resolve().name}-fixed")
    if dest.resolve() == folder.resolve():
        raise InputError(f"{dest}: is the folder itself, which stays as it is; choose another one")
    triplets = load(folder, follow_outside=follow_outside)
    with claim(dest):
        for line in write_mended(triplets, dest):
            click.echo(f"mended: {line}", err=True)
    click.echo(dest)
    problems = find_problems(dest)
    _tell(problems, err=True)
    if any(problem.level == "error" for problem in problems):
        ctx.exit(2)


@command.command()
@click.argument("source", type=_FOLDER)
@click.argument("dest", type=_FOLDER, required=False)
@click.option(
    "--to", "trainer", help="ai-toolkit, musubi, diffsynth, simpletuner, civitai or diffusers: a training set."
)
@click.option(
    "--base", default="flux2-klein", show_default=True, help="With --to: flux2-klein, qwen-image-edit or flux-kontext."
)
@click.option("--relation", help="With --to: name or file of the relation.  [default: what the texts say]")
@click.option("--masks/--no-masks", default=True, help="With --to: masks for the loss, where the trainer takes any.")
@click.option("--for", "method", help="anydoor, blip_diffusion, cones2, elite, lambda_eclipse or ssr_encoder: prompts.")
@_follow_outside
def export(
    source: Path,
    dest: Path | None,
    trainer: str | None,
    base: str,
    relation: str | None,
    masks: bool,
    method: str | None,
    follow_outside: bool,
) -> None:
    """Write triplets for a trainer of edit models, or prompts for another method's own code.

    With --to, SOURCE is a folder of triplets. DEST (SOURCE-TRAINER) gets pictures, references, captions that say who is
    in which reference, a configuration and sample prompts. The line that starts the training is printed.
    docs/export.md says what each trainer gets.

    With --for, SOURCE is a prompts file. docs/baselines.md says how each method is run. DEST/metadata.csv names the
    pictures that it makes, and by that they are scored. Prompts of a benchmark are in the folder samples/ of
    'rbctl eval'.

    \b
      rbctl data export triplets/hug --to ai-toolkit
      rbctl data export triplets/hug sets/hug --to musubi --base qwen-image-edit
      rbctl data export runs/eval/b/samples/base.yaml theirs --for anydoor
      rbctl eval --bench relationbench --data downloads/relationbench --run anydoor=theirs
    """
    if (trainer is None) == (method is None):
        raise InputError("give either --to TRAINER, for triplets, or --for METHOD, for prompts")
    dest = dest or source.resolve().with_name(f"{source.resolve().stem}-{trainer or method}")
    if dest.resolve() == source.resolve():
        raise InputError(f"{dest}: is the source itself; choose another folder")
    if trainer:
        _export_triplets(source, dest, trainer, base, relation, masks, follow_outside)
    elif method:
        _export_prompts(source, dest, method)
    click.echo(dest)


def _export_triplets(
    source: Path, dest: Path, trainer: str, base: str, relation: str | None, masks: bool, follow_outside: bool
) -> None:
    from rbctl.plugins.data.trainers import BASES, TRAINERS, write_training_set
    from rbctl.relations import load_relation
    from rbctl.runs import claim
    from rbctl.triplets import load

    _check_known("--to", trainer, TRAINERS)
    _check_known("--base", base, BASES)
    triplets = load(source, follow_outside=follow_outside)
    meant = load_relation(relation) if relation else None
    with claim(dest):
        start = write_training_set(triplets, trainer, base, dest, meant, masks)
    click.echo(f"to train: {start}", err=True)


def _export_prompts(prompts: Path, dest: Path, method: str) -> None:
    from rbctl.plugins.data.export import METHODS
    from rbctl.plugins.data.export import export as write_inputs
    from rbctl.prompts import read_prompts
    from rbctl.runs import claim

    _check_known("--for", method, METHODS)
    listed = read_prompts(prompts)
    with claim(dest):
        whole = write_inputs(listed, method, dest)
    if whole:
        what = (
            f"{len(whole)} pictures are opaque everywhere, so all of each counts as the individual; cut it out, as in"
        )
        click.echo(f"{prompts}: {what} a PNG with alpha: {shortlist(dict.fromkeys(whole))}", err=True)


def _check_known(option: str, name: str, known: Iterable[str]) -> None:
    known = list(known)
    if name not in known:
        raise InputError(f"{option} {name}: unknown{nearest(name, known) or '; known are ' + ', '.join(known)}")


def _tell(problems: Iterable[Problem], err: bool = False) -> None:
    for problem in problems:
        click.echo(f"{'warning: ' if problem.level == 'warning' else ''}{problem}", err=err)


@command.command()
@click.argument("folder", type=_FOLDER)
@click.option("--output", type=_FOLDER, help="PNG to write.  [default: runs/data/<name of FOLDER>.png]")
@_follow_outside
def show(folder: Path, output: Path | None, follow_outside: bool) -> None:
    """Draw FOLDER: each target with masks, boxes and skeletons, then its image prompts. Print the picture's path.

    Of more than 50 triplets there are pages: NAME.png, NAME-2.png and so on. Each path is printed.

    \b
      rbctl data show triplets/hug
      rbctl data show triplets/hug --output hug.png
    """
    from rbctl.runs import RUNS
    from rbctl.triplets import load
    from rbctl.triplets.contact_sheet import contact_sheet

    output = output or RUNS / "data" / f"{folder.resolve().name}.png"
    for page in contact_sheet(load(folder, follow_outside=follow_outside), output):
        click.echo(page)


@command.command("schemas")
@click.argument("folder", type=_FOLDER)
def schemas_(folder: Path) -> None:
    """Write JSON Schemas of relations, prompts, recipes and benchmarks to FOLDER, and print their paths.

    With one, an editor completes keys and marks what is wrong. The first line of a YAML file names its schema:

    \b
      rbctl data schemas schemas
      # yaml-language-server: $schema=schemas/relation.json
    """
    from rbctl.schemas import write_schemas

    for path in write_schemas(folder):
        click.echo(path)
