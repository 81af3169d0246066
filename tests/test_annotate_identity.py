"""Which individual of a scene is which image prompt: scenes of the embedded world, image prompts in any order."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rbctl.bundle.catalogue import resolve
from rbctl.menagerie import compose, portrait, render
from rbctl.menagerie.triplets import draw_group
from rbctl.plugins.annotate.backends import clip, oracle
from rbctl.plugins.annotate.comparison import match
from rbctl.plugins.annotate.config import AnnotateConfig
from rbctl.relations import load_relation, shipped

pytestmark = pytest.mark.slow

KNOWN = json.loads((resolve("mini") / "oracle" / "config.json").read_text(encoding="utf-8"))["relations"]
DRAWABLE = [name for name in shipped() if name in KNOWN]  # those that the networks of the bundle have seen
SEEN = 0.01  # an individual covers this share of a scene at least, as in drawn triplets


def picture(pixels: torch.Tensor) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def right(count: int, identity: oracle.Identity | clip.Identity) -> int:
    """In how many of ``count`` scenes, of all relations in turn, everybody is told from the others."""
    config, cpu = AnnotateConfig(folder=Path("x")), torch.device("cpu")
    folder = resolve("mini") / "oracle"
    boxes, masks = oracle.Boxes(folder, config, cpu), oracle.Masks(folder, config, cpu)
    rng = np.random.default_rng(11)
    good = 0
    for number in range(count):
        relation = load_relation(DRAWABLE[number % len(DRAWABLE)])
        group = draw_group(relation, rng)
        visible = np.zeros((len(group), 1, 1), bool)
        while visible.mean(axis=(1, 2)).min() < SEEN:
            drawn = render([compose(relation, group, rng)], 128)
            visible = drawn.visible[0].numpy()
        order = rng.permutation(len(group))
        prompts = [picture(p) for p in render([portrait(group[k], rng) for k in order], 128).pictures]
        scene = picture(drawn.pictures[0])
        looks = []
        names = tuple("abc"[: len(group)])
        for images, individuals_of in (([scene], [names]), (prompts, [(name,) for name in names])):
            found = masks(images, [one.boxes for one in boxes(images, individuals_of)])
            looks.append((found, identity(images, found)))
        (((seen,), (there,)), (_, alone)) = looks
        individuals, _ = match(np.concatenate(alone) @ there.T)
        overlap = [[(mask & true).sum() for true in visible] for mask in seen]
        shown = [np.argmax(overlap[individual]) for individual in individuals]
        good += shown == order.tolist()
    return good


def test_by_what_the_oracle_reads() -> None:
    identity = oracle.Identity(resolve("mini") / "oracle", AnnotateConfig(folder=Path("x")), torch.device("cpu"))
    assert right(len(DRAWABLE), identity) == len(DRAWABLE)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [oracle, clip])
def test_a_hundred_scenes(kind) -> None:
    folder = resolve("mini") / ("oracle" if kind is oracle else "clip_vision")
    assert right(100, kind.Identity(folder, AnnotateConfig(folder=Path("x")), torch.device("cpu"))) >= 99
