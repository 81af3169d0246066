"""The embedded world: what is drawn is what is said of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from rbctl.cli import main
from rbctl.menagerie import (
    BACKGROUNDS,
    COATS,
    PATTERNS,
    SPECIES,
    Individual,
    compose,
    draw_individual,
    portrait,
    render,
)
from rbctl.menagerie.figure import JOINTS, LIMBS, SPOTS, build, keypoints, reach, shapes
from rbctl.menagerie.scenes import poses, scene_rule
from rbctl.plugins.pretrain.config import EASY
from rbctl.relations import load_relation, shipped

DRAWN = [name for name in shipped() if load_relation(name).scene is not None]


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def _scene(name: str, seed: int = 0, **options: str):
    rng = _rng(seed)
    relation = load_relation(name)
    return compose(relation, [draw_individual(rng) for _ in relation.roles], rng, **options)


def test_there_is_enough_to_tell_apart():
    assert len(SPECIES) >= 10
    assert len(COATS) >= 12
    assert len(PATTERNS) == 4
    assert len(BACKGROUNDS) >= 4
    assert len(DRAWN) >= 16


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAWN)
def test_a_relation_is_drawn_inside_the_frame_with_all_individuals_seen(name):
    rendering = render([_scene(name, seed) for seed in range(4)])
    boxes = rendering.boxes
    assert boxes.shape == (4, len(load_relation(name).roles), 4)
    assert (boxes[..., 0] > 0).all()
    assert (boxes[..., 3] < 1).all()
    assert (boxes[..., 1] > 0).all()
    assert (boxes[..., 2] < 1).all()
    shares = rendering.visible.float().mean((-1, -2))
    assert (shares > 0.01).all(), shares
    assert rendering.visible.sum(1).max() == 1  # a pixel shows one individual


@pytest.mark.slow
@pytest.mark.parametrize("name", EASY)
def test_what_mini_was_taught_is_asked_for_in_the_boxes_that_it_was_taught_in(name):
    """In boxes twice as high as an animal that walks in line, two bodies in five grow together."""
    relation = load_relation(name)
    own = torch.tensor([role.box for role in relation.roles])
    drawn = render([_scene(name, seed) for seed in range(24)]).boxes
    mirrored = torch.stack((1 - drawn[..., 2], drawn[..., 1], 1 - drawn[..., 0], drawn[..., 3]), -1)
    layouts = torch.stack([side[:, order] for side in (drawn, mirrored) for order in map(list, relation.orders())])
    nearest = (layouts - own).square().sum((-1, -2)).argmin(0)
    mean = layouts[nearest, torch.arange(24)].mean(0)
    assert (mean - own).abs().max() < 0.1, mean


@pytest.mark.parametrize("name", [name for name in DRAWN if scene_rule(load_relation(name)).contacts])
def test_what_must_touch_touches(name):
    """Distances between the points of a contact, in units of the anatomy, over 12 scenes with all sorts of bodies."""
    for seed in range(12):
        scene = _scene(name, seed)
        for pair in scene_rule(load_relation(name)).contacts:
            (a, b) = (scene.figures[int(place[0])] for place in pair)
            distance = np.linalg.norm(a.point(pair[0][2:]) - b.point(pair[1][2:]))
            assert distance < 0.55 * (a.scale + b.scale) / 2, (name, seed, pair, distance)


def test_the_same_seed_draws_the_same_pixels_in_any_batch():
    scenes = [_scene("ride", seed) for seed in range(3)]
    together = render(scenes).pictures
    alone = torch.cat([render([_scene("ride", seed)]).pictures for seed in range(3)])
    assert torch.equal(together, alone)
    assert not torch.equal(together[0], together[1])


def test_a_larger_picture_shows_the_same_scene():
    small, large = (render([_scene("hug")], size) for size in (64, 256))
    shrunk = torch.nn.functional.avg_pool2d(large.pictures.float(), 4)
    assert (shrunk - small.pictures.float()).abs().mean() < 4
    assert (large.boxes - small.boxes).abs().max() < 2 / 64


def test_silhouettes_boxes_and_colours_belong_together():
    one = Individual("bear", "red", "red", "plain")
    other = Individual("cat", "blue", "blue", "plain")
    rng = _rng(3)
    scene = compose(load_relation("face"), [one, other], rng, background="snow")
    rendering = render([scene])
    picture = rendering.pictures[0].float()
    for k, channel in ((0, 0), (1, 2)):
        mask = rendering.visible[0, k]
        colour = picture[:, mask].mean(1)
        assert colour.argmax() == channel, colour  # role 0 is the red one, role 1 the blue one
        rows, columns = torch.where(rendering.full[0, k])
        box = torch.stack((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)) / 128
        assert torch.allclose(box, rendering.boxes[0, k])


@pytest.mark.slow
def test_keypoints_lie_on_the_animal_and_hidden_ones_are_known():
    rendering = render([_scene("hide_behind", seed) for seed in range(6)])
    points = rendering.keypoints
    assert set(points[..., 2].unique().tolist()) <= {0.0, 1.0, 2.0}
    for scene in range(6):
        for k in range(2):
            for x, y, seen in points[scene, k].tolist():
                row, column = int(y * 128), int(x * 128)
                near = rendering.full[scene, k, max(row - 4, 0) : row + 5, max(column - 4, 0) : column + 5]
                assert near.any()
                if seen == 2:
                    assert rendering.visible[scene, k, row, column]
    assert (points[:, 0, :, 2] == 2).float().mean() < (points[:, 1, :, 2] == 2).float().mean()  # role 0 hides


def test_left_and_right_follow_the_side_that_shows():
    figure = build(draw_individual(_rng()), poses()["stand"], _rng(1))
    points, far = keypoints(figure)
    assert far[5:8].all()
    assert not far[8:11].any()
    figure.mirror()
    turned, far = keypoints(figure)
    assert not far[5:8].any()
    assert far[8:11].all()
    assert np.allclose(turned[5:8, 0], -points[8:11, 0])  # the near limb stays near, and is a left one now


@pytest.mark.parametrize("limb", LIMBS)
def test_a_paw_reaches_what_is_near_and_points_at_what_is_not(limb):
    figure = build(Individual("dog", "red", "red", "plain"), poses()["stand"], _rng())
    root = figure.points[f"{limb}_root"]
    near = root + np.array([0.25, -0.2]) * figure.scale
    reach(figure, limb, near)
    assert np.allclose(figure.points[f"{limb}_paw"], near)
    bone = figure.anatomy.leg * figure.scale / 2
    for a, b in (("root", "joint"), ("joint", "paw")):
        assert np.isclose(np.linalg.norm(figure.points[f"{limb}_{b}"] - figure.points[f"{limb}_{a}"]), bone)
    reach(figure, limb, root + np.array([9.0, 0.0]))
    assert figure.points[f"{limb}_paw"][0] < root[0] + 2  # it does not stretch across the picture
    assert np.isclose(figure.points[f"{limb}_paw"][1], root[1])


def test_held_out_individuals_never_meet_the_others():
    rng = _rng()
    trained = {dataclasses.astuple(draw_individual(rng))[:4] for _ in range(500)}
    unseen = {dataclasses.astuple(draw_individual(rng, held_out=True))[:4] for _ in range(500)}
    assert trained
    assert unseen
    assert not trained & unseen


def test_a_pattern_shows_its_second_coat():
    for pattern in PATTERNS[1:]:
        plain = Individual("bear", "white", "white", "plain")
        dressed = Individual("bear", "white", "red", pattern)
        a, b = (render([portrait(one, _rng(2))]).pictures.float() for one in (plain, dressed))
        changed = ((a - b).abs().amax(1) > 60).float().mean()
        assert 0.02 < changed < 0.4, (pattern, changed)


def test_each_species_has_a_shape_of_its_own():
    masks = torch.stack(
        [render([portrait(Individual(name, "red", "red", "plain"), _rng(11))]).full[0, 0].float() for name in SPECIES]
    )
    for i in range(len(SPECIES)):
        for j in range(i):
            overlap = (masks[i] * masks[j]).sum() / torch.maximum(masks[i], masks[j]).sum()
            assert overlap < 0.93, (SPECIES[i], SPECIES[j], float(overlap))


def test_no_layer_has_more_parts_than_are_drawn():
    from rbctl.menagerie.drawing import _COUNTS

    for species in SPECIES:
        figure = build(Individual(species, "red", "red", "plain"), poses()["stand"], _rng())
        for layer, parts in shapes(figure).items():
            assert len(parts) <= _COUNTS[layer], (species, layer)


def _written(folder: Path, scene: str) -> str:
    path = folder / "poke.yaml"
    path.write_text(
        "name: poke\npredicate: is poking\nprompts:\n  - A {subject} is poking a {object}.\n"
        "roles:\n  - {name: poking, box: [0, 0, 0.5, 1]}\n  - {name: poked, box: [0.5, 0, 1, 1]}\n" + scene
    )
    return str(path)


TWO = "figures: [{pose: sit}, {pose: sit}]"


@pytest.mark.parametrize(
    ("scene", "told"),
    [
        ("", "add a 'scene:'"),
        ("{}", "scene: figures: is missing"),
        ("{figures: [{pose: sit}]}", "1 figures for 2 roles"),
        ("{figures: [sit, sit]}", "figures[0]: a mapping was expected, not 'sit'"),
        ("{figures: [{}, {pose: sit}]}", "figures[0].pose: is missing"),
        ("{figures: [{pose: 3}, {pose: sit}]}", "figures[0].pose: a list was expected, not 3"),
        ("{figures: [{pose: sit}, {pose: [sit, walc]}]}", "figures[1].pose[1]: no pose 'walc'; did you mean 'walk'?"),
        ("{figures: [{pose: sit}, {pose: sit, sise: 1}]}", "figures[1].sise: no such key; did you mean 'size'?"),
        (
            "{figures: [{pose: sit, facing: up}, {pose: sit}]}",
            "figures[0].facing: 'right', 'left' or 'either' was expected, not 'up'",
        ),
        ("{figures: [{pose: sit, size: big}, {pose: sit}]}", "figures[0].size: a number was expected, not 'big'"),
        ("{figures: [{pose: sit, size: 0}, {pose: sit}]}", "figures[0].size: 0.1 or more was expected"),
        ("{figures: [{pose: sit, gap: 1}, {pose: sit}]}", "figures[0].gap: a list was expected, not 1"),
        (
            "{figures: [{pose: sit, apart: [1, 11]}, {pose: sit}]}",
            "figures[0].apart[1]: 10 or less was expected, not 11",
        ),
        ("{figures: [{pose: sit, lift: [1, 0]}, {pose: sit}]}", "figures[0].lift: a range was expected"),
        ("{figures: [{pose: sit, pin: hip, to: 1.back}, {pose: sit}]}", "pin: no point 'hip'; did you mean 'hips'?"),
        ("{figures: [{pose: sit, pin: hips, to: back}, {pose: sit}]}", "to[0]: 'back' must be a role's number"),
        ("{figures: [{pose: sit, pin: hips, to: 1.bak}, {pose: sit}]}", "to[0]: no point 'bak'; did you mean 'back'?"),
        ("{figures: [{pose: sit, pin: hips}, {pose: sit}]}", "figures[0]: pin and to belong together"),
        (f"{{{TWO}, front: 5}}", "scene: no role 5; a role's number, 0 to 1, was expected"),
        (f"{{{TWO}, front: 1.0}}", "scene: front: a whole number was expected"),
        (f"{{{TWO}, straddle: maybe}}", "scene: straddle: true or false"),
        (f"{{{TWO}, reech: []}}", "scene: reech: no such key; did you mean 'reach'?"),
        (f"{{{TWO}, reach: [0.near_front, 1.back]}}", "reach[0]: a list was expected, not '0.near_front'"),
        (f"{{{TWO}, reach: [[0.near_frnt, 1.back]]}}", "reach[0][0]: no limb 'near_frnt'; did you mean 'near_front'?"),
        (f"{{{TWO}, reach: [[near_front, 1.back]]}}", "reach[0][0]: 'near_front' must be a role's number, a dot and"),
        (f"{{{TWO}, reach: [[0.near_front, 2.back]]}}", "scene: no role 2; a role's number, 0 to 1, was expected"),
        (f"{{{TWO}, reach: [[0.near_front, 1.bak]]}}", "reach[0][1]: no point 'bak'; did you mean 'back'?"),
        (f"{{{TWO}, meet: [[0.near_front, 1.near_front]]}}", "meet[0][2]: is missing"),
        (f"{{{TWO}, meet: [[0.near_front, 1.head, [0, 0]]]}}", "meet[0][1]: no limb 'head'; there are near_front"),
        (f"{{{TWO}, meet: [[0.near_front, 1.near_front, [0, up]]]}}", "meet[0][2][1]: a number was expected, not 'up'"),
        (f"{{{TWO}, contacts: [[0.hips, 1.bak]]}}", "contacts[0][1]: no point 'bak'; did you mean 'back'?"),
    ],
)
def test_bad_pose_rules_are_one_line_that_names_the_key(tmp_path, scene, told):
    relation = _written(tmp_path, scene and f"scene: {scene}\n")
    done = CliRunner().invoke(main, ["finetune", "--relation", relation, "--output", str(tmp_path / "out")])
    assert done.exit_code == 2, done.output
    (line,) = done.output.splitlines()
    assert "relation 'poke': " in line
    assert told in line
    assert not (tmp_path / "out").exists()


def test_every_point_that_a_rule_may_name_is_one_of_a_figure():
    figure = build(Individual("dog", "red", "red", "plain"), poses()["stand"], _rng())
    assert set(JOINTS) == set(figure.points)
    assert all(np.isfinite(figure.point(name)).all() for name in (*JOINTS, *SPOTS))


def test_a_new_relation_is_a_data_file(tmp_path):
    text = "scene:\n  figures:\n    - {pose: sit, facing: left}\n    - {pose: sit, facing: right, gap: [-0.1, 0]}\n"
    relation = load_relation(_written(tmp_path, text))
    scene = compose(relation, [draw_individual(_rng()), draw_individual(_rng(1))], _rng())
    assert "poking" in scene.caption
    assert {figure.facing for figure in scene.figures} == {1, -1}
    assert render([scene]).pictures.float().std() > 20
