"""Stage ``distill``: pictures -> a local image encoder whose dense features say what its crops say (CLIPSelf)."""

import click

from rbctl.options import StageCommand, config_options
from rbctl.plugins.distill.config import DistillConfig


@click.command("distill", cls=StageCommand)
@config_options(DistillConfig)
def command(config: DistillConfig) -> None:
    """Distil a CLIP image tower into the local encoder, with DeepSpeed.

    It needs a CLIP of open_clip and pictures: a folder, COCO (folder and json), or WebDataset shards. Captions are not
    needed. The result is runs/distill/MODEL/clipself/, which a bundle takes as its local encoder. Metrics, evaluation,
    a picture of the features and checkpoints are beside it. The same command again resumes where it stopped, also with
    another number of processes. A CLIP of another width than the bundle's needs --bundle.

    \b
      rbctl distill --recipe mini --data photographs
      deepspeed --num_gpus 8 --module rbctl distill --recipe bigG-coco \\
        --weights open_clip_model.safetensors --data coco/train2017 --evaluation-data coco/val2017
      rbctl distill --model EVA02-L-14 --weights open_clip_model.safetensors --bundle sdxl --data photographs
      rbctl distill --recipe bigG-coco --estimate
    """
    if config.estimate:
        from rbctl.plugins.distill.estimate import table

        click.echo(table(config))
        return
    from rbctl.plugins.distill.run import run

    if path := run(config):
        click.echo(path)
