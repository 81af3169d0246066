"""``rbctl eval judge-check`` and ``judge-page``: how often judges are wrong, on pictures with known answers."""

from __future__ import annotations

from pathlib import Path

import click

from rbctl.options import StageCommand, config_options
from rbctl.paths import FOLLOW_OUTSIDE
from rbctl.plugins.eval.judge_check.config import JudgeCheckConfig


@click.command("judge-check", cls=StageCommand)
@config_options(JudgeCheckConfig)
def check(config: JudgeCheckConfig) -> None:
    """Measure how often judges are wrong.

    Without FOLDER, faults are planted in scenes of the embedded world: roles exchanged, somebody missing or there
    twice, bodies merged, no contact, another relation in the same boxes, a stranger, a copied pose. With FOLDER, its
    answers.csv (file_name,question,answer) has the truth, and 'rbctl eval judge-page' makes it with you. Out: a table,
    and in runs/eval/judge-check check.json, by which 'rbctl eval --judge' corrects its figures.

    \b
      rbctl eval judge-check --judge oracle --judge clip --judge boxes
      rbctl eval judge-check --judge vlm=models/Qwen2.5-VL-7B-Instruct --sampled
      rbctl eval judge-check out/ours --judge vlm=models/Qwen2.5-VL-7B-Instruct --output runs/eval/ours-check
    """
    from rbctl.plugins.eval.judge_check.run import run

    if report := run(config):  # of several processes the first alone speaks
        click.echo(report)


@click.command("judge-page")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--count", type=click.IntRange(1, 10_000), default=100, show_default=True, help="Questions on the page.")
@click.option(
    "--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Seed of the choice of questions."
)
@click.option("--follow-outside", is_flag=True, help=FOLLOW_OUTSIDE)
def page(folder: Path, count: int, seed: int, follow_outside: bool) -> None:
    """Write a page on which you answer what judges are asked, 100 questions in ten minutes.

    FOLDER holds pictures with metadata.csv or metadata.jsonl. The page is FOLDER/questions.html. Answer with the keys y
    and n, and save answers.csv into FOLDER: 'rbctl eval judge-check FOLDER' holds judges against it.

    \b
      rbctl eval judge-page out/ours
    """
    from rbctl.plugins.eval.judge_check.page import write_page

    click.echo(write_page(folder, count, seed, follow_outside))
