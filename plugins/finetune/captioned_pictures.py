"""What a baseline is trained on: pictures with captions, no image prompts. Given in folders, or rendered."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from rbctl.bundle.bundle import Bundle
from rbctl.errors import InputError
from rbctl.files import content_hash, read_image, read_jsonl, sha256, write_json, write_jsonl, write_png
from rbctl.images import list_pictures
from rbctl.menagerie import BACKGROUNDS, SPECIES, Individual, Scene, compose, draw_individual, portrait
from rbctl.paths import inside
from rbctl.phrases import replaced
from rbctl.plugins.finetune.config import FinetuneConfig
from rbctl.plugins.finetune.encodings import Frame, pad_targets, pixels_of, training_sizes
from rbctl.plugins.finetune.training_data import LARGEST_RENDERED, training_data
from rbctl.progress import progress
from rbctl.relations import Relation, Role
from rbctl.triplets.folder import METADATA
from rbctl.triplets.geometry import Annotated
from rbctl.triplets.keypoints import absent

_INVERSION: tuple[str, ...] = (
    "a photo of {}", "a picture of {}", "a good photo of {}", "a close photo of {}", "a bright photo of {}",
    "a dark photo of {}", "a photo of one {}", "a photo of the {}", "a large photo of {}", "a drawing of {}",
)  # fmt: skip
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
    return content_hash([(sha256(picture.file), picture.captions) for picture in pictures])


def of_relation(config: FinetuneConfig, relation: Relation, token: str, output: Path, resolution: int) -> list[Picture]:
    """The targets of the relation's triplets; in their prompts the token stands for the words of the relation.

    Raises:
        InputError: the triplets are broken or cannot be rendered, or a prompt does not say the relation.
    """
    data = training_data(dataclasses.replace(config, prior="none"), relation, output)
    data.render(resolution)
    pictures = []
    for triplet in data.load():
        forms = [form for form in (triplet.predicate, relation.predicate, *relation.forms) if form]
        caption = replaced(triplet.prompt, forms, token)
        if caption is None:
            raise InputError(
                f"{data.triplets}: triplet {triplet.id!r}: its prompt {triplet.prompt!r} says none of "
                f"{', '.join(forms)}; mend its predicate"
            )
        pictures.append(Picture(triplet.target, (caption,)))
    return pictures


def of_subject(config: FinetuneConfig, name: str, output: Path, resolution: int) -> list[Picture]:
    """Pictures of one subject, captioned as ``name``.

    Raises:
        InputError: the folder holds none, or the embedded world does not know the class.
    """
    captions: tuple[str, ...] = (config.caption or "a photo of {}",)
    if config.method == "textual_inversion" and config.caption is None:
        captions = _INVERSION
    captions = tuple(caption.replace("{}", name) for caption in captions)
    folder = config.data
    if folder is None:
        folder = output / "subject"
        _render(folder, str(config.class_noun), config.triplets, config.seed, resolution, alone=True)
    return [Picture(file, captions) for file in _files(folder)]


def of_class(config: FinetuneConfig, output: Path, resolution: int) -> list[Picture]:
    """DreamBooth's class pictures: a folder, as of ``rbctl sample``; or other individuals of the species, rendered."""
    noun, folder = str(config.class_noun), Path(config.prior)
    if config.prior == "none" or (config.prior == "auto" and config.data):
        return []
    if config.prior in ("auto", "drawn"):
        folder = output / "prior"
        _render(folder, noun, config.prior_count, config.seed, resolution, alone=False)
    caption = (config.caption or "a photo of {}").replace("{}", noun)
    return [Picture(file, (caption,)) for file in _files(folder)]


def _files(folder: Path) -> list[Path]:
    """The pictures of a folder; where ``rbctl sample`` made it, those of its prompts alone."""
    files: list[Path] = []
    if (folder / METADATA).is_file():
        rows = read_jsonl(folder / METADATA)
        files = [inside(folder, str(row.get("file_name")), f"{folder / METADATA}: file_name") for row in rows]
    elif folder.is_dir():
        files = list_pictures(folder)
    if not files:
        raise InputError(f"{folder}: no pictures there; give a folder of pictures")
    return files


def _render(folder: Path, species: str, count: int, seed: int, resolution: int, alone: bool) -> None:
    """Render one individual in ordinary poses (``alone``), or others of its species, one a picture; done once.

    The first picture of one individual is its portrait. One seed gives the same individual, whatever the count.
    """
    if species not in SPECIES:
        raise InputError(f"--class-noun {species}: cannot be drawn; give pictures with --data, or {', '.join(SPECIES)}")
    size = min(resolution, LARGEST_RENDERED)
    facts = {"species": species, "count": count, "seed": seed, "size": size, "alone": alone}
    rows = [{"file_name": f"{number:03}.png", **facts} for number in range(count)]
    if (folder / METADATA).is_file() and read_jsonl(folder / METADATA) == rows:
        return
    from rbctl.menagerie.triplets import pictures

    subject = _individual(species, np.random.default_rng((seed, 0)))
    scenes: list[Scene] = []
    for number in range(count):
        rng = np.random.default_rng((seed, 1 + number, alone))
        individual = subject if alone else _individual(species, rng)
        if alone and number == 0:
            scenes.append(portrait(individual, rng))
        else:
            scenes.append(compose(_ALONE, [individual], rng, BACKGROUNDS[number % len(BACKGROUNDS)]))
    for row, image in zip(rows, pictures(scenes, size), strict=True):
        write_png(folder / str(row["file_name"]), image)
    if alone:
        write_json(folder / "individual.json", subject.to_json())
    write_jsonl(folder / METADATA, rows)


def _individual(species: str, rng: np.random.Generator) -> Individual:
    while (individual := draw_individual(rng)).species != species:
        pass
    return individual


@torch.no_grad()
def encode(
    bundle: Bundle, pictures: Sequence[Picture], config: FinetuneConfig, resolution: int
) -> dict[str, torch.Tensor]:
    """Encodings of pictures without any object, named as of :mod:`rbctl.plugins.finetune.encodings`, with N = 0.

    Returns:
        Tensors with leading dimensions (S pictures, A versions); besides, ``number`` (), which picture it is.
    """
    sizes = training_sizes([picture.file for picture in pictures], config, resolution)
    rows = []
    with progress(len(pictures) * config.augmentation_draws, "encoding pictures", unit="version") as bar:
        for number, picture in enumerate(pictures):
            image = read_image(picture.file)
            mask = np.ones((1, image.height, image.width), bool)
            whole = Annotated(image=image, masks=mask, boxes=np.array([[0.0, 0, 1, 1]]), keypoints=absent()[None])
            for version in range(config.augmentation_draws):
                cut, time_ids = Frame.of(config, number, version, sizes[number]).cut(whole)
                # In this layout, since the VAE's convolutions round differently in another.
                mean, std = bundle.encode_pictures(pixels_of([cut.image]).contiguous())
                row = {"latents_mean": mean[0], "latents_std": std[0], "time_ids": time_ids}
                nobody = mean[:0, :, :0, :0]
                row |= {"prompt_latents_mean": nobody, "prompt_latents_std": nobody, "boxes": torch.zeros(0, 4)}
                row["object_mask"] = torch.zeros(cut.image.height, cut.image.width, dtype=torch.bool)
                rows.append(row | {"number": torch.tensor(number)})
                bar.update()
    pad_targets(rows)
    shape = (len(pictures), config.augmentation_draws)
    return {name: torch.stack([row[name] for row in rows]).unflatten(0, shape).cpu() for name in rows[0]}
