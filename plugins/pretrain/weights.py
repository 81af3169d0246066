"""Trained networks as files of a bundle: half precision, the same bytes for the same weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rbctl.files import write_json, write_safetensors


def write_network(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], dtype: torch.dtype = torch.float16
) -> None:
    """Write config.json and the weights of one network, as diffusers or as transformers names its files."""
    write_json(folder / "config.json", dict(config))
    stem = "diffusion_pytorch_model" if "_class_name" in config else "model"
    write_weights(folder / f"{stem}.safetensors", tensors, dtype)


def write_weights(path: Path, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype = torch.float16) -> None:
    """Write floating-point tensors as ``dtype``, others as they are."""
    halved = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    write_safetensors(path, halved, {"format": "pt"})


def open_clip_names(vision: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state of a transformers ``CLIPVisionModelWithProjection`` as open_clip names it, ``visual.`` before each."""
    embeddings, theirs, ours = "vision_model.embeddings", "vision_model.encoder.layers", "visual.transformer.resblocks"
    names = {
        f"{embeddings}.class_embedding": "visual.class_embedding",
        f"{embeddings}.patch_embedding.weight": "visual.conv1.weight",
        f"{embeddings}.position_embedding.weight": "visual.positional_embedding",
    }
    parts = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    parts["self_attn.out_proj"] = "attn.out_proj"
    layers = 1 + max(int(name.split(".")[3]) for name in vision if name.startswith(theirs))
    tensors = {"visual.proj": vision["visual_projection.weight"].T}
    for kind in ("weight", "bias"):
        names[f"vision_model.pre_layrnorm.{kind}"] = f"visual.ln_pre.{kind}"
        names[f"vision_model.post_layernorm.{kind}"] = f"visual.ln_post.{kind}"
        for k in range(layers):
            names |= {f"{theirs}.{k}.{their}.{kind}": f"{ours}.{k}.{our}.{kind}" for their, our in parts.items()}
            rows = [vision[f"{theirs}.{k}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            tensors[f"{ours}.{k}.attn.in_proj_{kind}"] = torch.cat(rows)
    return tensors | {our: vision[their] for their, our in names.items()}
