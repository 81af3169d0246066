"""What the frozen networks say of triplets and pictures, computed once: then the loop runs the UNet alone."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import pad

from rbctl.bases import Base
from rbctl.bases.load import summary, training
from rbctl.draws import generator, is_due
from rbctl.errors import InputError
from rbctl.files import read_image
from rbctl.kept import not_finite
from rbctl.layout import LayoutPrior
from rbctl.measurements import measured
from rbctl.plugins.finetune.config import FinetuneConfig
from rbctl.progress import progress
from rbctl.triplets import Triplet, geometry
from rbctl.triplets.geometry import Annotated
from rbctl.triplets.keypoints import faces_left

# Options that change what the frozen networks are shown.
_OPTIONS = (
    *("seed", "augmentation_draws", "random_flip", "face_right", "layout_share", "max_zoom"),
    *("local_tokens", "local_grid", "local_injection"),
)

# The tensors and their dimensions: S triplets and prior scenes, A versions, N objects, K keypoints, H x W pixels,
# h x w latents, p x p those of image prompts. Absent objects are zeros. Smaller targets are padded at the right and
# bottom to the largest; time_ids tell their own size. Every base has more of its own (rbctl.bases.Training.shapes).
_SHAPES = {
    "latents_mean": "S A C h w",
    "latents_std": "S A C h w",
    "prompt_latents_mean": "S A N C p p",
    "prompt_latents_std": "S A N C p p",
    "boxes": "S A N 4",
    "target_keypoints": "S A N K 2",
    "image_keypoints": "S A N K 2",
    "visible": "S A N K",
    "object_mask": "S A H W",
    "time_ids": "S A 6",
}
_BOOLS = {"visible", "object_mask", "present", "words_mask", "negative_mask"}
_TYPES = {**dict.fromkeys(_BOOLS, torch.bool), "predicate_span": torch.int64}  # others: floating point
_APART = 0.15  # IoU of two roles' boxes, at most, where each can be trained in boxes that are not its own
_ASIDE = 0.2  # of a picture's side: boxes whose middles are further apart lie side by side
_PER_OBJECT = ("prompt_latents_mean", "prompt_latents_std", "boxes", "target_keypoints", "image_keypoints", "visible")


def training_sizes(
    targets: Sequence[Path], config: FinetuneConfig, resolution: int, multiple: int = 8
) -> list[tuple[int, int]]:
    """Width and height that each target is trained at: by its aspect ratio, or all square; in whole ``multiple``s."""
    square = (resolution, resolution)
    if not config.aspect_buckets:
        return [square] * len(targets)
    return [geometry.bucket(read_image(target).size, resolution, multiple) for target in targets]


def pad_targets(rows: Sequence[dict[str, torch.Tensor]]) -> None:
    """Bring targets of several sizes to the largest, in place; what is added lies at the right and bottom."""
    for key in ("latents_mean", "latents_std", "object_mask"):
        height, width = (max(row[key].shape[axis] for row in rows) for axis in (-2, -1))
        for row in rows:
            row[key] = pad(row[key], (0, width - row[key].shape[-1], 0, height - row[key].shape[-2]))


def mirroring(triplets: Sequence[Triplet], config: FinetuneConfig) -> list[bool | None]:
    """Whether each triplet is mirrored in all its versions, by ``face_right``; None for what ``random_flip`` says.

    Boxes tell which way the subject looks where the others always lie before it, or always behind it, and where they
    lie far aside. Then triplets may be mirrored at random. An individual alone, or upon another, looks either way in
    the same boxes, and a small model draws both at once. So all look one way, as far as keypoints tell.
    """
    if not config.face_right:
        return [None] * len(triplets)
    lefts = [faces_left(triplet.objects[0].target_keypoints) for triplet in triplets]
    middles = [[(o.box[0] + o.box[2]) / 2 for o in triplet.objects] for triplet in triplets]
    aside = statistics.fmean(max(own) - min(own) for own in middles)
    before = {
        (statistics.fmean(others) > subject) != left
        for (subject, *others), left in zip(middles, lefts, strict=True)
        if others and left is not None
    }
    told = len(before) == 1 or aside > _ASIDE
    return [None] * len(triplets) if told else lefts


def made_from(
    config: FinetuneConfig,
    facts: Mapping[str, Any],
    resolution: int,
    dtype: torch.dtype,
    sizes: Sequence[tuple[int, int]] = (),
    layout: Layout | None = None,
) -> dict[str, Any]:
    """What encodings depend on.

    Args:
        facts: hashes of data, prior set and bundle.
        sizes: of the targets; named only where one is not square.
        layout: as of :func:`encode`.
    """
    oblong = {"sizes": [list(size) for size in sizes]} if set(sizes) - {(resolution, resolution)} else {}
    boxes = {"boxes": [*map(list, layout.prior.boxes()), layout.orders]} if layout else {}
    return {
        **oblong,
        **boxes,
        **{name: getattr(config, name) for name in _OPTIONS},
        **{name: facts[name] for name in ("data", "prior", "bundle")},
        "resolution": resolution,
        "dtype": str(dtype),
        "version": 2,
        "predicate": config.attention_loss_weight > 0,  # then every prompt was found to hold its predicate
    }


def fit(
    tensors: Mapping[str, torch.Tensor], own: Mapping[str, str], versions: int, targets: Sequence[tuple[int, int]]
) -> bool:
    """Whether tensors are of the names, shapes and types that :func:`encode` gives targets of these sizes.

    Args:
        own: the base's (rbctl.bases.Training.shapes).
    """
    shapes = {**_SHAPES, **own}
    width, height = (max(side) for side in zip(*targets, strict=True))
    sizes = {"S": len(targets), "A": versions, "H": height, "W": width} | {n: int(n) for n in "246"}
    if tensors.keys() != shapes.keys():
        return False
    for name, dimensions in shapes.items():
        tensor, names = tensors[name], dimensions.split()
        if tensor.dtype != _TYPES[name] if name in _TYPES else not tensor.is_floating_point():
            return False
        expected = tuple(sizes.setdefault(n, size) for n, size in zip(names, tensor.shape, strict=False))
        if tensor.ndim != len(names) or tensor.shape != expected:
            return False
    return True


@measured("encode the triplets")
@torch.no_grad()
def encode(
    base: Base,
    triplets: Sequence[Triplet],
    prior: Sequence[Triplet],
    config: FinetuneConfig,
    resolution: int,
    layout: Layout | None = None,
) -> dict[str, torch.Tensor]:
    """Encodings of the triplets, then of the prior set, as ``_SHAPES`` and the base name them.

    :func:`split` takes them apart.

    Args:
        layout: what the triplets' boxes become in ``layout_share`` of their versions; None to leave all as they are.

    Raises:
        InputError: a picture cannot be read, a prompt lacks its predicate, or a network gave NaN.
    """
    everything, course = [*triplets, *prior], training(base, config)
    most = max(len(triplet.objects) for triplet in everything)
    targets = [triplet.target for triplet in everything]
    sizes = training_sizes(targets, config, resolution, summary(base.folder).multiple)
    sides = mirroring(triplets, config)
    rows = []
    with progress(len(everything) * config.augmentation_draws, "encoding triplets", unit="version") as bar:
        for number, triplet in enumerate(everything):
            mirrored = sides[number] if number < len(triplets) else None
            frames = [
                Frame.of(config, triplet.id, version, sizes[number], mirrored)
                for version in range(config.augmentation_draws)
            ]
            views = [View.of(triplet, frame, resolution) for frame in frames]
            if layout and number < len(triplets):
                views = [
                    view.within(layout.near(triplet, view.boxes)) if is_due(version, config.layout_share) else view
                    for version, view in enumerate(views)
                ]
            # Network by network, as with --lowvram each must come to the device.
            latents = [_latents(base, view) for view in views]
            names = [individual.name for individual in triplet.objects]
            where = f"triplet {triplet.id!r}" if number < len(triplets) else None
            texts = course.texts(triplet.prompt, triplet.predicate, names, where)
            words = course.of_triplet(texts)
            versions = []
            for view, of_vae in zip(views, latents, strict=True):
                images, squares = ([shown.image for shown in pictures] for pictures in (view.prompts, view.squares))
                own = course.padded(course.of_version(texts, images, squares, view.boxes), len(names), most)
                versions.append(_padded(of_vae | view.annotations(), most) | own)
                bar.update()
            course.even(versions)
            rows.append({name: torch.stack([row[name] for row in versions]) for name in versions[0]} | words)
    pad_targets(rows)
    course.even(rows)
    encoded = {name: torch.stack([row[name] for row in rows]).cpu() for name in rows[0]} | course.of_nothing()
    if (name := not_finite(encoded)) is not None:  # a damaged bundle, or fp16 overflow
        raise InputError(f"{base.folder}: the frozen networks gave NaN in {name}; try --precision bf16 or fp32")
    return encoded


def split(
    encoded: Mapping[str, torch.Tensor], count: int
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor] | None]:
    """The encodings of the first ``count`` triplets, and those of the prior set behind them (None where there is none).

    Both have those of the empty prompt.
    """

    def part(rows: slice) -> dict[str, torch.Tensor]:
        return {name: t if name.startswith("empty_") else t[rows] for name, t in encoded.items()}

    return part(slice(count)), part(slice(count, None)) if encoded["boxes"].shape[0] > count else None


@dataclass(frozen=True)
class Layout:
    """The boxes that pictures of a relation are sampled in.

    Attributes:
        orders: in which its roles may stand, as of ``LayoutPrior.from_boxes``.
    """

    prior: LayoutPrior
    orders: tuple[tuple[int, ...], ...]

    def for_training(self, config: FinetuneConfig) -> Layout | None:
        """Itself, if ``layout_share`` asks for it and the boxes lie apart.

        In boxes that overlap, an individual outside of its own would be shown in another's: species are mixed up then.
        """
        return self if config.layout_share and self.prior.overlap() <= _APART else None

    def near(self, triplet: Triplet, boxes: torch.Tensor) -> torch.Tensor:
        """These boxes where a version of a triplet has its individuals; its own where it has other roles.

        Args:
            boxes: (N, 4) of the version, relative xyxy.
        """
        own = {individual.role: box for individual, box in zip(triplet.objects, boxes.tolist(), strict=True)}
        if own.keys() != set(self.prior.roles):
            return boxes
        near = self.prior.near([own[role] for role in self.prior.roles], self.orders)
        by_role = dict(zip(self.prior.roles, near, strict=True))
        return torch.tensor([by_role[individual.role] for individual in triplet.objects])


@dataclass(frozen=True)
class Frame:
    """A version of a picture: how it is cut to the size of training, and whether it is mirrored.

    Attributes:
        size: width and height in pixels.
        anchor: where that window lies in what is left over, as of ``geometry.cover``.
    """

    size: tuple[int, int]
    zoom: float = 1.0
    anchor: tuple[float, float] = (0.5, 0.5)
    mirrored: bool = False

    @classmethod
    def of(
        cls, config: FinetuneConfig, name: object, version: int, size: tuple[int, int], mirrored: bool | None = None
    ) -> Frame:
        """Version 0 is the picture as it is; the others are random, a function of (seed, name, version).

        Args:
            mirrored: whether every version is; None for what ``random_flip`` says.
        """
        if version == 0:
            return cls(size, mirrored=bool(mirrored))
        chance = torch.rand(4, generator=generator(config.seed, "augmentation", name, version)).tolist()
        zoom = 1 + chance[0] * (config.max_zoom - 1)
        if mirrored is None:
            mirrored = config.random_flip and chance[3] < 0.5
        return cls(size, zoom, (chance[1], chance[2]), mirrored)

    def cut(self, picture: Annotated) -> tuple[Annotated, torch.Tensor]:
        """The picture as it is trained on, and its time ids (6).

        Their crop is (0, 0) whatever it was, as in the official script: sampling asks for an uncut picture.
        """
        width, height = picture.image.size
        wide, high = self.size
        cut = geometry.cover(self.turned(picture), wide, high, zoom=self.zoom, anchor=self.anchor)
        return cut, torch.tensor([height, width, 0, 0, high, wide], dtype=torch.float32)

    def turned(self, picture: Annotated) -> Annotated:
        """The picture, mirrored where this version is."""
        return geometry.flip(picture) if self.mirrored else picture


@dataclass(frozen=True)
class View:
    """A triplet in one version.

    Attributes:
        target: cut to the size of training, with its time ids (6).
        prompts: of each individual, as CLIP sees it.
        squares: the same padded to the square of training. The whole individual stays in view.
    """

    target: Annotated
    time_ids: torch.Tensor
    prompts: list[Annotated]
    squares: list[Annotated]

    @classmethod
    def of(cls, triplet: Triplet, frame: Frame, resolution: int) -> View:
        target, time_ids = frame.cut(geometry.target(triplet))
        prompts = [frame.turned(geometry.image_prompt(individual)) for individual in triplet.objects]
        return cls(target, time_ids, prompts, [geometry.contain(prompt, resolution, resolution) for prompt in prompts])

    def within(self, boxes: torch.Tensor) -> View:
        """The same picture with other boxes (N, 4)."""
        return replace(self, target=replace(self.target, boxes=boxes.numpy()))

    @property
    def boxes(self) -> torch.Tensor:
        return torch.from_numpy(self.target.boxes).float()

    def annotations(self) -> dict[str, torch.Tensor]:
        """What no network is asked for."""
        target_points = torch.from_numpy(self.target.keypoints).float()
        image_points = torch.from_numpy(np.concatenate([square.keypoints for square in self.squares])).float()
        return {
            "time_ids": self.time_ids,
            "boxes": self.boxes,
            "target_keypoints": target_points[..., :2],
            "image_keypoints": image_points[..., :2],
            "visible": (target_points[..., 2] > 0) & (image_points[..., 2] > 0),
            "object_mask": torch.from_numpy(self.target.masks.any(0)),
        }


def _latents(base: Base, view: View) -> dict[str, torch.Tensor]:
    mean, std = base.encode_pictures(pixels_of([view.target.image]))
    prompt_mean, prompt_std = base.encode_pictures(pixels_of([square.image for square in view.squares]))
    return {
        "latents_mean": mean[0],
        "latents_std": std[0],
        "prompt_latents_mean": prompt_mean,
        "prompt_latents_std": prompt_std,
    }


def _padded(encoded: dict[str, torch.Tensor], most: int) -> dict[str, torch.Tensor]:
    """With absent objects, up to ``most``: no keypoint of theirs counts."""
    missing = most - encoded["boxes"].shape[0]
    for name in _PER_OBJECT:
        tensor = encoded[name]
        encoded[name] = torch.cat((tensor, tensor.new_zeros(missing, *tensor.shape[1:])))
    return encoded


def pixels_of(images: Sequence[Image.Image]) -> torch.Tensor:
    """Pictures of one size as (B, 3, H, W) in [-1, 1]."""
    array = np.stack([np.asarray(image) for image in images])
    return torch.from_numpy(array).permute(0, 3, 1, 2).float() / 127.5 - 1
