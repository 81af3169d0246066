"""Part ``dino``: a second image encoder, trained without words, for evaluation alone.

Self-distillation as in DINO: a student that sees crops predicts what an averaged teacher says of the two largest
views. These are of one portrait, of two portraits of one individual, or of its portrait and of itself cut out of a
scene: so it learns to tell individuals by what stays from picture to picture, whatever they do.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import log_softmax, normalize

from rbctl.plugins.pretrain import renders
from rbctl.plugins.pretrain.architecture import DINO
from rbctl.plugins.pretrain.config import PretrainConfig
from rbctl.plugins.pretrain.loop import Part
from rbctl.plugins.pretrain.optimizer import sum_over_processes
from rbctl.plugins.pretrain.weights import write_network
from rbctl.plugins.pretrain.windows import WHOLE, cut, embeddings, square
from rbctl.processes import world

_GLOBAL, _LOCAL = 64, 32  # sides of the views in pixels
_LOCALS = 2
_GLOBAL_SHARE, _LOCAL_SHARE = (0.75, 1.0), (0.4, 0.7)  # sides of the views, of the picture's
_PROTOTYPES, _BOTTLENECK = 512, 64
_STUDENT, _TEACHER = 0.1, 0.05  # temperatures
_CENTRE = 0.9
_MOMENTUM = 0.985
_FROM_SCENES, _TWO_PORTRAITS = 0.5, 0.25  # shares of a batch; the rest is two views of one portrait
_CANDIDATES = 16
_LEAST_SEEN = 0.02


class Head(nn.Module):
    """Class token -> logits over prototypes of unit length."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, 256), nn.GELU(), nn.Linear(256, _BOTTLENECK))
        self.prototypes = nn.Linear(_BOTTLENECK, _PROTOTYPES, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = normalize(self.layers(x), dim=-1)
        return x @ normalize(self.prototypes.weight, dim=-1).T


class Student(nn.Module):
    """Encoder and head, and the running mean of the teacher's logits; the teacher is another one of them."""

    centre: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        from transformers import Dinov2Config, Dinov2Model

        self.encoder = Dinov2Model(Dinov2Config(**DINO))
        self.encoder.embeddings.mask_token.requires_grad_(False)  # nothing is masked here
        self.head = Head(DINO["hidden_size"])
        self.register_buffer("centre", torch.zeros(_PROTOTYPES))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(pixels).pooler_output)


def distillation_loss(student: list[torch.Tensor], teacher: list[torch.Tensor], centre: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of every student view against every teacher view but itself.

    Args:
        student: logits (B, K) per view, the global ones first.
        teacher: logits (B, K) per global view.
        centre: (K,), taken off the teacher's logits so that no prototype wins everywhere.
    """
    targets = [((view - centre) / _TEACHER).softmax(-1).detach() for view in teacher]
    costs = [
        -(target * log_softmax(view / _STUDENT, dim=-1)).sum(-1).mean()
        for i, target in enumerate(targets)
        for j, view in enumerate(student)
        if i != j
    ]
    return torch.stack(costs).mean()


class DinoPart(Part):
    """See :class:`rbctl.plugins.pretrain.loop.Part`."""

    name = "dino"

    def __init__(self, config: PretrainConfig, device: torch.device) -> None:
        super().__init__(config, device)
        self.boxes, self.people = self.scenes.boxes.all(), self.scenes.person.all()
        # Scene and role of those that are seen; portraits of people beyond these are not drawn yet.
        self.shown = np.argwhere(_is_seen(self.scenes) & (self.people < self.portraits.people))
        self.student = Student().to(device)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.plain = (self.student.head.prototypes.weight,)  # their lengths mean nothing

    def modules(self) -> dict[str, nn.Module]:
        return {"student": self.student, "teacher": self.teacher}

    def loss(self, step: int, chance: torch.Generator) -> tuple[torch.Tensor, Mapping[str, Any]]:
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=chance)))
        if step:
            self._follow()
        sources = self._pictures(rng)
        views = torch.cat([self._view(rng, source, _GLOBAL_SHARE, _GLOBAL) for source in sources])
        local = torch.cat([self._view(rng, sources[k % 2], _LOCAL_SHARE, _LOCAL) for k in range(_LOCALS)])
        with torch.no_grad():
            teacher = self.teacher(views).float()
        student = [*self.student(views).float().chunk(2), *self.student(local).float().chunk(_LOCALS)]
        centre = self.student.centre
        loss = distillation_loss(student, list(teacher.chunk(2)), centre)
        with torch.no_grad():
            mean = teacher.mean(0) / world().size
            sum_over_processes(mean)  # one centre for all
            centre.lerp_(mean, 1 - _CENTRE)
            shares = ((teacher - centre) / _TEACHER).softmax(-1).mean(0)
            used = (-(shares * shares.clamp(min=1e-9).log()).sum()).exp()  # collapsed where this falls to 1
        return loss, {"prototypes": used}

    @torch.no_grad()
    def _follow(self) -> None:
        for teacher, student in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            teacher.lerp_(student, 1 - _MOMENTUM)

    def _pictures(self, rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
        """Twice (pictures (B, 3, H, W), boxes (B, 4)) of the same individuals; the boxes show them."""
        each, count = self.portraits.per_person, self.batch_size
        from_scenes, two = round(count * _FROM_SCENES), round(count * _TWO_PORTRAITS)
        crops = self.shown[rng.integers(len(self.shown), size=from_scenes)]
        others = rng.integers(self.portraits.people, size=count - from_scenes)
        people = np.concatenate((self.people[crops[:, 0], crops[:, 1]], others))
        first, second = (people * each + rng.integers(each, size=count) for _ in range(2))
        second[from_scenes + two :] = first[from_scenes + two :]
        frames = np.tile(np.array(WHOLE, np.float32), (count, 1))
        windows = frames.copy()
        for row, (scene, role) in enumerate(crops):
            windows[row] = square(self.boxes[scene, role], 0.1)
        portraits = self.portraits.pictures[second[from_scenes:]]
        pictures = np.concatenate((self.scenes.pictures[crops[:, 0]], portraits))
        return [(self.portraits.pictures[first], frames), (pictures, windows)]

    def _view(
        self,
        rng: np.random.Generator,
        source: tuple[np.ndarray, np.ndarray],
        share: tuple[float, float],
        size: int,
    ) -> torch.Tensor:
        """A random square part of each window, mirrored half the time; of large ones the light is a little changed."""
        pictures, windows = source
        count = len(windows)
        side = (windows[:, 2] - windows[:, 0]) * rng.uniform(*share, count)
        left, top = (
            windows[:, k] + rng.uniform(0, 1, count) * (windows[:, k + 2] - windows[:, k] - side) for k in (0, 1)
        )
        boxes = np.stack((left, top, left + side, top + side), axis=1)
        pixels = cut(pictures, boxes, size, self.device, rng.random(count) < 0.5)
        if size == _GLOBAL:  # slight: the coat's colour is what an individual is known by
            gain, shift = rng.uniform(0.9, 1.1, (count, 1, 1, 1)), rng.uniform(-0.15, 0.15, (count, 1, 1, 1))
            pixels = pixels * pixels.new_tensor(gain) + pixels.new_tensor(shift)
        return pixels

    @torch.no_grad()
    def preview(self, folder: Path, step: int) -> Mapping[str, float]:
        """How often an individual cut out of a scene is nearest to its own portrait, of held-out individuals.

        ``retrieval_16``: among 16 portraits; ``retrieval_all``: among all; ``margin``: mean cosine to the own portrait
        less that to others.
        """
        unseen = self.unseen
        scenes, roles = np.nonzero(unseen.boxes.all().any(-1))  # of every individual that is there
        count = len(scenes)
        boxes = np.array([square(box, 0.1) for box in unseen.boxes.all()[scenes, roles]])
        crops = self._embed(unseen.pictures[scenes], boxes)
        portraits = self._embed(unseen.portraits.all()[scenes, roles])
        similar = (crops @ portraits.T).cpu()
        own, numbers = similar.diagonal(), torch.arange(count)[:, None]
        rows = torch.from_numpy(np.random.default_rng(0).integers(count, size=(count, _CANDIDATES - 1)))
        others = similar.gather(1, torch.where(rows == numbers, (rows + 1) % count, rows))
        seen = torch.from_numpy(_is_seen(unseen)[scenes, roles])
        return {
            "retrieval_16": float((own > others.max(1).values)[seen].float().mean()),
            "retrieval_all": float((similar.argmax(1) == numbers[:, 0])[seen].float().mean()),
            "margin": float((own - others.mean(1))[seen].mean()),
        }

    def _embed(self, pictures: np.ndarray, boxes: np.ndarray | None = None) -> torch.Tensor:
        """Normalised class tokens of windows of pictures (uint8), (B, 128)."""
        return embeddings(lambda x: self.student.encoder(x).pooler_output, pictures, _GLOBAL, self.device, boxes)

    def finish(self) -> None:
        write_network(self.bundle / "dino", DINO, self.student.encoder.state_dict())


def _is_seen(scenes: renders.Scenes) -> np.ndarray:
    """(n, 3) bool: whether enough of an individual shows."""
    return scenes.mask32.all().mean((-2, -1)) / 255 > _LEAST_SEEN
