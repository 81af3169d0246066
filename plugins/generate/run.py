"""The work of ``rbctl generate``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import click

from rbctl.errors import InputError, abridged
from rbctl.files import read_image
from rbctl.local_pipeline import pipeline_folder
from rbctl.menagerie.triplets import check_drawable
from rbctl.paths import made_by_system
from rbctl.pictures import save_sheet, sheet_row
from rbctl.plugins.generate.candidates import Candidate, candidates, read_pairs
from rbctl.plugins.generate.config import GenerateConfig
from rbctl.plugins.generate.costs import ahead
from rbctl.plugins.generate.miniature import SIZE, draw_set
from rbctl.plugins.generate.painting import Done, paint_set, places, refused_numbers
from rbctl.plugins.generate.pipeline import LocalEditor, LocalPipeline
from rbctl.provenance import DRAWN, SHEET, SourceType, check_signer
from rbctl.relations import Relation, load_relation
from rbctl.runs import RUNS, claim
from rbctl.triplets.raw import SET, read_origin, read_raw, write_origin


def run(config: GenerateConfig) -> Path:
    """Make a raw set, or what is missing of it; returns its folder.

    Raises:
        InputError: what the user can mend; what exists is kept.
    """
    check_signer()
    relation = load_relation(config.relation)
    output = _output(config, relation)
    if config.engine == "miniature":
        check_drawable(relation)
    facts = _facts(config, relation)
    with claim(output):
        _check_set(output, facts)
        done = draw_set(output, relation, config) if config.engine == "miniature" else _paint(output, relation, config)
        _write_grid(output, DRAWN if config.engine == "miniature" else SHEET)
    refused = f", {done.refused} prompts refused (refusals.jsonl)" if done.refused else ""
    click.echo(f"{done.made} made, {done.there} were there{refused}", err=True)
    return output


def estimate(config: GenerateConfig) -> str:
    """The prompts of a set, how many pictures are still to be made, and what they will cost; nothing is asked or made.

    Raises:
        InputError: as ``run``, as far as that can be told beforehand.
    """
    relation = load_relation(config.relation)
    output = _output(config, relation)
    if config.engine == "miniature":
        check_drawable(relation)
        return f"{config.number} triplets drawn by the embedded world in {output}; no prompts, no cost"
    refused = refused_numbers(output)
    left = (candidate for candidate in _candidates(config, relation) if candidate.number not in refused)
    lines, missing, cost = [], 0, 0.0
    for candidate in islice(left, config.number):
        for k, (place, prompt) in enumerate(zip(places(output, candidate), candidate.prompts, strict=True)):
            lines.append(f"{place.relative_to(output)}{' (there)' if place.exists() else ''}: {prompt}")
            if not place.exists():
                missing += 1
                cost += ahead(config, k if _references(config) else 0) if config.engine == "openai" else 0
    lines.append(f"{config.number} triplets in {output}, {len(lines)} pictures, {missing} still to be made")
    if config.engine == "openai":
        source = "by --price" if config.price is not None else "by a table that grows old; --price takes its place"
        model, size, quality = config.openai.values()
        lines.append(f"{model}, {quality}, {size}: about ${cost:.2f}, {source}")
    return "\n".join(lines)


def _output(config: GenerateConfig, relation: Relation) -> Path:
    return config.output or RUNS / "generate" / relation.name


def _candidates(config: GenerateConfig, relation: Relation) -> Iterator[Candidate]:
    pairs = read_pairs(config.pairs, relation)
    return candidates(relation, pairs, config.seed, references=_references(config))


def _references(config: GenerateConfig) -> bool:
    """The engine is shown the earlier pictures of a triplet."""
    return config.engine in ("openai", "edit") and config.references == "earlier"


def _facts(config: GenerateConfig, relation: Relation) -> dict[str, Any]:
    """What makes a set the one that is wanted, as ``set.json`` has it."""
    facts: dict[str, Any] = {"origin": config.engine, "relation": relation.name, "seed": config.seed}
    if config.engine == "miniature":
        return {**facts, "size": config.size or f"{SIZE}x{SIZE}", "words": _hash(relation)}
    facts["words"] = _hash(relation, read_pairs(config.pairs, relation))
    if config.engine == "openai":
        ahead(config, 0)  # nobody could keep the budget without a price
        return facts | config.openai | {"references": config.references}
    assert config.model is not None
    model = pipeline_folder(config.model).resolve().name
    facts |= {"references": config.references} if config.engine == "edit" else {}
    return {**facts, "model": model, "size": config.size, "steps": config.steps, "guidance": config.guidance_scale}


def _hash(*words: object) -> str:
    return hashlib.sha256(repr(words).encode()).hexdigest()[:16]


def _check_set(folder: Path, facts: dict[str, Any]) -> None:
    """Raises InputError when the folder holds anything but a part of this set; else makes sure that it says so."""
    before = read_origin(folder)
    if before:  # sets from before the option
        before = {"references": "earlier", **before}
    if not before and not all(made_by_system(path.name) for path in folder.iterdir()):
        raise InputError(f"{folder}: holds other files, and no {SET}; choose another --output")
    for key, value in facts.items() if before else ():
        if before.get(key) != value:
            raise InputError(
                f"{folder / SET}: another set lies here, its {key} is {abridged(before.get(key))} and not {value!r}; "
                "choose another --output"
            )
    write_origin(folder, **facts)


def _paint(folder: Path, relation: Relation, config: GenerateConfig) -> Done:
    source = _candidates(config, relation)
    if config.engine == "diffusers":
        return paint_set(folder, relation, source, config.number, LocalPipeline(config), config.max_refusals)
    if config.engine == "edit":
        return paint_set(folder, relation, source, config.number, LocalEditor(config), config.max_refusals)
    from rbctl.plugins.generate.openai_images import OpenAIImages  # here: the package openai may be missing

    painter = OpenAIImages(config, folder)
    try:
        return paint_set(folder, relation, source, config.number, painter, config.max_refusals)
    finally:
        click.echo(f"${painter.account.spent:.2f} spent on this set so far", err=True)


def _write_grid(folder: Path, source_type: SourceType) -> None:
    """Individuals alone, the target and its caption, a row a triplet: grid.png, grid-2.png and so on."""
    rows = (
        sheet_row(
            [read_image(individual.image) for individual in triplet.objects],
            [read_image(triplet.target)],
            f"{triplet.id}: {triplet.text}",
        )
        for triplet in read_raw(folder)
    )
    save_sheet(rows, folder / "grid.png", source_type)
