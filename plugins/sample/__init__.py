"""Stage ``sample``: prompts with pictures of individuals -> pictures of those individuals in the relation."""

import click

from rbctl.options import StageCommand, config_options
from rbctl.plugins.sample.config import SampleConfig


@click.command("sample", cls=StageCommand)
@config_options(SampleConfig)
def command(config: SampleConfig) -> None:
    """Sample pictures from PROMPTS, a prompts.txt or a YAML file.

    A line has one prompt, with the individuals' pictures inline. The relation is read from the prompt; its LoRA is
    looked up in runs/finetune/RELATION[-BUNDLE], and its layout prior places the boxes. PNGs, grid.png and
    metadata.jsonl go to runs/sample/NAME. The same command again makes only what is missing, also if lines have moved.
    No prompt overwrites the picture of another.

    \b
      A {cat: pets/tom.jpg} is riding a {plush bear: toys/bear.png} --d 7 --s 30 --n "lowres"
      A {cat: pets/tom.jpg} hugs a {dog: pets/rex.jpg} --box 0.05,0.2,0.55,0.9 --box 0.45,0.2,0.95,0.9

    \b
    Options of a line: --n negative prompt, --w --h size, --d seed or seeds, --l guidance scale, --s steps,
    --ss scheduler, --images, --relation, --lora PATH[:WEIGHT],..., --am weight or weights, --embedding PATH[:TOKEN],
    --box x0,y0,x1,y1 (once an object), --scale (gamma), --subject-scale a,b, --ow --oh --ct --cl micro-conditioning.
    <lora:NAME:WEIGHT> in the text adds a LoRA of --lora-dir. (word:1.2) and [word] weigh words.

    \b
      rbctl sample recipes/examples/prompts.txt --relation ride
      rbctl sample prompts.txt --bundle sdxl --batch-size 4 --images 2 --lora none
      rbctl sample --config example_two_objects.yaml --bundle sdxl --lora runs/finetune/hug-sdxl/hug.safetensors
    """
    from rbctl.imports import deferred

    with deferred():  # all of the run: networks are imported when a bundle is loaded
        from rbctl.plugins.sample.run import run

        click.echo(run(config))
