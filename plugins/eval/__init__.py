"""Stage ``eval``: pictures of individuals in a relation -> scores with intervals, and a report."""

from typing import Any

import click
from click.shell_completion import CompletionItem

from rbctl.options import StageCommand, config_options
from rbctl.plugins.eval.ablate import command as ablate
from rbctl.plugins.eval.config import EvalConfig
from rbctl.plugins.eval.gates import command as gates
from rbctl.plugins.eval.judge_check import check as judge_check
from rbctl.plugins.eval.judge_check import page as judge_page
from rbctl.plugins.eval.leaderboard import command as leaderboard
from rbctl.plugins.eval.paper import command as tables
from rbctl.plugins.eval.plant import command as plant

FORMATS = {  # that people write: their JSON Schemas
    "benchmark": "rbctl.plugins.eval.kinds:KINDS",
    "ablation": "rbctl.plugins.eval.ablate.recipe:Recipe",
    "gates": "rbctl.plugins.eval.gates.recipe:Gates",
    "tables": "rbctl.plugins.eval.paper.recipe:PaperTables",
}


class _Eval(click.Group, StageCommand):
    """Scores folders itself, unless the first word is one of its commands; a folder of that name is ``./ablate``."""

    allow_interspersed_args = True

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] in self.commands:
            ctx.args = args
            return args
        return StageCommand.parse_args(self, ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        if not ctx.args:
            return StageCommand.invoke(self, ctx)
        name, command, args = self.resolve_command(ctx, ctx.args)
        assert command is not None
        with command.make_context(name, args, parent=ctx) as own:
            return command.invoke(own)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        params = super().get_params(ctx)
        # Click would complete RUNS alone, and write it before a command's own usage.
        hidden = ctx.resilient_parsing or ctx.command is not self
        return [p for p in params if not (hidden and isinstance(p, click.Argument))]

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        files = [] if incomplete.startswith("-") else [CompletionItem(incomplete, type="file")]
        return [*super().shell_complete(ctx, incomplete), *files]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        StageCommand.format_options(self, ctx, formatter)
        self.format_commands(ctx, formatter)


@click.group("eval", cls=_Eval, invoke_without_command=True, subcommand_metavar="| COMMAND ...")
@config_options(EvalConfig)
def command(config: EvalConfig) -> None:
    """Score pictures in folders RUNS, or sample a benchmark and score that.

    A folder holds metadata.jsonl, as 'rbctl sample' writes it, or metadata.csv (file_name,text,image_prompts),
    or pictures whose names are the prompt or with --bench the case: so pictures of any origin are scored alike, several
    runs side by side. Out: the table, and in runs/eval/NAME the report (report.html, report.md), scores.json and
    pictures.jsonl. The same command again makes only what is missing.

    \b
      rbctl eval --bench relationbench-mini --lora ride=runs/finetune/ride/ride.safetensors
      rbctl eval --bench relationbench-mini --lora hug=a.safetensors --lora no_kml:hug=b.safetensors
      rbctl eval runs/sample/ours runs/sample/theirs --clip clip-vit-base-patch32 --dino dino-vits16
      rbctl eval --bench dreambench --data dreambooth/dataset --run theirs=out/theirs --no-base

    \b
    Profiles: cc101, dreambench, dreambench++, relationbench, crops; docs/eval.md defines them.
    """
    from rbctl.plugins.eval.run import run

    if report := run(config):  # of several processes the first alone speaks
        click.echo(report)


command.add_command(ablate)
command.add_command(gates)
command.add_command(judge_check)
command.add_command(judge_page)
command.add_command(leaderboard)
command.add_command(plant)
command.add_command(tables)
