"""Stage ``finetune``: triplets of one relation -> a relation LoRA."""

import click

from rbctl.options import StageCommand, config_options
from rbctl.plugins.finetune.config import FinetuneConfig
from rbctl.processes import world


@click.command("finetune", cls=StageCommand)
@config_options(FinetuneConfig)
def command(config: FinetuneConfig) -> None:
    """Tune a relation LoRA on a few triplets.

    --data is a folder of triplets ('rbctl data show FOLDER' draws them). Without it, the embedded world renders some.
    The result is runs/finetune/RELATION/lora.safetensors, with metrics, previews and checkpoints beside it. The same
    command again resumes where it stopped.

    A prior set keeps the LoRA from spoiling what the base model can do. Some samples of every batch come from it, and
    forgetting.json measures at the end what was forgotten. If triplets are rendered, the prior set is rendered too.
    For SDXL, let the base model make it: rbctl sample ordinary.txt --bundle sdxl --lora none, then --prior
    runs/sample/ordinary.

    --method trains a baseline on the same bundle: an embedding of the relation (ReVersion) or of one subject (Textual
    Inversion), or a subject's DreamBooth LoRA. docs/baselines.md explains them.

    \b
      rbctl finetune --relation ride
      rbctl finetune --relation hug --data triplets/hug --recipe paper --prior runs/sample/ordinary
      rbctl finetune --method textual_inversion --data pictures/rex --class-noun dog --recipe textual_inversion
    """
    from rbctl.plugins.finetune.run import run

    path = run(config)
    if world().first:
        click.echo(path)
