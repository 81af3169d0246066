"""Where the triplets lie: those of the relation, and a prior set that keeps what the base model can do besides."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
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
from rbctl.triplets.folder import METADATA, write
from rbctl.triplets.keypoints import absent

LARGEST_RENDERED = 512  # pixels; rendered pictures need no more, whatever the resolution


@dataclass(frozen=True)
class TrainingData:
    """The two folders of a run.

    Attributes:
        triplets: folder of the relation's triplets; without ``config.data`` the embedded world renders them.
        prior: folder of the prior set, None for none.
        prior_relations: whose scenes are rendered there; empty where the folder is given.
        listed: triplets that are copied into their folder.
    """

    config: FinetuneConfig
    relation: Relation
    triplets: Path
    prior: Path | None = None
    prior_relations: tuple[Relation, ...] = ()
    listed: Sequence[Triplet] = ()

    def render(self, resolution: int) -> None:
        """Render what is not given and not there yet.

        Args:
            resolution: side of the training pictures in pixels.
        """
        from rbctl.menagerie.triplets import draw_scenes, draw_triplets

        config, size = self.config, min(resolution, LARGEST_RENDERED)
        if self.listed:
            write(self.listed, self.triplets)
        elif config.data is None:
            draw_triplets(self.relation, config.triplets, config.seed, self.triplets, size=size)
        if self.prior and self.prior_relations:
            draw_scenes(list(self.prior_relations), config.prior_count, config.seed, self.prior, size=size)

    def load(self) -> list[Triplet]:
        """The relation's triplets.

        Raises:
            InputError: the folder is missing or broken.
        """
        return load_triplets(self.triplets, follow_outside=self.config.follow_outside)

    def load_prior(self) -> list[Triplet]:
        """The prior set: a folder of triplets, or what ``rbctl sample`` made: pictures of the base model itself.

        Raises:
            InputError: the folder is missing or broken.
        """
        if self.prior is None:
            return []
        rows: list[dict[str, Any]] = []
        with contextlib.suppress(InputError):  # whatever it is instead, load_triplets tells
            rows = read_jsonl(self.prior / METADATA)
        if rows and all("fingerprint" in row for row in rows):
            return _sampled(self.prior, rows, self.config.follow_outside)
        return load_triplets(self.prior, follow_outside=self.config.follow_outside)


def training_data(
    config: FinetuneConfig, relation: Relation, output: Path, listed: Sequence[Triplet] = ()
) -> TrainingData:
    """Where the data of a run lies or will lie. What is given is read once, what is to be rendered can be.

    Raises:
        InputError: a folder is missing or broken, or the embedded world cannot render what is not given.
    """
    prior, others = None, tuple[Relation, ...]()
    if config.prior == "drawn" or (config.prior == "auto" and config.data is None):
        prior, others = output / "prior", _prior_relations(config, relation)
    elif config.prior not in ("auto", "none"):
        prior = Path(config.prior)
    data = TrainingData(config, relation, config.data or output / "triplets", prior, others, listed)
    if not others:
        data.load_prior()
    if config.data and not listed:
        data.load()
    elif not config.data:
        from rbctl.menagerie.triplets import check_drawable

        check_drawable(relation)
    return data


def _prior_relations(config: FinetuneConfig, relation: Relation) -> tuple[Relation, ...]:
    from rbctl.menagerie.triplets import check_drawable

    relations = [load_relation(name) for name in config.prior_relations]
    others = tuple(other for other in relations if other.name != relation.name)
    if not others:
        raise InputError("--prior-relations: name one or more besides the relation itself, or take --prior none")
    for other in others:
        check_drawable(other)
    return others


def _sampled(folder: Path, rows: list[dict[str, Any]], follow_outside: bool) -> list[Triplet]:
    """Pictures of ``rbctl sample`` with the individuals and boxes they are made from; those of text alone are left out.

    Raises:
        InputError: a line is wrong, no picture has individuals, or one of the files has gone or lies outside.
    """
    triplets = []
    for number, row in enumerate(rows):
        where = f"{folder / METADATA}: picture {number + 1}"

        def path(name: Any, field: str, where: str = where) -> Path:
            path = inside(folder, str(name), f"{where}: {field}", follow_outside)
            if not path.is_file():
                raise InputError(f"{folder}: {path} is gone; sample into the folder again")
            return path

        try:
            if not row["objects"]:
                continue
            objects = tuple(
                TripletObject(
                    name=str(entry["name"]),
                    role=str(k),
                    image=path(entry["image"], "image"),
                    mask=None,
                    box=check_box(entry["box"]),
                    target_keypoints=absent(),
                    image_keypoints=absent(),
                )
                for k, entry in enumerate(row["objects"])
            )
            target, prompt = path(row["file_name"], "file_name"), str(row["text"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{where}: not what 'rbctl sample' writes ({reason(error)}); sample again") from error
        triplets.append(Triplet(id=f"{number}", target=target, prompt=prompt, predicate="", objects=objects))
    if not triplets:
        raise InputError(f"{folder}: none of its pictures has individuals; sample prompts with {{name: picture}}")
    return triplets
