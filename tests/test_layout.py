"""The layout prior."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import box_iou

from rbctl.errors import InputError
from rbctl.layout import LayoutPrior, boxes_for, side_by_side
from rbctl.menagerie import compose, render
from rbctl.menagerie.triplets import draw_group
from rbctl.relations import check_box, load_relation

TRIPLETS = [
    [(0.2, 0.0, 0.6, 0.5), (0.0, 0.4, 0.6, 1.0)],
    [(0.4, 0.1, 0.8, 0.5), (0.0, 0.4, 0.6, 1.0)],
]
FINITE = st.floats(allow_nan=False, allow_infinity=False)
ROWS = st.lists(st.tuples(FINITE, FINITE, FINITE, FINITE), min_size=1, max_size=4)


def test_mean_and_spread_are_of_centre_and_size() -> None:
    prior = LayoutPrior.from_boxes(TRIPLETS, ["rider", "mount"])
    assert prior.mean[0] == pytest.approx((0.5, 0.275, 0.4, 0.45))
    assert prior.spread[0] == pytest.approx((0.1, 0.025, 0.0, 0.05))
    assert prior.spread[1] == pytest.approx((0, 0, 0, 0))
    assert prior.mean[1] == pytest.approx((0.3, 0.7, 0.6, 0.6))


def test_mirrored_triplets_are_mirrored_back() -> None:
    left, right = (0.0, 0.2, 0.5, 0.8), (0.5, 0.3, 0.9, 0.9)
    mirror = [tuple(round(v, 6) for v in (1 - x1, y0, 1 - x0, y1)) for x0, y0, x1, y1 in (left, right)]
    prior = LayoutPrior.from_boxes([[left, right], mirror, [left, right]], ["subject", "object"])
    assert prior.boxes()[0] == pytest.approx(left)
    assert prior.boxes()[1] == pytest.approx(right)


def test_triplets_that_look_to_one_side_are_not_mirrored() -> None:
    left, right = (0.0, 0.2, 0.5, 0.8), (0.6, 0.2, 1.0, 0.8)
    prior = LayoutPrior.from_boxes([[left, right], [right, left]], ["subject", "object"], mirror=False)
    assert prior.mean[0] == pytest.approx((0.525, 0.5, 0.45, 0.6))


def test_overlap_is_the_largest_of_two_mean_boxes() -> None:
    apart, near, upon = (0.0, 0.0, 0.2, 0.5), (0.4, 0.0, 0.8, 0.5), (0.6, 0.0, 1.0, 0.5)
    assert LayoutPrior.from_boxes([[apart, near, upon]], "abc").overlap() == pytest.approx(1 / 3)
    assert LayoutPrior.from_boxes([[apart, near]], "ab").overlap() == 0
    assert LayoutPrior.from_boxes([[apart]], "a").overlap() == 0


def test_near_is_mirrored_moved_and_in_the_nearest_order() -> None:
    a, b, c = (0.0, 0.2, 0.2, 0.8), (0.4, 0.2, 0.6, 0.8), (0.6, 0.4, 0.9, 0.8)
    prior = LayoutPrior.from_boxes([[a, b, c]], "abc")
    here = [(0.05, 0.1, 0.25, 0.6), (0.45, 0.1, 0.65, 0.8), (0.65, 0.3, 0.95, 0.8)]
    moved = [(x0 + 0.05, y0 - 0.08333, x1 + 0.05, y1 - 0.08333) for x0, y0, x1, y1 in (a, b, c)]
    assert prior.near(here) == tuple(pytest.approx(box, abs=1e-4) for box in moved)
    mirror = [(1 - x1, y0, 1 - x0, y1) for x0, y0, x1, y1 in here]
    expected = [(1 - x1, y0, 1 - x0, y1) for x0, y0, x1, y1 in moved]
    assert prior.near(mirror) == tuple(pytest.approx(box, abs=1e-4) for box in expected)
    swapped = [here[1], here[0], here[2]]
    assert prior.near(swapped, [(0, 1, 2), (1, 0, 2)])[0] == pytest.approx(moved[1], abs=1e-4)


def test_who_is_on_which_side_counts_not_where_both_are() -> None:
    """Two close together, left of the middle and then right of it: mirroring would turn them round."""
    here = [(0.1, 0.2, 0.5, 0.9), (0.2, 0.2, 0.6, 0.9)]
    there = [(x0 + 0.3, y0, x1 + 0.3, y1) for x0, y0, x1, y1 in here]
    left, right = LayoutPrior.from_boxes([here, there], ["left", "right"]).mean
    assert left == pytest.approx((0.45, 0.55, 0.4, 0.7))
    assert right == pytest.approx((0.55, 0.55, 0.4, 0.7))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["huddle", "pyramid", "ring_dance", "stand_in_a_row"])
def test_three_boxes_overlap_as_those_of_their_triplets(name: str) -> None:
    """Whoever of those that may change places is named first in which triplet."""
    relation, rng = load_relation(name), np.random.default_rng(0)
    scenes = [compose(relation, draw_group(relation, rng), rng) for _ in range(6)]
    boxes = [own[list(relation.orders()[k % len(relation.orders())])] for k, own in enumerate(render(scenes).boxes)]
    prior = LayoutPrior.from_boxes([own.tolist() for own in boxes], [r.name for r in relation.roles], relation.orders())

    def overlaps(own: torch.Tensor) -> list[float]:
        return sorted(box_iou(own, own).triu(1)[[0, 0, 1], [1, 2, 2]].tolist())

    wanted = np.mean([overlaps(own) for own in boxes], axis=0)
    assert overlaps(torch.tensor(prior.boxes())) == pytest.approx(wanted.tolist(), abs=0.1)


def boxes(*rows: tuple[float, float, float, float]) -> list[tuple[float, ...]]:
    """Of a prior that was made from one triplet."""
    prior = LayoutPrior.from_boxes([rows], "abc"[: len(rows)])
    return [tuple(round(v, 4) for v in box) for box in prior.boxes()]


def test_boxes_that_are_nearly_the_same_are_told_apart() -> None:
    left, right = (0.1, 0.2, 0.5, 0.9), (0.2, 0.2, 0.6, 0.9)
    assert boxes(left, right) == [(0.1, 0.2, 0.4, 0.9), (0.3, 0.2, 0.6, 0.9)]
    assert boxes(right, left) == [(0.3, 0.2, 0.6, 0.9), (0.1, 0.2, 0.4, 0.9)]
    upper, lower = (0.2, 0.1, 0.9, 0.5), (0.2, 0.2, 0.9, 0.6)
    assert boxes(upper, lower) == [(0.2, 0.1, 0.9, 0.4), (0.2, 0.3, 0.9, 0.6)]


def test_two_boxes_share_a_quarter_less_than_in_the_triplets() -> None:
    rider, mount = (0.3, 0.1, 0.7, 0.7), (0.1, 0.4, 0.9, 0.9)  # of the 0.3 that they share, 0.075
    assert boxes(rider, mount) == [(0.3, 0.1, 0.7, 0.6625), (0.1, 0.4375, 0.9, 0.9)]
    assert boxes(mount, rider) == boxes(rider, mount)[::-1]
    left, right = (0.1, 0.2, 0.5, 0.9), (0.3, 0.2, 0.9, 0.9)
    assert boxes(left, right) == [(0.1, 0.2, 0.475, 0.9), (0.325, 0.2, 0.9, 0.9)]
    prior = LayoutPrior.from_boxes([(rider, mount)], "ab")
    assert prior.boxes(cut=0) == (pytest.approx(rider), pytest.approx(mount))
    held, holder = (0.4, 0.3, 0.6, 0.5), (0.1, 0.1, 0.9, 0.9)
    assert boxes(held, holder) == [held, holder]  # no side of one lies inside the other
    apart = (0.5, 0.2, 0.9, 0.9)
    assert boxes(left, apart) == [left, apart]
    assert boxes(rider, mount, (0.8, 0.0, 1.0, 0.2)) == [rider, mount, (0.8, 0.0, 1.0, 0.2)]  # of three, nothing is cut


def test_one_triplet_gives_back_its_boxes_and_no_spread() -> None:
    prior = LayoutPrior.from_boxes([TRIPLETS[0][:1]], ["rider"])
    assert prior.boxes()[0] == pytest.approx(TRIPLETS[0][0])
    assert set(prior.spread) == {(0.0, 0.0, 0.0, 0.0)}


def test_json_round_trip_is_stable() -> None:
    prior = LayoutPrior.from_boxes(TRIPLETS, ["rider", "mount"])
    text = prior.to_json()
    assert LayoutPrior.from_json(text).to_json() == text
    assert LayoutPrior.from_json(text).roles == ("rider", "mount")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "3",
        "[" * 100000,
        '{"roles":["a"],"mean":[[0,0,1]],"spread":[[0,0,0,0]]}',
        '{"roles":["a"],"mean":[[0,0,1,NaN]],"spread":[[0,0,0,0]]}',
        '{"roles":[],"mean":[],"spread":[]}',
    ],
    ids=range(8),
)
def test_what_is_no_prior_is_told_in_one_line(text: str) -> None:
    with pytest.raises(InputError, match=r"lora\.safetensors: not a layout prior"):
        LayoutPrior.from_json(text, "lora.safetensors")


@given(ROWS)
def test_boxes_are_valid_whatever_the_mean(rows: list[tuple[float, float, float, float]]) -> None:
    prior = LayoutPrior(tuple(str(k) for k in range(len(rows))), tuple(rows), tuple(rows))
    for box in prior.boxes():
        check_box(box)


@pytest.mark.parametrize("count", range(1, 9))
def test_side_by_side_is_even_and_apart(count: int) -> None:
    boxes = side_by_side(count)
    assert len(boxes) == count
    assert len({round(x1 - x0, 3) for x0, _, x1, _ in boxes}) <= 2  # even but for rounding
    for left, right in itertools.pairwise(boxes):
        assert left[2] < right[0]
    for box in boxes:
        check_box(box)
        assert box[0] >= 0.05
        assert box[2] <= 0.9501


def test_side_by_side_of_nothing_is_nothing() -> None:
    assert side_by_side(0) == ()


def test_boxes_for_takes_the_first_that_fits() -> None:
    prior = LayoutPrior.from_boxes(TRIPLETS, ["rider", "mount"])
    ride = load_relation("ride")
    assert boxes_for(2, prior, ride) == (prior.boxes(), "layout prior")
    assert boxes_for(2, None, ride) == (tuple(role.box for role in ride.roles), "relation")
    assert boxes_for(3, prior, ride) == (side_by_side(3), "side by side")
    assert boxes_for(1, None, None) == (side_by_side(1), "side by side")


def test_wrong_counts_are_a_programmers_mistake() -> None:
    with pytest.raises(ValueError, match="boxes"):
        LayoutPrior.from_boxes([], ["a"])
    with pytest.raises(ValueError, match="boxes"):
        LayoutPrior.from_boxes(TRIPLETS, ["a"])
    with pytest.raises(ValueError, match="same length"):
        LayoutPrior(("a",), (), ())
