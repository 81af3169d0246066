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
from torch import distributed, nn
from torch.nn.functional import log_softmax, normalize

from rbctl.plugins.pretrain import renders
from rbctl.plugins.pretrain.clip import cut, square
from rbctl.plugins.pretrain.config import PretrainConfig
from rbctl.plugins.pretrain.weights import write_network

DINO: dict[str, Any] = {
    "architectures": ["Dinov2Model"],
    "model_type": "dinov2",
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "mlp_ratio": 4,
    "image_size": 64,
    "patch_size": 8,
    "hidden_act": "gelu",
    "layerscale_value": 1.0,
    "drop_path_rate": 0.0,
}
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
    """Encoder and head; the teacher is another one of them."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import Dinov2Config, Dinov2Model

        self.encoder = Dinov2Model(Dinov2Config(**DINO))
        self.encoder.embeddings.mask_token.requires_grad_(False)  # nothing is masked here
        self.head = Head(DINO["hidden_size"])

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


class Centre(nn.Module):
    """Running mean of the teacher's logits."""

    value: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("value", torch.zeros(_PROTOTYPES))


class DinoPart:
    """See :class:`rbctl.plugins.pretrain.loop.Part`."""

    def __init__(self, config: PretrainConfig, device: torch.device) -> None:
        folder = config.work / "renders"
        self.device, self.batch_size, self.learning_rate = device, config.dino_batch_size, config.dino_learning_rate
        self.bundle = config.work / "bundle"
        self.scenes, self.portraits = renders.scenes(folder, "all"), renders.portraits(folder)
        self.unseen = renders.scenes(folder, "held_out")
        self.boxes, self.people = self.scenes.boxes.all(), self.scenes.person.all()
        seen = self.scenes.mask32.all().mean((-2, -1)) / 255 > _LEAST_SEEN
        self.shown = np.argwhere(seen & (self.people < self.portraits.people))  # others' portraits are not drawn yet
        self.student = Student().to(device)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.centre = Centre().to(device)
        self.plain = (self.student.head.prototypes.weight,)  # their lengths mean nothing

    def modules(self) -> dict[str, nn.Module]:
        # The teacher has buffers in place of parameters in a checkpoint, so it hands its tensors out as such.
        return {"student": self.student, "teacher": _Kept(self.teacher), "centre": self.centre}

    def loss(self, step: int, generator: torch.Generator) -> tuple[torch.Tensor, Mapping[str, Any]]:
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        if step:
            self._follow()
        first, second = self._pictures(rng)
        views = [self._view(rng, source, _GLOBAL_SHARE, _GLOBAL) for source in (first, second)]
        local = [self._view(rng, (first, second)[k % 2], _LOCAL_SHARE, _LOCAL, colour=False) for k in range(_LOCALS)]
        with torch.no_grad():
            teacher = list(self.teacher(torch.cat(views)).float().chunk(2))
        student = [*self.student(torch.cat(views)).float().chunk(2)]
        student += self.student(torch.cat(local)).float().chunk(_LOCALS)
        loss = distillation_loss(student, teacher, self.centre.value)
        with torch.no_grad():
            mean = torch.cat(teacher).mean(0)
            if distributed.is_initialized():  # one centre for all processes
                mean = mean.cpu() / distributed.get_world_size()
                distributed.all_reduce(mean)
                mean = mean.to(self.device)
            self.centre.value.lerp_(mean, 1 - _CENTRE)
            chosen = ((torch.cat(teacher) - self.centre.value) / _TEACHER).softmax(-1).mean(0)
            used = (-(chosen * chosen.clamp(min=1e-9).log()).sum()).exp()  # collapsed where this falls to 1
        return loss, {"prototypes": used}

    @torch.no_grad()
    def _follow(self) -> None:
        pairs = zip(self.teacher.parameters(), self.student.parameters(), strict=True)
        for teacher, student in pairs:
            teacher.lerp_(student, 1 - _MOMENTUM)

    def _pictures(self, rng: np.random.Generator) -> tuple[tuple[torch.Tensor, np.ndarray], ...]:
        """Twice (pictures (B, 3, H, W), boxes (B, 4)) of the same individuals; the boxes show them."""
        each, count = self.portraits.per_person, self.batch_size
        cut_out, two = round(count * _FROM_SCENES), round(count * _TWO_PORTRAITS)
        crops = self.shown[rng.integers(len(self.shown), size=cut_out)]
        people = np.concatenate(
            (self.people[crops[:, 0], crops[:, 1]], rng.integers(self.portraits.people, size=count - cut_out))
        )
        one, other = (people * each + rng.integers(each, size=count) for _ in range(2))
        other[cut_out + two :] = one[cut_out + two :]
        frames = np.tile(np.array((0.0, 0.0, 1.0, 1.0), np.float32), (count, 1))
        windows = frames.copy()
        for row, (scene, role) in enumerate(crops):
            windows[row] = square(self.boxes[scene, role], 0.1)
        first = self.portraits.pictures[one]
        second = np.concatenate((self.scenes.pictures[crops[:, 0]], self.portraits.pictures[other[cut_out:]]))
        return tuple(
            (torch.from_numpy(rows).to(self.device), boxes) for rows, boxes in ((first, frames), (second, windows))
        )

    def _view(
        self,
        rng: np.random.Generator,
        source: tuple[torch.Tensor, np.ndarray],
        share: tuple[float, float],
        size: int,
        colour: bool = True,
    ) -> torch.Tensor:
        """A random square part of each window, mirrored half the time, its light a little changed."""
        pictures, windows = source
        count = len(windows)
        side = (windows[:, 2] - windows[:, 0]) * rng.uniform(*share, count)
        left, top = (
            windows[:, k] + rng.uniform(0, 1, count) * (windows[:, k + 2] - windows[:, k] - side) for k in (0, 1)
        )
        boxes = np.stack((left, top, left + side, top + side), axis=1).astype(np.float32)
        flip = torch.from_numpy(rng.random(count) < 0.5).to(self.device)
        pixels = cut(pictures, torch.from_numpy(boxes).to(self.device), flip, size)
        if colour:  # slight: the coat's colour is what an individual is known by
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
        count = len(unseen)
        pictures = torch.from_numpy(unseen.pictures.all())
        boxes = torch.tensor([[square(box, 0.1) for box in pair] for pair in unseen.boxes.all()])
        seen = unseen.mask32.all().mean((-2, -1)).reshape(-1) / 255 > _LEAST_SEEN
        cuts = torch.cat([self.embed(pictures, boxes[:, role])[:, None] for role in range(2)], dim=1).flatten(0, 1)
        frame = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(2 * count, 4)
        portraits = self.embed(torch.from_numpy(unseen.portraits.all()).flatten(0, 1), frame)
        similar = (cuts @ portraits.T).cpu()
        own = similar.diagonal()
        rng = np.random.default_rng(0)
        rows = torch.from_numpy(rng.integers(2 * count, size=(2 * count, _CANDIDATES - 1)))
        numbers = torch.arange(2 * count)[:, None]
        others = similar.gather(1, torch.where(rows == numbers, (rows + 1) % (2 * count), rows))
        shown = torch.from_numpy(seen)
        return {
            "retrieval_16": float((own > others.max(1).values)[shown].float().mean()),
            "retrieval_all": float((similar.argmax(1) == numbers[:, 0])[shown].float().mean()),
            "margin": float((own - others.mean(1))[shown].mean()),
        }

    def embed(self, pictures: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """Normalised class tokens of windows of pictures (uint8), (B, 128)."""
        parts = []
        for lot, windows in zip(pictures.split(64), boxes.split(64), strict=True):
            flip = torch.zeros(len(lot), dtype=torch.bool, device=self.device)
            pixels = cut(lot.to(self.device), windows.float().to(self.device), flip, _GLOBAL)
            parts.append(normalize(self.student.encoder(pixels).pooler_output.float(), dim=-1))
        return torch.cat(parts)

    def finish(self, folder: Path) -> None:
        write_network(self.bundle / "dino", DINO, self.student.encoder.state_dict())


class _Kept(nn.Module):
    """The tensors of a frozen module as buffers: checkpoints keep buffers, but not parameters without a gradient."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        for name, tensor in module.state_dict().items():
            self.register_buffer(name.replace(".", "_"), tensor)


def build(config: PretrainConfig, device: torch.device) -> DinoPart:
    """The part, with first weights from torch's own generator."""
    return DinoPart(config, device)
