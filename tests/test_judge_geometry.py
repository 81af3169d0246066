"""Geometry as a judge: answers from boxes, masks and a detector, and "not known" for what they cannot tell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rbctl.detectors import Detections
from rbctl.files import write_png
from rbctl.plugins.eval.case import Case, CaseObject, Part, Picture
from rbctl.plugins.eval.judges import geometry
from rbctl.plugins.eval.judges.geometry import DetectorJudge, GeometryJudge, likelihood, tells
from rbctl.plugins.eval.judges.questions import questions
from rbctl.relations import load_relation
from tests.commands import call
from tests.tiny_models import tiny_owlv2

ABOVE, BELOW, ASIDE = (0.3, 0.1, 0.6, 0.5), (0.2, 0.4, 0.8, 0.9), (0.82, 0.4, 0.98, 0.9)


def shown(
    boxes: Sequence[Part | None] | None,
    text: str = "A cat is riding a dog.",
    detected: bool = True,
    path: str = "x.png",
) -> Picture:
    cat, dog = CaseObject("cat", Path("cat.png")), CaseObject("dog", Path("dog.png"))
    return Picture("ours", Path(path), Case("0", text, (cat, dog)), boxes and tuple(boxes), detected)


def said(picture: Picture, judge: Any = None) -> dict[str, float | None]:
    asked = questions(picture.case)
    answers = (judge or GeometryJudge())([(picture, question) for question in asked])
    return {question.id: answer.yes for question, answer in zip(asked, answers, strict=True)}


def test_who_is_above_says_who_rides_whom() -> None:
    right, turned = said(shown([ABOVE, BELOW])), said(shown([BELOW, ABOVE]))
    assert right["relation 0 1"] > 0.9 > 0.1 > right["exchanged 0 1"]
    assert turned["relation 0 1"] < 0.1 < 0.9 < turned["exchanged 0 1"]
    passive = said(shown([BELOW, ABOVE], "A cat is ridden by a dog."))
    assert passive["relation 0 1"] > 0.9 > 0.1 > passive["exchanged 1 0"]


def test_nobody_rides_without_touching_or_side_by_side() -> None:
    floating = said(shown([(0.3, 0.02, 0.6, 0.3), (0.2, 0.5, 0.8, 0.9)]))
    assert floating["contact 0 1"] < 0.01
    assert floating["relation 0 1"] < 0.01
    beside = said(shown([(0.1, 0.4, 0.5, 0.9), (0.5, 0.4, 0.9, 0.9)]))
    assert beside["contact 0 1"] > 0.5
    assert max(beside["relation 0 1"], beside["exchanged 0 1"]) < 0.1


def test_boxes_tell_who_is_missing_and_bodies_that_are_one() -> None:
    missing = said(shown([ABOVE, None]))
    assert (missing["present 0"], missing["present 1"]) == (1, 0)
    assert (missing["relation 0 1"], missing["contact 0 1"], missing["bodies 0 1"]) == (0, 0, None)
    assert said(shown([ABOVE, BELOW]))["bodies 0 1"] > 0.9
    assert said(shown([BELOW, (0.2, 0.38, 0.8, 0.9)]))["bodies 0 1"] < 0.1


@pytest.mark.parametrize("text", ["A cat is hugging a dog.", "A cat is chasing a dog.", "A cat and a dog."])
def test_a_layout_that_does_not_tell_leaves_the_relation_unknown(text: str) -> None:
    answers = said(shown([ABOVE, BELOW], text))
    assert {answers[name] for name in answers if name.split()[0] in ("relation", "exchanged", "same", "copied")} == {
        None
    }


def test_lists_know_nothing_of_a_second_one_and_requests_know_nothing_at_all() -> None:
    assert said(shown([ABOVE, BELOW]))["once 0"] is None
    assert set(said(shown([ABOVE, BELOW], detected=False)).values()) == {None}
    assert set(said(shown(None)).values()) == {None}


def test_relations_that_tell_are_those_with_somebody_above_or_behind() -> None:
    telling = {
        name for name in ("ride", "stand_on", "lift", "chase", "push", "hug", "pyramid") if tells(load_relation(name))
    }
    assert telling == {"ride", "stand_on", "lift"}


def test_masks_touch_where_their_boxes_only_overlap(tmp_path: Path) -> None:
    """Two corners of one square: their boxes overlap, and there is a wide gap between them."""
    y, x = np.mgrid[:64, :64]
    for name, mask in (("upper", x + y < 44), ("lower", x + y > 84), ("near", x + y >= 44)):
        write_png(tmp_path / f"{name}.png", Image.fromarray(mask.astype(np.uint8) * 255))
    write_png(tmp_path / "nothing.png", Image.new("L", (64, 64)))

    def contact(*names: str) -> float | None:
        return said(shown([tmp_path / f"{name}.png" for name in names]))["contact 0 1"]

    assert contact("upper", "lower") < 0.01
    assert contact("upper", "near") > 0.5
    assert contact("upper", "nothing") == 0


class Seer:
    """Finds what the test says, whatever the picture."""

    found: tuple[tuple[tuple[float, ...], float, int], ...] = ()

    def __init__(self, folder: Path, threshold: float, device: torch.device) -> None: ...

    def __call__(self, images: Sequence[Image.Image], names: Sequence[Sequence[str]]) -> list[Detections]:
        boxes, scores, which = zip(*self.found, strict=True) if self.found else ((), (), ())
        return [Detections(np.array(boxes).reshape(-1, 4), np.array(scores), np.array(which))] * len(images)


@pytest.fixture
def detector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DetectorJudge:
    write_png(tmp_path / "x.png", Image.new("RGB", (32, 32)))
    monkeypatch.setattr(geometry, "GroundingDino", Seer)
    return DetectorJudge("grounding-dino", tmp_path, torch.device("cpu"))


def test_a_detector_counts_after_boxes_of_one_are_put_together(
    detector: DetectorJudge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_found(*found: tuple[tuple[float, ...], float, int]) -> dict[str, float | None]:
        monkeypatch.setattr(Seer, "found", found)
        return said(shown(None, path=str(tmp_path / "x.png")), detector)

    slightly = (0.3, 0.1, 0.6, 0.49)
    good = with_found((ABOVE, 0.7, 0), (slightly, 0.6, 0), (BELOW, 0.8, 1))
    assert min(good[name] for name in ("present 0", "present 1", "once 0", "once 1", "relation 0 1")) > 0.8
    assert good["exchanged 0 1"] < 0.1
    twice = with_found((ABOVE, 0.7, 0), (ASIDE, 0.6, 0), (BELOW, 0.8, 1))
    assert twice["present 0"] > 0.8
    assert twice["once 0"] < 0.3
    assert twice["once 1"] > 0.8
    unsure = with_found((ABOVE, 0.2, 0), (BELOW, 0.8, 1))
    assert 0.3 < unsure["present 0"] < 0.5
    assert unsure["relation 0 1"] == 0
    assert {with_found()[name] for name in ("present 0", "once 1", "contact 0 1")} == {0}


def test_a_score_at_the_threshold_is_as_likely_as_not() -> None:
    assert likelihood(0.3) == pytest.approx(0.5)
    assert 0 <= likelihood(0.0) < 0.01
    assert 0.99 < likelihood(1.0) <= 1


def test_a_tiny_random_detector_is_told_to_be_worthless(tmp_path: Path) -> None:
    detector = tiny_owlv2(tmp_path / "owlv2")
    flags = ["--relations", "ride", "--cases", 3, "--output", tmp_path / "check", "--answers", tmp_path / "answers"]
    result = call("eval", "judge-check", "--judge", f"owlv2={detector}", *flags)
    assert result.exit_code == 0, result.output
    rows = {line.split()[1]: line for line in result.stdout.splitlines() if line.startswith("owlv2 ")}
    answered = ("present", "once", "relation", "exchanged", "contact")
    assert [kind for kind in answered if not rows[kind].endswith("worthless")] == []
