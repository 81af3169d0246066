"""Stage ``demo``: the whole road in one command, on the embedded world."""

import click

from rbctl.options import StageCommand, config_options
from rbctl.plugins.demo.config import DemoConfig


@click.command("demo", cls=StageCommand)
@config_options(DemoConfig)
def command(config: DemoConfig) -> None:
    """Teach the small base model a relation it never saw, and show it before and after.

    Six triplets are drawn, a LoRA is tuned on them, and pictures of individuals that no training showed are sampled
    with and without it. Out: demo.png, a row per pair: the two image prompts, base model, LoRA, and how the embedded
    world itself draws them. The same command again goes on where it stopped.

    \b
      rbctl demo
      rbctl demo --relation hug --output runs/demo-hug
    """
    from rbctl.plugins.demo.run import run

    click.echo(run(config))
