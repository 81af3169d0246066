"""A folder in diffusers' SDXL layout as one file in Stability's names: what Civitai's checkpoints look like."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from rbctl.bundle.convert import open_clip_text
from rbctl.files import read_object, read_safetensors

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_VAE = (
    ("mid_block.attentions.0.to_q", "mid.attn_1.q"),
    ("mid_block.attentions.0.to_k", "mid.attn_1.k"),
    ("mid_block.attentions.0.to_v", "mid.attn_1.v"),
    ("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out"),
    ("mid_block.attentions.0.group_norm", "mid.attn_1.norm"),
    ("mid_block.resnets.0", "mid.block_1"),
    ("mid_block.resnets.1", "mid.block_2"),
    ("conv_shortcut", "nin_shortcut"),
    ("conv_norm_out", "norm_out"),
)


def _unet_name(name: str, layers: int, levels: int) -> str:
    stem, _, end = name.rpartition(".")
    if stem in _UNET_ENDS:
        return f"{_UNET_ENDS[stem]}.{end}"
    block, rest = re.fullmatch(r"(down_blocks\.\d+|up_blocks\.\d+|mid_block)\.(.+)", name).groups()
    kind, number, part = re.fullmatch(r"(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", rest).groups()
    if kind == "resnets":
        module, _, end = part.rpartition(".")
        part = f"{_RESNET[module]}.{end}"
    if block == "mid_block":
        return f"middle_block.{1 if kind == 'attentions' else 2 * int(number)}.{part}"
    level = int(block.rpartition(".")[2])
    if block.startswith("down"):
        if kind == "downsamplers":
            return f"input_blocks.{(level + 1) * (layers + 1)}.0.op.{part.removeprefix('conv.')}"
        return f"input_blocks.{level * (layers + 1) + int(number) + 1}.{int(kind == 'attentions')}.{part}"
    place = level * (layers + 1) + int(number)
    if kind == "upsamplers":
        attends = level < levels - 1  # SDXL's outermost level has no attention, and no upsampler either
        return f"output_blocks.{level * (layers + 1) + layers}.{2 if attends else 1}.{part}"
    return f"output_blocks.{place}.{int(kind == 'attentions')}.{part}"


def original_vae(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """An AutoencoderKL of four levels; its attention is made of 1 x 1 convolutions."""
    named = {}
    for name, tensor in tensors.items():
        for new, old in _VAE:
            name = name.replace(new, old)
        name = re.sub(r"down_blocks\.(\d)\.resnets\.", r"down.\1.block.", name)
        name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks\.(\d)\.resnets\.", lambda m: f"up.{3 - int(m[1])}.block.", name)
        name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{3 - int(m[1])}.upsample", name)
        convolution = ".attn_1." in name and ".norm" not in name and name.endswith("weight")
        named[name] = tensor[..., None, None] if convolution else tensor
    return named


def write_single_file(
    folder: Path, dest: Path, extra: Mapping[str, torch.Tensor] | None = None, metadata: Mapping[str, str] | None = None
) -> Path:
    """Write the four networks of ``folder`` as one checkpoint.

    Args:
        extra: tensors besides, as ``v_pred``.
    """

    def tensors(part: str, stem: str) -> dict[str, torch.Tensor]:
        return read_safetensors(folder / part / f"{stem}.safetensors")[0]

    config: dict[str, Any] = read_object(folder / "unet/config.json")
    levels = len(config["block_out_channels"])
    whole = {
        f"model.diffusion_model.{_unet_name(name, config['layers_per_block'], levels)}": tensor
        for name, tensor in tensors("unet", "diffusion_pytorch_model").items()
    }
    vae = original_vae(tensors("vae", "diffusion_pytorch_model"))
    whole |= {f"first_stage_model.{name}": tensor for name, tensor in vae.items()}
    text = tensors("text_encoder", "model")
    whole |= {f"conditioner.embedders.0.transformer.{name}": tensor for name, tensor in text.items()}
    whole["conditioner.embedders.0.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    text_2 = open_clip_text(tensors("text_encoder_2", "model"))
    whole |= {f"conditioner.embedders.1.model.{name}": tensor for name, tensor in text_2.items()}
    whole["conditioner.embedders.1.model.logit_scale"] = torch.tensor(4.6)
    save_file({**whole, **(extra or {})}, dest, dict(metadata or {}))
    return dest
