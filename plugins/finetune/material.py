"""What is trained on: triplets of the relation, and a prior set that keeps what the base model can do besides."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rbctl.errors import InputError, reason
from rbctl.files import read_jsonl
from rbctl.paths import inside
from rbctl.plugins.finetune.config import FinetuneConfig
from rbctl.relations import Relation, check_box, load_relation
from rbctl.triplets import Triplet, TripletObject
from rbctl.triplets import load as load_triplets
from rbctl.triplets.folder import METADATA
from rbctl.triplets.keypoints import absent

_LARGEST = 512  # drawn pictures need no more pixels, whatever the resolution


@dataclass(frozen=True)
class Material:
    """Where a run's data lies.

    Attributes:
        data: folder of the relation's triplets.
        prior: folder of the prior set, None for none.
        drawn: those of the two that the run draws itself.
        follow_outside: the folders may name files outside of them.
    """

    data: Path
    prior: Path | None
    drawn: frozenset[Path]
    follow_outside: bool = False

    def load(self) -> tuple[list[Triplet], list[Triplet]]:
        """The triplets and the prior set.

        Raises:
            InputError: a folder is missing or broken.
        """
        prior = [] if self.prior is None else _load_prior(self.prior, self.follow_outside)
        return load_triplets(self.data, follow_outside=self.follow_outside), prior


def find(config: FinetuneConfig, relation: Relation, output: Path) -> Material:
    """Where the data of a run lies or will lie; what is given is read once, what has to be drawn can be.

    Raises:
        InputError: given data is broken, or the embedded world cannot draw what is not given.
    """
    data, prior = config.data or output / "triplets", None
    drawn = set() if config.data else {data}
    if config.prior == "drawn" or (config.prior == "auto" and config.data is None):
        prior = output / "prior"
        drawn.add(prior)
    elif config.prior not in ("auto", "none"):
        prior = Path(config.prior)
    found = Material(data, prior, frozenset(drawn), config.follow_outside)
    if config.data:
        load_triplets(config.data, follow_outside=config.follow_outside)
    else:
        from rbctl.menagerie.triplets import check_drawable

        check_drawable(relation)
    if prior in drawn:
        _prior_relations(config, relation)
    elif prior:
        _load_prior(prior, config.follow_outside)
    return found


def draw(material: Material, config: FinetuneConfig, relation: Relation, resolution: int) -> None:
    """Draw what the run has to draw itself and has not drawn yet.

    Args:
        resolution: side of the training pictures in pixels.
    """
    if not material.drawn:
        return
    from rbctl.menagerie.triplets import draw_scenes, draw_triplets

    size = min(resolution, _LARGEST)
    if material.data in material.drawn:
        draw_triplets(relation, config.triplets, config.seed, material.data, size=size)
    if material.prior in material.drawn:
        assert material.prior is not None
        others = _prior_relations(config, relation)
        draw_scenes(others, config.prior_count, config.seed, material.prior, size=size)


def _prior_relations(config: FinetuneConfig, relation: Relation) -> list[Relation]:
    from rbctl.menagerie.triplets import check_drawable

    others = [load_relation(name) for name in config.prior_relations]
    others = [other for other in others if other.name != relation.name]
    if not others:
        raise InputError("--prior-relations: name one or more besides the relation itself, or take --prior none")
    for other in others:
        check_drawable(other)
    return others


def _load_prior(folder: Path, follow_outside: bool) -> list[Triplet]:
    """A folder of triplets, or what ``rbctl sample`` made: pictures of the base model itself."""
    rows: list[dict[str, Any]] = []
    with contextlib.suppress(InputError):  # whatever it is instead, load_triplets tells
        rows = read_jsonl(folder / METADATA)
    if rows and all("fingerprint" in row for row in rows):
        return _load_sampled(folder, rows, follow_outside)
    return load_triplets(folder, follow_outside=follow_outside)


def _load_sampled(folder: Path, rows: list[dict[str, Any]], follow_outside: bool) -> list[Triplet]:
    """Pictures of ``rbctl sample`` with the individuals and boxes they are made from; those of text alone are left out.

    Raises:
        InputError: a line is wrong, no picture has individuals, or one of the files has gone or lies outside.
    """
    triplets = []
    for number, row in enumerate(rows):
        where = f"{folder / METADATA}: picture {number + 1}"
        try:
            objects = [
                TripletObject(
                    name=str(entry["name"]),
                    role=str(k),
                    image=inside(folder, str(entry["image"]), f"{where}: image", follow_outside),
                    mask=None,
                    box=check_box(entry["box"]),
                    target_keypoints=absent(),
                    image_keypoints=absent(),
                )
                for k, entry in enumerate(row["objects"])
            ]
            target = inside(folder, str(row["file_name"]), f"{where}: file_name", follow_outside)
            prompt = str(row["text"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{where}: not what 'rbctl sample' writes ({reason(error)}); sample again") from error
        if objects:
            triplets.append(Triplet(id=f"{number}", target=target, prompt=prompt, predicate="", objects=tuple(objects)))
    if not triplets:
        raise InputError(f"{folder}: none of its pictures has individuals; sample prompts with {{name: picture}}")
    for path in (path for t in triplets for path in (t.target, *(one.image for one in t.objects))):
        if not path.is_file():
            raise InputError(f"{folder}: {path} has gone; sample into the folder again")
    return triplets
