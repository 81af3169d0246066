"""The .pth files of ViTPose's authors as a VitPose of transformers.

A file of ViTPose++ holds six experts a block, of which one counts for a data set, and a head for each data set. What
is read of it is one expert with its head. Sizes and names: github.com/ViTAE-Transformer/ViTPose, Apache-2.0
(mmpose/models/backbones/vit_moe.py, mmpose/models/detectors/top_down_moe.py and its configs).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rbctl.errors import InputError
from rbctl.files import read_torch
from rbctl.pretrained import loading, network_of_weights
from rbctl.triplets.keypoints import KEYPOINTS

_HEADS_OF_WIDTH = {384: 12, 768: 12, 1024: 16, 1280: 16}  # of attention, in ViTPose-S, -B, -L and -H
_IMAGE_SIZE = (256, 192)  # height and width of all that were published with 17 keypoints

# Their names -> those of the hub.
_NAMES = (
    (r"backbone\.pos_embed", "backbone.embeddings.position_embeddings"),
    (r"backbone\.patch_embed\.proj\.", "backbone.embeddings.patch_embeddings.projection."),
    (r"backbone\.blocks\.", "backbone.encoder.layer."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"backbone\.last_norm\.", "backbone.layernorm."),
    (r"keypoint_head\.deconv_layers\.0\.", "head.deconv1."),
    (r"keypoint_head\.deconv_layers\.1\.", "head.batchnorm1."),
    (r"keypoint_head\.deconv_layers\.3\.", "head.deconv2."),
    (r"keypoint_head\.deconv_layers\.4\.", "head.batchnorm2."),
    (r"keypoint_head\.final_layer\.", "head.conv."),
)


def read(path: Path, expert: int | None, default: int) -> Any:
    """The model in a .pth file.

    Args:
        expert: whose keypoints are wanted: 0 COCO's, 3 AP-10K's, 4 APT-36K's. None is ``default`` where the file has
            experts to choose from.

    Returns:
        A VitPoseForPoseEstimation that draws 17 heat maps.

    Raises:
        InputError: the file is no checkpoint of ViTPose, or the expert is not in it.
    """
    from transformers import VitPoseForPoseEstimation

    content = read_torch(path)
    weights = content.get("state_dict", content) if isinstance(content, Mapping) else {}
    if not isinstance(weights, Mapping) or "backbone.pos_embed" not in weights:
        raise InputError(f"{path}: no checkpoint of ViTPose (it has no backbone.pos_embed); get one of its authors'")
    with loading(path, "ViTPose"):
        if has_experts(weights):
            single = one_expert(weights, default if expert is None else expert, path)
        elif expert is None:
            single = {name: tensor for name, tensor in weights.items() if _is_shared(name)}
        else:
            raise InputError(f"--vitpose-expert: {path} has no experts to choose from; leave it out")
        return network_of_weights(VitPoseForPoseEstimation, _config(single), hub_names(single), path)


def has_experts(weights: Mapping[str, torch.Tensor]) -> bool:
    """Whether one of several experts is to be chosen. The authors' ``tools/model_split.py`` has done it."""
    shared, whole = weights["backbone.blocks.0.mlp.fc2.bias"], weights["backbone.blocks.0.norm2.bias"]
    return len(shared) < len(whole)


def one_expert(weights: Mapping[str, torch.Tensor], expert: int, path: Path) -> dict[str, torch.Tensor]:
    """The weights of one expert and its head, named as those of a ViTPose without experts.

    Raises:
        InputError: the expert is not there, or draws other keypoints than the 17 of an animal or of a person.
    """
    if f"backbone.blocks.0.mlp.experts.{expert}.weight" not in weights:
        raise InputError(f"--vitpose-expert {expert}: {path} has no such expert; 3 is AP-10K's, 0 is COCO's")
    single = {name: tensor for name, tensor in weights.items() if _is_shared(name)}
    for name in [name for name in single if ".mlp.fc2." in name]:
        # An expert makes the last features of a block, what all experts share makes the first.
        single[name] = torch.cat((weights[name], weights[name.replace("fc2", f"experts.{expert}")]))
    if expert > 0:  # COCO's head is the main one
        head = f"associate_keypoint_heads.{expert - 1}."
        single |= {
            name.replace(head, "keypoint_head."): tensor for name, tensor in weights.items() if name.startswith(head)
        }
    count = len(single["keypoint_head.final_layer.bias"])
    if count != len(KEYPOINTS):
        raise InputError(f"--vitpose-expert {expert}: draws {count} keypoints; 3 (AP-10K) and 0 (COCO) draw 17")
    return single


def _is_shared(name: str) -> bool:
    return ".mlp.experts." not in name and not name.startswith("associate_keypoint_heads.")


def hub_names(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of a ViTPose without experts under the names that the hub's have."""
    renamed = {}
    for name, tensor in weights.items():
        for pattern, replacement in _NAMES:
            name = re.sub(pattern, replacement, name)
        if ".attn.qkv." in name:
            for part, rows in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                renamed[name.replace("attn.qkv", f"attention.attention.{part}")] = rows
        else:
            renamed[name] = tensor
    return renamed


def _config(weights: Mapping[str, torch.Tensor]) -> Any:
    """What the shapes of the weights tell."""
    from transformers import VitPoseBackboneConfig, VitPoseConfig

    width, _, *patch_size = weights["backbone.patch_embed.proj.weight"].shape
    if width not in _HEADS_OF_WIDTH:
        raise ValueError(f"no ViTPose has a width of {width}")
    backbone = VitPoseBackboneConfig(
        image_size=list(_IMAGE_SIZE),
        patch_size=patch_size,
        hidden_size=width,
        num_hidden_layers=len({name.split(".")[2] for name in weights if name.startswith("backbone.blocks.")}),
        num_attention_heads=_HEADS_OF_WIDTH[width],
        layer_norm_eps=1e-6,
        out_indices=[-1],
    )
    simple = "keypoint_head.deconv_layers.0.weight" not in weights
    return VitPoseConfig(backbone_config=backbone, num_labels=len(KEYPOINTS), use_simple_decoder=simple)
