"""Stage ``eval``: pictures of individuals in a relation -> scores with intervals, and a report."""

import click

from rbctl.options import config_options
from rbctl.plugins.eval.config import EvalConfig


@click.command("eval")
@config_options(EvalConfig)
def command(config: EvalConfig) -> None:
    """Score pictures in folders RUNS, or sample a benchmark and score that.

    A folder holds metadata.jsonl, as 'rbctl sample' writes it, or metadata.csv (file_name,text,image_prompts): so
    pictures of any origin are scored alike, several runs side by side. Out: the table, and in runs/eval/NAME the report
    (report.html, report.md), scores.json and pictures.jsonl. The same command again makes only what is missing.

    \b
      rbctl eval --bench relationbench-mini --lora ride=runs/finetune/ride/lora.safetensors
      rbctl eval --bench relationbench-mini --lora hug=a.safetensors --lora no_kml:hug=b.safetensors
      rbctl eval runs/sample/ours runs/sample/theirs --clip clip-vit-base-patch32 --dino dino-vits16
      rbctl eval --bench dreambench --data dreambooth/dataset --run theirs=out/theirs --no-base

    \b
    Profiles: cc101, dreambench, dreambench++, relationbench, crops; docs/eval.md defines them.
    """
    from rbctl.plugins.eval.run import run

    if said := run(config):  # of several processes the first alone speaks
        click.echo(said)
