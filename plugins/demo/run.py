"""The work of ``rbctl demo``: it calls the stages as a user does, then puts their pictures side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from rbctl.bundle.catalogue import resolve
from rbctl.cli import main
from rbctl.files import read_jsonl
from rbctl.images import read_image, write_png
from rbctl.menagerie import compose
from rbctl.menagerie.triplets import check_drawable, pictures
from rbctl.pictures import grid
from rbctl.plugins.demo import examples
from rbctl.plugins.demo.config import DemoConfig
from rbctl.relations import Relation, load_relation
from rbctl.runs import claim


def run(config: DemoConfig) -> Path:
    """Finetune, sample, draw the truth, write the grid; returns its path.

    Raises:
        InputError: there is no such relation or bundle, or the folder cannot be written.
    """
    relation = load_relation(config.relation)
    check_drawable(relation)
    resolve(config.bundle)
    output = config.output
    with claim(output):
        examples.write(output, relation, config.pairs, config.seed)
        common = ["--bundle", config.bundle, "--device", config.device]
        tuned, lora = output / "lora", output / "lora" / "lora.safetensors"
        _stage("finetune", *common, relation=config.relation, output=tuned, steps=config.steps, seed=config.seed)
        prompts = str(output / "prompts.txt")
        # The base model is the LoRA at weight 0: so that both get the same boxes, those of its layout prior.
        for name, weight in (("base", 0), ("relation", 1)):
            flags = {"relation": config.relation, "output": output / name, "steps": config.sampling_steps}
            _stage("sample", prompts, *common, lora=lora, lora_weight=weight, **flags)
        path = output / "demo.png"
        write_png(path, _sheet(output, relation, config))
    return path


def _stage(*arguments: str, **options: object) -> None:
    """Run a stage in this process, as its command line would; options that are None are left out."""
    given = [
        part
        for name, value in options.items()
        if value is not None
        for part in (f"--{name.replace('_', '-')}", str(value))
    ]
    if main.main([*arguments, *given], prog_name="rbctl", standalone_mode=False):
        raise KeyboardInterrupt  # the one way in which a stage ends with a code of its own


def _sheet(output: Path, relation: Relation, config: DemoConfig) -> Image.Image:
    """Rows of image prompts, the base model's picture, the LoRA's, and the truth."""
    groups = examples.groups(config.pairs, len(relation.roles), config.seed)
    made = {
        name: [row["file_name"] for row in read_jsonl(output / name / "metadata.jsonl")]
        for name in ("base", "relation")
    }
    scenes = [compose(relation, group, np.random.default_rng((config.seed, k))) for k, group in enumerate(groups)]
    truths = pictures(scenes, examples.SIZE)
    cells: list[Image.Image] = []
    captions: list[str] = []
    for number, group in enumerate(groups):
        for one in group:
            cells.append(read_image(output / "pictures" / examples.name_of(one)))
            captions.append(one.description)
        cells += [read_image(output / name / made[name][number]) for name in ("base", "relation")]
        cells.append(truths[number])
        captions += ["base model", f"with the LoRA of {relation.name!r}", "drawn by the world itself"]
    size = (examples.SIZE, examples.SIZE)
    shown = [cell.resize(size, Image.Resampling.BICUBIC) for cell in cells]
    return grid(shown, len(relation.roles) + 3, captions)
