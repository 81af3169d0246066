"""What teaches an oracle: its losses, and pictures spoilt and mirrored.

Used where it is first trained (the stage ``pretrain``) and where ``oracle_extension`` teaches it more.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import avg_pool2d, binary_cross_entropy_with_logits, cross_entropy, interpolate, log_softmax

from rbctl.menagerie.oracle import ATTRIBUTES, MASK_SIZE, POINTS, RawReading
from rbctl.relations import Relation

_WEIGHTS = {"relation": 1.0, "mask": 1.0, "look": 0.5, "keypoint": 0.5, "seen": 0.1, "faces": 2.0}
_HIDDEN = 0.3  # how much a keypoint that is hidden counts beside one that is seen
_EYES = [POINTS.index("near_eye"), POINTS.index("far_eye")]
_FACE = 0.03  # of the picture: how wide the hill of a face is
UNKNOWN = -1  # the relation of a picture that shows none
_ENOUGH = 0.02  # of the picture: an individual that shows less counts less in what is said of its look


@dataclass(frozen=True)
class Truth:
    """What B pictures show.

    Attributes:
        relation: (B,) index, or ``UNKNOWN``.
        masks: (B, R, 32, 32) in [0, 1], what is seen of each individual; zeros where there are fewer than roles.
        keypoints: (B, R, 17, 3) in the order of ``POINTS``: x, y in [0, 1] and visibility 0, 1, 2.
        looks: (B, R, 4) indices.
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


def flattened(pixels: torch.Tensor, masks: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Pictures (B, 3, H, W) in [-1, 1] with bodies of one colour on a plain background, as other cartoons are drawn.

    Args:
        masks: (B, R, h, w) in [0, 1], where each individual is seen.
    """

    def mean(where: torch.Tensor) -> torch.Tensor:
        return (pixels * where).sum((2, 3), keepdim=True) / where.sum((2, 3), keepdim=True).clamp(min=1)

    sharp = interpolate(masks, pixels.shape[-2:], mode="bilinear")
    bodies = ((sharp - 0.5) * 6 + 0.5).clamp(0, 1)
    drawn = mean(1 - bodies.amax(1, keepdim=True)).expand_as(pixels)
    for body in bodies.split(1, dim=1):
        drawn = torch.lerp(drawn, mean(body), body)
    share = 0.5 + 0.5 * torch.rand(len(pixels), 1, 1, 1, generator=generator)
    return torch.lerp(pixels, drawn, share.to(pixels.device))


def mirrored(pixels: torch.Tensor, truth: Truth, which: torch.Tensor) -> tuple[torch.Tensor, Truth]:
    """Pictures (B, 3, H, W) and their truth, mirrored where ``which`` (B,) is set.

    Roles stay: a mirrored rider is a rider. :func:`ordered` puts those that may change places from left to right.
    """
    keypoints = torch.cat((1 - truth.keypoints[..., :1], truth.keypoints[..., 1:]), dim=-1)
    turned = dataclasses.replace(
        truth,
        masks=_where(which, truth.masks.flip(-1), truth.masks),
        keypoints=_where(which, keypoints, truth.keypoints),
    )
    return _where(which, pixels.flip(-1), pixels), turned


def ordered(truth: Truth, free: torch.Tensor) -> Truth:
    """Roles that may change places from left to right, as an oracle says them.

    Args:
        free: (B, R) bool, which roles may.
    """
    middles = truth.keypoints[..., 0].mean(-1).tolist()
    rows = []
    for middle, may in zip(middles, free.tolist(), strict=True):
        places = [role for role, moves in enumerate(may) if moves]
        filled = dict(zip(places, sorted(places, key=middle.__getitem__), strict=True))
        rows.append([filled.get(role, role) for role in range(len(may))])
    order, batch = torch.tensor(rows, device=free.device), torch.arange(len(rows), device=free.device)[:, None]
    changed = {name: getattr(truth, name)[batch, order] for name in ("masks", "keypoints", "looks")}
    return dataclasses.replace(truth, **changed)


def free_roles(relations: Sequence[Relation], roles: int) -> torch.Tensor:
    """(relations, roles) bool: which roles of each relation may change places."""
    rows = [
        {order[role] for order in r.orders() for role in range(len(order)) if order[role] != role} for r in relations
    ]
    return torch.tensor([[role in row for role in range(roles)] for row in rows])


def faces(keypoints: torch.Tensor, side: int = MASK_SIZE) -> torch.Tensor:
    """Where faces are, (B, side, side) in [0, 1]: a small round hill between the eyes of everybody who shows one.

    Args:
        keypoints: (B, R, 17, 3) in the order of ``POINTS``.
    """
    eyes = keypoints[:, :, _EYES]
    shown = (eyes[..., 2] == 2).any(-1)
    middle = eyes[..., :2].mean(2)
    steps = (torch.arange(side, device=keypoints.device) + 0.5) / side
    x, y = ((steps - middle[..., k, None]) ** 2 for k in (0, 1))
    hills = torch.exp(-(x[..., None, :] + y[..., :, None]) / (2 * _FACE**2)) * shown[..., None, None]
    return hills.amax(1)


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
    """Cross-entropy and Dice of masks (B, R, n, n) in [0, 1]: the latter for those that are small."""
    share = logits.sigmoid()
    overlap = 2 * (share * masks).sum((-2, -1)) + 1
    dice = 1 - overlap / (share.sum((-2, -1)) + masks.sum((-2, -1)) + 1)
    return binary_cross_entropy_with_logits(logits, masks) + 0.5 * dice.mean()


def oracle_loss(raw: RawReading, truth: Truth) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Weighted sum of all that an oracle is to say, and its parts."""
    shown = (truth.masks.mean((-2, -1)) / _ENOUGH).clamp(max=1)  # (B, R)
    look = torch.zeros((), device=truth.masks.device)
    for at, name in enumerate(ATTRIBUTES):
        cost = cross_entropy(raw.looks[name].flatten(0, 1).float(), truth.looks[..., at].flatten(), reduction="none")
        look = look + (cost * shown.flatten()).sum() / shown.sum()
    said = cross_entropy(raw.relation.float(), truth.relation, ignore_index=UNKNOWN, reduction="sum")
    parts = {
        "relation": said / (truth.relation != UNKNOWN).sum().clamp(min=1),
        "mask": mask_loss(raw.masks.float(), truth.masks),
        "look": look,
        "keypoint": keypoint_loss(raw.heat, truth.keypoints),
        "seen": binary_cross_entropy_with_logits(raw.seen.float(), (truth.keypoints[..., 2] == 2).float()),
    }
    if raw.faces is not None:
        parts["faces"] = binary_cross_entropy_with_logits(raw.faces.float(), faces(truth.keypoints))
    total = sum((_WEIGHTS[name] * part for name, part in parts.items()), torch.zeros((), device=truth.masks.device))
    return total, {name: part.detach() for name, part in parts.items()}
