"""Part ``bundle``: the trained parts, tokenizers, recipe and model card put together, checked and copied into rbctl."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

import click
import torch

from rbctl import metrics
from rbctl.bundle.catalogue import CATALOGUE, MANIFEST, contents, has_local_encoder, missing_parts, record, size_text
from rbctl.bundle.fingerprints import fingerprint, generator_fingerprint
from rbctl.bundle.load import load
from rbctl.bundle.tokenizer import END, write_small_tokenizer
from rbctl.errors import InputError
from rbctl.files import atomic_write, read_json, write_text
from rbctl.options import BUNDLE_RECIPE, to_yaml
from rbctl.plugins.pretrain.config import PARTS, PretrainConfig
from rbctl.plugins.pretrain.loop import rank

NAME = "mini"
_MOST_BYTES = 36_000_000  # what a wheel can carry without being a burden
_LICENCE = "Apache-2.0"

_CARD = """\
# {name}

A whole base model for rbctl in {size}: VAE, text and image encoders, UNet with an MS-Diffusion adapter, an oracle
that judges pictures. It draws cartoon animals at 128 px: two individuals from their portraits, in a relation.

Every weight was trained from random by `rbctl pretrain`, on scenes that rbctl draws itself (`rbctl.menagerie`). No
picture of any person, artist or data set went in. Weights: {licence}.

| | |
|---|---|
| relations it was taught | {easy} |
| relations it never saw (learn them with `rbctl finetune`) | {held_out} |
| individuals | {individuals}, {portraits} portraits each; one in eight combinations of looks is held out |
| scenes | {easy_scenes} |

It knows ten species, twelve coats and four patterns, and nothing else: a word beyond those is noise to it. It is for
trying and testing the road in minutes; the pictures say nothing about what a method does to SDXL.

## How good it is

{quality}

Seen in pictures of the weights that rbctl ships: faces and paws are smeared; spots and stripes become mosaic; riders
have a trunk and a head but often no legs; in a hug heads run together; a carried animal is a ball with a face;
elephants, giraffes and pigs break more often than others. docs/mini.md of the repository says more.

## How it was made

Put together by rbctl at commit {commit}. Parts may be older, and trained in several legs with other settings than the
recipe below: docs/mini.md of the repository tells.

{training}

The local encoder is what `rbctl distill --recipe mini` made of the CLIP's image encoder.

```yaml
{recipe}```
"""


def run(config: PretrainConfig, device: torch.device) -> str:
    """Complete WORK/bundle and copy it into the package.

    Raises:
        InputError: a part is not trained yet, the parts do not fit together, or they are larger than a wheel takes.
    """
    if rank():
        return ""
    folder, dest = config.work / "bundle", CATALOGUE[NAME].packaged
    write_tokenizers(folder)
    gaps = missing_parts(folder)
    if gaps:
        raise InputError(f"{folder}: not trained yet: {', '.join(gaps)}; 'rbctl pretrain' makes them")
    for part in ("clipself", "oracle", "dino"):
        if not (folder / part).is_dir():
            click.echo(f"warning: {folder / part} is not there; the bundle goes without it", err=True)
    write_text(folder / BUNDLE_RECIPE, (package_files("rbctl.recipes") / "mini-finetune.yaml").read_text("utf-8"))
    training, quality = _training(config), _quality(config.gates, folder)
    (folder / "README.md").unlink(missing_ok=True)
    size = sum((folder / path).stat().st_size for path in contents(folder))
    write_text(folder / "README.md", _card(config, training, quality, size))
    (folder / MANIFEST).unlink(missing_ok=True)  # of files that may be gone
    origin = {"source": f"rbctl pretrain, seed {config.seed}", "licence": _LICENCE}
    record(folder, NAME, dict.fromkeys(contents(folder), origin))
    size = sum((folder / path).stat().st_size for path in contents(folder))
    if size > _MOST_BYTES:
        raise InputError(f"{folder}: {size_text(size)}, more than {size_text(_MOST_BYTES)}; train smaller networks")
    # All parts must be of the shapes that each other needs.
    load(str(folder), torch.device("cpu"), torch.float32, local_encoder=has_local_encoder(folder))
    assert dest is not None
    _replace(folder, dest)
    return f"{dest} ({size_text(size)}, {fingerprint(dest)[:12]})"


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


def _card(config: PretrainConfig, training: str, quality: str, size: int) -> str:
    return _CARD.format(
        name=NAME,
        size=size_text(size),
        licence=_LICENCE,
        easy=", ".join(config.easy).replace("_", " "),
        held_out=", ".join(config.held_out).replace("_", " "),
        individuals=config.individuals,
        portraits=config.portraits,
        easy_scenes=config.easy_scenes,
        commit=_commit(),
        training=training,
        quality=quality,
        recipe=to_yaml("pretrain", config),
    )


def _commit() -> str:
    """The commit whose code runs, as far as git knows."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _quality(path: Path | None, folder: Path) -> str:
    """The figures of a gates.json as a table.

    Raises:
        InputError: they were taken on other weights.
    """
    if path is None:
        return "Not measured yet: `make gates` does it."
    content = read_json(path)
    if content.get("bundle_fingerprint") != generator_fingerprint(folder):
        raise InputError(f"--gates {path}: measured on other weights; run 'make gates' on these, or leave it out")
    rows = ["| measured by `make gates` | value | 95 % interval | n | wanted |", "|---|---|---|---|---|"]
    for name, section in content["sections"].items():
        for title, found in section["gates"].items():
            span = f"{found['low']:.3f} .. {found['high']:.3f}" if found.get("low") is not None else ""
            value = "-" if found["mean"] is None else f"{found['mean']:.4g}"
            wanted = [f"{word} {found[key]:g}" for word, key in ((">=", "at_least"), ("<=", "at_most")) if key in found]
            cells = (f"{name.replace('_', ' ')}: {title}", value, span, str(found.get("n", "")), ", ".join(wanted))
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _training(config: PretrainConfig) -> str:
    """A line on each trained part: steps and the last numbers it told; of one trained elsewhere what its card says."""
    card = config.work / "bundle" / "README.md"
    said = card.read_text("utf-8").splitlines() if card.is_file() else []
    lines = []
    for part in PARTS:
        path = config.work / part / "metrics.jsonl"
        if not path.is_file():
            lines += [line for line in said if line.startswith(f"- {part}: ")]
            continue
        last: dict[str, Any] = {}
        for row in metrics.rows(path):
            last |= row
        step = last.pop("step", 0)
        dull = ("gradient_norm", "learning_rate", "samples_per_second")
        numbers = ", ".join(f"{name} {json.dumps(value)}" for name, value in last.items() if name not in dull)
        lines.append(f"- {part}: {step} steps; {numbers}")
    return "\n".join(lines)
