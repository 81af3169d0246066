"""Part ``oracle``: what judges pictures, trained on scenes of all relations as they are, spoilt, and through the VAE.

Generated pictures are never as clean as renders, so half of what it learns from is not either. Nor do they always show
what was asked: a quarter of its scenes have a fault (bodies merged, left out, there twice, apart, nobody at all).
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from rbctl.bundle.vae import UnshuffleVAE
from rbctl.draws import generator
from rbctl.menagerie import COATS, PATTERNS, SPECIES, Individual
from rbctl.menagerie.oracle import (
    ATTRIBUTES,
    Oracle,
    OracleConfig,
    Reading,
    by_side,
    grown,
    load_oracle,
    look,
    save_oracle,
)
from rbctl.menagerie.oracle_scores import identify, relation_score
from rbctl.menagerie.oracle_training import UNKNOWN, Truth, flattened, free_roles, mirrored, oracle_loss, ordered, spoil
from rbctl.plugins.pretrain import renders
from rbctl.plugins.pretrain.config import MOST, PretrainConfig
from rbctl.plugins.pretrain.loop import Part
from rbctl.relations import load_relation

SPOILT, ROUND_TRIPS, FLAT = 0.25, 0.25, 0.125  # shares of a batch
_NOISE = 0.5  # most noise on the latents of a round trip, in their own standard deviations
_CANDIDATES = 16
_LEAST_AREA = 0.01  # of the picture: what covers less is no body


def round_trip(vae: Any, pixels: torch.Tensor, chance: torch.Generator, most: float = _NOISE) -> torch.Tensor:
    """Pictures through the VAE, with up to ``most`` of noise on their latents (their own spread is 1)."""
    if not len(pixels):  # a small batch may have none, and PixelUnshuffle knows no empty one
        return pixels
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist.mean
        level = most * torch.rand(len(latents), 1, 1, 1, generator=chance) ** 2  # mostly little
        noise = level * torch.randn(latents.shape, generator=chance)
        return vae.decode(latents + latents.std() * noise.to(latents.device)).sample.clamp(-1, 1)


class OraclePart(Part):
    """See :class:`rbctl.plugins.pretrain.loop.Part`."""

    name = "oracle"
    kinds = ("all", "faults")

    def __init__(self, config: PretrainConfig, device: torch.device) -> None:
        super().__init__(config, device)
        self.renders = config.work / "renders"
        names = renders.relations(self.renders)
        relations = [load_relation(name) for name in names]
        symmetric = tuple(relation.name for relation in relations if relation.symmetric)
        self.free = free_roles(relations, MOST).to(device)
        plan = OracleConfig(tuple(names), symmetric, roles=MOST, faces=True)
        oracle = Oracle(plan) if config.oracle_from is None else grown(load_oracle(config.oracle_from), plan)
        self.oracle = oracle.requires_grad_(True).train().to(device).to(memory_format=torch.channels_last)
        self.vae: Any = None
        if (self.bundle / "vae" / "config.json").is_file():
            self.vae = UnshuffleVAE.from_pretrained(self.bundle / "vae", trust_remote_code=False)
            self.vae.to(device, memory_format=torch.channels_last).requires_grad_(False).eval()
        self.keypoints, self.looks = self.scenes.keypoints.all(), self.scenes.individuals.all().clip(min=0)
        self.relation = self.scenes.relation.all()
        self.raw = torch.compile(self.oracle.raw) if config.compile else self.oracle.raw

    def modules(self) -> dict[str, nn.Module]:
        return {"oracle": self.oracle}

    def loss(self, step: int, chance: torch.Generator) -> tuple[torch.Tensor, Mapping[str, Any]]:
        pixels, truth = self.batch(chance)
        return oracle_loss(self.raw(pixels.contiguous(memory_format=torch.channels_last)), truth)

    def batch(self, chance: torch.Generator) -> tuple[torch.Tensor, Truth]:
        """Pixels in [-1, 1], and what they show."""
        rows = torch.randint(len(self.scenes), (self.batch_size,), generator=chance).numpy()
        turned = (torch.rand(self.batch_size, generator=chance) < 0.5).to(self.device)
        truth = Truth(
            relation=torch.from_numpy(self.relation[rows]).long(),
            masks=torch.from_numpy(self.scenes.mask32[rows]).float() / 255,
            keypoints=by_side(torch.from_numpy(self.keypoints[rows])),
            looks=torch.from_numpy(self.looks[rows]).long(),
        ).to(self.device)
        pixels, truth = mirrored(renders.pixels(self.scenes.pictures[rows], self.device), truth, turned)
        shown = truth.masks.amax((-2, -1)) > 0
        truth = ordered(truth, torch.where((truth.relation == UNKNOWN)[:, None], shown, self.free[truth.relation]))
        spoilt, trips, flat = (round(self.batch_size * share) for share in (SPOILT, ROUND_TRIPS, FLAT))
        parts = list(pixels.split([self.batch_size - spoilt - trips - flat, spoilt, trips, flat]))
        parts[1] = spoil(parts[1], chance)
        parts[2] = spoil(parts[2], chance) if self.vae is None else round_trip(self.vae, parts[2], chance)
        parts[3] = flattened(parts[3], truth.masks[len(pixels) - flat :], chance)
        return torch.cat(parts), truth

    @torch.no_grad()
    def preview(self, folder: Path, step: int) -> Mapping[str, float]:
        """Shares of right answers on scenes of held-out individuals, as they are and (``_vae``) after a round trip."""
        pictures, relations = self.unseen.pictures.all(), renders.relations(self.renders)
        shares = measure(self.oracle.read(torch.from_numpy(pictures)), self.unseen, relations)
        if self.vae is None:
            return shares
        lots = renders.pixels(pictures, self.device).split(32)
        decoded = torch.cat([round_trip(self.vae, lot, generator("none"), most=0.0) for lot in lots])
        again = measure(self.oracle.read(decoded), self.unseen, relations)
        return shares | {f"{name}_vae": again[name] for name in ("relation_and_direction", "identity")}

    def finish(self) -> None:
        save_oracle(self.bundle / "oracle", self.oracle)


def measure(reading: Reading, scenes: renders.Scenes, names: Sequence[str]) -> dict[str, float]:
    """Shares of right answers on scenes whose truth is known.

    Args:
        names: of the relations that ``scenes.relation`` counts.

    Returns:
        relation; relation_and_direction, also by the number of individuals (``_1`` to ``_3``); each attribute; identity
        (one among 16 individuals of the same scenes); count, how many bodies there are; keypoint_error, in picture
        widths, of those that are seen; mask_iou.
    """
    reading = reading.map(lambda tensor: tensor.float().cpu())
    counts, relations = scenes.counts.tolist(), [names[number] for number in scenes.relation.all()]
    looks = torch.from_numpy(scenes.individuals.all()).long()
    truth = {"keypoints": scenes.keypoints.all(), "masks": scenes.mask32.all() / 255 > 0.5}
    everyone = [_individual(row) for row in looks[looks[..., 0] != renders.NOBODY].tolist()]
    rng = np.random.default_rng(0)
    right: dict[str, list[bool]] = {}
    errors, overlaps = [], []
    for number, (count, relation) in enumerate(zip(counts, relations, strict=True)):
        one = reading.map(operator.itemgetter(slice(number, number + 1)))
        group = [_individual(row) for row in looks[number, :count].tolist()]
        score = relation_score(one, relation, group)
        answers = {"relation": [bool(score.relation)], "relation_and_direction": [bool(score.right)]}
        answers[f"relation_and_direction_{count}"] = answers["relation_and_direction"]
        answers |= {name: getattr(score, name)[0].tolist() for name in ATTRIBUTES}
        answers["count"] = [int((one.areas[0] >= _LEAST_AREA).sum()) == count]
        answers["identity"] = []
        for role, own in enumerate(group):
            others = [everyone[k] for k in rng.choice(len(everyone), _CANDIDATES - 1, replace=False)]
            others.insert(int(rng.integers(_CANDIDATES)), own)  # the first wins where the oracle cannot decide
            chosen = others[int(identify(one, score.slots[:, role], [others]))]
            answers["identity"].append(look(chosen) == look(own))  # another one of the very same look is as right
        for name, values in answers.items():
            right.setdefault(name, []).extend(values)
        slots = score.slots[0].numpy()
        points, seen = one.keypoints[0].numpy()[slots], truth["keypoints"][number, :count]
        errors += np.linalg.norm(points[..., :2] - seen[..., :2], axis=-1)[seen[..., 2] == 2].tolist()
        maps, masks = one.maps[0].numpy()[slots] > 0.5, truth["masks"][number, :count]
        overlaps += ((maps & masks).sum((1, 2)) / np.maximum((maps | masks).sum((1, 2)), 1)).tolist()
    shares = {name: float(np.mean(values)) for name, values in right.items()}
    return shares | {"keypoint_error": float(np.mean(errors)), "mask_iou": float(np.mean(overlaps))}


def _individual(values: Sequence[int]) -> Individual:
    species, coat, second, pattern = values
    return Individual(SPECIES[species], list(COATS)[coat], list(COATS)[second], PATTERNS[pattern])
