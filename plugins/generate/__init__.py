"""Stage ``generate``: a relation -> raw triplets, pictures of pairs in the relation and of each of them alone."""

import click

from rbctl.options import StageCommand, config_options
from rbctl.plugins.generate.config import GenerateConfig


@click.command("generate", cls=StageCommand)
@config_options(GenerateConfig)
def command(config: GenerateConfig) -> None:
    """Make raw triplets of a relation: a target picture of a pair in it, and a neutral picture of each individual.

    The result is a folder with raw.jsonl, set.json, the pictures and grid.png, for 'rbctl annotate'. The same command
    again makes only what is missing.

    \b
    miniature   draws the triplets in the embedded world
    openai      calls the OpenAI images API; the key is read from OPENAI_API_KEY, and --budget limits the cost
    diffusers   runs a local text-to-image pipeline, which does not keep identities between pictures
    edit        runs a local editor that takes several pictures, such as FLUX.2 Klein, and so keeps them

    \b
      rbctl generate --relation ride -n 6
      rbctl generate --relation ride -n 6 --engine openai --estimate
      rbctl generate --relation ride -n 6 --engine openai --quality high --budget 3
      rbctl generate --relation ride -n 6 --engine diffusers --model sdxl --pairs pets.txt
      rbctl generate --relation ride -n 6 --engine edit --model FLUX.2-klein-4B --size 1024x1024
    """
    if config.estimate:
        from rbctl.plugins.generate.run import estimate

        click.echo(estimate(config))
        return
    from rbctl.plugins.generate.run import run

    click.echo(run(config))


# The one short flag; options are otherwise named after their fields.
next(param for param in command.params if param.name == "number").opts.insert(0, "-n")
