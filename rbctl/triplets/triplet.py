"""What a triplet is, and the hash of a set of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rbctl.files import content_hash, sha256
from rbctl.relations import Box


@dataclass(frozen=True, kw_only=True, eq=False)
class TripletObject:
    """One individual of a triplet.

    Attributes:
        name: the words for it in the prompt, "polar bear".
        role: its part in the relation, "subject" or "rider".
        image: its image prompt: a picture of it alone.
        mask: where it is in the target: a picture of that size, 128 and brighter inside; None: it fills its box.
        box: where it is in the target, relative xyxy in [0, 1].
        target_keypoints: (17, 3) float32 x, y, visibility in the target, in the order of ``KEYPOINTS``; relative;
            visibility 0 absent, 1 occluded, 2 visible.
        image_keypoints: the same keypoints in the image prompt.
    """

    name: str
    role: str
    image: Path
    mask: Path | None
    box: Box
    target_keypoints: np.ndarray
    image_keypoints: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class Triplet:
    """A target picture, its prompt, and the individuals in it.

    Attributes:
        id: its name in the set.
        target: the picture that shows the relation.
        prompt: its caption, "A lion and a polar bear hug."
        predicate: the words of the prompt that say the relation, "hug"; empty where nobody has told.
        objects: one or more, in the order of the relation's roles.
    """

    id: str
    target: Path
    prompt: str
    predicate: str
    objects: tuple[TripletObject, ...]


def data_hash(triplets: Iterable[Triplet]) -> str:
    """SHA-256 over pictures, masks, words and annotations in their order, whatever files and folder are called.

    Raises:
        OSError: a file has gone.
    """
    return content_hash([_content(triplet) for triplet in triplets])


def _content(value: Any) -> Any:
    """As JSON holds it: pictures by their hashes; the id is a name of no meaning."""
    if isinstance(value, Triplet | TripletObject):
        return {f.name: _content(getattr(value, f.name)) for f in dataclasses.fields(value) if f.name != "id"}
    if isinstance(value, Path):
        return sha256(value)
    if isinstance(value, np.ndarray):
        return value.tolist()
    return [_content(part) for part in value] if isinstance(value, tuple) else value
