"""How soon relation LoRAs of ``mini`` draw their relation, by the oracle: its recipe against others.

``python -m bench.time_to_relation FOLDER [--ways recipe ...] [--seeds 0 1 2]``: LoRAs of five held-out verbs from six
triplets each, on 200 scenes of new individuals and 36 of easy relations each. It takes five to nine minutes a
way and seed on two cores. What FOLDER holds is not made again. Changes are paired, against the first way.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.scored_loras import SCORES, gates, measuring
from rbctl.plugins.eval.gates.figures import Scores, difference, stacked, summary
from rbctl.plugins.eval.gates.measuring import Arm
from rbctl.plugins.eval.gates.sections import lora_arms

_AS_DRAWN = {"face_right": False, "layout_share": 0.0}  # the triplets' sides and boxes, in all recipes before
_SHORT = {**_AS_DRAWN, "steps": 100}
_PICTURES = {**_SHORT, "prior_target": "picture"}
_ATTN2 = {**_PICTURES, "lora_layers": "attn2"}
WAYS: dict[str, dict[str, Any]] = {
    "recipe": {},
    "sides and boxes as drawn": _AS_DRAWN,  # the recipe before
    "100 steps, 6e-3": {**_SHORT, "learning_rate": 6e-3},  # two recipes before
    "70 steps, 6e-3": {**_AS_DRAWN, "steps": 70, "learning_rate": 6e-3},
    "100 steps, 8e-3": {**_SHORT, "learning_rate": 8e-3},
    "pictures, 8e-3": {**_PICTURES, "learning_rate": 8e-3},  # three recipes before
    "attn2, 300 steps, 2.5e-3": {**_ATTN2, "steps": 300, "learning_rate": 2.5e-3},  # five recipes before
    "attn2, 100 steps, 5e-3": {**_ATTN2, "learning_rate": 5e-3},  # four recipes before
    "attn2, 300 steps, 5e-3": {**_ATTN2, "steps": 300, "learning_rate": 5e-3},
    "attention, 5e-3": {**_PICTURES, "lora_layers": "attention", "learning_rate": 5e-3},
    "pictures, 3e-3": {**_PICTURES, "learning_rate": 3e-3},
    "pictures, 5e-3": {**_PICTURES, "learning_rate": 5e-3},
    "pictures, 1.2e-2": {**_PICTURES, "learning_rate": 1.2e-2},
    "pictures, 8e-3, 70 steps": {**_PICTURES, "learning_rate": 8e-3, "steps": 70},
    "pictures, 8e-3, 200 steps": {**_PICTURES, "learning_rate": 8e-3, "steps": 200},
    "rank 8, 1e-2": {**_PICTURES, "rank": 8, "alpha": 8, "learning_rate": 1e-2},
    "12 versions, zoom 1.3": {**_PICTURES, "learning_rate": 8e-3, "augmentation_draws": 12, "max_zoom": 1.3},
    "8e-3, warm-up of 10 steps": {**_SHORT, "learning_rate": 8e-3, "lr_warmup_steps": 10},
    "8e-3, 96 prior scenes": {**_SHORT, "learning_rate": 8e-3, "prior_count": 96},
}


@dataclass(frozen=True)
class Measured:
    """What LoRAs of one way can do.

    Attributes:
        scores: of each verb, (n, seeds) each.
        drop: by how much easy relations are right less often with a LoRA.
        seconds: median of a finetuning.
    """

    scores: dict[str, Scores]
    drop: float
    seconds: float


def measure(folder: Path, options: dict[str, Any], seeds: Sequence[int]) -> Measured:
    """Tune, sample and judge."""
    recipe = gates()
    recipe = dataclasses.replace(recipe, finetune={**recipe.finetune, **options})
    work = measuring(folder, recipe)
    count, tuned = work.each(recipe.relations), work.tuned(recipe.relations, seeds)
    arms = [lora_arms(work, lora, work.cases(lora.relation, count)) for lora in tuned]
    base = dataclasses.replace(arms[0]["easy"], name="base-easy", lora=None)
    work.sample([base, *(own[kind] for own in arms for kind in ("lora", "easy"))])

    def scored(arm: Arm) -> Scores:
        return work.scores(work.pictures(arm), arm.cases)

    scores = {
        relation: stacked(
            [scored(own["lora"]) for lora, own in zip(tuned, arms, strict=True) if lora.relation == relation]
        )
        for relation in recipe.relations
    }
    kept = np.mean([scored(own["easy"])["relation"] for own in arms])
    seconds = [lora.facts()["seconds"] or math.nan for lora in tuned]  # of one that was interrupted nobody knows
    return Measured(scores, float(scored(base)["relation"].mean() - kept), float(np.nanmedian(seconds)))


def main() -> None:
    """Print a row a way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments = parser.parse_args()
    first: dict[str, Scores] = {}
    for name in arguments.ways:
        measured = measure(arguments.folder, WAYS[name], arguments.seeds)
        first = first or measured.scores
        means = summary(measured.scores)["mean"]
        print(f"{name}: {measured.seconds:.0f} s, easy relations drop by {measured.drop:.3f}", flush=True)
        for key in SCORES:
            change = difference(measured.scores, first, key)
            span = f"{change['mean']:+.3f} [{change['low']:+.3f}, {change['high']:+.3f}]"
            print(f"  {key:8} {means[key]['mean']:.3f}  {span}  n = {change['n']}", flush=True)


if __name__ == "__main__":
    main()
