"""The pictures of a raw set, each with who should be in it."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from PIL import ExifTags

from rbctl.errors import InputError
from rbctl.files import sha256
from rbctl.images import open_image
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


@dataclass(frozen=True)
class PictureTriplet:
    """A raw triplet and its pictures: the target, and an image prompt of each object."""

    raw: RawTriplet
    target: Picture
    image_prompts: tuple[Picture, ...]

    @property
    def pictures(self) -> tuple[Picture, ...]:
        return self.target, *self.image_prompts


def with_pictures(triplets: Iterable[RawTriplet]) -> list[PictureTriplet]:
    """The triplets with their pictures; what several show under the same names is one picture."""

    @functools.cache
    def picture(path: Path, *names: str) -> Picture:
        return Picture(path, names, sha256(path))

    return [
        PictureTriplet(
            raw=triplet,
            target=picture(triplet.target, *(individual.name for individual in triplet.objects)),
            image_prompts=tuple(picture(individual.image, individual.name) for individual in triplet.objects),
        )
        for triplet in triplets
    ]
