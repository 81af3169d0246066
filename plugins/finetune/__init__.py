"""Stage ``finetune``: triplets of one relation -> a relation LoRA."""

import click

from rbctl.options import config_options
from rbctl.plugins.finetune.config import FinetuneConfig


@click.command("finetune")
@config_options(FinetuneConfig)
def command(config: FinetuneConfig) -> None:
    """Tune a relation LoRA on a few triplets.

    In: a folder of triplets (rbctl data show FOLDER draws them). Out: runs/finetune/RELATION/lora.safetensors, with
    metrics, previews and checkpoints beside it. The same command again goes on where it stopped.

    \b
      rbctl finetune --relation hug --data triplets/hug
      rbctl finetune --relation hug --data triplets/hug --recipe paper --bundle sdxl --preview-every 100
    """
    from rbctl.plugins.finetune.run import run

    if path := run(config):
        click.echo(path)
