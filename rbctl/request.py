"""What is to be drawn: one picture with every default filled in, and how a call from Python asks for it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from rbctl import formats
from rbctl.errors import InputError
from rbctl.files import read_image
from rbctl.prompts.fields import Settings
from rbctl.prompts.weights import read_weights
from rbctl.relations import Box, check_box
from rbctl.shortcuts import NO_SHORTCUTS, Shortcuts

if TYPE_CHECKING:
    from PIL import Image

    from rbctl.embeddings import Embedding

Picture: TypeAlias = "Path | str | Image.Image"

_BRACES = re.compile(r"\{([^{}]+)\}")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One individual to be shown.

    Attributes:
        name: the words for it in the prompt, "plush bear".
        image: its picture.
        box: where it goes, relative xyxy.
        scale: weight of its image tokens.
    """

    name: str
    image: Path | Image.Image
    box: Box
    scale: float

    def picture(self) -> Image.Image:
        """Its picture, read and in RGB."""
        return read_image(self.image) if isinstance(self.image, Path) else self.image.convert("RGB")


@dataclass(frozen=True, kw_only=True)
class Request:
    """One picture to be drawn, with every default filled in.

    Attributes:
        words: the prompt as the text encoders are given it, learned tokens in their places.
        weights, negative_weights: of each character of ``words`` and of ``negative_prompt``; empty where all are 1.
        width, height: pixels, multiples of 8.
        guidance_scale: 1 or less for none.
        seed: of its noise.
        original_size, crop: SDXL's micro-conditioning, (height, width) and (top, left) in pixels; None is the picture's
            own size.
        scheduler: a name of :mod:`rbctl.schedulers`; None for the bundle's own.
        embeddings: what learned tokens in ``words`` stand for.
        shortcuts: what sampling leaves out.
        source: where it was asked for, for errors.
        order: the subjects' numbers in the order of the relation's roles; () is as they stand.
    """

    words: str
    subjects: tuple[Subject, ...]
    negative_prompt: str
    width: int
    height: int
    steps: int
    guidance_scale: float
    seed: int = 0
    original_size: tuple[int, int] | None = None
    crop: tuple[int, int] = (0, 0)
    scheduler: str | None = None
    embeddings: tuple[Embedding, ...] = ()
    weights: tuple[float, ...] = ()
    negative_weights: tuple[float, ...] = ()
    shortcuts: Shortcuts = NO_SHORTCUTS
    source: str = "prompt"
    order: tuple[int, ...] = ()

    @property
    def guided(self) -> bool:
        """Whether there is classifier-free guidance at all, by the rule of diffusers."""
        return self.guidance_scale > 1

    @property
    def kind(self) -> tuple[Any, ...]:
        """Requests of one kind can be sampled in one batch."""
        plain = not self.subjects
        sizes = self.original_size, self.crop
        how = self.steps, self.guided, self.scheduler, self.shortcuts
        return self.embeddings, sizes, self.width, self.height, *how, plain


def requested(
    prompts: Sequence[str],
    images: Mapping[str, Picture] | Sequence[Mapping[str, Picture]] | None,
    boxes: Mapping[str, Box] | Sequence[Mapping[str, Box]] | None,
    settings: Mapping[str, Any],
    defaults: Mapping[str, Any],
    place: Callable[[str, Sequence[str]], Sequence[Box]],
    weighting: bool = True,
) -> list[Request]:
    """What a call of the pipeline asks for, prompt by prompt.

    Args:
        prompts: with names in braces, "A {cat} hugs a {dog}".
        images, boxes: by name, one mapping for all prompts or a list of one for each.
        settings: fields of :class:`rbctl.prompts.fields.Settings`; None stands for the default.
        defaults: what takes the place of None.
        place: gives boxes for the individuals of a text by their names, where a prompt has none.
        weighting: A1111's marks weigh words, "(word:1.2)"; else they are words too.

    Raises:
        InputError: an argument is wrong; it is named.
    """
    names = {"steps": "num_inference_steps", "scale": "image_scale", "images": "num_images_per_prompt"}
    checked = formats.read(Settings, settings, "RelationPipeline", names)
    values = {**defaults, **{key: getattr(checked, key) for key, value in settings.items() if value is not None}}
    scale, copies = values.pop("scale"), values.pop("images")
    negative = read_weights(values.pop("negative_prompt"), "negative_prompt", weighting)
    values |= {"negative_prompt": negative.words, "negative_weights": negative.weights}
    requests = []
    for number, text in enumerate(prompts):
        source = f"prompt {number + 1}"
        own_images, own_boxes = (_of_prompt(mappings, number, len(prompts)) for mappings in (images, boxes))
        prompt = read_weights(_BRACES.sub(lambda braces: braces[1].strip(), text), source, weighting)
        subjects = _subjects(text, prompt.words, own_images, own_boxes, scale, place, weighting)
        own = Request(words=prompt.words, weights=prompt.weights, subjects=subjects, source=source, **values)
        requests += [own] * copies
    return requests


def _subjects(
    text: str,
    words: str,
    images: Mapping[str, Picture],
    boxes: Mapping[str, Box],
    scale: float,
    place: Callable[[str, Sequence[str]], Sequence[Box]],
    weighting: bool,
) -> tuple[Subject, ...]:
    """The individuals of a prompt in their order; one that is marked twice is one.

    Args:
        text: with braces. words: without them and without marks.
    """
    names = list(dict.fromkeys(name.strip() for name in _BRACES.findall(text)))
    for argument, mapping in (("images", images), ("boxes", boxes)):
        if strange := [name for name in mapping if name not in names]:
            raise InputError(f"{argument}: {strange[0]!r} has no place in the prompt; write {{{strange[0]}}}")
    if lacking := [name for name in names if name not in images]:
        raise InputError(f"images: has no picture of {lacking[0]!r}, which the prompt names")
    if boxes and len(boxes) < len(names):
        raise InputError("boxes: some individuals have a box and some have none; give one for each, or none")
    said = [read_weights(name, name, weighting).words for name in names]
    places = [_checked(boxes[name], name) for name in names] if boxes else place(words, said)
    pictures = [Path(image) if isinstance(image, str) else image for image in (images[name] for name in names)]
    return tuple(
        Subject(name=name, image=picture, box=box, scale=scale)
        for name, picture, box in zip(said, pictures, places, strict=True)
    )


def _of_prompt(mappings: Any, number: int, count: int) -> Mapping[str, Any]:
    """What an argument holds for prompt ``number`` of ``count``."""
    if mappings is None or isinstance(mappings, Mapping):
        return mappings or {}
    if len(mappings) != count:
        raise InputError(f"images and boxes: {len(mappings)} mappings for {count} prompts; give one, or one for each")
    return mappings[number]


def _checked(box: Any, name: str) -> Box:
    try:
        return check_box(box)
    except ValueError as error:
        raise InputError(f"boxes: {name}: {error}") from error
