"""What a triplet is, and the hash of a set of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rbctl.files import sha256

Box = tuple[float, float, float, float]


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
    content = [
        {
            "target": sha256(triplet.target),
            "prompt": triplet.prompt,
            "predicate": triplet.predicate,
            "objects": [
                {
                    "name": thing.name,
                    "role": thing.role,
                    "image": sha256(thing.image),
                    "mask": None if thing.mask is None else sha256(thing.mask),
                    "box": thing.box,
                    "target_keypoints": thing.target_keypoints.tolist(),
                    "image_keypoints": thing.image_keypoints.tolist(),
                }
                for thing in triplet.objects
            ],
        }
        for triplet in triplets
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
