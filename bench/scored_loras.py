"""LoRAs of ``mini`` on scenes of new individuals, scored by its oracle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rbctl.bundle.catalogue import resolve
from rbctl.lora import layout_prior, read
from rbctl.menagerie.judge import Judge
from rbctl.menagerie.oracle import load_oracle
from rbctl.plugins.eval.gates.measuring import Arm, Measuring
from rbctl.plugins.eval.gates.recipe import Gates, read_gates
from rbctl.plugins.eval.stages import Stages

SCORES = ("relation", "contact", "species")


def gates() -> Gates:
    """What ``make gates`` measures ``mini`` with."""
    return read_gates("mini", {})


def measuring(folder: Path, recipe: Gates) -> Measuring:
    """What tunes, samples and judges in ``folder``, two runs at once; what it holds is not made again."""
    judge = Judge(load_oracle(resolve(recipe.bundle) / "oracle"))
    return Measuring(recipe, folder, Stages(folder, recipe.bundle, "cpu", 2), judge)


def scores(folder: Path, loras: Sequence[tuple[str, Path]], count: int) -> list[dict[str, float]]:
    """Means of the ``SCORES`` of each LoRA over ``count`` scenes, in the boxes of its own layout prior.

    Args:
        folder: of scenes and pictures; what it holds is not made again.
        loras: relation and file.
    """
    work = measuring(folder, gates())
    arms = []
    for relation, path in loras:
        prior = layout_prior([read(path)])
        assert prior is not None
        arms.append(Arm(path.stem, work.cases(relation, count), relation, [prior.boxes()] * count, path))
    work.sample(arms)
    each = [work.scores(work.pictures(arm), arm.cases) for arm in arms]
    return [{name: float(np.nanmean(values[name])) for name in SCORES} for values in each]
