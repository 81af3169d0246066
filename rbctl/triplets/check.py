"""Everything that is wrong with a folder of triplets, in one pass."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
from PIL import Image

from rbctl.errors import InputError, abridged
from rbctl.images import read_image
from rbctl.triplets.layouts import read
from rbctl.triplets.masks import box_of, read_mask
from rbctl.triplets.problem import NO_BOX, NOWHERE, Problem, Reporter
from rbctl.triplets.triplet import Triplet, TripletObject

ENOUGH = 4  # the paper tunes on 4 to 6 triplets
_PIXELS = 1.5  # how far a box may be from its mask
_GAIN = 0.2  # of two objects' keypoints: so many more lie in the boxes when exchanged that they look mixed up


def check(folder: Path, follow_outside: bool = False) -> list[Problem]:
    """Find every problem: what ``load`` would refuse, what the pictures reveal, and what the words lack.

    Args:
        follow_outside: files may lie outside of the folder.

    Raises:
        InputError: the folder has neither layout, or its list of triplets cannot be read at all.
    """
    problems: list[Problem] = []
    count = 0
    for triplet, reporter in read(Path(folder), problems.append, follow_outside=follow_outside):
        count += 1
        _check_words(triplet, reporter)
        _check_pictures(triplet, reporter)
        _check_exchanged(triplet, reporter)
    if count == 0:
        problems.append(Problem(triplet="", file=str(folder), what="no triplet can be read"))
    elif count < ENOUGH:
        what = f"{count} triplet{'s' if count > 1 else ''}"
        mend = f"{ENOUGH} to 6 teach a relation well"
        problems.append(Problem(triplet="", file=str(folder), what=what, mend=mend, level="warning"))
    return problems


def _check_words(triplet: Triplet, reporter: Reporter) -> None:
    if not triplet.predicate:
        reporter.error("predicate: is missing", 'state the words of the relation, as in "hug"')
    roles = [individual.role for individual in triplet.objects if individual.role]
    if len(set(roles)) < len(roles):
        reporter.error(f"two objects have the same role: {', '.join(roles)}")
    for individual in triplet.objects:
        spoken = rf"(?<!\w){re.escape(individual.name)}(e?s)?(?!\w)"
        if individual.name and triplet.prompt and not re.search(spoken, triplet.prompt, re.IGNORECASE):
            reporter.error(
                f"{abridged(individual.name)} does not stand in the prompt {abridged(triplet.prompt)}",
                "say it in the same words",
            )


def _check_pictures(triplet: Triplet, reporter: Reporter) -> None:
    target = _open(triplet.target, reporter)
    for individual in triplet.objects:
        _open(individual.image, reporter)
        if individual.mask is not None and individual.mask != NOWHERE:
            _check_mask(individual, individual.mask, target, reporter)
        both = (individual.target_keypoints[:, 2] > 0) & (individual.image_keypoints[:, 2] > 0)
        read_well = individual.target_keypoints.any() and individual.image_keypoints.any()
        if read_well and not both.any():
            reporter.warning(f"{individual.name}: no keypoint is present both in the target and in the image prompt")


def _open(path: Path, reporter: Reporter) -> Image.Image | None:
    if path == NOWHERE:
        return None
    try:
        return read_image(path)
    except InputError as error:
        reporter.failed(error, path)
        return None


def _check_mask(individual: TripletObject, path: Path, target: Image.Image | None, reporter: Reporter) -> None:
    try:
        mask = read_mask(path)
    except InputError as error:
        reporter.failed(error, path)
        return
    height, width = mask.shape
    if target is not None and target.size != (width, height):
        reporter.error(f"the mask is {width} x {height}, the target {target.width} x {target.height}", file=path)
    box = box_of(mask)
    if box == NO_BOX:
        reporter.error("the mask is empty: no pixel is 128 or brighter", "paint the object white", file=path)
    elif individual.box != NO_BOX:
        apart = np.abs(np.subtract(box, individual.box)) * (width, height, width, height)
        if apart.max() > _PIXELS:
            stated, measured = ([round(float(v), 4) for v in b] for b in (individual.box, box))
            reporter.error(
                f"{individual.name}: box {stated} is not the mask's {measured}", "take the mask's box, or mend the mask"
            )


def _check_exchanged(triplet: Triplet, reporter: Reporter) -> None:
    """Tell pairs of objects that seem to have each other's keypoints in the target."""

    def inside(one: TripletObject, other: TripletObject) -> int:
        """How many keypoints of one lie in the box of the other."""
        x0, y0, x1, y1 = other.box
        x, y, visibility = one.target_keypoints.T
        return int(((x >= x0) & (x <= x1) & (y >= y0) & (y <= y1) & (visibility > 0)).sum())

    readable = [individual for individual in triplet.objects if individual.box != NO_BOX]
    for a, b in itertools.combinations(readable, 2):
        present = int((a.target_keypoints[:, 2] > 0).sum() + (b.target_keypoints[:, 2] > 0).sum())
        gain = inside(a, b) + inside(b, a) - inside(a, a) - inside(b, b)
        if present and gain > _GAIN * present:
            what = f"the target keypoints of {a.name} and {b.name} look exchanged: each fits the other's box better"
            reporter.warning(what, "look at `rbctl data show`, and exchange them if so")
