"""The run folder: whether a run can be taken up there, and its beginning."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from rbctl.errors import InputError
from rbctl.files import read_json, read_yaml
from rbctl.options import as_plain, write_recipe
from rbctl.plugins.finetune import checkpoint
from rbctl.plugins.finetune.config import FinetuneConfig
from rbctl.runs import write_record

RESULTS = ("lora.safetensors", "embedding.safetensors")
# Options that may differ when a run is taken up again: they change how it runs, not what it computes. Data, prior
# set, bundle and precision are compared by what they are (see ``facts``), not by how they were written.
_FREE = {"output", "resume", "device", "checkpoint_every", "keep_checkpoints", "preview_every", "preview_steps"}
_FREE |= {"gradient_checkpointing", "format", "tensorboard", "data", "prior", "bundle", "precision"}


def check(output: Path, config: FinetuneConfig, facts: dict[str, Any]) -> None:
    """Refuse a folder that holds another run, or files that no run of ours wrote.

    Args:
        facts: what the result depends on besides the options: hashes of data and bundle, precision, processes.

    Raises:
        InputError: it names what differs.
    """
    recipe, record = output / "recipe.yaml", output / "run.json"
    if not recipe.is_file():
        for name in RESULTS:
            if (output / name).exists():
                raise InputError(f"{output}: holds a {name} that no run here wrote; choose another --output")
        return
    if not config.resume or not checkpoint.found(output / "checkpoints"):
        return
    mend = "choose another --output, or begin anew with --no-resume"
    before = read_yaml(recipe).get("finetune")
    if not isinstance(before, dict) or not record.is_file():
        raise InputError(f"{output}: its recipe.yaml or run.json is damaged; {mend}")
    now = {key: value for key, value in as_plain(config).items() if value is not None}
    free = _FREE | ({"steps"} if config.lr_scheduler.startswith("constant") else set())
    told = read_json(record)
    # An option that the run did not know yet was as its default is now.
    before = {f.name: f.default for f in dataclasses.fields(config) if f.default is not None} | before
    pairs = [(key, before.get(key), now.get(key)) for key in sorted((before.keys() | now.keys()) - free)]
    pairs += [(key, told.get(key), value) for key, value in facts.items()]
    for key, then, new in pairs:
        if then != new:
            short = [value[:12] if isinstance(value, str) and len(value) == 64 else value for value in (then, new)]
            raise InputError(f"{output}: holds a run with {key} {short[0]!r}, not {short[1]!r}; {mend}")


def begin(output: Path, config: FinetuneConfig, facts: dict[str, Any]) -> None:
    """Write the recipe and the record; with ``--no-resume``, drop what the run before left."""
    if not config.resume:
        old = [*checkpoint.found(output / "checkpoints"), *(output / "previews").glob("step-*.png")]
        for path in (*old, output / "metrics.jsonl", *(output / name for name in RESULTS)):
            path.unlink(missing_ok=True)
    write_recipe(output / "recipe.yaml", "finetune", config)
    write_record(output, seed=config.seed, **facts)
