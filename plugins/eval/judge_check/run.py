"""The work of ``rbctl eval judge-check``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from rbctl.bundle.catalogue import resolve
from rbctl.bundle.fingerprints import base_fingerprint
from rbctl.device import pick_device
from rbctl.errors import InputError
from rbctl.files import write_json, write_text
from rbctl.paths import relative
from rbctl.pictures import save_png
from rbctl.pipeline import RelationPipeline
from rbctl.plugins.eval.benchmarks import load_benchmark
from rbctl.plugins.eval.case import Picture, Wanted
from rbctl.plugins.eval.features import Digests
from rbctl.plugins.eval.inputs import as_cases, read_rows
from rbctl.plugins.eval.judge_check.config import JudgeCheckConfig
from rbctl.plugins.eval.judges.answers_file import ANSWERS_FILE, read_answers
from rbctl.plugins.eval.judges.check_file import CHECK, OUTPUT, Check, Checked
from rbctl.plugins.eval.judges.error import KindError, Share, measure
from rbctl.plugins.eval.judges.judge import Item
from rbctl.plugins.eval.judges.kinds import answer_stores
from rbctl.plugins.eval.judges.planted import plant, resample, sheet, write_set
from rbctl.plugins.eval.judges.questions import KINDS, questions
from rbctl.plugins.eval.tables import aligned, markdown_table, number
from rbctl.processes import together
from rbctl.provenance import DRAWN, SHEET
from rbctl.runs import Run

_BENCH = "relationbench-mini"


def run(config: JudgeCheckConfig) -> str:
    """Ask every judge whatever has a known answer, and count; returns what the terminal shows."""
    output = config.output or OUTPUT
    resolve(config.bundle)
    pick_device(config.device)
    digests = Digests()
    with together() as world:
        work = Run(output, "eval", config, world=world)
        with work.claimed():
            stores = answer_stores(config, digests, world)  # before minutes of drawing: a key may be missing
            if not world.first:
                world.wait()  # until the first one has drawn what is missing
            items, truth = _planted(config, output) if config.folder is None else _given(config, config.folder, digests)
            if world.first:
                world.wait()
            checks: dict[str, Checked] = {}
            for store in stores:
                said = store(items)
                kinds: dict[str, KindError] = {}
                for kind in KINDS:
                    own = [k for k, (_, question) in enumerate(items) if question.kind == kind]
                    if own:
                        kinds[kind] = measure(
                            [said[k].yes for k in own],
                            [truth[k] for k in own],
                            [str(items[k][0].path) for k in own],
                        )
                checks[store.judge.name] = Checked(store.judge.hash, kinds)
            if not world.first:
                return ""
            work.begin({})
            pictures = len({picture.path for picture, _ in items})
            source = str(config.folder or f"{'sampled' if config.sampled else 'drawn'} pictures with planted faults")
            check = Check(source, pictures, checks)
            write_json(output / CHECK, dataclasses.asdict(check))
            write_text(output / "table.md", f"{markdown_table(table(check))}\n\n{_LEGEND}\n")
    if config.json:
        return json.dumps(dataclasses.asdict(check), indent=2)
    return f"{aligned(table(check))}\n\n{_LEGEND}\n{output / CHECK}"


def _planted(config: JudgeCheckConfig, output: Path) -> tuple[list[Item], list[bool]]:
    bench = load_benchmark(_BENCH, Wanted(relations=config.relations, cases=config.cases, drawn=output))
    planted = plant(bench.cases, output / "pictures")
    if config.sampled:
        pipeline = RelationPipeline.from_pretrained(config.bundle, device=config.device)
        pipeline.set_progress_bar_config(disable=True)
        made_by = base_fingerprint(resolve(config.bundle))[:8]
        planted = resample(planted, pipeline, output / f"sampled-{made_by}")
    write_set(planted, output)
    save_png(sheet(planted), output / "sheet.png", source_type=SHEET if config.sampled else DRAWN)
    return _items([(own.picture, own.truth) for own in planted])


def _given(config: JudgeCheckConfig, folder: Path, digests: Digests) -> tuple[list[Item], list[bool]]:
    pictures = as_cases(folder.name, read_rows(folder, config.follow_outside), digests)
    names = {picture.path: relative(picture.path, folder) for picture in pictures}
    ids = {names[picture.path]: [question.id for question in questions(picture.case)] for picture in pictures}
    answers = read_answers(folder / ANSWERS_FILE, ids)
    if not answers:
        raise InputError(
            f"{folder / ANSWERS_FILE}: no answers; rbctl eval judge-page {folder} makes a page that asks you"
        )
    truths: dict[str, dict[str, bool]] = {name: {} for name in ids}
    for (name, question), answer in answers.items():
        truths[name][question] = answer
    return _items([(picture, truths[names[picture.path]]) for picture in pictures])


def _items(truths: Sequence[tuple[Picture, dict[str, bool]]]) -> tuple[list[Item], list[bool]]:
    """Every question that has a known answer, and the answers."""
    items, truth = [], []
    for picture, own in truths:
        for question in questions(picture.case):
            if question.id in own:
                items.append((picture, question))
                truth.append(own[question.id])
    return items, truth


_LEGEND = (
    "Shares with 95 % intervals. Sensitivity: of questions whose true answer is yes; specificity: whose is no. "
    "Balanced accuracy: their mean; 0.5 is guessing. Calibration: mean distance of probability and truth."
)


def table(check: Check) -> list[list[str]]:
    """Header and rows: every judge on every kind of question."""
    head = [
        "judge",
        "question",
        "n",
        "not known",
        "sensitivity",
        "specificity",
        "balanced accuracy",
        "calibration",
        "rho",
        "note",
    ]
    rows = [head]
    for judge, checked in check.judges.items():
        for kind, error in checked.kinds.items():
            rows.append([judge, kind, *_cells(error)])
    return rows


def _cells(error: KindError) -> list[str]:
    shares = [_shown(s) for s in (error.sensitivity, error.specificity, error.balanced_accuracy)]
    answered = error.asked > error.not_known
    worthless = "worthless" if answered and error.worthless else ""
    calibration, rho = number(error.calibration_error), _shown(error.rank_correlation)
    return [str(error.asked), str(error.not_known), *shares, calibration, rho, worthless]


def _shown(share: Share | None) -> str:
    return "-" if share is None else f"{number(share.mean)} [{number(share.low)}, {number(share.high)}]"
