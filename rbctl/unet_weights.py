"""Weights of a UNet that were tuned without a LoRA: all of them (DreamBooth), or K and V of attn2 (Custom Diffusion).

Their file has the names of diffusers: those of a UNet, or those of Custom Diffusion's attention processors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from rbctl.errors import InputError, abridged
from rbctl.files import write_safetensors

Part = Literal["all", "keys_and_values"]

_PROCESSOR = re.compile(r"\.processor\.(to_\w+)_custom_diffusion\.")  # ".to_k." of the layer itself
_KEYS_AND_VALUES = re.compile(r"\.attn2\.(to_[kv])\.weight$")


@dataclass(frozen=True, eq=False)
class UNetWeights:
    """Tuned weights as read from a file.

    Attributes:
        tensors: name of the UNet's parameter -> its value.
        metadata: the file's own.
    """

    path: Path
    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str]


def holds(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether a file's tensors are weights of a UNet."""
    return "conv_in.weight" in tensors or any(_PROCESSOR.search(name) for name in tensors)


def of_file(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> UNetWeights:
    """The weights in a file's tensors.

    Raises:
        InputError: a value is not finite.
    """
    # diffusers writes an empty tensor for each processor that was not tuned.
    named = {_PROCESSOR.sub(r".\1.", name): value for name, value in tensors.items() if value.numel()}
    for name, value in named.items():
        if not torch.isfinite(value).all():
            raise InputError(
                f"{path}: {abridged(name)} holds NaN or infinite values; the training that made it diverged"
            )
    return UNetWeights(path, named, dict(metadata))


def parameters(unet: Any, part: Part = "all") -> dict[str, torch.nn.Parameter]:
    """The parameters of the UNet itself by diffusers' names, whatever LoRAs and image projections are on it."""
    own = {name.replace(".base_layer.", "."): parameter for name, parameter in unet.named_parameters()}
    return {
        name: parameter
        for name, parameter in own.items()
        if not (".lora_" in name or ".processor." in name) and (part == "all" or _KEYS_AND_VALUES.search(name))
    }


def make_trainable(unet: Any, part: Part) -> None:
    """Let a part of the UNet learn, in float32.

    K and V of the first token get no gradient, as in Custom Diffusion's code: every text begins with that token.
    """

    def first_token_as_it_is(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return torch.cat((output[:, :1].detach(), output[:, 1:]), dim=1)

    for name, parameter in parameters(unet, part).items():
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
        if part == "keys_and_values":
            unet.get_submodule(name.removesuffix(".weight")).register_forward_hook(first_token_as_it_is)


def save(path: Path, unet: Any, part: Part, dtype: torch.dtype, metadata: Mapping[str, str]) -> None:
    """Write a part of the UNet for diffusers, atomically.

    Raises:
        InputError: a value is not finite, or the disk is full.
    """
    tensors = {name: parameter.to(dtype) for name, parameter in parameters(unet, part).items()}
    if part == "keys_and_values":
        tensors = {
            _KEYS_AND_VALUES.sub(r".attn2.processor.\1_custom_diffusion.weight", name): value
            for name, value in tensors.items()
        }
        tensors |= {name: torch.empty(0) for name in unet.attn_processors if ".attn1." in name}
    write_safetensors(path, tensors, {"format": "pt", **metadata})


def check(unet: Any, file: UNetWeights) -> None:
    """Raises InputError unless the file's weights are of this UNet."""
    own = parameters(unet)
    for name, value in file.tensors.items():
        if name not in own:
            raise InputError(f"{file.path}: made for another base; this one has no {abridged(name)}")
        if value.shape != own[name].shape:
            shapes = f"{tuple(value.shape)}, here {tuple(own[name].shape)}"
            raise InputError(f"{file.path}: made for another base; {abridged(name)} is {shapes}")


@torch.no_grad()
def use(unet: Any, chosen: Sequence[tuple[UNetWeights, float]], base: MutableMapping[str, torch.Tensor]) -> None:
    """Give the UNet its base model's weights, and what each file's differ from them, times the file's weight.

    Args:
        base: the base model's values, on the CPU, of all that was ever changed; this adds to it.
    """
    own = parameters(unet)
    for name in {name for file, _ in chosen for name in file.tensors} - base.keys():
        base[name] = own[name].detach().to("cpu", copy=True)
    for name, before in base.items():
        value = before.float()
        tuned = [(file.tensors[name].float(), weight) for file, weight in chosen if name in file.tensors]
        for number, (other, weight) in enumerate(tuned):
            # lerp gives one file's own values at weight 1, to the last bit.
            value = value.lerp(other, weight) if number == 0 else value + weight * (other - before.float())
        own[name].copy_(value)
