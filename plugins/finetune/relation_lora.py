"""The paper's method: a LoRA of the relation, on triplets, with keypoint matching and a prior set."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import torch
import yaml

from rbctl import kept, lora
from rbctl.bases import Base, family_of
from rbctl.bases.load import load, load_tokenizer, summary
from rbctl.bundle.catalogue import resolve
from rbctl.bundle.fingerprints import local_encoder_hash
from rbctl.device import DTYPES
from rbctl.errors import InputError
from rbctl.files import atomic_write, write_text
from rbctl.layout import LayoutPrior
from rbctl.options import as_plain
from rbctl.plugins.finetune import encodings, forgetting, metadata
from rbctl.plugins.finetune.config import FinetuneConfig
from rbctl.plugins.finetune.loop import Task
from rbctl.plugins.finetune.objective import Objective
from rbctl.plugins.finetune.preview import preview
from rbctl.plugins.finetune.samples import mean_loss, micro_batches
from rbctl.plugins.finetune.training_data import training_data
from rbctl.relations import Relation, load_relation
from rbctl.runs import RELATION, Run, tuned
from rbctl.triplets import Triplet, data_hash, geometry
from rbctl.triplets.check import check as check_triplets
from rbctl.triplets.problem import Problem

_FROZEN = "frozen.safetensors"  # the encodings of a run


class RelationLora:
    """The method ``relation_lora``; see :class:`~rbctl.plugins.finetune.run.Method`."""

    triplets: list[Triplet]
    prior: list[Triplet]
    problems: list[Problem]
    resolution: int
    layout: encodings.Layout
    bundle: Base
    encoded: dict[str, torch.Tensor]
    encoded_prior: dict[str, torch.Tensor] | None

    def __init__(self, config: FinetuneConfig, triplets: Sequence[Triplet] = ()) -> None:
        if config.relation is None:
            raise InputError("--relation: say which, a shipped name (ride, hug, ...) or the path of a relation's YAML")
        self.relation = load_relation(config.relation)
        self.name = self.relation.name
        if f"{self.name}.safetensors" == _FROZEN:
            raise InputError(f"--relation {config.relation}: a run has a file {_FROZEN} already; choose another name")
        self.output = config.output or tuned(self.relation.name, config.bundle)
        if triplets:
            config = dataclasses.replace(config, data=self.output / "triplets")
        self.config, self.data = config, training_data(config, self.relation, self.output, triplets)

    def render(self, resolution: int) -> None:
        self.data.render(resolution)

    def read(self, resolution: int) -> dict[str, Any]:
        self.triplets, self.prior = self.data.load(), self.data.load_prior()
        self._check(resolution)
        return {"data": data_hash(self.triplets), "prior": data_hash(self.prior) if self.prior else None}

    def load(self, run: Run, resolution: int, device: torch.device, facts: Mapping[str, Any]) -> Base:
        config, dtype = self.config, DTYPES[facts["precision"]]
        if run.world.first:
            self._warn()
        self.resolution, self.layout = resolution, self._layout(resolution)
        targets = [triplet.target for triplet in (*self.triplets, *self.prior)]
        sizes = encodings.training_sizes(targets, config, resolution, summary(resolve(config.bundle)).multiple)
        trained_in = self.layout.for_training(config)
        made_from = encodings.made_from(config, facts, resolution, dtype, sizes, trained_in)
        path, own = run.folder / _FROZEN, family_of(resolve(config.bundle)).module("training").Training.shapes
        others = run.folder.parent.glob(f"*/{_FROZEN}")  # of another rank or learning rate, on the same data
        if run.world.first and not path.is_file() and (twin := kept.twin(sorted(others), made_from)):
            with atomic_write(path) as partial:
                shutil.copyfile(twin, partial)
        encoded = kept.load(
            path, made_from, lambda tensors: encodings.fit(tensors, own, config.augmentation_draws, sizes)
        )
        if encoded:
            self.bundle = load(config.bundle, device, dtype, encoders=False)
        else:
            local_encoder = config.local_tokens != "none"
            self.bundle = load(config.bundle, device, dtype, local_encoder=local_encoder, lowvram=config.lowvram)
            encoded = encodings.encode(self.bundle, self.triplets, self.prior, config, resolution, trained_in)
            if run.world.first:
                kept.save(path, encoded, made_from)
            self.bundle.drop_encoders()
        if run.world.first:
            content = yaml.safe_dump(as_plain(self.relation), sort_keys=False, allow_unicode=True)
            write_text(run.folder / RELATION, content)
        self.encoded, self.encoded_prior = encodings.split(encoded, len(self.triplets))
        return self.bundle

    def _layout(self, resolution: int) -> encodings.Layout:
        sides = encodings.mirroring(self.triplets, self.config)
        boxes = [_whole_boxes(t, resolution, bool(side)) for t, side in zip(self.triplets, sides, strict=True)]
        return layout(self.triplets, boxes, self.relation, mirror=None in sides)

    def _check(self, resolution: int) -> None:
        """Look at the triplets as they are trained on, by the list of ``rbctl data check``.

        Raises:
            InputError: something is wrong, and --allow-errors is not given.
        """
        config = self.config
        self.problems = check_triplets(
            self.data.triplets,
            config.follow_outside,
            resolution=resolution,
            buckets=config.aspect_buckets,
            tokenizer=load_tokenizer(config.bundle),
        )
        if (errors := self.errors) and not config.allow_errors:
            more = f" (and {len(errors) - 1} more, see 'rbctl data check {self.data.triplets}')" if errors[1:] else ""
            raise InputError(f"{errors[0]}{more}; --allow-errors trains anyway")

    @property
    def errors(self) -> list[Problem]:
        return [problem for problem in self.problems if problem.level == "error"]

    def _warn(self) -> None:
        """Say what is wrong or doubtful about the triplets but does not stop a run."""
        for problem in self.problems:
            click.echo(f"{'warning' if problem.level == 'warning' else 'allowed'}: {problem}", err=True)
        for triplet in self.triplets:
            if self.config.kml_weight and not any(o.target_keypoints[:, 2].any() for o in triplet.objects):
                click.echo(f"warning: triplet {triplet.id!r} has no keypoints, so KML does nothing for it", err=True)

    def task(self, facts: Mapping[str, Any]) -> Task:
        task = relation_task(self.name, self.bundle, self.encoded, self.encoded_prior, self.config)
        return dataclasses.replace(
            task,
            metadata=lambda step: self._metadata(step, facts),
            export=lambda path, step: self._write(path, step, facts),
        )

    def _write(self, path: Path, step: int, facts: Mapping[str, Any]) -> None:
        config = self.config
        self.bundle.save_lora(path, self._metadata(step, facts), config.alpha, config.format)

    def save(self, steps: int, facts: Mapping[str, Any]) -> Path:
        path = self.output / f"{self.name}.safetensors"
        self._write(path, steps, facts)
        if self.encoded_prior:
            measured = forgetting.measure(self.bundle.model, self.encoded_prior, Objective.of(self.bundle, self.config))
            forgetting.report(self.output / "forgetting.json", measured)
        return path

    def _metadata(self, step: int, facts: Mapping[str, Any]) -> dict[str, str]:
        config, bundle = self.config, self.bundle
        resolution, prior = self.resolution, self.layout.prior
        predicate = next((t.predicate for t in self.triplets if t.predicate), self.relation.predicate)
        captions = [triplet.prompt for triplet in self.triplets]
        own = {
            "modelspec.description": f"Relation LoRA: individuals of whom one {predicate} the other.",
            "modelspec.usage_hint": f"Say {predicate!r} in the prompt. {bundle.adapter_hint}",
            "rbctl.relation": self.name,
            "rbctl.relation_file": json.dumps(as_plain(self.relation)),
            "rbctl.predicate": predicate,
            "rbctl.roles": json.dumps(prior.roles),
            "rbctl.layout_prior": prior.to_json(),
            "rbctl.trigger_prompt": self.triplets[0].prompt,
            "rbctl.local_tokens": config.local_tokens,
        }
        if "reference_mask" not in family_of(bundle.folder).only["finetune"]:
            own["rbctl.reference_mask"] = config.reference_mask
        if self.errors:
            own["rbctl.allowed_errors"] = "\n".join(map(str, self.errors))
        if config.local_tokens != "none":
            own["rbctl.local_encoder_hash"] = local_encoder_hash(bundle.folder)
        previews = sorted((self.output / "previews").glob("step-*.png"))
        if shown := [path for path in previews if path.stem <= f"step-{step:06d}"]:
            own["modelspec.thumbnail"] = metadata.thumbnail(shown[-1])
        title = f"{self.name} relation LoRA"
        return {
            **metadata.of_file(config, self.output, bundle, "lora", title, predicate, facts["data"]),
            **metadata.of_lora(config, bundle, self.name, captions, resolution, step),
            **own,
        }


def relation_task(
    name: str,
    bundle: Base,
    encoded: Mapping[str, torch.Tensor],
    prior: Mapping[str, torch.Tensor] | None,
    config: FinetuneConfig,
) -> Task:
    """Training the LoRA that is on the base's model.

    Args:
        encoded, prior: encodings of the relation's triplets and of the prior set.
    """
    objective, network = Objective.of(bundle, config), bundle.model

    def loss(model: Any, numbers: Sequence[int]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        batches = micro_batches(encoded, prior, numbers, config, objective.timesteps, bundle.device)
        return mean_loss(batches, lambda batch: objective.loss(model, batch))

    return Task(
        name, network, lora.named_parameters(network), loss, lambda path: preview(bundle, encoded, config, path)
    )


def _whole_boxes(triplet: Triplet, resolution: int, mirrored: bool) -> list[list[float]]:
    """Boxes (N, 4) of a triplet in its whole target, at the size of training."""
    target = geometry.resize(geometry.target(triplet), resolution, resolution)
    if mirrored:
        target = geometry.flip(target)
    boxes: list[list[float]] = torch.from_numpy(target.boxes).float().tolist()
    return boxes


def layout(
    triplets: Sequence[Triplet], boxes: Sequence[Sequence[Sequence[float]]], relation: Relation, mirror: bool = True
) -> encodings.Layout:
    """Where each role lies, over the triplets that have the roles of the fullest one.

    Args:
        boxes: (S, N, 4), each triplet's boxes in its whole target, in the order of its objects.
        mirror: whether a triplet may be mirrored to lie as the others do.
    """
    fullest = max(triplets, key=lambda triplet: len(triplet.objects))
    roles = [individual.role for individual in fullest.objects]
    rows = []
    for triplet, row in zip(triplets, boxes, strict=True):
        by_role = {individual.role: box for individual, box in zip(triplet.objects, row, strict=False)}
        if set(by_role) == set(roles):
            rows.append([by_role[role] for role in roles])
    # Of two, mirroring says the same.
    known = len(roles) > 2 and roles == [role.name for role in relation.roles]
    orders = tuple(tuple(order) for order in relation.orders()) if known else ()
    return encodings.Layout(LayoutPrior.from_boxes(rows, roles, orders, mirror), orders)
