"""What batching the teacher's crops and pooling by RoIAlign saves: a step of distillation, against the plain loop.

The baseline asks the teacher crop by crop and pools every region with a mask expanded over all channels of the dense
map. Both sides compute the same loss and backward pass, in float32 (the CPU gains nothing by bf16; a GPU does).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import roi_align

from rbctl.plugins.distill.batches import Cut, cut, normalised, together
from rbctl.plugins.distill.config import DistillConfig
from rbctl.plugins.distill.engine import build_teacher
from rbctl.plugins.distill.objective import clipself_loss, crop_embeddings
from rbctl.plugins.distill.tower import Student, find_tower, read_weights

BATCH, SIDE = 4, 256
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def setting() -> tuple[Student, Any, Cut]:
    config = DistillConfig(model="mini", image_size=SIDE, micro_batch_size=BATCH)
    tower = find_tower(config)
    weights = read_weights(tower, 0)
    student, teacher = (build_teacher(tower, weights, CPU, "fp32").clip for _ in range(2))
    cuts = []
    for number in range(BATCH):
        noise = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        image = Image.fromarray(noise).resize((240, 160), Image.Resampling.BICUBIC)
        cuts.append(cut(image, number, config, tower.crop_size))
    batch = together(cuts)
    assert isinstance(batch, Cut)
    return Student(student.requires_grad_(True)), teacher, batch


def step(student: Student, teacher: Any, batch: Cut) -> float:
    wanted = crop_embeddings(teacher, normalised(batch.crops, CPU, torch.float32))
    regions, _ = student(normalised(batch.pixels, CPU, torch.float32), batch.boxes)
    loss = clipself_loss(regions, wanted, len(wanted))
    loss.backward()
    return float(loss.detach())


def plain_step(student: Student, teacher: Any, batch: Cut) -> float:
    """The same numbers: teacher crop by crop, each region by a mask over the whole dense map."""
    crops = normalised(batch.crops, CPU, torch.float32)
    wanted = torch.cat([crop_embeddings(teacher, crop[None]) for crop in crops])
    features, _ = student(normalised(batch.pixels, CPU, torch.float32))
    h, w = features.shape[-2:]
    cells = torch.eye(h * w).unflatten(1, (h, w))[None]
    regions = []
    for dense, boxes in zip(features, batch.boxes, strict=True):
        masks = roi_align(cells, [boxes * torch.tensor([w, h, w, h])], (1, 1), 1.0, -1, True).reshape(-1, 1, h, w)
        regions.append((masks.expand(-1, dense.shape[0], -1, -1).contiguous() * dense[None]).sum((2, 3)))
    loss = clipself_loss(torch.cat(regions), wanted, len(wanted))
    loss.backward()
    return float(loss.detach())


def test_step(compare: Callable[..., Any], setting: Any) -> None:
    assert step(*setting) == pytest.approx(plain_step(*setting), abs=1e-4)
    done = compare(
        f"distill, one step of {BATCH} pictures, crops batched / one by one",
        lambda: step(*setting),
        lambda: plain_step(*setting),
        rounds=2,
        memory=True,
    )
    print(f"{BATCH / done.ours_s:.2f} images/s against {BATCH / done.baseline_s:.2f}")
