"""Stage ``distill``: pictures -> a local image encoder whose dense features say what its crops say (CLIPSelf)."""

import click

from rbctl.options import StageCommand, config_options
from rbctl.plugins.distill.config import DistillConfig


@click.command("distill", cls=StageCommand)
@config_options(DistillConfig)
def command(config: DistillConfig) -> None:
    """Distil a CLIP image tower into the local encoder, with DeepSpeed.

    In: a CLIP of open_clip (no captions are needed) and pictures: a folder, COCO (folder and json), or WebDataset
    shards. Out: runs/distill/MODEL/clipself/, which a bundle takes as its local encoder, with metrics, evaluation, a
    picture of the features and checkpoints beside it. The same command again goes on where it stopped, with another
    number of processes too.

    \b
      rbctl distill --recipe mini --data photographs
      deepspeed --num_gpus 8 --module rbctl distill --recipe bigG-coco \\
        --weights open_clip_model.safetensors --data coco/train2017 --evaluation-data coco/val2017
      rbctl distill --recipe bigG-coco --estimate
    """
    if config.estimate:
        from rbctl.plugins.distill.estimate import table

        click.echo(table(config))
        return
    from rbctl.plugins.distill.run import run

    if path := run(config):
        click.echo(path)
