"""How soon relation LoRAs of ``mini`` draw their relation, by the oracle: its recipe against longer and other ones.

``python -m bench.time_to_relation FOLDER [--ways recipe ...] [--seeds 0 1 2]``: LoRAs of five held-out verbs from six
triplets each, 200 scenes of new individuals; five to ten minutes a way and seed on two idle cores. What FOLDER holds is
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
    "300 steps, 2.5e-3": {"steps": 300, "learning_rate": 2.5e-3},  # the recipe before
    "recipe": {},
    "120 steps, fewer prior samples": {"steps": 120, "prior_share": 0.125},
    "200 steps": {"steps": 200},
    "300 steps": {"steps": 300},
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
