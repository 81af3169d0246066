"""Triplets out of the embedded world: scenes of relations and portraits of who is in them, every annotation exact."""

from __future__ import annotations

import re
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rbctl.errors import InputError
from rbctl.files import read_json, write_json, write_png
from rbctl.menagerie import (
    BACKGROUNDS,
    SPECIES,
    Individual,
    Rendering,
    Scene,
    compose,
    draw_individual,
    portrait,
    render,
)
from rbctl.menagerie.individuals import unlike
from rbctl.menagerie.scenes import scene_rule
from rbctl.progress import progress
from rbctl.relations import Relation
from rbctl.triplets import Triplet, TripletObject, load
from rbctl.triplets.folder import METADATA, write
from rbctl.triplets.keypoints import ABSENT, FACE, VISIBLE
from rbctl.triplets.masks import box_of

DRAWN = "drawn.json"  # beside the triplets: what they were drawn from
DRAWN_AS = 5  # version of what the same facts are drawn as
_BATCH = 8  # scenes rendered at once: more need more memory and are no faster
_TRIES = 8  # scenes that are composed of a group, at most


def draw_triplets(
    relation: Relation, count: int, seed: int, folder: Path, held_out: bool = False, size: int = 128
) -> None:
    """Render triplets of one relation into a folder in the native form; drawn already, they stay as they are.

    Args:
        seed: one seed gives the same triplets, and the first of many are those of few.
        held_out: of individuals that no training shows.
        size: side of the pictures in pixels.

    Raises:
        InputError: the world has no rules to draw the relation by, or the folder holds triplets not drawn here.
    """
    draw_scenes([relation], count, seed, folder, held_out, size)


def draw_scenes(
    relations: Sequence[Relation], count: int, seed: int, folder: Path, held_out: bool = False, size: int = 128
) -> None:
    """As ``draw_triplets``, of several relations in turn: scenes of what a model can do already, a prior set."""
    for relation in relations:
        check_drawable(relation)
    facts = {
        "relations": [relation.name for relation in relations],
        "rules": zlib.crc32(repr(relations).encode()),
        "count": count,
        "seed": seed,
        "held_out": held_out,
        "size": size,
        "version": DRAWN_AS,
    }
    if not _make_room(folder, facts):
        return
    with tempfile.TemporaryDirectory() as name, progress(count, "drawing triplets", unit="triplet") as bar:
        triplets = []
        for number in range(count):
            relation = relations[number % len(relations)]
            rng = np.random.default_rng((seed, number, zlib.crc32(relation.name.encode())))
            species = _species_in_turn(seed, number * len(relation.roles), len(relation.roles))
            # Places in turn: of six drawn at random half may be nights, and nights are what a LoRA learns then.
            place = BACKGROUNDS[number % len(BACKGROUNDS)]
            stem = Path(name) / f"{number}-{relation.name}"
            triplets.append(_draw(relation, draw_group(relation, rng, held_out, species), rng, size, place, stem))
            bar.update()
        write_json(folder / DRAWN, facts)
        write(triplets, folder)


def check_drawable(relation: Relation) -> None:
    """Raises InputError when the world has no rules to draw the relation by, or wrong ones."""
    if relation.scene is None:
        raise InputError(
            f"relation {relation.name!r}: cannot be drawn; give triplets with --data, or add a 'scene:' to its YAML"
        )
    scene_rule(relation)


def draw_group(
    relation: Relation, rng: np.random.Generator, held_out: bool = False, species: Sequence[str] = ()
) -> list[Individual]:
    """As many individuals as the relation has roles, of different species: so that their names tell them apart.

    Args:
        species: of each; none for any.
    """
    group: list[Individual] = []
    while len(group) < len(relation.roles):
        one = draw_individual(rng, held_out)
        if one.species == species[len(group)] if species else one.species not in {other.species for other in group}:
            group.append(one)
    return group


def spoken(relation: Relation, caption: str) -> str:
    """The words of a caption that say the relation, the longest of its forms; its predicate where there are none."""
    forms = sorted({relation.predicate, *relation.forms}, key=len, reverse=True)
    matches = (re.search(rf"(?<!\w){re.escape(form)}(?!\w)", caption, re.IGNORECASE) for form in forms)
    return next((match[0] for match in matches if match), relation.predicate)


def pictures(scenes: Sequence[Scene], size: int) -> list[Image.Image]:
    """Render scenes to pictures of ``size`` x ``size`` pixels."""
    made: list[Image.Image] = []
    for first in range(0, len(scenes), _BATCH):
        made += _images(render(scenes[first : first + _BATCH], size).pictures)
    return made


def _make_room(folder: Path, facts: dict[str, Any]) -> bool:
    """Whether there is anything to draw; triplets drawn here from other facts are dropped."""
    metadata, drawn = folder / METADATA, folder / DRAWN
    if not drawn.is_file():
        if metadata.exists():
            raise InputError(f"{folder}: other triplets lie here already; choose another folder, or remove this one")
        return True
    if metadata.is_file():
        if read_json(drawn) == facts:
            return False
        triplets = load(folder)  # whose files lie inside
        metadata.unlink()
        for triplet in triplets:
            parts = [path for one in triplet.objects for path in (one.image, one.mask)]
            for path in filter(None, (triplet.target, *parts)):
                path.unlink(missing_ok=True)
    return True


def _species_in_turn(seed: int, first: int, count: int) -> list[str]:
    """``count`` different species, those after the ``first`` in an endless row of shuffled decks.

    Six pairs drawn at random leave out a quarter of them, and those are what a LoRA draws worst. Six individuals alone
    are less than a deck, so theirs begins with the bodies that are least alike.
    """
    taken: list[str] = []
    while len(taken) < count:
        number, place = divmod(first, len(SPECIES))
        deck = [SPECIES[k] for k in np.random.default_rng((seed, number)).permutation(len(SPECIES))]
        name = (unlike(deck[0]) if count == 1 else deck)[place]
        if name not in taken:
            taken.append(name)
        first += 1
    return taken


def _draw(
    relation: Relation, group: list[Individual], rng: np.random.Generator, size: int, background: str, stem: Path
) -> Triplet:
    """One triplet of a group, its pictures under names that begin with ``stem``."""
    alone = render([portrait(one, rng) for one in group], size)
    scene, drawn = _compose(relation, group, rng, size, background)
    visible = drawn.visible[0].cpu().numpy()
    in_target, in_portraits = drawn.keypoints[0].cpu().numpy(), alone.keypoints[:, 0].cpu().numpy()
    write_png(stem.with_suffix(".png"), *_images(drawn.pictures))
    portraits = _images(alone.pictures)
    objects = []
    for k, (one, role) in enumerate(zip(group, relation.roles, strict=True)):
        image, mask = stem.with_name(f"{stem.name}-{k}.png"), stem.with_name(f"{stem.name}-{k}-mask.png")
        write_png(image, portraits[k])
        write_png(mask, Image.fromarray(visible[k].astype(np.uint8) * 255))
        objects.append(
            TripletObject(
                name=one.species,
                role=role.name,
                image=image,
                mask=mask,
                box=box_of(visible[k]),
                target_keypoints=_inside(in_target[k]),
                image_keypoints=_inside(in_portraits[k]),
            )
        )
    return Triplet(
        id=stem.name,
        target=stem.with_suffix(".png"),
        prompt=scene.caption,
        predicate=spoken(relation, scene.caption),
        objects=tuple(objects),
    )


def _compose(
    relation: Relation, group: list[Individual], rng: np.random.Generator, size: int, background: str
) -> tuple[Scene, Rendering]:
    """The first scene that shows every face, else the one that shows most of the individual it shows least.

    A LoRA leaves out of its pictures whoever the triplets hide.
    """
    most = (-1, 0.0)
    for _ in range(_TRIES):
        scene = compose(relation, group, rng, background)
        drawn = render([scene], size)
        if (seen := _seen(drawn)) > most:
            most, best = seen, (scene, drawn)
        if seen[0] == len(FACE):
            break
    return best


def _seen(drawn: Rendering) -> tuple[int, float]:
    """Of the individual that a scene shows least: how many of nose and eyes, and the share of its silhouette."""
    faces = (drawn.keypoints[0, :, FACE, 2] == VISIBLE).sum(dim=1)
    shares = drawn.visible[0].sum(dim=(1, 2)) / drawn.full[0].sum(dim=(1, 2)).clamp(min=1)
    return int(faces.min()), float(shares.min())


def _inside(keypoints: np.ndarray) -> np.ndarray:
    """(17, 3) rounded for a file; keypoints outside the picture are absent."""
    xy = keypoints[:, :2]
    inside = ((xy >= 0) & (xy <= 1)).all(axis=1) & (keypoints[:, 2] != ABSENT)
    return np.where(inside[:, None], keypoints.round(5), 0).astype(np.float32)


def _images(pixels: Any) -> list[Image.Image]:
    """(B, 3, H, W) uint8 as pictures."""
    return [Image.fromarray(np.ascontiguousarray(one)) for one in pixels.permute(0, 2, 3, 1).cpu().numpy()]
