"""``rbctl models``: fetch, check and put together bundles."""

from __future__ import annotations

from pathlib import Path

import click


@click.group(name="models")
def command() -> None:
    """Fetch, check and put together bundles: all frozen networks of a base model in one folder.

    Bundles are in $RBCTL_BUNDLES, else in ./bundles if it exists, else in ~/.cache/rbctl/bundles.

    \b
      rbctl models pull sdxl
      rbctl models import sdxl --local-encoder epoch_6.pt
    """


@command.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for a program to read.")
def list_(as_json: bool) -> None:
    """Show the catalogue and the bundles here: state, size, sources, licences."""
    from .run import show

    show(as_json)


@command.command()
@click.argument("name")
@click.option("--output", type=click.Path(path_type=Path), help="Folder to write; default: NAME where bundles lie.")
def pull(name: str, output: Path | None) -> None:
    """Download bundle NAME of the catalogue from the hub, check every file, record commits and hashes.

    After an interruption, the same command resumes. HF_ENDPOINT names another hub, HF_TOKEN opens gated repositories.
    """
    from .run import fetch

    fetch(name, output)


@command.command()
@click.argument("name_or_folder")
def verify(name_or_folder: str) -> None:
    """Hash all files of a bundle again, and compare with the hashes recorded at download."""
    from .run import check

    check(name_or_folder)


@command.command(name="import")
@click.argument("dest")
@click.option("--base", type=click.Path(path_type=Path), help="SDXL folder in diffusers' layout.")
@click.option("--adapter", type=click.Path(path_type=Path), help="ms_adapter.bin or .safetensors.")
@click.option("--image-encoder", type=click.Path(path_type=Path), help="CLIP bigG folder in transformers' layout.")
@click.option(
    "--local-encoder",
    type=click.Path(path_type=Path),
    help="CLIPSelf's epoch_6.pt, .safetensors, or the folder that rbctl distill wrote.",
)
@click.option("--adapter-config", type=click.Path(path_type=Path), help="ms_adapter_config.json; default: beside it.")
@click.option("--local-config", type=click.Path(path_type=Path), help="open_clip_config.json; default: beside it.")
def import_(dest: str, **sources: Path | None) -> None:
    """Make bundle DEST (a folder, or a name where bundles lie) of local files, or add parts to it.

    Large files are hard-linked where the disk allows; pickles are read as data only and become safetensors.

    \b
      rbctl models import bundles/sdxl --base stable-diffusion-xl-base-1.0 --adapter ms_adapter.bin \\
        --image-encoder CLIP-ViT-bigG-14-laion2B-39B-b160k --local-encoder epoch_6.pt
    """
    from .run import bring

    bring(dest, **sources)
