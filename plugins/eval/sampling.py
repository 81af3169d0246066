"""Pictures of a benchmark's cases by the command ``rbctl sample``; what lies there already is not made again."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import yaml

from rbctl.errors import InputError
from rbctl.files import write_text
from rbctl.paths import relative
from rbctl.plugins.eval.case import Case
from rbctl.relations import shipped
from rbctl.runs import start

_ROUTINE = re.compile(r": (no relation|relation \S+), (base model|LoRA )")  # a line of every prompt


def prompts(cases: Sequence[Case], loras: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """The cases as a prompts file of ``rbctl sample``.

    Args:
        folder: that the file will lie in.
        loras: per relation its LoRA; the base model draws all others.
    """
    entries = []
    for case in cases:
        lora = loras.get(case.relation)
        entry: dict[str, Any] = {
            "text": case.text.replace("{", "{{").replace("}", "}}"),
            "objects": [
                {"name": individual.name, "image": relative(individual.image, folder)}
                | ({"box": list(individual.box)} if individual.box else {})
                for individual in case.objects
            ],
            "seed": case.seed,
            "lora": relative(lora, folder) if lora else "none",
        }
        if case.spoken_to:
            own = case.spoken_to not in shipped()
            entry["relation"] = relative(case.spoken_to, folder) if own else case.spoken_to
        entries.append(entry)
    return {"prompts": entries}


def sample(name: str, cases: Sequence[Case], loras: Mapping[str, Path], output: Path, flags: Sequence[str]) -> None:
    """Sample the cases into ``output``.

    Raises:
        InputError: the command failed; its last line is told.
    """
    for path in loras.values():
        if not path.is_file():
            raise InputError(f"--lora {path}: no such file")
    file = output.parent / f"{name}.yaml"
    write_text(file, yaml.safe_dump(prompts(cases, loras, file.parent), sort_keys=False, allow_unicode=True))
    command = ["sample", str(file), "--output", str(output), "--no-prompt-weighting", *flags]
    click.echo(f"{name}: {len(cases)} pictures, {output}", err=True)
    last = ""
    with start(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, bufsize=1) as process:
        assert process.stderr is not None
        for line in process.stderr:  # told one line late: the last one is the error where there is one
            if last and not _ROUTINE.search(last):
                click.echo(last, err=True)
            last = line.strip() or last
        process.wait()
    if process.returncode == 130:
        raise KeyboardInterrupt
    if process.returncode:
        raise InputError(f"rbctl sample {file}: {last.removeprefix('Error: ')}")
