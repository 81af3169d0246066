"""Backend ``vitpose``: keypoints by ViTPose or ViTPose++, which transformers runs.

Its head draws 17 heat maps, in AP-10K's order (animals) or COCO's (people). ViTPose++ has an expert and a head for each
data set it was trained on: 3 is AP-10K's, 0 is COCO's. transformers' conversion kept COCO's head alone
(convert_vitpose_to_hf.py leaves the associate_heads out). So animals need the .pth file that the authors publish.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from rbctl.errors import InputError
from rbctl.plugins.annotate.backends import vitpose_checkpoint
from rbctl.plugins.annotate.config import AnnotateConfig
from rbctl.pretrained import from_pretrained, network
from rbctl.triplets.keypoints import KEYPOINTS

EXPERTS = {"ap10k": 3, "coco": 0}

# COCO's 17 keypoints of people, and which of them each of ours is: a person's neck lies between the shoulders, and
# what would be the root of a tail between the hips.
COCO = (
    "nose", "left eye", "right eye", "left ear", "right ear", "left shoulder", "right shoulder", "left elbow",
    "right elbow", "left wrist", "right wrist", "left hip", "right hip", "left knee", "right knee", "left ankle",
    "right ankle",
)  # fmt: skip
_PERSON = {
    "neck": ("left shoulder", "right shoulder"),
    "root of tail": ("left hip", "right hip"),
    "left front paw": ("left wrist",),
    "right front paw": ("right wrist",),
    "left back paw": ("left ankle",),
    "right back paw": ("right ankle",),
}


def named_order(names: Collection[str]) -> str | None:
    """The order that a model's names of keypoints (``id2label``) have; None where they name none. COCO has no neck."""
    lower = {name.lower() for name in names}
    return None if "nose" not in lower else "ap10k" if "neck" in lower else "coco"


def from_coco(keypoints: np.ndarray) -> np.ndarray:
    """A person's keypoints (..., 17, 3) in COCO's order -> in ours; of two in one the lesser confidence counts."""
    rows = []
    for name in KEYPOINTS:
        parts = keypoints[..., [COCO.index(part) for part in _PERSON.get(name, (name,))], :]
        rows.append(np.concatenate((parts[..., :2].mean(-2), parts[..., 2:].min(-2)), axis=-1))
    return np.stack(rows, axis=-2)


class Keypoints:
    """The confidence is the height of a heat map's peak."""

    present_from, visible_from = 0.1, 0.3

    def __init__(self, folder: Path, config: AnnotateConfig, device: torch.device) -> None:
        load = self._of_hub if folder.is_dir() else self._of_authors
        self.model, self.processor, self.order, self.expert = load(folder, config)
        self.model.to(device)

    @staticmethod
    def _of_hub(folder: Path, config: AnnotateConfig) -> tuple[Any, Any, str, int | None]:
        """Model, processor, order of the keypoints, and the expert to ask."""
        from transformers import AutoImageProcessor, VitPoseForPoseEstimation

        model = network(VitPoseForPoseEstimation, folder, torch.float32, use_safetensors=True)
        named = named_order(model.config.id2label.values())
        if named and config.vitpose_order not in (named, None):
            raise InputError(
                f"--vitpose-order {config.vitpose_order}: the config.json in {folder} names {named}'s keypoints (the "
                "hub's ViTPose++ has COCO's alone); leave it out, or give the .pth file of ViTPose++'s authors"
            )
        order = config.vitpose_order or named or "ap10k"
        experts = getattr(model.config.backbone_config, "num_experts", 1)
        expert = EXPERTS[order] if config.vitpose_expert is None else config.vitpose_expert
        if experts > 1 and expert >= experts:
            raise InputError(f"--vitpose-expert {expert}: the model in {folder} has experts 0 to {experts - 1}")
        if experts <= 1 and config.vitpose_expert is not None:
            raise InputError(f"--vitpose-expert: the model in {folder} has no experts; it is no ViTPose++")
        return model, from_pretrained(AutoImageProcessor, folder), order, expert if experts > 1 else None

    @staticmethod
    def _of_authors(path: Path, config: AnnotateConfig) -> tuple[Any, Any, str, int | None]:
        """The same; the expert is chosen as the file is read."""
        from transformers import VitPoseImageProcessor

        order = config.vitpose_order or ("coco" if config.vitpose_expert == EXPERTS["coco"] else "ap10k")
        model = vitpose_checkpoint.read(path, config.vitpose_expert, EXPERTS[order])
        return model, VitPoseImageProcessor(), order, None

    def __call__(self, images: Sequence[Image.Image], boxes: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [self._keypoints(image, rows) for image, rows in zip(images, boxes, strict=True)]

    def _keypoints(self, image: Image.Image, boxes: np.ndarray) -> np.ndarray:
        # ViTPose counts pixels at their centres, we at their corners: half a pixel apart.
        corner = boxes[:, :2] * image.size - 0.5
        pixels = [np.concatenate((corner, (boxes[:, 2:] - boxes[:, :2]) * image.size), axis=1).tolist()]
        inputs = self.processor(images=[image], boxes=pixels, return_tensors="pt").to(self.model.device)
        if self.expert is not None:
            inputs["dataset_index"] = torch.full((len(boxes),), self.expert, device=self.model.device)
        with torch.no_grad():
            output = self.model(**inputs)
        (poses,) = self.processor.post_process_pose_estimation(output, boxes=pixels)
        xy = np.stack([pose["keypoints"].numpy() for pose in poses])
        confidence = np.stack([pose["scores"].numpy() for pose in poses]).reshape(len(poses), -1, 1)
        keypoints = np.concatenate(((xy + 0.5) / image.size, confidence.clip(0, 1)), axis=-1)
        return from_coco(keypoints) if self.order == "coco" else keypoints
