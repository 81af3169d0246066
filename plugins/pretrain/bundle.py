"""Parts ``clipself`` and ``bundle``: what was trained is put together with a model card, checked, copied into rbctl."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

import click
import torch

from rbctl import metrics
from rbctl.bundle.catalogue import CATALOGUE, MANIFEST, contents, has_local_encoder, missing_parts, record, size_text
from rbctl.bundle.convert import read_open_clip_config
from rbctl.bundle.fingerprints import fingerprint, generator_fingerprint
from rbctl.bundle.load import load
from rbctl.bundle.tokenizer import END, write_small_tokenizer
from rbctl.errors import InputError
from rbctl.files import atomic_write, read_object, read_safetensors, write_json, write_text
from rbctl.options import BUNDLE_RECIPE, to_yaml
from rbctl.plugins.pretrain.config import PARTS, PretrainConfig
from rbctl.plugins.pretrain.weights import write_weights

NAME, DIT_NAME = "mini", "mini-dit"
_MOST_BYTES = {NAME: 44_000_000, DIT_NAME: 12_000_000}  # what a wheel can carry without being a burden
_LICENCE = "Apache-2.0"


def take_local_encoder(config: PretrainConfig) -> str:
    """Part ``clipself``: what ``rbctl distill --output WORK/distill`` made becomes the bundle's local encoder.

    Without one the bundle keeps the CLIP's own tower.
    """
    source, dest = config.work / "distill" / "clipself", config.work / "bundle" / "clipself"
    if not source.is_dir():
        return (
            f"{source} is not there: the CLIP's own tower stays; 'rbctl distill --recipe mini "
            f"--model {config.work / 'bundle'} --data {config.work / 'pictures'} --output {source.parent}' makes it"
        )
    write_json(dest / "open_clip_config.json", read_open_clip_config(source / "open_clip_config.json"))
    clip = read_safetensors(source / "model.safetensors")[0]
    visual = {name: tensor for name, tensor in clip.items() if name.startswith("visual.")}  # the bundle has the rest
    write_weights(dest / "model.safetensors", visual)
    return str(dest)


def put_together(config: PretrainConfig) -> str:
    """Part ``bundle``: complete WORK/bundle and copy it into the package.

    Raises:
        InputError: a part is not trained yet, the parts do not fit together, or they are larger than a wheel takes.
    """
    folder = config.work / "bundle"
    write_tokenizers(folder)
    if gaps := missing_parts(folder):
        raise InputError(f"{folder}: not trained yet: {', '.join(gaps)}; 'rbctl pretrain' makes them")
    for part in ("clipself", "oracle", "dino"):
        if not (folder / part).is_dir():
            click.echo(f"warning: {folder / part} is not there; the bundle goes without it", err=True)
    write_text(folder / BUNDLE_RECIPE, (package_files("rbctl.recipes") / "mini-finetune.yaml").read_text("utf-8"))
    _complete(config, folder, NAME)
    # All parts must be of the shapes that each other needs.
    load(str(folder), torch.device("cpu"), torch.float32, local_encoder=has_local_encoder(folder))
    return _shipped(folder, NAME)


def put_dit_together(config: PretrainConfig) -> str:
    """Part ``dit-bundle``: the same of WORK/bundle-dit, which becomes ``mini-dit``.

    Raises:
        InputError: the transformer is not trained yet, or is larger than a wheel takes.
    """
    folder = config.work / "bundle-dit"
    if not (folder / "transformer").is_dir():
        raise InputError(f"{folder / 'transformer'}: not there yet; make it with 'rbctl pretrain dit'")
    _complete(config, folder, DIT_NAME)
    return _shipped(folder, DIT_NAME)


def _complete(config: PretrainConfig, folder: Path, name: str) -> None:
    """Write the model card and the manifest of a bundle.

    Raises:
        InputError: it is too large.
    """
    write_text(folder / "README.md", _card(config, folder, name))
    (folder / MANIFEST).unlink(missing_ok=True)  # of files that may be gone
    origin = {"source": f"rbctl pretrain, seed {config.seed}", "licence": _LICENCE}
    record(folder, name, dict.fromkeys(contents(folder), origin))
    if (size := _size(folder)) > _MOST_BYTES[name]:
        raise InputError(
            f"{folder}: {size_text(size)}, more than {size_text(_MOST_BYTES[name])}; train smaller networks"
        )


def _shipped(folder: Path, name: str) -> str:
    """Copy a bundle into the package; returns the line that says so."""
    dest = CATALOGUE[name].packaged
    assert dest is not None
    _replace(folder, dest)
    return f"{dest} ({size_text(_size(folder))}, {fingerprint(dest)[:12]})"


def _size(folder: Path) -> int:
    """Bytes of a bundle, without its card."""
    return sum((folder / path).stat().st_size for path in contents(folder) if path != "README.md")


def write_tokenizers(folder: Path) -> None:
    """Both tokenizers of the bundle; they differ in what fills a text up, as SDXL's do."""
    for name, pad_token in (("tokenizer", END), ("tokenizer_2", "!")):
        write_small_tokenizer(folder / name, pad_token)


def _replace(source: Path, dest: Path) -> None:
    """Put a copy of ``source`` in the place of ``dest``; ``dest`` is whole at every moment but between two renames."""
    dest.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=dest.parent, prefix=f".{dest.name}.") as name:
        staged, old = Path(name) / "new", Path(name) / "old"
        for path in [*contents(source), MANIFEST]:
            with atomic_write(staged / path) as temporary:
                shutil.copyfile(source / path, temporary)
        if dest.exists():
            dest.rename(old)
        staged.rename(dest)


def _card(config: PretrainConfig, folder: Path, name: str) -> str:
    """The model card of a bundle, by the template ``NAME.md.jinja``.

    Raises:
        InputError: the figures of --gates were taken on other weights.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    sections = None
    if config.gates is not None:
        gates = read_object(config.gates)
        if gates.get("bundle_fingerprint") != generator_fingerprint(folder):
            mend = "run 'make gates' on these, or leave it out"
            raise InputError(f"--gates {config.gates}: measured on other weights; {mend}")
        sections = gates["sections"]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(f"{name}.md.jinja").render(
        name=name,
        size=size_text(_size(folder)),
        licence=_LICENCE,
        config=config,
        sections=sections,
        training=_training(config, folder, ["dit"] if name == DIT_NAME else [part for part in PARTS if part != "dit"]),
        commit=_commit(),
        recipe=to_yaml(
            "pretrain", dataclasses.replace(config, work=Path(config.work.name))
        ),  # no place of this machine
    )


def _commit() -> str:
    """The commit whose code runs, as far as git knows."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _training(config: PretrainConfig, folder: Path, parts: Sequence[str]) -> list[str]:
    """A line on each trained part: steps and the last numbers it told; of one trained elsewhere what its card says."""
    card = folder / "README.md"
    before = card.read_text("utf-8").splitlines() if card.is_file() else []
    lines = []
    for part in parts:
        last: dict[str, Any] = {}
        for row in metrics.rows(config.work / part / "metrics.jsonl"):
            last |= row
        if not last:
            lines += [line for line in before if line.startswith(f"- {part}: ")]
            continue
        dull = ("step", "gradient_norm", "learning_rate", "samples_per_second")
        numbers = ", ".join(f"{name} {json.dumps(value)}" for name, value in last.items() if name not in dull)
        lines.append(f"- {part}: {last['step']} steps; {numbers}")
    return lines
