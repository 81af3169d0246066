"""Stage ``eval``: pictures of individuals in a relation -> scores with intervals, and a report."""

from typing import Any

import click

from rbctl.options import StageCommand, config_options
from rbctl.plugins.eval.config import EvalConfig


class _Eval(StageCommand):
    """The command, and behind the word ``ablate`` another; a folder of that name is ``./ablate``."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        if args[:1] == ["ablate"]:
            from rbctl.plugins.eval.ablate import command as ablate

            return ablate.make_context(f"{info_name} ablate", args[1:], parent=parent, **extra)
        return super().make_context(info_name, args, parent=parent, **extra)


@click.command("eval", cls=_Eval)
@config_options(EvalConfig)
def command(config: EvalConfig) -> None:
    """Score pictures in folders RUNS, or sample a benchmark and score that.

    A folder holds metadata.jsonl, as 'rbctl sample' writes it, or metadata.csv (file_name,text,image_prompts),
    or pictures whose names are the prompt or with --bench the case: so pictures of any origin are scored alike, several
    runs side by side. Out: the table, and in runs/eval/NAME the report (report.html, report.md), scores.json and
    pictures.jsonl. The same command again makes only what is missing.

    \b
      rbctl eval --bench relationbench-mini --lora ride=runs/finetune/ride/lora.safetensors
      rbctl eval --bench relationbench-mini --lora hug=a.safetensors --lora no_kml:hug=b.safetensors
      rbctl eval runs/sample/ours runs/sample/theirs --clip clip-vit-base-patch32 --dino dino-vits16
      rbctl eval --bench dreambench --data dreambooth/dataset --run theirs=out/theirs --no-base

    \b
    Profiles: cc101, dreambench, dreambench++, relationbench, crops; docs/eval.md defines them.
    'rbctl eval ablate RECIPE' trains, samples and scores variants of the method: 'rbctl eval ablate --help'.
    """
    from rbctl.plugins.eval.run import run

    if said := run(config):  # of several processes the first alone speaks
        click.echo(said)
