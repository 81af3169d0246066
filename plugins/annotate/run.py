"""The work of ``rbctl annotate``."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch

from rbctl.device import pick_device
from rbctl.errors import InputError
from rbctl.files import write_jsonl, writing_in
from rbctl.plugins.annotate import corrections
from rbctl.plugins.annotate.backends import Chosen, choose
from rbctl.plugins.annotate.config import STEPS, AnnotateConfig
from rbctl.plugins.annotate.dataset import Limits, Result, put_together, write_masks
from rbctl.plugins.annotate.pictures import listed
from rbctl.plugins.annotate.processes import Share
from rbctl.plugins.annotate.reports import REPORT
from rbctl.plugins.annotate.shards import unpack
from rbctl.plugins.annotate.store import Store
from rbctl.plugins.annotate.work import Work
from rbctl.progress import progress
from rbctl.relations import Relation, load_relation
from rbctl.runs import claim
from rbctl.triplets.folder import METADATA
from rbctl.triplets.raw import RAW, read_origin, read_raw


def run(config: AnnotateConfig) -> None:
    """Annotate, or review, or apply; prints the folder, the page or the report.

    Raises:
        InputError: the input is wrong, or some triplets cannot be annotated; the others are written all the same.
    """
    if config.review:
        from rbctl.plugins.annotate.review import write_page

        click.echo(write_page(config.folder, config.follow_outside))
    elif config.apply is not None:
        with claim(config.folder):
            left = corrections.apply(config.folder, config.apply, config.follow_outside)
        click.echo(f"{left} triplets are left", err=True)
        click.echo(config.folder)
    else:
        _annotate(config)


def _annotate(config: AnnotateConfig) -> None:
    folder = config.folder
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of raw triplets")
    if (folder / METADATA).exists() and not (folder / RAW).exists() and not (folder / REPORT).exists():
        raise InputError(f"{folder}: is annotated already, not by this stage; --review shows it")
    device = pick_device(config.device)
    share = Share(cpu=device.type == "cpu")
    try:
        with claim(folder) if share.main else writing_in(folder):
            if share.main:
                unpack(folder)
                Store(folder).clean()
            share.wait()
            _work(config, share, torch.device(share.device or device))
    finally:
        share.close()


def _work(config: AnnotateConfig, share: Share, device: torch.device) -> None:
    """All steps over this process's pictures; the main process then puts everybody's results together."""
    folder = config.folder
    raw, facts = read_raw(folder, config.follow_outside), read_origin(folder)
    relation = _relation(config, facts)
    chosen = [choose(config, step, facts.get("origin", "")) for step in STEPS]
    backends = {backend.step: backend for backend in chosen if backend is not None}
    limits = _limits(config, backends)
    pictures = listed(raw)
    targets = [pictures[triplet.target, tuple(thing.name for thing in triplet.objects)] for triplet in raw]
    untold = {target for triplet, target in zip(raw, targets, strict=True) if not triplet.text}
    work = Work(config, backends, Store(folder), device)
    mine = share.of(list(pictures.values()))
    work.run(mine, [picture for picture in mine if picture in untold])
    work.problems = share.gather(work.problems)
    share.wait()
    if not share.main:
        return
    results = []
    with progress(len(raw), "writing", unit="triplet") as bar:
        for triplet in raw:
            result = put_together(folder, triplet, pictures, work, limits, relation)
            if _kept(result, config):
                write_masks(result)
            results.append(dataclasses.replace(result, masks={}))  # all of them may not fit in memory
            bar.update()
    _write(folder, results, config)


def _relation(config: AnnotateConfig, facts: dict[str, Any]) -> Relation | None:
    """The relation that was stated, or that the set's own record names."""
    if config.relation:
        return load_relation(config.relation)
    with contextlib.suppress(InputError):  # a user's own that lies elsewhere now; its words stand in raw.jsonl
        return load_relation(facts["relation"]) if facts.get("relation") else None
    return None


def _limits(config: AnnotateConfig, backends: dict[str, Chosen]) -> Limits:
    def limit(step: str, name: str, default: float) -> float:
        given: float | None = getattr(config, name)
        return backends[step].limit(name, default) if given is None else given

    return Limits(
        present_from=limit("keypoints", "present_from", 0.1),
        visible_from=limit("keypoints", "visible_from", 0.3),
        min_similarity=limit("identity", "min_similarity", 0.6),
    )


def _kept(result: Result, config: AnnotateConfig) -> bool:
    return result.passed if config.drop_failed else result.row is not None


def _write(folder: Path, results: Sequence[Result], config: AnnotateConfig) -> None:
    """The triplets and the report; and what is to be told.

    Raises:
        InputError: a triplet cannot be annotated, and ``--drop-failed`` is not given; or none is left.
    """
    kept = [result.row for result in results if result.row is not None and _kept(result, config)]
    reports = [{**result.report, "kept": _kept(result, config)} for result in results]
    write_jsonl(folder / REPORT, reports)
    if kept:
        corrections.publish(folder, kept)
    for report in reports:
        failed = [
            f"{name} {gate['value']} of {gate['limit']}" for name, gate in report["gates"].items() if not gate["passed"]
        ]
        if report["problem"]:
            click.echo(f"{report['file_name']}: left out: {report['problem']}", err=True)
        elif failed:
            click.echo(
                f"{report['file_name']}: {'kept' if report['kept'] else 'dropped'}: fails {', '.join(failed)}", err=True
            )
    passed = sum(result.passed for result in results)
    click.echo(f"{len(kept)} of {len(results)} triplets written, {passed} pass every gate", err=True)
    problems = [report["problem"] for report in reports if report["problem"]]
    if not kept:
        why = problems[0] if problems else "every triplet fails a gate"
        raise InputError(f"{folder}: no triplet is left ({why}); see {folder / REPORT}")
    if problems and not config.drop_failed:
        more = f", and {len(problems) - 1} more in {folder / REPORT}" if len(problems) > 1 else ""
        raise InputError(f"{problems[0]}{more}; the others are written; mend it, or leave it out with --drop-failed")
    click.echo(json.dumps(reports, indent=2, ensure_ascii=False) if config.json else folder)
