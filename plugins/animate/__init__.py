"""Stage ``animate``: pictures -> clips, by an image-to-video pipeline on this machine."""

import click

from rbctl.options import StageCommand, config_options
from rbctl.plugins.animate.config import AnimateConfig


@click.command("animate", cls=StageCommand)
@config_options(AnimateConfig)
def command(config: AnimateConfig) -> None:
    """Make clips of PICTURES, a folder of 'rbctl sample' or of any pictures, or a single picture.

    The pipeline is a folder in diffusers' layout whose class takes an image and a prompt: CogVideoX-5B-I2V, Wan or LTX.
    What a clip shows is said by its picture: the text of its record, of metadata.jsonl, or its parameters. MP4s, WebPs
    and metadata.jsonl go to runs/animate/NAME. A clip begins with its picture. The same command again makes only what
    is missing.

    \b
      rbctl animate runs/sample/prompts --model models/CogVideoX-5b-I2V --lowvram
      rbctl animate cat-on-bear.png --model models/Wan2.2-TI2V-5B --prompt "The cat rides the bear through snow"
    """
    from rbctl.imports import deferred

    with deferred():
        from rbctl.plugins.animate.run import run

        click.echo(run(config))
