"""Prompts: prompts.txt, YAML and the official code's configuration files, all read into ``Prompt``.

A line of prompts.txt::

    A {cat: pets/tom.jpg} is riding a {plush bear: toys/bear.png} --d 7 --s 30 --n lowres, blurry

``{name: picture}`` marks an object; ``{{`` and ``}}`` are plain braces; lines that start with # are comments. Options
are kohya's (``--n`` negative prompt, ``--w --h`` size, ``--d`` seed or seeds, ``--l`` guidance scale, ``--s`` steps,
``--ss`` scheduler, ``--am`` weight or weights of the LoRAs, ``--ow --oh --ct --cl`` micro-conditioning) and ours
(``--relation --lora PATH[:WEIGHT] --embedding PATH[:TOKEN] --box x0,y0,x1,y1 --scale --subject-scale a,b --images``);
``--box`` is given once per object, in their order. ``<lora:NAME:WEIGHT>`` in the text names a LoRA, and
``(word:1.2)`` weighs words (:mod:`rbctl.prompts.weights`). A value runs to the next option; it may be quoted. A YAML
file has a list ``prompts`` of mappings with the fields of ``Prompt`` (objects inline in ``text`` or as a list
``objects``) and may have ``defaults``.

Paths of pictures, and of a LoRA, embedding or relation file where one lies there, are relative to the prompts file.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rbctl.errors import InputError
from rbctl.files import read_image
from rbctl.prompts.fields import Prompt, PromptObject
from rbctl.prompts.lines import parse_line, read_lines
from rbctl.prompts.mappings import read_mappings, read_official_config

__all__ = ["Prompt", "PromptObject", "check_pictures", "parse_line", "read_official_config", "read_prompts"]


def read_prompts(path: Path) -> tuple[Prompt, ...]:
    """Read a prompts file: .txt, .yaml or .yml (ours, or a configuration of the official code).

    Raises:
        InputError: ``FILE:LINE: what; the mend`` for the first line that is wrong, or the file holds no prompt.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".txt":
        prompts = read_lines(path)
    elif suffix in (".yaml", ".yml"):
        prompts = read_mappings(path)
    else:
        raise InputError(f"{path}: not a prompts file; its name must end in .txt, .yaml or .yml")
    if not prompts:
        raise InputError(f"{path}: holds no prompt; write one on a line")
    return prompts


def check_pictures(prompts: Iterable[Prompt]) -> None:
    """Read every picture whole, so that a long run fails at its start and not at its hundredth prompt.

    Raises:
        InputError: a picture is missing or damaged; the prompt's place is named.
    """
    uses: dict[Path, str] = {}
    for prompt in prompts:
        for individual in prompt.objects:
            uses.setdefault(individual.image, f"{prompt.source}: {individual.name}")
    for image, where in uses.items():
        try:
            read_image(image)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
