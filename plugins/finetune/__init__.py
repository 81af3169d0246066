"""Stage ``finetune``: triplets of one relation -> a relation LoRA."""

import click

from rbctl.options import StageCommand, config_options
from rbctl.plugins.finetune.config import FinetuneConfig


@click.command("finetune", cls=StageCommand)
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

    --method learns something else on the same bundle, to compare with: an embedding of the relation (ReVersion) or of
    one subject (Textual Inversion), or a subject's DreamBooth LoRA. docs/baselines.md tells of them.

    \b
      rbctl finetune --relation ride
      rbctl finetune --relation hug --data triplets/hug --recipe paper --prior runs/sample/ordinary
      rbctl finetune --method textual_inversion --data pictures/rex --class-noun dog --recipe textual_inversion
    """
    if config.method == "relation_lora":
        from rbctl.plugins.finetune.run import run
    else:
        from rbctl.plugins.finetune.baselines import run

    if path := run(config):
        click.echo(path)
