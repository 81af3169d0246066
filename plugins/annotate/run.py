"""The work of ``rbctl annotate``."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import torch

from rbctl.device import pick_device
from rbctl.errors import InputError
from rbctl.plugins.annotate import corrections
from rbctl.plugins.annotate.assembly import assemble
from rbctl.plugins.annotate.backends import choose
from rbctl.plugins.annotate.cache import Cache
from rbctl.plugins.annotate.config import STEPS, AnnotateConfig
from rbctl.plugins.annotate.pictures import with_pictures
from rbctl.plugins.annotate.predictions import Predictions
from rbctl.plugins.annotate.reports import REPORT, Report, write_reports
from rbctl.plugins.annotate.shards import unpack
from rbctl.processes import World, together
from rbctl.progress import progress
from rbctl.relations import Relation, load_relation
from rbctl.runs import Run, claim
from rbctl.triplets.check import check
from rbctl.triplets.folder import METADATA
from rbctl.triplets.raw import RAW, read_origin, read_raw


def run(config: AnnotateConfig) -> None:
    """Annotate, or review, or apply; prints the folder, the page or the report.

    Raises:
        InputError: the input is wrong, or some triplets cannot be annotated; the others are written all the same.
    """
    folder = config.folder
    if config.review:
        from rbctl.plugins.annotate.review import write_page

        click.echo(write_page(folder, config.follow_outside))
    elif config.apply is not None:
        with claim(folder):
            left = corrections.apply(folder, config.apply, config.follow_outside)
        click.echo(f"{left} triplets are left", err=True)
        click.echo(folder)
    else:
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder of raw triplets")
        if (folder / METADATA).exists() and not (folder / RAW).exists() and not (folder / REPORT).exists():
            raise InputError(f"{folder}: is annotated already, not by this stage; --review shows it")
        device = pick_device(config.device)
        with together() as world, Run(folder, "annotate", config, world=world).claimed():
            _annotate(config, world, world.device(device))


def _annotate(config: AnnotateConfig, world: World, device: torch.device) -> None:
    """All steps over this process's pictures; the first process then puts everybody's results together."""
    folder = config.folder
    if world.first:
        unpack(folder)
        Cache(folder).clean()
    world.wait()
    triplets, facts = with_pictures(read_raw(folder, config.follow_outside)), read_origin(folder)
    relation = _relation(config, facts)
    chosen = [choose(config, step, facts.get("origin", "")) for step in STEPS]
    backends = {backend.step: backend for backend in chosen if backend is not None}
    pictures = dict.fromkeys(picture for triplet in triplets for picture in triplet.pictures)
    without_text = {triplet.target for triplet in triplets if not triplet.raw.text}
    mine = world.part(list(pictures))
    predictions = Predictions(config, backends, Cache(folder), device)
    predictions.run(mine, [picture for picture in mine if picture in without_text])
    for problems in world.gathered(predictions.problems):
        predictions.problems |= problems
    if not world.first:
        return
    rows, reports = [], []
    with progress(len(triplets), "writing", unit="triplet") as bar:
        for triplet in triplets:
            annotated = assemble(folder, triplet, predictions, relation)
            reports.append(annotated.report)
            if annotated.row is not None and annotated.report.kept:
                annotated.write_masks()
                rows.append(annotated.row)
            bar.update()
    write_reports(folder, reports)
    if rows:
        corrections.publish(folder, rows)
        for problem in check(folder, config.follow_outside):
            click.echo(f"{'warning: ' if problem.level == 'warning' else ''}{problem}", err=True)
    _tell(folder, reports, config)


def _relation(config: AnnotateConfig, facts: Mapping[str, Any]) -> Relation | None:
    """The relation that was stated, or that the set's own record names."""
    if config.relation:
        return load_relation(config.relation)
    with contextlib.suppress(InputError):  # a user's own that lies elsewhere now; its words stand in raw.jsonl
        return load_relation(facts["relation"]) if facts.get("relation") else None
    return None


def _tell(folder: Path, reports: Sequence[Report], config: AnnotateConfig) -> None:
    """What became of each triplet.

    Raises:
        InputError: a triplet cannot be annotated, and ``--drop-failed`` is not given; or none is left.
    """
    for report in reports:
        if report.problem:
            click.echo(f"{report.file_name}: left out: {report.problem}", err=True)
        elif report.failed:
            failed = ", ".join(f"{name} {gate.value} of {gate.limit}" for name, gate in report.failed.items())
            rests = f"; the roles rest on {report.roles_from}" if "roles" in report.failed else ""
            click.echo(f"{report.file_name}: {'kept' if report.kept else 'dropped'}: fails {failed}{rests}", err=True)
    kept, passed = (sum(getattr(report, name) for report in reports) for name in ("kept", "passed"))
    click.echo(f"{kept} of {len(reports)} triplets written, {passed} pass every gate", err=True)
    problems = [report.problem for report in reports if report.problem]
    if not kept:
        why = problems[0] if problems else "every triplet fails a gate"
        raise InputError(f"{folder}: no triplet is left ({why}); see {folder / REPORT}")
    if problems and not config.drop_failed:
        more = f", and {len(problems) - 1} more in {folder / REPORT}" if len(problems) > 1 else ""
        raise InputError(f"{problems[0]}{more}; the others are written; mend it, or leave it out with --drop-failed")
    rows = [report.as_row() for report in reports]
    click.echo(json.dumps(rows, indent=2, ensure_ascii=False) if config.json else folder)
