"""Pictures, masks, boxes and keypoints move together."""

import colorsys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rbctl.errors import InputError
from rbctl.triplets import Triplet, TripletObject
from rbctl.triplets.geometry import Annotated, contain, cover, crop, flip, image_prompt, resize, target
from rbctl.triplets.keypoints import KEYPOINTS, VISIBLE, absent, faces_left
from rbctl.triplets.masks import box_of, filled

WIDTH, HEIGHT, RADIUS = 210, 150, 5
COLOURS = [tuple(round(255 * c) for c in colorsys.hsv_to_rgb(k / 17, 1, 1)) for k in range(17)]


def dotted() -> Annotated:
    """A white picture with 17 square dots on a grid, each of its own colour, and three objects.

    The keypoints of object 0 are the dots' centres, those of 1 and 2 their top left and bottom right corners.
    """
    keypoints = np.zeros((3, 17, 3), np.float32)
    pixels = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    for k in range(17):
        x, y = 20 + 33 * (k % 6), 25 + 45 * (k // 6)
        pixels[y - RADIUS : y + RADIUS, x - RADIUS : x + RADIUS] = COLOURS[k]
        for number, shift in enumerate((0, -RADIUS, RADIUS)):
            keypoints[number, k] = (x + shift) / WIDTH, (y + shift) / HEIGHT, 1 + k % 2
    masks = np.zeros((3, HEIGHT, WIDTH), bool)
    rows, columns = np.ogrid[:HEIGHT, :WIDTH]
    masks[0, 20:120, 30:100] = True
    masks[1] = (rows - 70) ** 2 + (columns - 130) ** 2 < 50**2
    masks[2] = True
    boxes = np.array([box_of(mask) for mask in masks])
    return Annotated(image=Image.fromarray(pixels), masks=masks, boxes=boxes, keypoints=keypoints)


def dot_centre(a: Annotated, k: int) -> np.ndarray:
    """Where the picture shows dot k, in pixels: the centre of what is coloured around it; it must be dot k's colour."""
    size = np.array(a.image.size)
    x, y = a.keypoints[0, k, :2] * size
    reach, _ = np.abs(a.keypoints[1:, k, :2] - a.keypoints[0, k, :2]) * size * 3  # no other dot is so near
    left, top = max(0, round(x - reach[0])), max(0, round(y - reach[1]))
    pixels = np.asarray(a.image, float)[top : round(y + reach[1]), left : round(x + reach[0])]
    weight = (255 - pixels.min(axis=2)).clip(40) - 40
    assert weight.sum() > 0
    rows, columns = np.indices(weight.shape)
    centre = np.array([(weight * columns).sum(), (weight * rows).sum()]) / weight.sum()
    colour = pixels[round(centre[1]), round(centre[0])]
    pure = 255 * (colour - colour.min()) / np.ptp(colour)  # small dots have white mixed in
    assert np.abs(np.array(COLOURS) - pure).sum(axis=1).argmin() == k
    return centre + np.array([left + 0.5, top + 0.5])


def assert_agrees(a: Annotated) -> None:
    """Boxes are those of the masks, and the keypoints of object 0 point to their dots."""
    width, height = a.image.size
    assert a.masks.shape[1:] == (height, width)
    assert a.masks.dtype == bool
    np.testing.assert_array_equal(a.boxes, [box_of(mask) for mask in a.masks])
    assert ((a.boxes >= 0) & (a.boxes <= 1)).all()
    for k, (x, y, visibility) in enumerate(a.keypoints[0]):
        if visibility == 0:
            assert (x, y) == (0, 0)
            continue
        assert visibility == 1 + k % 2
        half = np.abs(a.keypoints[1, k, :2] - a.keypoints[0, k, :2]) * (width, height)
        # The whole dot is in the picture, and not shrunk to where resampling mixes its colour with the ground.
        if a.keypoints[1:, k, 2].all() and half.min() >= 2.5:
            assert np.abs(dot_centre(a, k) - (x * width, y * height)).max() <= 1.5


sizes = st.tuples(st.integers(110, 330), st.integers(100, 300))
fractions = st.floats(0, 1)
transforms = st.one_of(
    st.builds(lambda size: lambda a: resize(a, *size), sizes),
    st.just(flip),
    st.builds(
        lambda size, zoom, x, y: lambda a: cover(a, *size, zoom=zoom, anchor=(x, y)),
        sizes,
        st.floats(1, 1.6),
        fractions,
        fractions,
    ),
    st.builds(lambda size: lambda a: contain(a, *size), sizes),
    st.builds(
        lambda left, top, size: lambda a: crop(a, left, top, *size), st.integers(-60, 80), st.integers(-60, 80), sizes
    ),
)


@given(st.lists(transforms, max_size=4))
@settings(max_examples=60, deadline=None, database=None)
def test_keypoints_stay_on_their_dots_through_any_chain(chain):
    a = dotted()
    assert_agrees(a)
    for transform in chain:
        a = transform(a)
    assert_agrees(a)


@given(st.integers(-300, 300), st.integers(-300, 300), st.integers(1, 300), st.integers(1, 300))
@settings(max_examples=60, deadline=None, database=None)
def test_crop_keeps_exactly_what_lies_in_the_window(left, top, width, height):
    a = dotted()
    b = crop(a, left, top, width, height, fill=(1, 2, 3))
    xy = a.keypoints[0, :, :2] * (WIDTH, HEIGHT) - (left, top)
    inside = ((xy >= 0) & (xy <= (width, height))).all(axis=1)
    np.testing.assert_array_equal(b.keypoints[0, :, 2] > 0, inside)
    padded = np.pad(a.masks, ((0, 0), (300, 500), (300, 500)))
    np.testing.assert_array_equal(b.masks, padded[:, 300 + top :, 300 + left :][:, :height, :width])
    assert b.image.size == (width, height)
    for mask, box in zip(b.masks, b.boxes, strict=True):
        assert mask.any() == box.any()


def test_dots_are_really_found():
    """The property above would hold of a picture without dots."""
    assert_agrees(dotted())
    moved = dotted()
    moved.keypoints[0, :, 0] += 3 / WIDTH
    with pytest.raises(AssertionError):
        assert_agrees(moved)


def test_padding_and_leaving():
    a = crop(dotted(), -10, -20, 50, 60, fill=(9, 8, 7))
    assert a.image.getpixel((0, 0)) == (9, 8, 7)
    np.testing.assert_allclose(a.keypoints[0, 0], [30 / 50, 45 / 60, 1], rtol=1e-5)
    assert not a.keypoints[0, 1:].any()
    np.testing.assert_allclose(a.boxes, [[40 / 50, 40 / 60, 1, 1], [0, 0, 0, 0], [0.2, 20 / 60, 1, 1]])
    back = crop(a, 10, 20, WIDTH, HEIGHT)
    assert not back.keypoints[0, 1:].any()  # what has left does not return


def test_who_faces_left_is_told_by_face_and_back() -> None:
    def keypoints(**seen: float) -> np.ndarray:
        points = absent()
        for name, x in seen.items():
            points[KEYPOINTS.index(name.replace("_", " "))] = x, 0.5, VISIBLE
        return points

    assert faces_left(keypoints(nose=0.2, neck=0.4, root_of_tail=0.9))
    assert faces_left(keypoints(left_eye=0.3, right_front_paw=0.1, root_of_tail=0.4))
    assert faces_left(keypoints(nose=0.6, neck=0.4)) is False
    assert faces_left(keypoints(nose=0.2, left_front_paw=0.4)) is None
    assert faces_left(keypoints()) is None


def test_flip_mirrors_and_twice_is_nothing():
    a, b = dotted(), flip(dotted())
    np.testing.assert_allclose(b.keypoints[..., 0], 1 - a.keypoints[..., 0], rtol=1e-5)
    np.testing.assert_allclose(
        b.boxes, np.stack([1 - a.boxes[:, 2], a.boxes[:, 1], 1 - a.boxes[:, 0], a.boxes[:, 3]], 1)
    )
    twice = flip(b)
    np.testing.assert_array_equal(np.asarray(twice.image), np.asarray(a.image))
    np.testing.assert_allclose(twice.keypoints, a.keypoints, atol=1e-6)
    a.keypoints[0, 3] = 0
    assert not flip(a).keypoints[0, 3].any()


def test_cover_and_contain_keep_the_aspect_ratio():
    square = cover(dotted(), 100, 100)
    assert square.image.size == (100, 100)
    left, right = cover(dotted(), 100, 100, anchor=(0, 0.5)), cover(dotted(), 100, 100, anchor=(1, 0.5))
    assert left.keypoints[0, 0, 2]
    assert not right.keypoints[0, 0, 2]
    x = left.keypoints[0, 1, 0] - left.keypoints[0, 0, 0]
    near = cover(dotted(), 100, 100, zoom=1.5, anchor=(0, 0))
    np.testing.assert_allclose(near.keypoints[0, 1, 0] - near.keypoints[0, 0, 0], 1.5 * x, rtol=1e-3)
    whole = contain(dotted(), 100, 100)
    assert (whole.keypoints[0, :, 2] > 0).all()
    assert whole.image.getpixel((50, 2)) == (255, 255, 255)
    np.testing.assert_allclose(whole.keypoints[0, 0, 1], (25 / HEIGHT * 71 + 14) / 100, atol=1e-3)
    with pytest.raises(ValueError, match="zoom must be 1 or more"):
        cover(dotted(), 100, 100, zoom=0.5)
    with pytest.raises(ValueError, match="is empty"):
        crop(dotted(), 0, 0, 0, 5)


def test_thin_objects_survive_shrinking():
    a = dotted()
    a.masks[0] = False
    a.masks[0, 60, :] = True
    small = resize(a, 21, 15)
    assert small.masks[0].any()
    np.testing.assert_allclose(small.boxes[0], [0, 6 / 15, 1, 7 / 15])


def test_filled_boxes_touch_no_pixel_by_rounding():
    assert box_of(filled((0.3, 0.1, 0.7, 0.6), 10, 10)) == (0.3, 0.1, 0.7, 0.6)
    assert box_of(filled((0.31, 0.0, 0.69, 1.0), 10, 10)) == (0.3, 0.0, 0.7, 1.0)


def test_loading_a_triplet(tmp_path):
    a = dotted()
    a.image.save(tmp_path / "target.png")
    Image.fromarray(a.masks[1]).save(tmp_path / "mask.png")
    common = {"role": "subject", "image": tmp_path / "target.png", "target_keypoints": a.keypoints[0]}
    objects = (
        TripletObject(name="a", mask=None, box=(0.1, 0.2, 0.5, 0.8), image_keypoints=a.keypoints[0], **common),
        TripletObject(name="b", mask=tmp_path / "mask.png", box=(0, 0, 1, 1), image_keypoints=a.keypoints[0], **common),
    )
    triplet = Triplet(id="0", target=tmp_path / "target.png", prompt="a b", predicate="", objects=objects)
    loaded = target(triplet)
    np.testing.assert_allclose(loaded.boxes[0], [0.1, 0.2, 0.5, 0.8], atol=1e-9)
    np.testing.assert_array_equal(loaded.masks[1], a.masks[1])
    np.testing.assert_array_equal(loaded.boxes[1], a.boxes[1])
    np.testing.assert_array_equal(loaded.keypoints, np.stack([a.keypoints[0]] * 2))
    alone = image_prompt(objects[0])
    assert alone.masks.all()
    assert alone.boxes.tolist() == [[0, 0, 1, 1]]
    assert alone.keypoints.shape == (1, 17, 3)
    Image.new("L", (20, 20), 255).save(tmp_path / "mask.png")
    with pytest.raises(InputError, match="the mask is 20 x 20, the target 210 x 150"):
        target(triplet)
