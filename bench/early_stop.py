"""Whether the loss on other triplets tells when a relation is learned: that loss and the oracle's score, step by step.

``python -m bench.early_stop FOLDER [--relations ride shake_hands] [--steps 200] [--every 40]``; some ten minutes a
relation on one core.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from bench.scored_loras import scores
from rbctl import lora
from rbctl.bundle.load import load
from rbctl.menagerie.triplets import draw_triplets
from rbctl.plugins.finetune import encodings, finetune, forgetting
from rbctl.plugins.finetune.config import FinetuneConfig
from rbctl.plugins.finetune.objective import Objective
from rbctl.relations import load_relation
from rbctl.triplets import load as load_triplets

OTHERS, SEED = 16, 777  # triplets that no LoRA learns from
SCENES = 40
RESOLUTION = 128


def losses_on_others(folder: Path, relation: str, files: list[Path]) -> list[float]:
    """Denoising loss of each LoRA on the same other triplets, at the same noise and timesteps."""
    if not folder.is_dir():
        draw_triplets(load_relation(relation), OTHERS, SEED, folder)
    config = FinetuneConfig(relation=relation, data=folder, augmentation_draws=1, resolution=RESOLUTION)
    bundle = load("mini", torch.device("cpu"), torch.float32)
    encoded = encodings.encode(bundle, load_triplets(folder), [], config, RESOLUTION)
    means = []
    for path in files:
        lora.attach(bundle.unet, lora.read(path), lora.ADAPTER)
        means.append(forgetting.measure(bundle.unet, encoded, Objective.of(bundle, config))["with"])
        bundle.unet.delete_adapters(lora.ADAPTER)
    return means


def main() -> None:
    """Print a row a relation and step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--relations", nargs="+", default=["ride", "shake_hands"])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=40)
    arguments = parser.parse_args()
    for relation in arguments.relations:
        folder = arguments.folder / relation
        last = finetune(relation, output=folder, bundle="mini", steps=arguments.steps, save_every=arguments.every)
        files = [*sorted(folder.glob(f"{relation}-*.safetensors")), last]
        means = losses_on_others(folder / "others", relation, files)
        scored = scores(folder / "scores", [(relation, path) for path in files], SCENES)
        for path, mean, values in zip(files, means, scored, strict=True):
            said = "  ".join(f"{name} {value:.3f}" for name, value in values.items())
            print(f"{path.stem:24}loss {mean:.4f}  {said}", flush=True)


if __name__ == "__main__":
    main()
