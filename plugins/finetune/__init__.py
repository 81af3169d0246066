"""Stage ``finetune``: triplets of one relation -> a relation LoRA.

From Python::

    from rbctl.plugins.finetune import finetune

    lora = finetune(relation="hug", data="triplets/hug", steps=200, callback=lambda step, row: print(step, row["loss"]))
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rbctl.errors import InputError
from rbctl.options import StageCommand, as_plain, config_options, configured
from rbctl.plugins.finetune.config import Callback, FinetuneConfig
from rbctl.processes import world

if TYPE_CHECKING:
    from rbctl.triplets import Triplet


def finetune(
    relation: str | None = None,
    data: str | Path | Sequence[Triplet] | None = None,
    output: str | Path | None = None,
    *,
    recipe: str | Path | FinetuneConfig | None = None,
    callback: Callback | None = None,
    **options: Any,
) -> Path:
    """Tune a relation LoRA, as ``rbctl finetune`` does. The same call again goes on where it stopped.

    Args:
        relation: a shipped name (ride, hug, ...) or the path of a relation's YAML.
        data: folder of triplets, or a list of them, which is copied into the run folder. [default: rendered by the
            embedded world]
        output: run folder. [default: runs/finetune/RELATION, or RELATION-BUNDLE]
        recipe: a YAML file, the name of a shipped one, or a whole configuration; options win over it.
        callback: called as ``callback(step, row)`` after every step, with its number from 1 and its row of
            metrics.jsonl: ``loss``, its parts, ``grad_norm``, ``lr``, ``seconds``. Where it returns something true,
            training stops there, and the LoRA is written as it is.
        options: those of ``rbctl finetune``, with underscores: ``steps=200, bundle="sdxl", learning_rate=1e-4``.

    Returns:
        The file: ``RELATION.safetensors``, or ``embedding.safetensors`` of a baseline.

    Raises:
        InputError: data, options or bundle are wrong, or the folder holds another run; told in one line.
        KeyboardInterrupt: interrupted; a checkpoint is written.
    """
    triplets: tuple[Triplet, ...] = ()
    if data is not None and not isinstance(data, str | Path):
        triplets, data = tuple(data), None
        if not triplets:
            raise InputError("data: the list holds no triplets")
    options |= {"relation": relation, "data": data, "output": output}
    if isinstance(recipe, FinetuneConfig):
        whole = as_plain(recipe)
        options = whole | {name: value for name, value in options.items() if value is not None}
        recipe = None
    config = configured(command, recipe, **options)
    if triplets and config.method != "relation_lora":
        raise InputError(f"data: a list of triplets serves the method relation_lora alone, not {config.method}")
    from rbctl.plugins.finetune.run import run

    return run(config, callback, triplets)


@click.command("finetune", cls=StageCommand)
@config_options(FinetuneConfig)
def command(config: FinetuneConfig) -> None:
    """Tune a relation LoRA on a few triplets.

    --data is a folder of triplets ('rbctl data show FOLDER' draws them). Without it, the embedded world renders some.
    The result is runs/finetune/RELATION/RELATION.safetensors, with metrics, previews and checkpoints beside it. It
    loads in ComfyUI, InvokeAI, sd-scripts and diffusers, and by their key rules in A1111 and Forge. The same command
    again resumes where it stopped.

    A prior set keeps the LoRA from spoiling what the base model can do. Some samples of every batch come from it, and
    forgetting.json measures at the end what was forgotten. If triplets are rendered, the prior set is rendered too.
    For SDXL, let the base model make it: rbctl sample ordinary.txt --bundle sdxl --lora none, then --prior
    runs/sample/ordinary.

    --method trains a baseline on the same bundle: an embedding of the relation (ReVersion) or of one subject (Textual
    Inversion), or a subject's DreamBooth LoRA. docs/baselines.md explains them.

    \b
      rbctl finetune --relation ride
      rbctl finetune --relation hug --data triplets/hug --recipe paper --prior runs/sample/ordinary
      rbctl finetune --method textual_inversion --data pictures/rex --class-noun dog --recipe textual_inversion
    """
    from rbctl.plugins.finetune.run import run

    path = run(config)
    if world().first:
        click.echo(path)
