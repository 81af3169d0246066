"""Which samples a step is made of. All that is random is a function of (seed, sample number): batch size, processes and
resuming change nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from rbctl.bases import PER_TRIPLET
from rbctl.draws import generator, is_due
from rbctl.plugins.finetune.config import FinetuneConfig


@dataclass(frozen=True)
class MicroBatch:
    """B samples.

    Attributes:
        encoded: everything else about them, under the names of :mod:`rbctl.plugins.finetune.encodings`, with a
            leading B.
        latents, noise: (B, C, h, w).
        prompt_latents: (B, N, C, h, w), of the image prompts.
        timesteps: (B,) int64.
        own: (B,) float32, 1 for samples of the relation, 0 for those of the prior set.
        prior_share: of the run's samples.
    """

    encoded: Mapping[str, torch.Tensor]
    latents: torch.Tensor
    prompt_latents: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor
    own: torch.Tensor
    prior_share: float

    def take(self, rows: torch.Tensor) -> MicroBatch:
        """Some of the samples.

        Args:
            rows: (B,) bool.
        """
        encoded = {name: value[rows] for name, value in self.encoded.items()}
        own: dict[str, Any] = {
            name: value[rows] for name, value in vars(self).items() if isinstance(value, torch.Tensor)
        }
        return replace(self, encoded=encoded, **own)

    def means(self, parts: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Means of losses (B,) for the metrics: over the relation's samples, and ``prior`` over the prior set's.

        Divided by the expected number of samples, not by this batch's: it may be zero, and steps are compared.
        """
        share = self.prior_share
        means = {name: (part.detach() * self.own).mean() / (1 - share) for name, part in parts.items()}
        if share:
            means["prior"] = (parts["denoising"].detach() * (1 - self.own)).mean() / share
        return means


def mean_loss(
    batches: Sequence[MicroBatch], loss: Callable[[MicroBatch], tuple[torch.Tensor, dict[str, torch.Tensor]]]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """A loss and its parts over several micro-batches: means over all their samples.

    Args:
        loss: gives both as means over the samples of a micro-batch.
    """
    counts = [len(batch.timesteps) for batch in batches]
    shares = [count / sum(counts) for count in counts]
    losses = [loss(batch) for batch in batches]
    total = torch.stack([share * value for share, (value, _) in zip(shares, losses, strict=True)]).sum()
    parts = {
        name: torch.stack([share * own[name] for share, (_, own) in zip(shares, losses, strict=True)]).sum()
        for name in losses[0][1]
    }
    return total, parts


def micro_batch(
    encoded: Mapping[str, torch.Tensor],
    prior: Mapping[str, torch.Tensor] | None,
    numbers: Sequence[int],
    config: FinetuneConfig,
    timesteps: int,
    device: Any,
) -> MicroBatch:
    """The samples of these numbers, which are of one size; see :func:`micro_batches`."""
    (batch,) = micro_batches(encoded, prior, numbers, config, timesteps, device)
    return batch


def micro_batches(
    encoded: Mapping[str, torch.Tensor],
    prior: Mapping[str, torch.Tensor] | None,
    numbers: Sequence[int],
    config: FinetuneConfig,
    timesteps: int,
    device: Any,
) -> list[MicroBatch]:
    """The samples of these numbers, those of one size together.

    Args:
        encoded, prior: the relation's triplets and the prior set.
        timesteps: how many the schedule has.
    """
    rows: list[dict[str, torch.Tensor]] = []
    prior_share = config.prior_share if prior else 0.0
    for number in numbers:
        chance = generator(config.seed, "sample", number)
        is_prior, which = prior_number(number, prior_share)
        source = prior if prior and is_prior else encoded
        count, versions = source["boxes"].shape[:2]
        triplet = triplet_of(config.seed, which, count, "prior order" if is_prior else "order")
        row = _row(source, triplet, int(torch.randint(versions, (1,), generator=chance)))
        row["own"], row["sample"] = torch.tensor(float(not is_prior)), torch.tensor(number)
        row["timestep"] = random_timestep(config, timesteps, chance)
        row["noise"] = torch.randn(row["latents_mean"].shape, generator=chance)
        for kind in ("latents", "prompt_latents"):
            mean, std = row.pop(f"{kind}_mean"), row.pop(f"{kind}_std")
            row[kind] = mean + std * torch.randn(mean.shape, generator=chance)
        rows.append(row)
    return _stacked(rows, device, prior_share)


def fixed_micro_batches(
    encoded: Mapping[str, torch.Tensor], pairs: Sequence[tuple[int, int]], device: Any
) -> list[MicroBatch]:
    """Triplets as they are, each at a timestep: the most likely latents, and noise that is the same at every call.

    Args:
        pairs: (triplet, timestep).
    """
    rows: list[dict[str, torch.Tensor]] = []
    for triplet, timestep in pairs:
        row = _row(encoded, triplet, 0)
        row["own"], row["timestep"] = torch.tensor(0.0), torch.tensor(timestep)
        row["noise"] = torch.randn(row["latents_mean"].shape, generator=generator("fixed", triplet, timestep))
        for kind in ("latents", "prompt_latents"):
            row[kind] = row.pop(f"{kind}_mean")
            del row[f"{kind}_std"]
        rows.append(row)
    return _stacked(rows, device, 0.0)


def _row(encoded: Mapping[str, torch.Tensor], triplet: int, version: int) -> dict[str, torch.Tensor]:
    row = {
        name: tensor[triplet] if name in PER_TRIPLET else tensor[triplet, version]
        for name, tensor in encoded.items()
        if not name.startswith("empty_")
    }
    height, width = target_size(row["time_ids"])
    scale = row["object_mask"].shape[-1] // row["latents_mean"].shape[-1]
    row["object_mask"] = row["object_mask"][:height, :width]
    for name in ("latents_mean", "latents_std"):
        row[name] = row[name][..., : height // scale, : width // scale]
    return row


def target_size(time_ids: torch.Tensor) -> tuple[int, int]:
    """Height and width in pixels that the time ids (6) of a target name."""
    height, width = time_ids[-2:].int().tolist()
    return height, width


def _stacked(rows: Sequence[Mapping[str, torch.Tensor]], device: Any, prior_share: float) -> list[MicroBatch]:
    by_size: dict[torch.Size, list[Mapping[str, torch.Tensor]]] = {}
    for row in rows:
        by_size.setdefault(row["latents"].shape, []).append(row)
    return [_batch(alike, device, prior_share) for alike in by_size.values()]


def _batch(rows: Sequence[Mapping[str, torch.Tensor]], device: Any, prior_share: float) -> MicroBatch:
    batch = {name: torch.stack([row[name] for row in rows]).to(device) for name in rows[0]}
    return MicroBatch(
        latents=batch.pop("latents"),
        prompt_latents=batch.pop("prompt_latents"),
        noise=batch.pop("noise"),
        timesteps=batch.pop("timestep"),
        own=batch.pop("own"),
        prior_share=prior_share,
        encoded=batch,
    )


def triplet_of(seed: int, number: int, count: int, kind: str = "order") -> int:
    """Which of ``count`` triplets sample ``number`` of a kind is: every epoch a new permutation."""
    epoch, position = divmod(number, count)
    return int(torch.randperm(count, generator=generator(seed, kind, epoch))[position])


def prior_number(number: int, share: float) -> tuple[bool, int]:
    """Whether sample ``number`` of the run is a prior one, and which of its kind; exactly ``share`` of them are.

    They are spread evenly: with a share of a quarter every fourth sample, so two in each batch of eight.
    """
    before = math.floor(number * share)
    is_prior = is_due(number, share)
    return is_prior, before if is_prior else number - before


def random_timestep(config: FinetuneConfig, timesteps: int, chance: torch.Generator) -> torch.Tensor:
    """One timestep in [0, timesteps), int64 ().

    Logit-normal: Esser et al. 2024 (arXiv 2403.03206, section 3.1). Cosine: p(t) ~ 1 - cos(pi t / T) / 2, ReVersion's
    importance sampling (arXiv 2303.13495, section 4.3).
    """
    if config.timestep_sampling == "uniform":
        return torch.randint(timesteps, (), generator=chance)
    if config.timestep_sampling == "cosine":
        weights = 1 - torch.cos(torch.pi * torch.arange(timesteps) / timesteps) / 2
        return torch.multinomial(weights, 1, generator=chance)[0]
    share = torch.sigmoid(config.logit_mean + config.logit_std * torch.randn((), generator=chance))
    return (share * timesteps).long().clamp(max=timesteps - 1)
