"""Stage ``demo``: the whole road in one command, on the embedded world."""

import click

from rbctl.options import StageCommand, config_options
from rbctl.plugins.demo.config import DemoConfig


@click.command("demo", cls=StageCommand)
@config_options(DemoConfig)
def command(config: DemoConfig) -> None:
    """Teach the small base model a new relation, and show pictures before and after.

    The command draws six triplets, tunes a LoRA on them, and samples pairs of new individuals with and without it.
    demo.png has a row per pair: two image prompts, base model, LoRA, and how the embedded world itself draws them.
    one_two_three/grid.png shows one, two and three individuals in relations that the base model knows. The same command
    again resumes where it stopped.

    \b
      rbctl demo
      rbctl demo --relation hug --output runs/demo-hug
    """
    from rbctl.plugins.demo.run import run

    click.echo(run(config))
