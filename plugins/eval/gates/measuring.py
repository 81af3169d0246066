"""What the gates are measured on: scenes, LoRAs and pictures of them; what is made already stays."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image

from rbctl import formats, lora
from rbctl.denoising import to_pictures
from rbctl.files import read_image, read_jsonl, read_object, sha256, write_json
from rbctl.menagerie.cases import DrawnCase, Stream, draw_cases
from rbctl.menagerie.judge import Judge
from rbctl.paths import relative
from rbctl.pipeline import RelationPipeline
from rbctl.plugins.eval import sampling
from rbctl.plugins.eval.gates.figures import Scores, scores
from rbctl.plugins.eval.gates.recipe import Gates
from rbctl.plugins.eval.kinds.menagerie import of_world
from rbctl.plugins.eval.stages import Stages, Step, complete, digest, learned, run_steps, tuning
from rbctl.relations import Box, load_relation

_STREAM = Stream(0x6A7E5)  # the scenes of all figures that were ever kept
_SEEDS_APART = 10_000  # scenes of a relation that have noise of their own under every seed
BATCH = 8  # pictures through the VAE, or drawn, at once

Boxes = Sequence[Sequence[Box]]


@dataclass(frozen=True)
class Arm:
    """Pictures of scenes, all made in one way.

    Attributes:
        relation: of all scenes, a name or a YAML's path; "" where they are of several, named as they are.
        boxes: per scene; None for those that ``rbctl sample`` takes itself.
        lora: None for the base model.
        seed: others give other noise; 0 is each scene's own.
    """

    name: str
    cases: tuple[DrawnCase, ...]
    relation: str = ""
    boxes: Boxes | None = None
    lora: Path | None = None
    seed: int = 0

    def prompts(self, folder: Path) -> dict[str, Any]:
        """As a prompts file of ``rbctl sample`` in ``folder``."""
        cases = [of_world(case, self.relation or case.relation.name) for case in self.cases]
        content = sampling.prompts(cases, {}, folder)
        for entry, boxes in zip(content["prompts"], self.boxes or [()] * len(self.cases), strict=True):
            entry["lora"] = relative(self.lora, folder) if self.lora else "none"
            entry["seed"] = (entry["seed"] + _SEEDS_APART * self.seed) % 2**63
            for subject, box in zip(entry["objects"], boxes, strict=False):
                subject["box"] = list(box)
        return content


@dataclass(frozen=True)
class Tuned:
    """A LoRA of one relation and seed.

    Attributes:
        folder: of its tuning.
        options: all of ``rbctl finetune``.
    """

    relation: str
    seed: int
    folder: Path
    options: Mapping[str, Any]

    @property
    def path(self) -> Path:
        """Its file, once the tuning has ended."""
        path = learned(self.folder)
        assert path is not None, self.folder
        return path

    @property
    def boxes(self) -> tuple[Box, ...]:
        """Of its layout prior, in the order of the roles."""
        prior = lora.layout_prior([lora.read(self.path)])
        assert prior is not None, self.path
        return prior.boxes()

    def facts(self) -> dict[str, Any]:
        """What is kept of it."""
        forgetting = self.folder / "forgetting.json"
        made = tuning(self.folder)
        return {
            "seed": self.seed,
            "steps": self.options["steps"],
            "seconds": made and made.seconds,
            "threads": made and made.threads,
            "denoising_loss_on_prior_set": read_object(forgetting) if forgetting.is_file() else None,
        }


@dataclass(frozen=True)
class _Listed:
    """Which pictures are an arm's."""

    pictures: tuple[formats.Words, ...]


@dataclass(frozen=True)
class Measuring:
    """Measures the sections of a recipe in a folder.

    Attributes:
        judge: of all pictures; what the oracle does not know it learns.
    """

    gates: Gates
    folder: Path
    stages: Stages
    judge: Judge
    _cases: dict[str, tuple[DrawnCase, ...]] = field(default_factory=dict, repr=False)

    def cases(self, relation: str, count: int) -> tuple[DrawnCase, ...]:
        """The first scenes of a relation, a name or a YAML's path."""
        if len(self._cases.get(relation, ())) < count:
            rules = load_relation(relation)
            self._cases[relation] = draw_cases([rules], count, self.folder / "cases" / rules.name, _STREAM)
        return self._cases[relation][:count]

    def each(self, relations: Sequence[str]) -> int:
        """Scenes of each relation."""
        return math.ceil(self.gates.scenes / max(len(relations), 1))

    @cached_property
    def easy_cases(self) -> tuple[DrawnCase, ...]:
        """What every LoRA's forgetting is measured on."""
        return tuple(case for relation in self.gates.easy for case in self.cases(relation, self.gates.easy_scenes))

    @cached_property
    def pipeline(self) -> RelationPipeline:
        """The bundle, loaded when a round trip is asked for."""
        click.echo(f"loading {self.gates.bundle}", err=True)
        return RelationPipeline.from_pretrained(self.gates.bundle, device=self.stages.device)

    def round_trip(self, pictures: Sequence[Image.Image]) -> list[Image.Image]:
        """Pictures through the VAE and back."""
        bundle, back = self.pipeline.bundle, list[Image.Image]()
        for first in range(0, len(pictures), BATCH):
            pixels = torch.from_numpy(as_pixels(pictures[first : first + BATCH])).permute(0, 3, 1, 2)
            latents, _ = bundle.encode_pictures(pixels.to(bundle.device).float() / 127.5 - 1)
            back += to_pictures(bundle.decode_latents(latents))
        return back

    def scores(self, pictures: Sequence[Image.Image], cases: Sequence[DrawnCase]) -> Scores:
        """What the judge says of pictures."""
        return scores(self.judge(pictures, cases))

    # --- LoRAs and pictures ---

    @cached_property
    def finetune_options(self) -> dict[str, Any]:
        """All that LoRAs are tuned with, checked by the stage itself."""
        needed = ("--relation", self.gates.relations[0])
        return complete("finetune", self.gates.finetune, self.gates.bundle, "gates", *needed)

    @cached_property
    def sample_options(self) -> dict[str, Any]:
        """All that pictures are sampled with, likewise."""
        return complete("sample", self.gates.sample, self.gates.bundle, "gates", "prompts.yaml")

    def tuned(self, relations: Sequence[str], seeds: Sequence[int], again: str = "") -> list[Tuned]:
        """The LoRAs of relations, seed by seed, tuned where they are not there.

        Args:
            again: a word for runs of their own, beside those that are there.
        """
        tuned, steps = list[Tuned](), list[Step]()
        options = self.finetune_options
        for seed, relation in itertools.product(seeds, relations):
            rules = load_relation(relation)
            key = self.stages.tuning_key(rules, seed, options, *filter(None, [again]))
            folder = self.folder / "loras" / f"{rules.name}-s{seed}-{key}"
            tuned.append(Tuned(relation, seed, folder, options))
            if learned(folder) is None:
                steps.append(self.stages.finetune(folder, options, "--relation", relation, "--seed", str(seed)))
        run_steps(steps, self.stages.jobs, "finetune")
        return tuned

    def sample(self, arms: Sequence[Arm]) -> None:
        """Sample the arms whose pictures are not there; those of one LoRA together, to load the bundle once."""
        groups: dict[str, list[Arm]] = {}
        for number, arm in enumerate(arm for arm in arms if self._listed(arm) is None):
            group = arm.lora.parent.name if arm.lora else f"base-{number % self.stages.jobs}"
            groups.setdefault(group, []).append(arm)
        steps = []
        for name, own in groups.items():
            place = self.folder / "pictures" / name
            prompts = {"prompts": [entry for arm in own for entry in arm.prompts(place.parent)["prompts"]]}
            list_them = functools.partial(self._list, place, own)
            steps.append(self.stages.sample(place, prompts, self.sample_options, list_them))
        run_steps(steps, self.stages.jobs, "sample")

    def pictures(self, arm: Arm) -> list[Image.Image]:
        """Of an arm that was sampled, in the order of its cases."""
        return [read_image(path) for path in self._listed(arm) or ()]

    def _list(self, place: Path, arms: Sequence[Arm]) -> None:
        """Note which of the pictures in a folder are whose."""
        names = iter(row["file_name"] for row in read_jsonl(place / "metadata.jsonl"))
        for arm in arms:
            own = [f"{place.name}/{next(names)}" for _ in arm.cases]
            write_json(self._list_of(arm), {"pictures": own})

    def _listed(self, arm: Arm) -> list[Path] | None:
        """An arm's pictures, if all of them are there."""
        path = self._list_of(arm)
        listed = formats.read(_Listed, read_object(path), str(path)).pictures if path.is_file() else ()
        paths = [self.folder / "pictures" / name for name in listed]
        return paths if paths and all(map(Path.is_file, paths)) else None

    def _list_of(self, arm: Arm) -> Path:
        """The file that lists an arm's pictures, named by all that they depend on."""
        depends = {
            "bundle": self.stages.fingerprint,
            "cases": [case.picture.name for case in arm.cases],
            "relation": repr(load_relation(arm.relation)) if arm.relation else "",
            "boxes": None if arm.boxes is None else [[list(box) for box in own] for own in arm.boxes],
            "lora": sha256(arm.lora) if arm.lora else None,
            "seed": arm.seed,
            "sample": self.sample_options,
        }
        return self.folder / "arms" / f"{arm.name}-{digest(depends)}.json"


def as_pixels(pictures: Sequence[Image.Image]) -> np.ndarray:
    """(n, H, W, 3) uint8."""
    return np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
