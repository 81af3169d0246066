"""What two boxes of the layout prior may share: LoRAs of ``mini`` in boxes that give up more or less of it.

``python -m bench.shared_boxes FOLDER [--cuts 0.25 0 0.5] [--seeds 0 1 2]``: LoRAs of five held-out verbs, as
``make gates`` tunes them, on 40 scenes of new individuals each. A cut takes three minutes of two cores, a LoRA one.
What FOLDER holds is not made again. Changes are paired, against the first cut.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.scored_loras import gates, measuring
from rbctl.lora import layout_prior, read
from rbctl.plugins.eval.gates.figures import Scores, difference, stacked, summary
from rbctl.plugins.eval.gates.measuring import Arm, Measuring, Tuned

_SHOWN = ("relation", "contact", "species", "pattern", "coat", "merged")


def arm(work: Measuring, tuned: Tuned, cut: float) -> Arm:
    """A LoRA on its relation's scenes, in boxes that give up a share ``cut`` of what they have in common."""
    prior = layout_prior([read(tuned.path)])
    assert prior is not None, tuned.path
    cases = work.cases(tuned.relation, work.each(work.gates.relations))
    boxes = [prior.boxes(cut)] * len(cases)
    return Arm(f"cut-{cut:g}-{tuned.relation}-s{tuned.seed}", cases, tuned.relation, boxes, tuned.path)


def main() -> None:
    """Print a row a cut, and one of each verb."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cuts", nargs="+", type=float, default=[0.25, 0.0, 0.5])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments = parser.parse_args()
    work = measuring(arguments.folder, gates())
    loras = work.tuned(work.gates.relations, arguments.seeds)
    first: dict[str, Scores] = {}
    for cut in arguments.cuts:
        arms = [arm(work, tuned, cut) for tuned in loras]
        work.sample(arms)
        each: dict[str, list[Scores]] = {}
        for own in arms:
            each.setdefault(own.relation, []).append(work.scores(work.pictures(own), own.cases))
        made = {relation: stacked(scores) for relation, scores in each.items()}
        first, whole = first or made, summary(made)
        print(f"cut {cut:g}", flush=True)
        for metric in _SHOWN:
            change = difference(made, first, metric)
            verbs = ", ".join(f"{verb} {own[metric]['mean']:.3f}" for verb, own in whole["each"].items())
            span = f"{change['mean']:+.3f} [{change['low']:+.3f}, {change['high']:+.3f}]"
            print(f"  {metric:8} {whole['mean'][metric]['mean']:.3f}  {span}  {verbs}", flush=True)


if __name__ == "__main__":
    main()
