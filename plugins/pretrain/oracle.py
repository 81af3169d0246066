"""Part ``oracle``: what judges pictures, trained on scenes of all relations as they are, spoilt, and through the VAE.

Generated pictures are never as clean as renders, so half of what it learns from is not either.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from rbctl.bundle.vae import UnshuffleVAE
from rbctl.menagerie import COATS, PATTERNS, SPECIES, Individual
from rbctl.menagerie.oracle import (
    ATTRIBUTES,
    MASK_SIZE,
    Oracle,
    OracleConfig,
    Reading,
    by_side,
    save_oracle,
)
from rbctl.menagerie.oracle_scores import find_slots, identify
from rbctl.menagerie.oracle_training import Truth, mirrored, oracle_loss, ordered, spoil
from rbctl.plugins.pretrain import renders
from rbctl.plugins.pretrain.config import PretrainConfig
from rbctl.plugins.pretrain.loop import draws
from rbctl.relations import load_relation

SPOILT, ROUND_TRIPS = 0.25, 0.25  # shares of a batch
_NOISE = 0.5  # most noise on the latents of a round trip, in their own standard deviations
_CANDIDATES = 16


def round_trip(vae: Any, pixels: torch.Tensor, generator: torch.Generator, most: float = _NOISE) -> torch.Tensor:
    """Pictures through the VAE, with up to ``most`` of noise on their latents (their own spread is 1)."""
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist.mean
        spread = latents.std() if len(latents) else 1.0
        level = most * torch.rand(len(latents), 1, 1, 1, generator=generator) ** 2  # mostly little
        noise = level * torch.randn(latents.shape, generator=generator)
        return vae.decode(latents + spread * noise.to(latents.device)).sample.clamp(-1, 1)


class OraclePart:
    """See :class:`rbctl.plugins.pretrain.loop.Part`."""

    def __init__(self, config: PretrainConfig, device: torch.device) -> None:
        folder = config.work / "renders"
        self.device, self.batch_size = device, config.oracle_batch_size
        self.learning_rate, self.bundle = config.oracle_learning_rate, config.work / "bundle"
        self.scenes, self.unseen = renders.scenes(folder, "all"), renders.scenes(folder, "held_out")
        names = renders.relations(folder)
        self.symmetric = torch.tensor([load_relation(name).symmetric for name in names], device=device)
        symmetric = tuple(name for name in names if load_relation(name).symmetric)
        self.oracle = Oracle(OracleConfig(tuple(names), symmetric)).to(device)
        self.oracle.to(memory_format=torch.channels_last)
        vae = self.bundle / "vae"
        self.vae = None
        if (vae / "config.json").is_file():
            self.vae = UnshuffleVAE.from_pretrained(vae, trust_remote_code=False).to(
                device, memory_format=torch.channels_last
            )
            self.vae.requires_grad_(False).eval()
        self.masks = self.scenes.mask32
        self.keypoints, self.looks = self.scenes.keypoints.all(), self.scenes.individuals.all()
        self.relation = self.scenes.relation.all()
        self.raw = torch.compile(self.oracle.raw) if config.compile else self.oracle.raw

    def modules(self) -> dict[str, nn.Module]:
        return {"oracle": self.oracle}

    def loss(self, step: int, generator: torch.Generator) -> tuple[torch.Tensor, Mapping[str, Any]]:
        pixels, truth = self.batch(generator)
        raw = self.raw(pixels.contiguous(memory_format=torch.channels_last))
        return oracle_loss(raw, truth)

    def batch(self, generator: torch.Generator) -> tuple[torch.Tensor, Truth]:
        """Pixels in [-1, 1], and what they show."""
        rows = torch.randint(len(self.scenes), (self.batch_size,), generator=generator).numpy()
        which = (torch.rand(self.batch_size, generator=generator) < 0.5).to(self.device)
        pixels = torch.from_numpy(self.scenes.pictures[rows]).to(self.device).float() / 127.5 - 1
        truth = Truth(
            relation=torch.from_numpy(self.relation[rows]).to(self.device).long(),
            masks=torch.from_numpy(self.masks[rows]).to(self.device).float() / 255,
            keypoints=by_side(torch.from_numpy(self.keypoints[rows]).to(self.device)),
            looks=torch.from_numpy(self.looks[rows]).to(self.device).long(),
        )
        pixels, truth = mirrored(pixels, truth, which)
        truth = ordered(truth, self.symmetric[truth.relation])
        spoilt, trips = (round(self.batch_size * share) for share in (SPOILT, ROUND_TRIPS))
        parts = list(pixels.split([self.batch_size - spoilt - trips, spoilt, trips]))
        parts[1] = spoil(parts[1], generator)
        parts[2] = spoil(parts[2], generator) if self.vae is None else round_trip(self.vae, parts[2], generator)
        return torch.cat(parts), truth

    @torch.no_grad()
    def preview(self, folder: Path, step: int) -> Mapping[str, float]:
        """Shares of right answers on scenes of held-out individuals, as they are and (``_vae``) after a round trip."""
        unseen = self.unseen
        pictures = torch.from_numpy(unseen.pictures.all())
        reading = self.oracle.read(pictures)
        found = measure(reading, unseen, self.symmetric)
        if self.vae is not None:
            pixels = (pictures.to(self.device).float() / 127.5 - 1).split(32)
            through = torch.cat([round_trip(self.vae, lot, draws("none"), most=0.0) for lot in pixels])
            again = measure(self.oracle.read(through), unseen, self.symmetric)
            found |= {f"{name}_vae": again[name] for name in ("relation_and_direction", "identity")}
        return found

    def finish(self, folder: Path) -> None:
        save_oracle(self.bundle / "oracle", self.oracle)


def measure(reading: Reading, scenes: renders.Scenes, symmetric: torch.Tensor) -> dict[str, float]:
    """Shares of right answers on scenes whose truth is known.

    Returns:
        relation; relation_and_direction; each attribute; identity (one among 16 individuals of the same scenes);
        keypoint_error, in picture widths, of those that are seen; mask_iou.
    """
    relation = torch.from_numpy(scenes.relation.all()).long()
    looks = torch.from_numpy(scenes.individuals.all()).long()
    pairs = [tuple(_individual(row) for row in pair) for pair in looks.tolist()]
    reading = reading.map(lambda tensor: tensor.float().cpu())
    slots = find_slots(reading, pairs)
    right = reading.relation.argmax(1) == relation
    directed = right & ((slots[:, 0] == 0) | symmetric.cpu()[relation])
    found = {"relation": _mean(right), "relation_and_direction": _mean(directed)}
    for at, name in enumerate(ATTRIBUTES):
        found[name] = _mean(getattr(reading, name).argmax(-1).gather(1, slots) == looks[..., at])
    rng = np.random.default_rng(0)
    everyone = [one for pair in pairs for one in pair]
    known = []
    for k in range(2):
        rows = []
        for pair in pairs:
            others = rng.choice(len(everyone), _CANDIDATES - 1, replace=False)
            row = [everyone[n] for n in others]
            row.insert(int(rng.integers(_CANDIDATES)), pair[k])  # the first wins where the oracle cannot decide
            rows.append(row)
        chosen = identify(reading, slots[:, k], rows)
        # Another candidate of the very same look is as right.
        told = [row[int(c)] for row, c in zip(rows, chosen, strict=True)]
        known.append(torch.tensor([_same(one, pair[k]) for one, pair in zip(told, pairs, strict=True)]))
    found["identity"] = _mean(torch.cat(known))
    keypoints = torch.from_numpy(scenes.keypoints.all())
    points = reading.keypoints.gather(1, slots[:, :, None, None].expand_as(reading.keypoints))
    far = (points[..., :2] - keypoints[..., :2]).norm(dim=-1)
    found["keypoint_error"] = float(far[keypoints[..., 2] == 2].mean())
    masks = torch.from_numpy(scenes.mask32.all()).float() / 255 > 0.5
    maps = reading.maps.gather(1, slots[:, :, None, None].expand(-1, -1, MASK_SIZE, MASK_SIZE)) > 0.5
    shared, either = (maps & masks).sum((-2, -1)), (maps | masks).sum((-2, -1)).clamp(min=1)
    found["mask_iou"] = float((shared / either).mean())
    return found


def _individual(row: list[int]) -> Individual:
    coats = tuple(COATS)
    return Individual(SPECIES[row[0]], coats[row[1]], coats[row[2]], PATTERNS[row[3]])


def _same(a: Individual, b: Individual) -> bool:
    return (a.species, a.coat, a.second, a.pattern) == (b.species, b.coat, b.second, b.pattern)


def _mean(right: torch.Tensor) -> float:
    return float(right.float().mean())


def build(config: PretrainConfig, device: torch.device) -> OraclePart:
    """The part, with first weights from torch's own generator."""
    return OraclePart(config, device)
