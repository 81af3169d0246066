"""Stage ``finetune``: triplets of one relation -> a relation LoRA."""

import click

from rbctl.options import config_options
from rbctl.plugins.finetune.config import FinetuneConfig


@click.command("finetune")
@config_options(FinetuneConfig)
def command(config: FinetuneConfig) -> None:
    """Tune a relation LoRA on a few triplets.

    In: a folder of triplets (rbctl data show FOLDER draws them); without one, the embedded world draws some. Out:
    runs/finetune/RELATION/lora.safetensors, with metrics, previews and checkpoints beside it. The same command again
    goes on where it stopped.

    A prior set keeps the LoRA from spoiling what the base model can do besides: some samples of every batch come from
    it, and what is forgotten is measured on it at the end (forgetting.json). It is drawn where the triplets are. For
    SDXL, let the base model make it: rbctl sample ordinary.txt --bundle sdxl --lora none, then --prior
    runs/sample/ordinary.

    \b
      rbctl finetune --relation ride
      rbctl finetune --relation hug --data triplets/hug --recipe paper --prior runs/sample/ordinary
    """
    from rbctl.plugins.finetune.run import run

    if path := run(config):
        click.echo(path)
