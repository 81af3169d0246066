"""Everything that is wrong with a folder of triplets, in one pass: the one list of what a triplet must be.

As it is trained on: after crop and resize, and in the tokens that the text encoders read. ``rbctl data check``,
``import`` and ``fix``, ``annotate`` and ``finetune`` all use it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from rbctl.errors import InputError, abridged, shortlist
from rbctl.files import read_image
from rbctl.phrases import unread
from rbctl.relations import Relation, load_relation, shipped
from rbctl.roles import find_relation, read_roles
from rbctl.triplets import geometry
from rbctl.triplets.diagnosis import Evidence, Fault, diagnose
from rbctl.triplets.layouts import read
from rbctl.triplets.masks import apart, box_of, read_mask
from rbctl.triplets.problem import NO_BOX, NOWHERE, Problem, Reporter
from rbctl.triplets.triplet import Triplet, TripletObject

ENOUGH = 4  # the paper tunes on 4 to 6 triplets
_KEPT = 0.5  # share of an individual that must stay when its target is cut to the size of training
_TOKENS = 75  # that SDXL's encoders read between both ends; a word is one at least
_ANY_RELATIONS_ROLES = {"subject", "object"}
_MENDABLE = ("exchanged", "swapped", "crop", "inverted")


def check(
    folder: Path,
    follow_outside: bool = False,
    *,
    resolution: int = 1024,
    buckets: bool = True,
    tokenizer: Any = None,
) -> list[Problem]:
    """Find every problem: what ``load`` would refuse, what the pictures reveal, and what the words lack.

    Args:
        follow_outside: files may lie outside of the folder.
        resolution: side of the training pictures in pixels.
        buckets: a target is trained on in its own aspect ratio; else as the square in its middle.
        tokenizer: of the bundle that is trained; without one, too long is only what no encoder of SDXL can read.

    Raises:
        InputError: the folder has neither layout, or its list of triplets cannot be read at all.
    """
    problems: list[Problem] = []
    relations = [load_relation(name) for name in shipped()]
    evidence, reporters, seen = dict[str, Evidence](), dict[str, Reporter](), dict[str, str]()
    count = 0
    for triplet, reporter in read(Path(folder), problems.append, follow_outside=follow_outside):
        count += 1
        _check_words(triplet, reporter, relations)
        _check_length(triplet, reporter, tokenizer)
        if not _check_pictures(triplet, reporter, seen):
            continue
        target = geometry.target(triplet)
        size = geometry.bucket(target.image.size, resolution) if buckets else (resolution, resolution)
        _check_cut(triplet, reporter, target, geometry.cover(target, *size))
        evidence[triplet.id], reporters[triplet.id] = Evidence.of(triplet, target), reporter
    for fault in diagnose(evidence):
        _tell(fault, reporters[fault.triplet])
    if count == 0:
        problems.append(Problem(triplet="", file=str(folder), what="no triplet can be read"))
    elif count < ENOUGH:
        what = f"{count} triplet{'s' if count > 1 else ''}"
        mend = f"{ENOUGH} to 6 teach a relation well"
        problems.append(Problem(triplet="", file=str(folder), what=what, mend=mend, level="warning"))
    return problems


def _check_words(triplet: Triplet, reporter: Reporter, relations: Sequence[Relation]) -> None:
    names = [individual.name for individual in triplet.objects]
    relation = find_relation(triplet.prompt, relations, names)
    if not triplet.predicate and not relation:
        reporter.warning("predicate: is missing", 'state the words of the relation, as in "hug"')
    elif triplet.predicate and triplet.prompt and not _says(triplet.prompt, triplet.predicate):
        what = f"predicate: {abridged(triplet.predicate)} does not stand in the prompt {abridged(triplet.prompt)}"
        reporter.warning(what, "take its own words")
    roles = [individual.role for individual in triplet.objects if individual.role]
    if len(set(roles)) < len(roles):
        reporter.error(f"two objects have the same role: {shortlist(roles)}")
    for name in names:
        if name and triplet.prompt and not _says(triplet.prompt, name, plural="(e?s)?"):
            what = f"{abridged(name)} does not stand in the prompt {abridged(triplet.prompt)}"
            reporter.error(what, "say it in the same words")
    own = {role.name for role in relation.roles} if relation else set[str]()
    if relation and not set(roles) <= own | _ANY_RELATIONS_ROLES:
        strange = shortlist(sorted(set(roles) - own))
        reporter.warning(f"role: {relation.name!r} has no {strange}", f"its roles: {shortlist(sorted(own))}")
    if relation and not relation.symmetric and set(roles) == own:
        reading = read_roles(triplet.prompt, names, relation)
        wrong = [k for k, role in enumerate(roles) if reading.individuals and reading.role_of(k) != role]
        if wrong and len(roles) == len(names):
            said = ", ".join(f"{names[k]} is the {reading.role_of(k)}" for k in wrong)
            what = f"role: the prompt {abridged(triplet.prompt)} says that {said}"
            reporter.warning(what, "mend the one or the other")


def _says(prompt: str, phrase: str, plural: str = "") -> bool:
    words = r"\s+".join(map(re.escape, phrase.split()))
    return re.search(rf"(?<!\w){words}{plural}(?!\w)", prompt, re.IGNORECASE) is not None


def _check_length(triplet: Triplet, reporter: Reporter, tokenizer: Any) -> None:
    """Tell words that no text encoder reads, since they stand too late in the prompt."""
    phrases = [triplet.predicate, *(individual.name for individual in triplet.objects)]
    late = unread(tokenizer or _Words(), triplet.prompt, [phrase for phrase in phrases if phrase])
    if late:
        what = f"prompt: is too long for the text encoders, which do not read: {shortlist(map(abridged, late))}"
        reporter.error(what, "shorten it, or say these first")
    elif len((tokenizer or _Words())(triplet.prompt)["input_ids"]) > (tokenizer or _Words).model_max_length:
        reporter.warning("prompt: is too long for the text encoders, its end is not read", "shorten it")


class _Words:
    """Stands in for a tokenizer: a token for each word and mark, the fewest that there can be."""

    model_max_length = _TOKENS + 2

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [0] * (len(re.findall(r"\w+|[^\w\s]+", text)) + 2)}


def _check_pictures(triplet: Triplet, reporter: Reporter, seen: dict[str, str]) -> bool:
    """Tell what is wrong with the pictures each by itself; whether all can be read and belong together.

    Args:
        seen: triplets by the pixels of their targets; this one is added.
    """
    target = _open(triplet.target, reporter)
    readable, shown = target is not None, dict[str, str]()
    if target is not None:
        other = seen.setdefault(_pixels(target), triplet.id)
        if other != triplet.id:
            what = f"the target is the same picture as that of triplet {other}"
            reporter.warning(what, "each triplet teaches by another picture")
        shown[_pixels(target)] = "the target"
    for individual in triplet.objects:
        image = _open(individual.image, reporter)
        readable &= image is not None
        if image is not None:
            other = shown.setdefault(_pixels(image), individual.name)
            if other != individual.name:
                reporter.warning(f"the image prompt of {individual.name} is the same picture as {other}")
        if individual.mask is not None:
            readable &= individual.mask != NOWHERE and _check_mask(individual, individual.mask, target, reporter)
        readable &= individual.box != NO_BOX
        both = (individual.target_keypoints[:, 2] > 0) & (individual.image_keypoints[:, 2] > 0)
        read_well = individual.target_keypoints.any() and individual.image_keypoints.any()
        if read_well and not both.any():
            reporter.warning(f"{individual.name}: no keypoint is present both in the target and in the image prompt")
    return readable


def _pixels(image: Image.Image) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()


def _open(path: Path, reporter: Reporter) -> Image.Image | None:
    if path == NOWHERE:
        return None
    try:
        return read_image(path)
    except InputError as error:
        reporter.failed(error, path)
        return None


def _check_mask(individual: TripletObject, path: Path, target: Image.Image | None, reporter: Reporter) -> bool:
    """Tell what is wrong with a mask; whether it can be used."""
    try:
        mask = read_mask(path)
    except InputError as error:
        reporter.failed(error, path)
        return False
    height, width = mask.shape
    fits = target is None or target.size == (width, height)
    if target is not None and not fits:
        reporter.error(f"the mask is {width} x {height}, the target {target.width} x {target.height}", file=path)
    box = box_of(mask)
    if box == NO_BOX:
        reporter.error("the mask is empty: no pixel is 128 or brighter", "paint the object white", file=path)
    elif individual.box != NO_BOX and apart(box, individual.box, mask):
        stated, measured = ([round(float(v), 4) for v in b] for b in (individual.box, box))
        mend = "take the mask's box (`rbctl data fix` does), or mend the mask"
        reporter.error(f"{individual.name}: box {stated} is not the mask's {measured}", mend)
    return fits and box != NO_BOX


def _check_cut(triplet: Triplet, reporter: Reporter, whole: geometry.Annotated, cut: geometry.Annotated) -> None:
    """Tell who is not, or hardly, in the picture that is trained on."""
    width, height = whole.image.size
    scale = max(cut.image.width / width, cut.image.height / height) ** 2
    for individual, mask, kept in zip(triplet.objects, whole.masks, cut.masks, strict=True):
        size = f"cut to {cut.image.width} x {cut.image.height}"
        mend = "crop the target so that everybody is near its middle, or train with --aspect-buckets"
        if not kept.any():
            reporter.error(f"{individual.name}: is cut off when the target is {size}", mend)
        elif kept.sum() < _KEPT * scale * mask.sum() and mask.sum() * scale > 16:
            share = kept.sum() / (scale * mask.sum())
            reporter.warning(f"{individual.name}: only {share:.0%} of it is left when the target is {size}", mend)


def _tell(fault: Fault, reporter: Reporter) -> None:
    mend = "look at `rbctl data show`, and mend keypoints or mask"
    if fault.kind in _MENDABLE:
        mend = "`rbctl data fix` mends it" + ("" if fault.certain else "; look at `rbctl data show` first")
    (reporter.error if fault.certain else reporter.warning)(fault.what, mend)
