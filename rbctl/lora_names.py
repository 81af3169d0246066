"""Names of a LoRA's tensors: the forms in which files hold the same matrices, and the ways between them.

peft     ``<path>.lora_A.weight``, ``.lora_B.weight``; <path> is diffusers' name of a layer of the UNet. rbctl's own.
kohya    ``lora_unet_<name>.lora_down.weight``, ``.lora_up.weight``, ``.alpha``; other programs' (docs/clients.md).
         <name> is sd-scripts' for SDXL (``input_blocks_4_1_...``), or diffusers' path with underscores.
official ``unet.<path>.lora.down.weight``, ``.lora.up.weight``; the authors' and diffusers' older one, without alpha.
diffusers ``<network>.<path>.lora_A.weight``, ``.lora_B.weight``; diffusers' own, and of transformers ComfyUI's, without
         alpha.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

import torch

LoraForm = Literal["kohya", "official", "diffusers"]
Tensors = Mapping[str, torch.Tensor]

KOHYA = "lora_unet_"
TRANSFORMER = "transformer"
_PER_BLOCK = 3  # SDXL's rows of input and output blocks: two layers of a block, and what changes the resolution

_BLOCKS = re.compile(
    r"(?:input_blocks_(?P<input>\d+)_1|output_blocks_(?P<output>\d+)_1|(?P<middle>middle_block_1|mid_block_attentions_0)"
    r"|(?P<side>down|up)_blocks_(?P<block>\d+)_attentions_(?P<layer>\d+))"
    r"_transformer_blocks_(?P<depth>\d+)_(?P<rest>attn[12]_to_(?:q|k|v|out_0)|ff_net_(?:0_proj|2))"
)
_RESTS = {
    path.replace(".", "_"): path
    for path in (
        *(f"attn{number}.{target}" for number in (1, 2) for target in ("to_q", "to_k", "to_v", "to_out.0")),
        "ff.net.0.proj",
        "ff.net.2",
    )
}
_PLACE = re.compile(r"(down|up)_blocks\.(\d+)\.attentions\.(\d+)\.")


def kohya_name(path: str, sdxl_blocks: bool) -> str:
    """Kohya's name of a layer: "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_q".

    Args:
        path: diffusers' name, "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q".
        sdxl_blocks: with sd-scripts' numbers of SDXL's blocks; else with diffusers' own.
    """

    def numbered(place: re.Match[str]) -> str:
        number = _PER_BLOCK * int(place[2]) + int(place[3])
        return f"input_blocks_{number + 1}_1_" if place[1] == "down" else f"output_blocks_{number}_1_"

    if sdxl_blocks:
        path = _PLACE.sub(numbered, path.replace("mid_block.attentions.0", "middle_block.1"))
    return KOHYA + path.replace(".", "_")


def path_of(kohya: str) -> str | None:
    """Diffusers' name of the layer that kohya's name means; None for a layer that no relation LoRA is on."""
    place = _BLOCKS.fullmatch(kohya.removeprefix(KOHYA))
    if place is None:
        return None
    if place["middle"]:
        block = "mid_block.attentions.0"
    elif place["side"]:
        block = f"{place['side']}_blocks.{place['block']}.attentions.{place['layer']}"
    else:
        side, number = ("down", int(place["input"]) - 1) if place["input"] else ("up", int(place["output"]))
        block = f"{side}_blocks.{number // _PER_BLOCK}.attentions.{number % _PER_BLOCK}"
    return f"{block}.transformer_blocks.{place['depth']}.{_RESTS[place['rest']]}"


def to_kohya(tensors: Tensors, alpha: float, sdxl_blocks: bool = True) -> dict[str, torch.Tensor]:
    """peft's names -> kohya's, with one alpha a layer."""
    named = {}
    for key, value in sorted(tensors.items()):
        path, side = key.removesuffix(".weight").rsplit(".", 1)
        name = kohya_name(path, sdxl_blocks)
        named[f"{name}.{'lora_down' if side == 'lora_A' else 'lora_up'}.weight"] = value
        named[f"{name}.alpha"] = torch.tensor(float(alpha))
    return named


def to_official(tensors: Tensors) -> dict[str, torch.Tensor]:
    """peft's names -> those of the authors' file."""
    renamed = {
        key.replace("lora_A.weight", "lora.down.weight").replace("lora_B.weight", "lora.up.weight"): value
        for key, value in tensors.items()
    }
    return {f"unet.{key}": value for key, value in sorted(renamed.items())}


def to_diffusers(tensors: Tensors, network: str) -> dict[str, torch.Tensor]:
    """peft's names -> diffusers' for a network, "unet" or "transformer"."""
    return {f"{network}.{key}": value for key, value in sorted(tensors.items())}


def of_transformer(tensors: Tensors) -> dict[str, str]:
    """peft's names of a transformer's matrices -> the names in a file."""
    prefix = f"{TRANSFORMER}."
    return {key.removeprefix(prefix): key for key in tensors if key.startswith(prefix)}
