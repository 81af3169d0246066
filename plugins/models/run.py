"""What the commands of ``rbctl models`` do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from rbctl.bundle.catalogue import (
    CATALOGUE,
    BundleSpec,
    bundles_root,
    has_local_encoder,
    place,
    resolve,
    size_text,
    survey,
)
from rbctl.errors import InputError, nearest


def _sources(spec: BundleSpec) -> list[dict[str, Any]]:
    keys = ("target", "repo_id", "revision", "pinned", "licence", "bytes", "note")
    return [{key: getattr(component, key) for key in keys} for component in spec.components]


def show(as_json: bool) -> None:
    """Print the catalogue and the bundles here."""
    rows: list[dict[str, Any]] = []
    for name, state in survey():
        row: dict[str, Any] = {"name": name, "state": state}
        if spec := CATALOGUE.get(name):
            row |= {"description": spec.description, "bytes": spec.bytes, "components": _sources(spec)}
        rows.append(row)
    if as_json:
        click.echo(json.dumps({"root": str(bundles_root()), "bundles": rows}, indent=2))
        return
    for row in rows:
        click.echo(f"{row['name']}: {row['state']}")
        if "description" in row:
            click.echo(f"  {row['description']}")
        for part in row.get("components", ()):
            commit = part["revision"][:12] if part["pinned"] else f"{part['revision']}, not pinned"
            source = f"{part['repo_id']} ({commit})" if part["repo_id"] else "yours to bring"
            target = "base" if part["target"] == "." else part["target"]
            click.echo(f"  {target:<23} {size_text(part['bytes']):>8}  {source}; {part['licence']}")


def fetch(name: str, output: Path | None) -> None:
    """Pull one bundle of the catalogue and say what it still lacks.

    Raises:
        InputError: no such name, or the pull fails.
    """
    from rbctl.bundle.download import pull

    if name not in CATALOGUE:
        raise InputError(
            f"{name}: not in the catalogue{nearest(name, CATALOGUE) or '; it has ' + ', '.join(CATALOGUE)}"
        )
    if CATALOGUE[name].packaged:
        resolve(name)
        click.echo(f"{name} comes with rbctl, there is nothing to pull")
        return
    folder = output or bundles_root() / name
    pull(CATALOGUE[name], folder)
    click.echo(str(folder))
    if not has_local_encoder(folder):
        for component in CATALOGUE[name].components:
            if component.repo_id is None:
                click.echo(f"not in it: {component.note.replace('FOLDER', str(folder))}", err=True)


def check(name_or_folder: str) -> None:
    """Print what differs from the record.

    Raises:
        InputError: something does, or there is no such bundle.
    """
    from rbctl.bundle.catalogue import missing_parts
    from rbctl.bundle.download import verify

    folder = place(name_or_folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such bundle{nearest(name_or_folder, CATALOGUE)}")
    problems = verify(folder) + [f"{part}: the bundle needs it" for part in missing_parts(folder)]
    for problem in problems:
        click.echo(problem)
    if problems:
        raise InputError(f"{folder}: {len(problems)} problems; delete the files named, then pull or import them again")
    click.echo(f"{folder}: all as recorded")


def bring(dest: str, **sources: Path | None) -> None:
    """Import local files into a bundle and say what it still lacks.

    Raises:
        InputError: the sources are no parts of one bundle.
    """
    from rbctl.bundle.assemble import import_bundle

    if dest in CATALOGUE and CATALOGUE[dest].packaged:
        raise InputError(f"{dest}: comes with rbctl and stays as it is; import into a folder of your own")
    folder = place(dest)
    gaps = import_bundle(folder, **sources)
    click.echo(str(folder))
    if not has_local_encoder(folder):
        click.echo("no local encoder in it: it runs with --local-tokens none only", err=True)
    if gaps:
        click.echo(f"still missing: {', '.join(gaps)}; add them with 'rbctl models import {dest}'", err=True)
