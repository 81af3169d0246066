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
from rbctl.draws import generator
from rbctl.menagerie import COATS, PATTERNS, SPECIES, Individual
from rbctl.menagerie.oracle import (
    ATTRIBUTES,
    MASK_SIZE,
    ROLES,
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
from rbctl.plugins.pretrain.loop import Part
from rbctl.relations import load_relation

SPOILT, ROUND_TRIPS = 0.25, 0.25  # shares of a batch
_NOISE = 0.5  # most noise on the latents of a round trip, in their own standard deviations
_CANDIDATES = 16


def round_trip(vae: Any, pixels: torch.Tensor, chance: torch.Generator, most: float = _NOISE) -> torch.Tensor:
    """Pictures through the VAE, with up to ``most`` of noise on their latents (their own spread is 1)."""
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist.mean
        spread = latents.std() if len(latents) else 1.0
        level = most * torch.rand(len(latents), 1, 1, 1, generator=chance) ** 2  # mostly little
        noise = level * torch.randn(latents.shape, generator=chance)
        return vae.decode(latents + spread * noise.to(latents.device)).sample.clamp(-1, 1)


class OraclePart(Part):
    """See :class:`rbctl.plugins.pretrain.loop.Part`."""

    name = "oracle"

    def __init__(self, config: PretrainConfig, device: torch.device) -> None:
        super().__init__(config, device)
        names = renders.relations(config.work / "renders")
        symmetric = tuple(name for name in names if load_relation(name).symmetric)
        self.symmetric = torch.tensor([name in symmetric for name in names], device=device)
        self.oracle = Oracle(OracleConfig(tuple(names), symmetric)).to(device).to(memory_format=torch.channels_last)
        self.vae: Any = None
        if (self.bundle / "vae" / "config.json").is_file():
            self.vae = UnshuffleVAE.from_pretrained(self.bundle / "vae", trust_remote_code=False)
            self.vae.to(device, memory_format=torch.channels_last).requires_grad_(False).eval()
        self.rows = np.flatnonzero(self.scenes.counts == ROLES)
        self.keypoints, self.looks = self.scenes.keypoints.all(), self.scenes.individuals.all()
        self.relation = self.scenes.relation.all()
        self.raw = torch.compile(self.oracle.raw) if config.compile else self.oracle.raw

    def modules(self) -> dict[str, nn.Module]:
        return {"oracle": self.oracle}

    def loss(self, step: int, chance: torch.Generator) -> tuple[torch.Tensor, Mapping[str, Any]]:
        pixels, truth = self.batch(chance)
        return oracle_loss(self.raw(pixels.contiguous(memory_format=torch.channels_last)), truth)

    def batch(self, chance: torch.Generator) -> tuple[torch.Tensor, Truth]:
        """Pixels in [-1, 1], and what they show."""
        rows = self.rows[torch.randint(len(self.rows), (self.batch_size,), generator=chance).numpy()]
        turned = (torch.rand(self.batch_size, generator=chance) < 0.5).to(self.device)
        truth = Truth(
            relation=torch.from_numpy(self.relation[rows]).long(),
            masks=torch.from_numpy(self.scenes.mask32[rows][:, :ROLES]).float() / 255,
            keypoints=by_side(torch.from_numpy(self.keypoints[rows][:, :ROLES])),
            looks=torch.from_numpy(self.looks[rows][:, :ROLES]).long(),
        ).to(self.device)
        pixels, truth = mirrored(renders.pixels(self.scenes.pictures[rows], self.device), truth, turned)
        truth = ordered(truth, self.symmetric[truth.relation])
        spoilt, trips = (round(self.batch_size * share) for share in (SPOILT, ROUND_TRIPS))
        parts = list(pixels.split([self.batch_size - spoilt - trips, spoilt, trips]))
        parts[1] = spoil(parts[1], chance)
        parts[2] = spoil(parts[2], chance) if self.vae is None else round_trip(self.vae, parts[2], chance)
        return torch.cat(parts), truth

    @torch.no_grad()
    def preview(self, folder: Path, step: int) -> Mapping[str, float]:
        """Shares of right answers on scenes of held-out individuals, as they are and (``_vae``) after a round trip."""
        pictures = self.unseen.pictures[np.flatnonzero(self.unseen.counts == ROLES)]
        shares = measure(self.oracle.read(torch.from_numpy(pictures)), self.unseen, self.symmetric)
        if self.vae is None:
            return shares
        lots = renders.pixels(pictures, self.device).split(32)
        decoded = torch.cat([round_trip(self.vae, lot, generator("none"), most=0.0) for lot in lots])
        again = measure(self.oracle.read(decoded), self.unseen, self.symmetric)
        return shares | {f"{name}_vae": again[name] for name in ("relation_and_direction", "identity")}

    def finish(self) -> None:
        save_oracle(self.bundle / "oracle", self.oracle)


def measure(reading: Reading, scenes: renders.Scenes, symmetric: torch.Tensor) -> dict[str, float]:
    """Shares of right answers on scenes whose truth is known.

    Returns:
        relation; relation_and_direction; each attribute; identity (one among 16 individuals of the same scenes);
        keypoint_error, in picture widths, of those that are seen; mask_iou.
    """
    shown = np.flatnonzero(scenes.counts == ROLES)
    relation = torch.from_numpy(scenes.relation[shown]).long()
    looks = torch.from_numpy(scenes.individuals[shown][:, :ROLES]).long()
    everyone = [
        Individual(SPECIES[species], list(COATS)[coat], list(COATS)[second], PATTERNS[pattern])
        for species, coat, second, pattern in looks.flatten(0, 1).tolist()
    ]
    reading = reading.map(lambda tensor: tensor.float().cpu())
    slots = find_slots(reading, list(zip(everyone[::2], everyone[1::2], strict=True)))
    right = {"relation": reading.relation.argmax(1) == relation}
    right["relation_and_direction"] = right["relation"] & ((slots[:, 0] == 0) | symmetric.cpu()[relation])
    for at, name in enumerate(ATTRIBUTES):
        right[name] = getattr(reading, name).argmax(-1).gather(1, slots) == looks[..., at]
    rng = np.random.default_rng(0)
    identified = []
    for role in range(2):
        rows = []
        for own in range(role, len(everyone), 2):
            row = rng.choice(len(everyone), _CANDIDATES - 1, replace=False).tolist()
            row.insert(int(rng.integers(_CANDIDATES)), own)  # the first wins where the oracle cannot decide
            rows.append(row)
        chosen = identify(reading, slots[:, role], [[everyone[k] for k in row] for row in rows])
        numbers = torch.tensor(rows).gather(1, chosen[:, None])[:, 0]
        # Another candidate of the very same look is as right.
        identified.append((looks.flatten(0, 1)[numbers] == looks[:, role]).all(-1))
    right["identity"] = torch.cat(identified)
    shares = {name: float(values.float().mean()) for name, values in right.items()}
    keypoints = torch.from_numpy(scenes.keypoints[shown][:, :ROLES])
    points = reading.keypoints.gather(1, slots[:, :, None, None].expand_as(reading.keypoints))
    far = (points[..., :2] - keypoints[..., :2]).norm(dim=-1)
    shares["keypoint_error"] = float(far[keypoints[..., 2] == 2].mean())
    masks = torch.from_numpy(scenes.mask32[shown][:, :ROLES]).float() / 255 > 0.5
    maps = reading.maps.gather(1, slots[:, :, None, None].expand(-1, -1, MASK_SIZE, MASK_SIZE)) > 0.5
    overlap, union = (maps & masks).sum((-2, -1)), (maps | masks).sum((-2, -1)).clamp(min=1)
    shares["mask_iou"] = float((overlap / union).mean())
    return shares
