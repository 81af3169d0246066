"""One LoRA file -> another with the same matrices under other names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from rbctl import lora, lora_names
from rbctl.errors import InputError
from rbctl.files import drop_partial, read_safetensors, write_safetensors
from rbctl.lora_names import LoraForm
from rbctl.plugins.lora.faults import faults
from rbctl.plugins.lora.stored import Module, StoredLora, read

_OF_SDXL = ".attentions.2."  # a block of SDXL's has so many; those of smaller UNets cannot have SDXL's numbers


def convert(path: Path, form: LoraForm, output: Path) -> None:
    """Write a LoRA on attention and feed-forward layers with other names.

    Raises:
        InputError: it has layers of other kinds, is damaged, or ``output`` holds something else.
    """
    file = read(path)
    _refuse_other_kinds(file)
    # A wrong hash is no reason: it is written anew.
    if wrong := [line for line in faults(file) if ": metadata " not in line]:
        raise InputError(wrong[0])
    tensors = _named(file.modules, form)
    # peft's settings hold the alpha that is now in the tensors.
    metadata = {key: value for key, value in file.metadata.items() if key != "lora_adapter_metadata"}
    metadata |= {"format": "pt", **_network(tensors, form)}
    metadata |= lora.hashes(tensors, metadata)
    drop_partial(output)
    if output.exists() or output.is_symlink():
        if not _holds(output, tensors, metadata):
            raise InputError(f"{output}: is there already and holds something else; give another with -o")
        return
    write_safetensors(output, tensors, metadata)


def _refuse_other_kinds(file: StoredLora) -> None:
    if any(module.network == "transformer" for module in file.modules):
        raise InputError(f"{file.path}: is of a transformer; diffusers, InvokeAI and ComfyUI load it as it is")
    kinds: Counter[str] = Counter()
    for module in file.modules:
        if module.kind:
            kinds[module.kind] += 1
        elif module.layer is None or module.down is None or module.down.ndim != 2:
            kinds[f"on other layers of the {module.network or 'file'}"] += 1
    if kinds:
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        raise InputError(
            f"{file.path}: has modules that other forms cannot hold ({counts}); "
            "only a LoRA on attention and feed-forward layers is converted"
        )


def _named(modules: Sequence[Module], form: LoraForm) -> dict[str, torch.Tensor]:
    numbered = any(_OF_SDXL in str(module.layer) for module in modules)
    tensors: dict[str, torch.Tensor] = {}
    for module in modules:
        down, up = module.down, module.up
        if module.layer is None or down is None or up is None:
            raise InputError(f"{module.name}: is not whole")  # the faults were looked for before
        rank = down.shape[0]
        alpha = rank if module.alpha is None else module.alpha
        if form == "kohya":
            name = lora_names.kohya_name(module.layer, numbered)
            tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
            tensors[f"{name}.alpha"] = torch.tensor(float(alpha))
        else:
            folded = up if alpha == rank else (up.float() * (alpha / rank)).to(up.dtype)
            tensors |= {f"unet.{module.layer}.lora.down.weight": down, f"unet.{module.layer}.lora.up.weight": folded}
    return tensors


def _network(tensors: Mapping[str, torch.Tensor], form: LoraForm) -> dict[str, str]:
    """kohya's keys of how the matrices are stored, where all have one rank and alpha."""
    ranks = {value.shape[0] for key, value in tensors.items() if key.endswith("down.weight")}
    alphas = {float(value) for key, value in tensors.items() if key.endswith(".alpha")} or set(map(float, ranks))
    keys = {"ss_network_module": "networks.lora"}
    if len(ranks) == len(alphas) == 1:
        keys |= {"ss_network_dim": str(ranks.pop()), "ss_network_alpha": str(alphas.pop())}
    return keys


def _holds(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bool:
    try:
        there, said = read_safetensors(path)
    except InputError:
        return False
    return (
        said == metadata
        and there.keys() == tensors.keys()
        and all(there[key].dtype == value.dtype and torch.equal(there[key], value) for key, value in tensors.items())
    )
