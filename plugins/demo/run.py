"""The work of ``rbctl demo``: it calls the stages as a user does, then puts their pictures side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from rbctl.bundle.catalogue import resolve
from rbctl.cli import main
from rbctl.files import read_image, read_jsonl
from rbctl.inline_pictures import show
from rbctl.menagerie import compose
from rbctl.menagerie.triplets import check_drawable, pictures
from rbctl.pictures import grid, save_png
from rbctl.plugins.demo import examples
from rbctl.plugins.demo.config import DemoConfig
from rbctl.provenance import SHEET
from rbctl.relations import Relation, load_relation
from rbctl.runs import claim


def run(config: DemoConfig) -> Path:
    """Finetune, sample, draw the truth, write the grid; sample one, two and three individuals. Returns the grid's path.

    Raises:
        InputError: there is no such relation or bundle, or the folder cannot be written.
    """
    relation = load_relation(config.relation)
    check_drawable(relation)
    resolve(config.bundle)
    output = config.output
    with claim(output):
        examples.write(output, relation, config.pairs, config.seed)
        machine = {"bundle": config.bundle, "device": config.device}
        tuning = {"relation": config.relation, "steps": config.steps, "seed": config.seed}
        _stage("finetune", output=output / "lora", **tuning, **machine)
        sampling = {"steps": config.sampling_steps, "show": "none", **machine}
        tuned = {"relation": config.relation, "lora": output / "lora" / f"{relation.name}.safetensors", **sampling}
        # The base model is the LoRA at weight 0: so that both get the same boxes, those of its layout prior.
        for name, weight in (("base", 0), ("relation", 1)):
            _stage("sample", str(output / "prompts.txt"), output=output / name, lora_weight=weight, **tuned)
        sheet = _sheet(output, relation, config)
        save_png(sheet, output / "demo.png", source_type=SHEET)
        show(sheet, config.show, rows=8 * config.pairs)
        _stage("sample", str(output / "one_two_three.txt"), output=output / "one_two_three", lora="none", **sampling)
    return output / "demo.png"


def _stage(*arguments: str, **options: object) -> None:
    """Run a stage in this process, as its command line would; options that are None are left out."""
    chosen = {name: value for name, value in options.items() if value is not None}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in chosen.items()]
    if main.main([*arguments, *flags], prog_name="rbctl", standalone_mode=False):
        raise KeyboardInterrupt  # the one way in which a stage ends with a code of its own


def _sheet(output: Path, relation: Relation, config: DemoConfig) -> Image.Image:
    """Rows of image prompts, the base model's picture, the LoRA's, and the truth."""
    groups = examples.groups(config.pairs, len(relation.roles), config.seed)
    sampled = [
        [read_image(output / name / row["file_name"]) for row in read_jsonl(output / name / "metadata.jsonl")]
        for name in ("base", "relation")
    ]
    scenes = [compose(relation, group, np.random.default_rng((config.seed, k))) for k, group in enumerate(groups)]
    cells: list[Image.Image] = []
    captions: list[str] = []
    for group, *results in zip(groups, *sampled, pictures(scenes, examples.SIZE), strict=False):
        cells += [read_image(output / "pictures" / examples.name_of(individual)) for individual in group]
        captions += [individual.description for individual in group]
        cells += results
        captions += ["base model", f"with the LoRA of {relation.name!r}", "drawn by the world itself"]
    size = (examples.SIZE, examples.SIZE)
    resized = [cell.resize(size, Image.Resampling.BICUBIC) for cell in cells]
    return grid(resized, len(relation.roles) + 3, captions)
