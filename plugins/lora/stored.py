"""What a LoRA file holds, layer by layer and as it is stored, whatever the form of its names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from rbctl import any_lora, lora_names
from rbctl.bases import families
from rbctl.errors import InputError, abridged
from rbctl.files import read_safetensors

KOHYA_SDXL = "kohya's, with SDXL's block numbers"
KOHYA_PLAIN = "kohya's, with diffusers' block names"
DIFFUSERS = "diffusers', as the authors' file has them"
OF_TRANSFORMER = "diffusers', of a transformer"
OTHERS_OF_TRANSFORMER = "another trainer's, of a transformer"

# How the name of a module begins: its network.
_NETWORKS = {
    "lora_unet_": "unet",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te_": "text_encoder",
    "unet.": "unet",
    "transformer.": "transformer",
    "text_encoder.": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
}
_DOTTED = re.compile(
    r"(?P<module>.+?)\.(?:(?P<down>lora[._]down\.weight|lora_A\.(?:default\.)?weight)"
    r"|(?P<up>lora[._]up\.weight|lora_B\.(?:default\.)?weight)|(?P<alpha>(?:lora\.)?alpha)|(?P<magnitude>lora_magnitude_.*))"
)
_PLAIN = re.compile("lora_unet_(down_blocks|mid_block|up_blocks)_")
_PARTS = {"lora_down.weight": "down", "lora_up.weight": "up", "alpha": "alpha"}


@dataclass(frozen=True, eq=False)
class Module:
    """The tensors of one layer.

    Attributes:
        name: in the file, "lora_unet_input_blocks_4_1_..." or "unet.down_blocks.1...".
        network: "unet", "transformer", "text_encoder" or "text_encoder_2"; None where the name tells none.
        layer: diffusers' path of it, if it is one that relation LoRAs are on; else None.
        form: of the name: one of the constants above.
        down, up: matrices (rank, in) and (out, rank), of a convolution with its kernel's size behind; None if missing.
        alpha: the scale is alpha / rank; None for 1.
        others: further parts of the name, as "dora_scale".
    """

    name: str
    network: str | None
    layer: str | None
    form: str
    down: torch.Tensor | None
    up: torch.Tensor | None
    alpha: float | None
    others: tuple[str, ...]

    @property
    def kind(self) -> str | None:
        """What it is besides or in place of a plain LoRA: "DoRA", "LoHa", ..., or an unknown part's name."""
        if not self.others:
            return None
        if self.others[0].startswith(("dora_scale", "magnitude")):
            return "DoRA"
        kinds = any_lora.OTHER_KINDS.items()
        return next((kind for mark, kind in kinds if self.others[0].startswith(mark)), abridged(self.others[0]))


@dataclass(frozen=True, eq=False)
class StoredLora:
    """A LoRA file as it is.

    Attributes:
        tensors, metadata: the file's own.
        modules: of the tensors, in the order of their names.
    """

    path: Path
    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str]
    modules: tuple[Module, ...]


def read(path: Path) -> StoredLora:
    """Read a LoRA file without judging it.

    Raises:
        InputError: it is not safetensors, a checkpoint of a run, or holds nothing that looks like a LoRA.
    """
    tensors, metadata = read_safetensors(path)
    if "step" in tensors:
        raise InputError(f"{path}: is a checkpoint; the run's LoRA lies in {path.parent.parent}")
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in sorted(tensors.items()):
        name, part = _place(key)
        parts.setdefault(name, {})[part] = value
    modules = tuple(_module(path, name, own, metadata) for name, own in parts.items())
    if not any(module.network for module in modules):
        raise InputError(f"{path}: holds no LoRA of a UNet, transformer or text encoder")
    return StoredLora(path, tensors, metadata, modules)


def _place(key: str) -> tuple[str, str]:
    """The module that a tensor belongs to, and which part of it: "down", "up", "alpha" or its own word."""
    if key.startswith("lora_"):
        name, _, part = key.partition(".")
        return name, _PARTS.get(part, part)
    if match := _DOTTED.fullmatch(key):
        return match["module"], next(part for part, text in match.groupdict().items() if text and part != "module")
    return key, "no part of a LoRA"


def _module(path: Path, name: str, parts: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> Module:
    network = next((network for prefix, network in _NETWORKS.items() if name.startswith(prefix)), None)
    down, alpha = parts.get("down"), parts.get("alpha")
    if alpha is not None and alpha.numel() != 1:
        raise InputError(f"{path}: the alpha of {abridged(name)} has {alpha.numel()} numbers; one was expected")
    value = None if alpha is None else float(alpha)
    others = tuple(part for part in parts if part not in _PARTS.values())
    if any_lora.OF_TRANSFORMER.match(name):
        return Module(name, "transformer", None, OTHERS_OF_TRANSFORMER, down, parts.get("up"), value, others)
    if name.startswith("lora_"):
        form = KOHYA_PLAIN if _PLAIN.match(name) else KOHYA_SDXL
        kohya = name
    else:
        form = OF_TRANSFORMER if network == "transformer" else DIFFUSERS
        # Through kohya's names and back: what returns is a layer that relation LoRAs are on.
        kohya = lora_names.kohya_name(name.removeprefix("unet."), sdxl_blocks=False)
        if value is None and down is not None and down.ndim and down.shape[0]:
            value = any_lora.scale_in(path, metadata, name, down.shape[0]) * down.shape[0]
    layer = lora_names.path_of(kohya) if network == "unet" else None
    if network == "transformer":
        path_in_it = name.removeprefix("transformer.")
        layer = path_in_it if any(family.layers_of([path_in_it]) for family in families().values()) else None
    return Module(name, network, layer, form, down, parts.get("up"), value, others)
