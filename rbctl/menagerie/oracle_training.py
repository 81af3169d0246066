"""What teaches an oracle: its losses, and pictures spoilt and mirrored.

Used where it is first trained (the stage ``pretrain``) and where ``oracle_extension`` teaches it more.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import avg_pool2d, binary_cross_entropy_with_logits, cross_entropy, interpolate, log_softmax

from rbctl.menagerie.oracle import ATTRIBUTES, RawReading

_WEIGHTS = {"relation": 1.0, "mask": 1.0, "look": 0.5, "keypoint": 0.5, "seen": 0.1}
_HIDDEN = 0.3  # how much a keypoint that is hidden counts beside one that is seen
_ENOUGH = 0.02  # of the picture: an individual that shows less counts less in what is said of its look


@dataclass(frozen=True)
class Truth:
    """What B pictures show.

    Attributes:
        relation: (B,) index.
        masks: (B, 2, 32, 32) in [0, 1], what is seen of each individual.
        keypoints: (B, 2, 17, 3) in the order of ``POINTS``: x, y in [0, 1] and visibility 0, 1, 2.
        looks: (B, 2, 4) indices.
    """

    relation: torch.Tensor
    masks: torch.Tensor
    keypoints: torch.Tensor
    looks: torch.Tensor

    def to(self, device: torch.device) -> Truth:
        """The same on a device."""
        return Truth(*(getattr(self, field.name).to(device) for field in dataclasses.fields(self)))


def spoil(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Pictures (B, 3, H, W) in [-1, 1], each a little blurred, noisy, off in colour, or more than one of these."""
    count, device = len(pixels), pixels.device

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        values = low + (high - low) * torch.rand(count, *(shape or (1, 1, 1)), generator=generator)
        return values.to(device)

    half = interpolate(avg_pool2d(pixels, 2), scale_factor=2, mode="bilinear")
    soft = avg_pool2d(nn.functional.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    coarse = uniform(0, 1) < 0.3
    x = torch.lerp(pixels, torch.where(coarse, half, soft), uniform(0, 1))
    x = x * uniform(0.85, 1.15) + uniform(-0.12, 0.12) + uniform(-0.05, 0.05, 3, 1, 1)
    noise = torch.randn(pixels.shape, generator=generator).to(device)
    return (x + noise * uniform(0, 0.12)).clamp(-1, 1)


def mirrored(pixels: torch.Tensor, truth: Truth, which: torch.Tensor) -> tuple[torch.Tensor, Truth]:
    """Pictures (B, 3, H, W) and their truth, mirrored where ``which`` (B,) is set.

    Roles stay: a mirrored rider is a rider. :func:`ordered` puts those of symmetric relations from left to right.
    """
    keypoints = torch.cat((1 - truth.keypoints[..., :1], truth.keypoints[..., 1:]), dim=-1)
    turned = dataclasses.replace(
        truth,
        masks=_where(which, truth.masks.flip(-1), truth.masks),
        keypoints=_where(which, keypoints, truth.keypoints),
    )
    return _where(which, pixels.flip(-1), pixels), turned


def ordered(truth: Truth, symmetric: torch.Tensor) -> Truth:
    """Roles from left to right where ``symmetric`` (B,) is set, as an oracle says them."""
    middle = truth.keypoints[..., 0].mean(-1)
    turn = symmetric & (middle[:, 1] < middle[:, 0])
    changed = {name: getattr(truth, name) for name in ("masks", "keypoints", "looks")}
    return dataclasses.replace(truth, **{name: _where(turn, x.flip(1), x) for name, x in changed.items()})


def _where(which: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.where(which.view(-1, *[1] * (a.ndim - 1)), a, b)


def keypoint_loss(heat: torch.Tensor, keypoints: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of heat maps against keypoints shared out among the four nearest cells, mean over weights.

    Args:
        heat: (..., n * n) logits.
        keypoints: (..., 3), x, y in [0, 1] and visibility: 0 is not counted, 1 counts ``_HIDDEN``.
    """
    side = round(heat.shape[-1] ** 0.5)
    weight = (keypoints[..., 2] == 2).float() + _HIDDEN * (keypoints[..., 2] == 1).float()
    at = (keypoints[..., :2] * side - 0.5).clamp(0, side - 1)
    low = at.floor().clamp(max=side - 2)
    part = at - low
    (x, y), (right, down) = low.long().unbind(-1), part.unbind(-1)
    cells = torch.stack((y * side + x, y * side + x + 1, (y + 1) * side + x, (y + 1) * side + x + 1), dim=-1)
    shares = torch.stack(((1 - right) * (1 - down), right * (1 - down), (1 - right) * down, right * down), dim=-1)
    cost = -(shares * log_softmax(heat.float(), dim=-1).gather(-1, cells)).sum(-1)
    return (cost * weight).sum() / weight.sum().clamp(min=1)


def mask_loss(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Cross-entropy and Dice of masks (B, 2, n, n) in [0, 1]: the latter for those that are small."""
    share = logits.sigmoid()
    overlap = 2 * (share * masks).sum((-2, -1)) + 1
    dice = 1 - overlap / (share.sum((-2, -1)) + masks.sum((-2, -1)) + 1)
    return binary_cross_entropy_with_logits(logits, masks) + 0.5 * dice.mean()


def oracle_loss(raw: RawReading, truth: Truth) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Weighted sum of all that an oracle is to say, and its parts."""
    shown = (truth.masks.mean((-2, -1)) / _ENOUGH).clamp(max=1)  # (B, 2)
    look = torch.zeros((), device=truth.masks.device)
    for at, name in enumerate(ATTRIBUTES):
        cost = cross_entropy(raw.looks[name].flatten(0, 1).float(), truth.looks[..., at].flatten(), reduction="none")
        look = look + (cost * shown.flatten()).sum() / shown.sum()
    parts = {
        "relation": cross_entropy(raw.relation.float(), truth.relation),
        "mask": mask_loss(raw.masks.float(), truth.masks),
        "look": look,
        "keypoint": keypoint_loss(raw.heat, truth.keypoints),
        "seen": binary_cross_entropy_with_logits(raw.seen.float(), (truth.keypoints[..., 2] == 2).float()),
    }
    total = sum((_WEIGHTS[name] * part for name, part in parts.items()), torch.zeros((), device=truth.masks.device))
    return total, {name: part.detach() for name, part in parts.items()}
