"""``rbctl lora``: what a LoRA file is, what is wrong with it, and its other form of names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rbctl.lora_names import LoraForm

_FILE = click.Path(path_type=Path)


@click.group(name="lora")
def command() -> None:
    """Look at a LoRA file, check it, or write it with other names.

    \b
      rbctl lora show hug.safetensors
      rbctl lora check downloads/style.safetensors
      rbctl lora convert hug.safetensors --format official
    """


@command.command()
@click.argument("file", type=_FILE)
def show(file: Path) -> None:
    """Print what FILE is, for which base, and which programs load it."""
    from rbctl.plugins.lora.description import description
    from rbctl.plugins.lora.stored import read

    for label, value in description(read(file)):
        click.echo(f"{label:<9} {value}")


@command.command()
@click.argument("file", type=_FILE)
@click.pass_context
def check(ctx: click.Context, file: Path) -> None:
    """Print everything that is wrong with FILE, one line each; exit with 2 if something is.

    That is: two modules for one layer, half a module, matrices that do not fit together, numbers that are not finite,
    and hashes in the metadata that are of other tensors.
    """
    from rbctl.plugins.lora.faults import faults
    from rbctl.plugins.lora.stored import read

    lines = faults(read(file))
    for line in lines or [f"{file}: nothing is wrong"]:
        click.echo(line)
    if lines:
        ctx.exit(2)


@command.command()
@click.argument("file", type=_FILE)
@click.option(
    "--format",
    "form",
    type=click.Choice(["kohya", "official"]),
    required=True,
    help="Names in the new file: kohya's, for ComfyUI and others; official, the authors', for diffusers.",
)
@click.option("-o", "--output", type=_FILE, help="The new file. [default: FILE-FORMAT.safetensors]")
def convert(file: Path, form: LoraForm, output: Path | None) -> None:
    """Write FILE with other names of its tensors, and print the new file's path.

    Type, alpha and metadata stay; the hashes are those of the new file. The official form has no place for alpha, so
    alpha / rank goes into the matrices. A file that holds something else is never overwritten.
    """
    from rbctl.plugins.lora.conversion import convert as write_converted

    output = output or file.with_name(f"{file.stem}-{form}.safetensors")
    write_converted(file, form, output)
    click.echo(output)
