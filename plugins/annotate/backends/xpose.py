"""Backend ``xpose``: keypoints of animals that a text names, by X-Pose (UniPose) from its published checkpoint.

The checkpoint is the user's, and its licence is non-commercial (github.com/IDEA-Research/X-Pose). No code is theirs.
X-Pose looks for animals by itself: each box gets the one that fits it best. It does not say of a keypoint how sure it
is, so all keypoints of an animal have the animal's confidence, and none of them is ever occluded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.optimize import linear_sum_assignment
from torchvision.ops import box_convert, box_iou
from torchvision.transforms.v2 import functional as transforms

from rbctl.errors import InputError
from rbctl.files import read_torch
from rbctl.plugins.annotate.backends.xpose_network import Poses, XPose
from rbctl.plugins.annotate.config import AnnotateConfig
from rbctl.pretrained import loading
from rbctl.triplets.keypoints import KEYPOINTS

_SHORT_SIDE, _LONG_SIDE = 800, 1333  # pixels that X-Pose was trained with
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# Parameters that serve training, other prompts, or are the same as others.
_UNUSED = re.compile(
    r"label_enc\.|pos_proj\.|padding\.|clip_model\.(visual\.|logit_scale)|transformer\.decoder\.hw_append\."
    r"|transformer\.decoder\.\w+_embed\.|(bbox|pose|pose_hw)_embed\.[1-9]"
)
# Of Swin's names to torchvision's, which are by turns blocks and what halves the picture.
_SWIN = (
    (r"^backbone\.0\.patch_embed\.proj\.", lambda _: "backbone.0.0."),
    (r"^backbone\.0\.patch_embed\.norm\.", lambda _: "backbone.0.2."),
    (r"^backbone\.0\.norm(\d)\.", lambda match: f"backbone_norms.{int(match[1]) - 1}."),
    (r"^backbone\.0\.layers\.(\d)\.blocks\.", lambda match: f"backbone.{2 * int(match[1]) + 1}."),
    (r"^backbone\.0\.layers\.(\d)\.downsample\.", lambda match: f"backbone.{2 * int(match[1]) + 2}."),
    (r"^(backbone\.\d\.\d+\.mlp)\.fc1\.", lambda match: f"{match[1]}.0."),
    (r"^(backbone\.\d\.\d+\.mlp)\.fc2\.", lambda match: f"{match[1]}.3."),
)


def read(path: Path) -> XPose:
    """The network of a published checkpoint, on the CPU.

    Raises:
        InputError: the file is none, or lacks parameters.
    """
    content = read_torch(path)
    weights = content.get("model", content) if isinstance(content, Mapping) else {}
    weights = {str(name).removeprefix("module."): tensor for name, tensor in weights.items()}
    for name in ("transformer.level_embed", "clip_model.text_projection"):
        if not isinstance(weights.get(name), torch.Tensor):
            raise InputError(
                f"{path}: no checkpoint of X-Pose (it has no {name}); get the one that its authors publish"
            )
    with loading(path, "X-Pose"):
        model = XPose(**sizes_of(weights))
        report = model.load_state_dict(our_names(weights), strict=False)
    if report.missing_keys:
        raise InputError(
            f"{path}: {len(report.missing_keys)} parameters of X-Pose are missing: {report.missing_keys[0]}"
        )
    return model.eval()


def our_names(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The parameters that the network uses, in float32. But for the backbone's their names are the published ones."""
    renamed = {}
    for name, tensor in weights.items():
        if not _UNUSED.match(name):
            for pattern, replacement in _SWIN:
                name = re.sub(pattern, replacement, name)
            renamed[name] = tensor.flatten() if name.endswith("relative_position_index") else tensor.float()
    return renamed


def sizes_of(weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """What the shapes of the published parameters tell of the network: that of Swin-T, Swin-L or any other."""

    def depth(layers: str) -> int:
        return len({name[len(layers) :].split(".")[0] for name in weights if name.startswith(layers)})

    tables = [
        weights[f"backbone.0.layers.{stage}.blocks.0.attn.relative_position_bias_table"].shape for stage in range(4)
    ]
    swin = {
        "embed_dim": len(weights["backbone.0.patch_embed.proj.weight"]),
        "depths": [depth(f"backbone.0.layers.{stage}.blocks.") for stage in range(4)],
        "num_heads": [heads for _, heads in tables],
        "window_size": [(round(tables[0][0] ** 0.5) + 1) // 2] * 2,
    }
    text_width = weights["clip_model.token_embedding.weight"].shape[1]
    clip = {
        "width": text_width,
        "heads": text_width // 64,
        "layers": depth("clip_model.transformer.resblocks."),
        "output_dim": weights["clip_model.text_projection"].shape[1],
    }
    levels, width = weights["transformer.level_embed"].shape
    offsets = len(weights["transformer.encoder.layers.0.self_attn.sampling_offsets.bias"])
    return {
        "swin": swin,
        "clip": clip,
        "width": width,
        "inner": len(weights["transformer.encoder.layers.0.linear1.bias"]),
        "heads": offsets // (levels * 4 * 2),  # four points of two coordinates in each level
        "depths": (depth("transformer.encoder.layers."), depth("transformer.decoder.layers.")),
        "queries": len(weights["transformer.tgt_embed.weight"]),
        "keypoints": len(weights["transformer.decoder.hw.weight"]),
    }


class Keypoints:
    """The confidence is that of the animal's box."""

    present_from, visible_from = 0.1, 0.1

    def __init__(self, path: Path, config: AnnotateConfig, device: torch.device) -> None:
        import open_clip

        self.device = device
        self.model = read(path).to(device)
        names = [name.strip().lower() for name in config.xpose_prompt.split(",") if name.strip()]
        if not names:
            raise InputError("--xpose-prompt: names no animal; give one or more, as cat,bear")
        self.names, self.keypoints = (
            open_clip.tokenize([f"a photo of {text}" for text in texts]).to(device) for texts in (names, KEYPOINTS)
        )

    def __call__(self, images: Sequence[Image.Image], boxes: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [of_boxes(self._poses(image), rows) for image, rows in zip(images, boxes, strict=True)]

    def _poses(self, image: Image.Image) -> Poses:
        with torch.no_grad():
            return self.model(pixels_of(image).to(self.device), self.names, self.keypoints)


def pixels_of(image: Image.Image) -> torch.Tensor:
    """(3, H, W): the picture as X-Pose was trained to see it."""
    short, long = sorted(image.size)
    side = min(_SHORT_SIDE, round(_LONG_SIDE * short / long))
    resized = transforms.pil_to_tensor(transforms.resize(image, [side]))
    return transforms.normalize(resized.float() / 255, list(_MEAN), list(_STD))


def of_boxes(poses: Poses, boxes: np.ndarray) -> np.ndarray:
    """(K, 17, 3): each box's animal, another one for each.

    Args:
        boxes: (K, 4) relative xyxy. A box that nothing lies in gets keypoints of no confidence.
    """
    scores = poses.scores.amax(-1).cpu()
    detected = box_convert(poses.boxes.cpu(), "cxcywh", "xyxy")
    fit = box_iou(torch.from_numpy(boxes).float(), detected) * scores
    rows, columns = linear_sum_assignment(fit.numpy(), maximize=True)
    keypoints = np.zeros((len(boxes), len(KEYPOINTS), 3), np.float32)
    keypoints[rows, :, :2] = poses.keypoints.cpu().numpy()[columns]
    keypoints[rows, :, 2] = np.where(fit[rows, columns] > 0, scores[columns], 0)[:, None]
    return keypoints
