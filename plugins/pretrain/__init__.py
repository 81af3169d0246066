"""Stage ``pretrain``: drawn scenes of menagerie -> the bundle ``mini``, every weight of it from random."""

import click

from rbctl.options import StageCommand, config_options
from rbctl.plugins.pretrain.config import PretrainConfig


@click.command("pretrain", cls=StageCommand)
@config_options(PretrainConfig)
def command(config: PretrainConfig) -> None:
    """Train the bundle 'mini' from scratch on drawn scenes.

    PARTS are renders, pictures, vae, clip, oracle, clipself, dino, decoder, unet, bundle, dit, dit-bundle; the default
    is all, in this order. Each part reads the results of those before it in the work folder, and resumes from its own
    checkpoint. The results are WORK/bundle, a complete bundle, and WORK/bundle-dit, a transformer beside it. The local
    encoder is the CLIP's own tower, unless one was distilled between two calls.

    \b
      rbctl pretrain --recipe mini
      rbctl pretrain vae --recipe mini --minutes 25
      torchrun --nproc-per-node 2 -m rbctl pretrain unet --recipe mini
    """
    from rbctl.plugins.pretrain.run import run

    for line in run(config):
        click.echo(line)
