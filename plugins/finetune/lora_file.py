"""What the LoRA file says of itself."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from rbctl.bundle.load import BASE, Bundle, fingerprint, local_encoder_hash
from rbctl.layout import LayoutPrior
from rbctl.options import to_yaml
from rbctl.plugins.finetune.config import FinetuneConfig
from rbctl.relations import Relation
from rbctl.triplets import Triplet


def layout_prior(triplets: Sequence[Triplet], boxes: torch.Tensor) -> LayoutPrior:
    """Where each role lies, over the triplets that have the roles of the fullest one.

    Args:
        boxes: (S, N, 4), each triplet's boxes in the training square, in the order of its objects.
    """
    fullest = max(triplets, key=lambda triplet: len(triplet.objects))
    roles = [thing.role for thing in fullest.objects]
    rows = []
    for triplet, row in zip(triplets, boxes.tolist(), strict=True):
        by_role = {thing.role: box for thing, box in zip(triplet.objects, row, strict=False)}
        if set(by_role) == set(roles):
            rows.append([by_role[role] for role in roles])
    return LayoutPrior.from_boxes(rows, roles)


def metadata(
    config: FinetuneConfig,
    relation: Relation,
    triplets: Sequence[Triplet],
    bundle: Bundle,
    frozen: Mapping[str, torch.Tensor],
    facts: Mapping[str, Any],
) -> dict[str, str]:
    """modelspec's and kohya's keys for other tools, ``rbctl.*`` for ours. No date: the same run gives the same file."""
    resolution = frozen["latents_mean"].shape[-1] * bundle.latent_scale
    prior = layout_prior(triplets, frozen["boxes"][:, 0])
    predicate = next((t.predicate for t in triplets if t.predicate), relation.predicate)
    found = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": f"{relation.name} relation LoRA",
        "modelspec.description": f"RelationLoRA: individuals of whom one {relation.predicate} the other.",
        "modelspec.trigger_phrase": predicate,
        "modelspec.resolution": f"{resolution}x{resolution}",
        "modelspec.prediction_type": bundle.scheduler_config.get("prediction_type", "epsilon"),
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(config.rank),
        "ss_network_alpha": str(config.alpha),
        "ss_steps": str(config.steps),
        "rbctl.relation": relation.name,
        "rbctl.predicate": predicate,
        "rbctl.roles": json.dumps(prior.roles),
        "rbctl.layout_prior": prior.to_json(),
        "rbctl.trigger_prompt": triplets[0].prompt,
        "rbctl.recipe": to_yaml("finetune", dataclasses.replace(config, output=None)),
        "rbctl.data_hash": facts["data"],
        "rbctl.base": fingerprint(bundle.folder, BASE),
        "rbctl.local_tokens": config.local_tokens,
    }
    if config.local_tokens != "none":
        found["rbctl.local_encoder_hash"] = local_encoder_hash(bundle.folder)
    return {key: str(value) for key, value in found.items()}
