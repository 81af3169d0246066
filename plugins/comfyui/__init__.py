"""``rbctl comfyui``: nodes for ComfyUI."""

from __future__ import annotations

import sys
from importlib.resources import files as package_files
from pathlib import Path

import click

from rbctl.errors import InputError
from rbctl.files import sweep, write_bytes

_FOLDER = "comfyui-rbctl"  # no name of a Python module: it cannot be imported in the place of rbctl


@click.group(name="comfyui")
def command() -> None:
    """Use relation LoRAs and individuals in ComfyUI.

    \b
      rbctl comfyui install ComfyUI/custom_nodes
    """


@command.command()
@click.argument("custom_nodes", type=click.Path(path_type=Path))
def install(custom_nodes: Path) -> None:
    """Put the nodes and example workflows into CUSTOM_NODES, ComfyUI's folder of that name.

    The same command again renews them.
    """
    if (custom_nodes / "custom_nodes").is_dir():
        raise InputError(f"{custom_nodes}: is ComfyUI's own folder; give {custom_nodes / 'custom_nodes'}")
    if custom_nodes.absolute().name != "custom_nodes" or not custom_nodes.is_dir():
        raise InputError(f"{custom_nodes}: no folder custom_nodes; give the one inside ComfyUI's folder")
    pack, folder = package_files("rbctl") / "comfyui", custom_nodes / _FOLDER
    sweep(folder)
    write_bytes(folder / "__init__.py", (pack / "custom_node.py").read_bytes())
    for example in ("relation.json", "relation.jpg", "api/relation.json"):
        write_bytes(folder / "example_workflows" / example, (pack / "workflows" / example).read_bytes())
    click.echo(folder)
    click.echo(
        f"next: see that ComfyUI's Python has rbctl (PYTHON -m pip install rbctl; this one, {sys.executable}, has it), "
        f"and restart ComfyUI. The nodes are under 'rbctl', the examples under Workflow > Browse Templates > {_FOLDER}",
        err=True,
    )
