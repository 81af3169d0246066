"""``rbctl models``: fetch, check and put together bundles."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import click

from rbctl.bundle import catalogue
from rbctl.bundle.catalogue import CATALOGUE, RELEASES
from rbctl.errors import InputError, nearest
from rbctl.progress import print_table

_PATH = click.Path(path_type=Path)


@click.group(name="models")
def command() -> None:
    """Fetch, check and put together bundles: all frozen networks of a base model in one folder.

    Bundles are in $RBCTL_BUNDLES, else in ./bundles if it exists, else in ~/.cache/rbctl/bundles.

    \b
      rbctl models pull sdxl
      rbctl models import sdxl --local-encoder epoch_6.pt
    """


@command.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for a program to read.")
def list_(as_json: bool) -> None:
    """Show the catalogue and the bundles here: state, size, sources, licences."""
    rows: list[dict[str, Any]] = []
    for name, state in catalogue.survey():
        row: dict[str, Any] = {"name": name, "state": state}
        if spec := CATALOGUE.get(name):
            keys = ("target", "repo_id", "revision", "pinned", "licence", "bytes", "note")
            components = [{key: getattr(component, key) for key in keys} for component in spec.components]
            row |= {"description": spec.description, "bytes": spec.bytes, "components": components}
        rows.append(row)
    releases = [dataclasses.asdict(release) for release in catalogue.RELEASES.values()]
    if as_json:
        shown = {"root": str(catalogue.bundles_root()), "bundles": rows, "releases": releases}
        click.echo(json.dumps(shown, indent=2))
        return
    for row in rows:
        click.echo(f"{row['name']}: {row['state']}")
        if "description" in row:
            click.echo(f"  {row['description']}")
        parts = []
        for part in row.get("components", ()):
            commit = part["revision"][:12] if part["pinned"] else f"{part['revision']}, not pinned"
            source = f"{part['repo_id']} ({commit})" if part["repo_id"] else "yours to bring"
            target = "base" if part["target"] == "." else part["target"]
            parts.append([f"  {target}", catalogue.size_text(part["bytes"]), source, part["licence"]])
        print_table([], parts)
    for release in releases:
        command = "models" if release["kind"] == "model" else "data"
        click.echo(f"{release['name']}: a release; 'rbctl {command} pull {release['name']}'")
        click.echo(
            f"  {release['description']}; {release['repo_id']} ({release['revision']}); licence: {release['licence']}"
        )


@command.command(name="pull")
@click.argument("name")
@click.option(
    "--output", type=_PATH, help="Folder to write; default: NAME where bundles lie, downloads/NAME for a release."
)
def pull_(name: str, output: Path | None) -> None:
    """Download NAME of the catalogue from the hub, check every file, record commits and hashes.

    NAME is a bundle, or a release: files of others that are taken as they are.

    After an interruption, the same command resumes. HF_ENDPOINT names another hub, HF_TOKEN opens gated repositories.
    """
    from rbctl.bundle.download import pull, pull_release

    names = [*CATALOGUE, *(name for name, release in RELEASES.items() if release.kind == "model")]
    if name not in names:
        raise InputError(f"{name}: not in the catalogue{nearest(name, names) or '; it has ' + ', '.join(names)}")
    if name in RELEASES:
        folder = output or Path("downloads") / name
        licence = pull_release(RELEASES[name], folder)
        click.echo(f"licence: {licence}", err=True)
        click.echo(folder)
        return
    if CATALOGUE[name].packaged:
        catalogue.resolve(name)
        click.echo(f"{name} comes with rbctl, there is nothing to pull")
        return
    folder = output or catalogue.bundles_root() / name
    pull(CATALOGUE[name], folder)
    click.echo(folder)
    if catalogue.lacks_local_encoder(folder):
        for component in CATALOGUE[name].components:
            if component.target == "clipself":
                click.echo(f"not in it: {component.note.replace('FOLDER', str(folder))}", err=True)


@command.command(name="verify")
@click.argument("name_or_folder")
def verify_(name_or_folder: str) -> None:
    """Hash all files of a bundle again, and compare with the hashes recorded at download."""
    from rbctl.bundle.download import verify

    folder = catalogue.place(name_or_folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such bundle{nearest(name_or_folder, CATALOGUE)}")
    problems = verify(folder)
    if not catalogue.is_release(folder):
        problems += [f"{part}: the bundle needs it" for part in catalogue.missing_parts(folder)]
    for problem in problems:
        click.echo(problem)
    if problems:
        raise InputError(f"{folder}: {len(problems)} problems; delete the files named, then pull or import them again")
    click.echo(f"{folder}: all as recorded")


@command.command(name="import")
@click.argument("dest")
@click.option("--base", type=_PATH, help="SDXL: a folder in diffusers' layout, or one .safetensors file.")
@click.option("--vae", type=_PATH, help="VAE in place of the base's: such a folder, or a file.")
@click.option("--adapter", type=_PATH, help="ms_adapter.bin or .safetensors.")
@click.option("--image-encoder", type=_PATH, help="CLIP bigG folder in transformers' layout.")
@click.option(
    "--local-encoder",
    type=_PATH,
    help="CLIPSelf's epoch_6.pt, .safetensors, or the folder that rbctl distill wrote, with its linear map.",
)
@click.option(
    "--prediction-type",
    type=click.Choice(("epsilon", "v_prediction")),
    help="What the base predicts. [default: what its files say, else epsilon]",
)
@click.option("--zero-snr", is_flag=True, help="The base has zero terminal SNR, although its files do not say so.")
@click.option(
    "--variant", default="", help="Variant of base and VAE, such as fp16. [default: the plain files, else fp16]"
)
@click.option(
    "--base-config",
    type=_PATH,
    help="Folder in diffusers' layout whose configurations fit a base of one file. [default: SDXL's]",
)
@click.option("--adapter-config", type=_PATH, help="ms_adapter_config.json; default: beside it.")
@click.option("--local-config", type=_PATH, help="open_clip_config.json; default: beside it.")
def import_(dest: str, **sources: Any) -> None:
    """Make bundle DEST (a folder, or a name where bundles lie) of local files, or add parts to it.

    Large files are hard-linked where the disk allows; pickles are read as data only and become safetensors.

    A base whose objective the method does not do, such as flow matching, is refused.

    \b
      rbctl models import bundles/sdxl --base stable-diffusion-xl-base-1.0 --adapter ms_adapter.bin \\
        --image-encoder CLIP-ViT-bigG-14-laion2B-39B-b160k --local-encoder epoch_6.pt
      rbctl models import juggernaut --base juggernautXL.safetensors --vae sdxl_vae.safetensors
    """
    from rbctl.bundle.assemble import import_bundle

    if dest in CATALOGUE and CATALOGUE[dest].packaged:
        raise InputError(f"{dest}: comes with rbctl and stays as it is; import into a folder of your own")
    folder = catalogue.place(dest)
    gaps = import_bundle(folder, **sources)
    click.echo(folder)
    if catalogue.lacks_local_encoder(folder):
        click.echo("no local encoder in it: it runs with --local-tokens none only", err=True)
    if gaps:
        click.echo(f"still missing: {', '.join(gaps)}; add them with 'rbctl models import {dest}'", err=True)
