"""What a baseline is trained on: pictures with captions, no image prompts. Given in folders, or drawn."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from rbctl.bundle.load import Bundle
from rbctl.draws import generator
from rbctl.errors import InputError
from rbctl.files import read_jsonl, sha256, write_json, write_jsonl
from rbctl.images import write_png
from rbctl.menagerie import BACKGROUNDS, SPECIES, Individual, Scene, compose, draw_individual, portrait
from rbctl.paths import inside
from rbctl.phrases import replaced
from rbctl.plugins.finetune import material
from rbctl.plugins.finetune.config import FinetuneConfig
from rbctl.progress import progress
from rbctl.relations import Relation, Role
from rbctl.triplets import TripletObject, geometry
from rbctl.triplets.folder import METADATA
from rbctl.triplets.keypoints import absent

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
_LARGEST = 512  # drawn pictures need no more pixels
_INVERSION: tuple[str, ...] = (
    "a photo of {}",
    "a picture of {}",
    "a good photo of {}",
    "a close photo of {}",
    "a bright photo of {}",
)
_INVERSION += ("a dark photo of {}", "a photo of one {}", "a photo of the {}", "a large photo of {}", "a drawing of {}")
_ALONE = Relation(
    name="alone",
    predicate="is there",
    forms=(),
    prompts=("A {subject}.",),
    roles=(Role("subject", (0.1, 0.1, 0.9, 0.9)),),
    scene={"figures": [{"pose": ["stand", "walk", "sit", "lie"], "facing": "either"}]},
)


@dataclass(frozen=True)
class Picture:
    """A training picture, and its captions, of which every sample has one."""

    file: Path
    captions: tuple[str, ...]


def pictures_hash(pictures: Sequence[Picture]) -> str:
    """SHA-256 over pictures and captions in their order."""
    content = [(sha256(picture.file), picture.captions) for picture in pictures]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def of_relation(config: FinetuneConfig, relation: Relation, token: str, output: Path, resolution: int) -> list[Picture]:
    """The targets of the relation's triplets; in their prompts the token stands for the words of the relation.

    Raises:
        InputError: the triplets are broken or cannot be drawn, or a prompt does not say the relation.
    """
    found = material.find(dataclasses.replace(config, prior="none"), relation, output)
    material.draw(found, config, relation, resolution)
    pictures = []
    for triplet in found.load()[0]:
        forms = [form for form in (triplet.predicate, relation.predicate, *relation.forms) if form]
        caption = replaced(triplet.prompt, forms, token)
        if caption is None:
            raise InputError(
                f"{found.data}: triplet {triplet.id!r}: its prompt {triplet.prompt!r} says none of "
                f"{', '.join(forms)}; mend its predicate"
            )
        pictures.append(Picture(triplet.target, (caption,)))
    return pictures


def of_subject(config: FinetuneConfig, name: str, output: Path, resolution: int) -> list[Picture]:
    """Pictures of one subject, captioned as ``name``.

    Raises:
        InputError: the folder holds none, or the embedded world does not know the class.
    """
    captions = [config.caption or "a photo of {}"]
    if config.method == "textual_inversion" and config.caption is None:
        captions = list(_INVERSION)
    said = tuple(caption.replace("{}", name) for caption in captions)
    folder = config.data
    if folder is None:
        folder, size = output / "subject", min(resolution, _LARGEST)
        _draw(folder, str(config.class_noun), config.triplets, config.seed, size, alone=True)
    return [Picture(file, said) for file in _files(folder)]


def of_class(config: FinetuneConfig, output: Path, resolution: int) -> list[Picture]:
    """DreamBooth's class pictures: a folder, as of ``rbctl sample``; or other individuals of the species, drawn."""
    noun, folder = str(config.class_noun), Path(config.prior)
    if config.prior == "none" or (config.prior == "auto" and config.data):
        return []
    if config.prior in ("auto", "drawn"):
        folder = output / "prior"
        _draw(folder, noun, config.prior_count, config.seed, min(resolution, _LARGEST), alone=False)
    caption = (config.caption or "a photo of {}").replace("{}", noun)
    return [Picture(file, (caption,)) for file in _files(folder)]


def _files(folder: Path) -> list[Path]:
    """The pictures of a folder; where ``rbctl sample`` made it, those of its prompts alone."""
    if (folder / METADATA).is_file():
        rows = read_jsonl(folder / METADATA)
        found = [inside(folder, str(row.get("file_name")), f"{folder / METADATA}: file_name") for row in rows]
    else:
        found = sorted(p for p in folder.iterdir() if p.suffix.lower() in _SUFFIXES) if folder.is_dir() else []
    if not found:
        raise InputError(f"{folder}: no pictures there; give a folder of pictures")
    return found


def _draw(folder: Path, species: str, count: int, seed: int, size: int, alone: bool) -> None:
    """Draw one individual in ordinary poses (``alone``), or others of its species, one a picture; done once.

    The first picture of one individual is its portrait. One seed gives the same individual, whatever the count.
    """
    if species not in SPECIES:
        raise InputError(f"--class-noun {species}: cannot be drawn; give pictures with --data, or {', '.join(SPECIES)}")
    facts = {"species": species, "count": count, "seed": seed, "size": size, "alone": alone}
    names = [f"{number:03}.png" for number in range(count)]
    drawn = folder / METADATA
    if drawn.is_file() and read_jsonl(drawn) == [{"file_name": name, **facts} for name in names]:
        return
    from rbctl.menagerie.triplets import pictures

    subject = _individual(species, np.random.default_rng((seed, 0)))
    scenes: list[Scene] = []
    for number in range(count):
        rng = np.random.default_rng((seed, 1 + number, alone))
        who = subject if alone else _individual(species, rng)
        face = alone and number == 0
        scenes.append(
            portrait(who, rng) if face else compose(_ALONE, [who], rng, BACKGROUNDS[number % len(BACKGROUNDS)])
        )
    for name, image in zip(names, pictures(scenes, size), strict=True):
        write_png(folder / name, image)
    if alone:
        write_json(folder / "individual.json", subject.to_json())
    write_jsonl(drawn, [{"file_name": name, **facts} for name in names])


def _individual(species: str, rng: np.random.Generator) -> Individual:
    while (one := draw_individual(rng)).species != species:
        pass
    return one


@torch.no_grad()
def encode(
    bundle: Bundle, pictures: Sequence[Picture], config: FinetuneConfig, resolution: int
) -> dict[str, torch.Tensor]:
    """What :func:`rbctl.plugins.finetune.objective.draw` draws samples from, of pictures without any object.

    Returns:
        Tensors with leading dimensions (S pictures, A draws), N = 0 objects: ``latents_mean``, ``latents_std``
        (C, h, w); ``prompt_latents_mean``, ``prompt_latents_std`` (0, C, h, w); ``boxes`` (0, 4); ``time_ids`` (6);
        ``number`` (), which picture it is.
    """
    rows = []
    with progress(len(pictures) * config.augmentation_draws, "encoding pictures", unit="draw") as bar:
        for number, picture in enumerate(pictures):
            for draw in range(config.augmentation_draws):
                rows.append(_encode_draw(bundle, picture, number, draw, config, resolution))
                bar.update()
    shape = (len(pictures), config.augmentation_draws)
    return {name: torch.stack([row[name] for row in rows]).unflatten(0, shape).cpu() for name in rows[0]}


def _encode_draw(
    bundle: Bundle, picture: Picture, number: int, draw: int, config: FinetuneConfig, resolution: int
) -> dict[str, torch.Tensor]:
    whole = TripletObject(
        name="",
        role="",
        image=picture.file,
        mask=None,
        box=(0, 0, 1, 1),
        target_keypoints=absent(),
        image_keypoints=absent(),
    )
    shown, zoom, anchor = geometry.image_prompt(whole), 1.0, (0.5, 0.5)
    width, height = shown.image.size
    if draw > 0:  # draw 0 is the picture as it is
        chance = torch.rand(4, generator=generator(config.seed, "augmentation", number, draw)).tolist()
        zoom, anchor = 1 + chance[0] * (config.max_zoom - 1), (chance[1], chance[2])
        if config.random_flip and chance[3] < 0.5:
            shown = geometry.flip(shown)
    image = geometry.cover(shown, resolution, resolution, zoom=zoom, anchor=anchor).image
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    mean, std = bundle.encode_pictures(pixels)
    return {
        "latents_mean": mean[0],
        "latents_std": std[0],
        "prompt_latents_mean": mean[:0],
        "prompt_latents_std": std[:0],
        "boxes": torch.zeros(0, 4),
        "time_ids": torch.tensor([height, width, 0, 0, resolution, resolution], dtype=torch.float32),
        "number": torch.tensor(number),
    }
