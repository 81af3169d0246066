"""How soon relation LoRAs of ``mini`` draw their relation, by the oracle: its recipe against others.

``python -m bench.time_to_relation FOLDER [--ways recipe ...] [--seeds 0 1 2]``: LoRAs of five held-out verbs from six
triplets each, 200 scenes of new individuals; four to eight minutes a way and seed on two cores. What FOLDER holds is
not made again. Changes are paired, against the first way.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.scored_loras import SCORES, gates
from rbctl.bundle.catalogue import resolve
from rbctl.menagerie.judge import Judge
from rbctl.menagerie.oracle import load_oracle
from rbctl.plugins.eval.gates.figures import Scores, difference, stacked, summary
from rbctl.plugins.eval.gates.measuring import Measuring
from rbctl.plugins.eval.gates.sections import lora_arms
from rbctl.plugins.eval.stages import Stages

WAYS: dict[str, dict[str, Any]] = {
    "recipe": {},
    "attn2, 300 steps, 2.5e-3": {"lora_layers": "attn2", "steps": 300, "learning_rate": 2.5e-3},  # two recipes before
    "attn2, 100 steps, 5e-3": {"lora_layers": "attn2", "learning_rate": 5e-3},  # the recipe before
    "attn2, 300 steps, 5e-3": {"lora_layers": "attn2", "steps": 300, "learning_rate": 5e-3},
    "attention, 5e-3": {"lora_layers": "attention", "learning_rate": 5e-3},
    "3e-3": {"learning_rate": 3e-3},
    "5e-3": {"learning_rate": 5e-3},
    "1.2e-2": {"learning_rate": 1.2e-2},
    "70 steps": {"steps": 70},
    "200 steps": {"steps": 200},
    "rank 8, 1e-2": {"rank": 8, "alpha": 8, "learning_rate": 1e-2},
    "12 versions, zoom 1.3": {"augmentation_draws": 12, "max_zoom": 1.3},
}


def measure(
    folder: Path, options: dict[str, Any], seeds: Sequence[int], judge: Judge
) -> tuple[dict[str, Scores], float]:
    """Tune, sample and judge; the scores of each verb, (n, seeds) each, and the median seconds of a finetuning."""
    recipe = gates()
    recipe = dataclasses.replace(recipe, finetune={**recipe.finetune, **options})
    work = Measuring(recipe, folder, Stages(folder, recipe.bundle, "cpu", 2), judge)
    count, tuned = work.each(recipe.relations), work.tuned(recipe.relations, seeds)
    arms = {
        relation: [
            lora_arms(work, lora, work.cases(relation, count))["lora"] for lora in tuned if lora.relation == relation
        ]
        for relation in recipe.relations
    }
    work.sample([arm for own in arms.values() for arm in own])
    scores = {
        relation: stacked([work.scores(work.pictures(arm), arm.cases) for arm in own]) for relation, own in arms.items()
    }
    seconds = [lora.facts()["seconds"] or math.nan for lora in tuned]  # of one that was interrupted nobody knows
    return scores, float(np.nanmedian(seconds))


def main() -> None:
    """Print a row a way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments = parser.parse_args()
    judge = Judge(load_oracle(resolve(gates().bundle) / "oracle"))
    first: dict[str, Scores] = {}
    for name in arguments.ways:
        scores, seconds = measure(arguments.folder, WAYS[name], arguments.seeds, judge)
        first = first or scores
        means = summary(scores)["mean"]
        print(f"{name}: {seconds:.0f} s", flush=True)
        for key in SCORES:
            change = difference(scores, first, key)
            span = f"{change['mean']:+.3f} [{change['low']:+.3f}, {change['high']:+.3f}]"
            print(f"  {key:8} {means[key]['mean']:.3f}  {span}  n = {change['n']}", flush=True)


if __name__ == "__main__":
    main()
