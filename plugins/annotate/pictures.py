"""The pictures of a raw set, each with who should be in it, and the names its results are kept under."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from PIL import ExifTags

from rbctl.errors import InputError
from rbctl.files import sha256
from rbctl.images import open_image
from rbctl.plugins.annotate.backends import Chosen
from rbctl.plugins.annotate.config import AnnotateConfig
from rbctl.plugins.annotate.store import key
from rbctl.triplets.raw import RawTriplet


@dataclass(frozen=True)
class Picture:
    """A target or an image prompt.

    Attributes:
        names: of the individuals that should be in it.
        digest: of its bytes.
    """

    path: Path
    names: tuple[str, ...]
    digest: str = field(compare=False)

    @functools.cached_property
    def size(self) -> tuple[int, int]:
        """Width and height, turned as its EXIF orientation says; zeros where it is damaged (told when it is read)."""
        try:
            with open_image(self.path) as opened:
                width, height = opened.size
                turned = opened.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
        except InputError:
            return 0, 0
        return (height, width) if turned else (width, height)


def listed(triplets: Iterable[RawTriplet]) -> dict[tuple[Path, tuple[str, ...]], Picture]:
    """Every picture of a set once, by its path and names."""
    pictures: dict[tuple[Path, tuple[str, ...]], Picture] = {}
    for triplet in triplets:
        shown = [(triplet.target, tuple(thing.name for thing in triplet.objects))]
        shown += [(thing.image, (thing.name,)) for thing in triplet.objects]
        for path, names in shown:
            if (path, names) not in pictures:
                pictures[path, names] = Picture(path, names, sha256(path))
    return pictures


def keys(picture: Picture, backends: Mapping[str, Chosen], config: AnnotateConfig) -> dict[str, str]:
    """The name of each step's result: what the picture, the backend and the steps before it make it depend on."""
    made = {"boxes": key(picture.digest, picture.names, backends["boxes"].content)}
    boxes = made["boxes"], config.box_overlap
    made["masks"] = key(*boxes, backends["masks"].content)
    made["keypoints"] = key(*boxes, backends["keypoints"].content)
    made["identity"] = key(made["masks"], backends["identity"].content)
    if "captions" in backends:
        made["captions"] = key(picture.digest, picture.names, backends["captions"].content)
    return made
