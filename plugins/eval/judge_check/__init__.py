"""``rbctl eval judge-check``: how often judges are wrong, on pictures with known answers."""

from __future__ import annotations

import click

from rbctl.options import StageCommand, config_options
from rbctl.plugins.eval.judge_check.config import JudgeCheckConfig


@click.command("judge-check", cls=StageCommand)
@config_options(JudgeCheckConfig)
def command(config: JudgeCheckConfig) -> None:
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
