"""LoRAs, a few low-rank matrices on a UNet's transformer layers (the paper's: on attn2 alone), and their file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, Protocol

import torch

from rbctl import formats
from rbctl.errors import InputError, abridged, reason
from rbctl.files import read_safetensors, write_safetensors
from rbctl.layout import LayoutPrior
from rbctl.parsing import parse_json
from rbctl.relations import Relation, load_relation, shipped

TARGETS = ("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0")
_ATTENTION = tuple(target.replace("attn2", layer) for layer in ("attn1", "attn2") for target in TARGETS)
LAYERS = {"attn2": TARGETS, "attention": _ATTENTION, "transformer": (*_ATTENTION, "ff.net.0.proj", "ff.net.2")}
ADAPTER = "relation"

LoraFormat = Literal["diffusers", "kohya"]

# All that diffusers asks of a UNet to renumber the blocks of kohya's scripts, which they write for SDXL alone.
_SDXL = SimpleNamespace(layers_per_block=2)


@dataclass(frozen=True)
class LoraFile:
    """A relation LoRA as read from a file.

    Attributes:
        tensors: peft naming without prefix, ``<module>.lora_A.weight`` (rank x in) and ``.lora_B.weight`` (out x rank);
            alpha / rank is folded into B, so that the scale is 1.
        metadata: the file's own; ``rbctl.*`` keys hold relation, predicate, roles, layout prior, recipe, hashes.
    """

    path: Path
    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str]
    rank: int


def split(paths: str) -> list[str]:
    """The paths of "A,B"; a comma belongs to the path where that is a file."""
    return [paths] if Path(paths).is_file() else [part.strip() for part in paths.split(",") if part.strip()]


class Described(Protocol):
    """A file of a LoRA, whatever its layers, and what its metadata say."""

    @property
    def path(self) -> Path: ...

    @property
    def metadata(self) -> Mapping[str, str]: ...


def layout_prior(files: Sequence[Described]) -> LayoutPrior | None:
    """Where the relation's roles lie, as the first of the files that tells has it.

    Raises:
        InputError: its metadata is damaged.
    """
    stored = ((file.metadata.get("rbctl.layout_prior"), str(file.path)) for file in files)
    return next((LayoutPrior.from_json(prior, path) for prior, path in stored if prior), None)


def relation_of(file: Described) -> Relation | None:
    """The relation that a LoRA was tuned on, as its metadata tells; None where they do not.

    Raises:
        InputError: the metadata are damaged.
    """
    metadata, where = file.metadata, f"{file.path}: rbctl.relation_file"
    name, predicate, prior = (metadata.get(f"rbctl.{key}") for key in ("relation", "predicate", "layout_prior"))
    if stored := metadata.get("rbctl.relation_file"):
        return formats.read(Relation, parse_json(stored, where), where)
    if name in shipped():
        return load_relation(str(name))
    if not (name and predicate and prior):
        return None
    layout = LayoutPrior.from_json(prior, str(file.path))  # of an older file: its words are the predicate alone
    places = " ".join(f"{{{place}}}" for place in ("subject", "object")[: len(layout.roles)])
    roles = [{"name": role, "box": list(box)} for role, box in zip(layout.roles, layout.boxes(), strict=True)]
    content = {"name": name, "predicate": predicate, "prompts": [places], "roles": roles}
    return formats.read(Relation, content, str(file.path))


def add(unet: Any, rank: int, alpha: float, seed: int, name: str = ADAPTER, targets: Sequence[str] = TARGETS) -> None:
    """Add a trainable LoRA in float32 to a UNet: A gaussian with standard deviation 1 / rank, B zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet.add_adapter(_config(rank, alpha, targets), adapter_name=name)
    for parameter in named_parameters(unet, name).values():
        parameter.data = parameter.data.float()


def _config(rank: int, alpha: float, targets: Sequence[str]) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=list(targets))


def state(unet: Any, name: str = ADAPTER) -> dict[str, torch.Tensor]:
    """The LoRA's tensors in peft naming, ``<module>.lora_A.weight``."""
    from peft.utils import get_peft_model_state_dict

    return dict(get_peft_model_state_dict(unet, adapter_name=name))


def named_parameters(unet: Any, name: str = ADAPTER) -> dict[str, torch.nn.Parameter]:
    """The LoRA's parameters under the names of :func:`state`."""
    parameters = {key.replace(f".{name}.weight", ".weight"): p for key, p in unet.named_parameters()}
    return {key: parameters[key] for key in state(unet, name)}


def to_diffusers(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """peft naming -> the names of the official file, which ``load_lora_weights`` of diffusers takes."""
    renamed = {
        k.replace("lora_A.weight", "lora.down.weight").replace("lora_B.weight", "lora.up.weight"): v
        for k, v in tensors.items()
    }
    return {f"unet.{key}": value for key, value in sorted(renamed.items())}


def to_kohya(tensors: Mapping[str, torch.Tensor], alpha: float) -> dict[str, torch.Tensor]:
    """peft naming -> the names of kohya's scripts (A1111, ComfyUI), one alpha a module."""
    from diffusers.utils import convert_state_dict_to_kohya

    converted = convert_state_dict_to_kohya({f"unet.{key}": value for key, value in tensors.items()})
    return {k: torch.tensor(float(alpha)) if k.endswith(".alpha") else v for k, v in converted.items()}


def save(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str], alpha: float, form: LoraFormat
) -> None:
    """Write the LoRA file, atomically. ``tensors`` are in peft naming."""
    rank = next(value.shape[0] for key, value in tensors.items() if "lora_A" in key)
    if form == "diffusers" and alpha != rank:
        # This naming has no place for alpha, and loaders take it to be the rank: fold the scale in.
        tensors = {k: v * (alpha / rank) if "lora_B" in k else v for k, v in tensors.items()}
    named = to_kohya(tensors, alpha) if form == "kohya" else to_diffusers(tensors)
    write_safetensors(path, named, {"format": "pt", **metadata})


def _from_kohya(path: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Kohya's names -> diffusers', every module's alpha / rank folded into its up matrix."""
    from diffusers import StableDiffusionXLPipeline

    modules: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        module, _, part = key.partition(".")
        modules.setdefault(module, {})[part] = value
    plain: dict[str, torch.Tensor] = {}
    for module, parts in modules.items():
        if parts.keys() - {"alpha"} != {"lora_down.weight", "lora_up.weight"}:
            raise InputError(
                f"{path}: {abridged(module)} holds {sorted(parts)}; lora_down.weight and lora_up.weight expected"
            )
        down, up, alpha = parts["lora_down.weight"], parts["lora_up.weight"].float(), parts.get("alpha")
        if alpha is not None:
            if alpha.numel() != 1 or not torch.isfinite(alpha).all():
                raise InputError(f"{path}: the alpha of {abridged(module)} is not a finite number")
            up = up * (float(alpha) / down.shape[0])
        plain |= {f"{module}.lora_down.weight": down, f"{module}.lora_up.weight": up}
    try:
        return dict(StableDiffusionXLPipeline.lora_state_dict(plain, unet_config=_SDXL)[0])
    except Exception as error:  # names it does not know make diffusers' converter fail in any way
        raise InputError(f"{path}: its names are not kohya's for SDXL ({reason(error)})") from error


def read(path: Path) -> LoraFile:
    """Read a LoRA in diffusers', peft's or kohya's naming (sd-scripts' own block names for SDXL too).

    Raises:
        InputError: not a LoRA for a UNet's attention, or a tensor is not finite.
    """
    from diffusers.utils import convert_unet_state_dict_to_peft

    tensors, metadata = read_safetensors(path)
    if not tensors:
        raise InputError(f"{path}: holds no tensors; a relation LoRA was expected")
    for key, value in tensors.items():
        if not key.endswith(".alpha") and (value.ndim != 2 or not value.numel()):
            shape = list(value.shape)
            raise InputError(
                f"{path}: {abridged(key)} {shape} is no LoRA tensor, a matrix; a relation LoRA was expected"
            )
    if any(key.startswith("lora_unet_") for key in tensors):
        tensors = _from_kohya(path, tensors)
    for key in tensors:
        if not key.startswith("unet."):
            raise InputError(f"{path}: {abridged(key)} is no LoRA tensor of a UNet; a relation LoRA was expected")
    plain = convert_unet_state_dict_to_peft({k.removeprefix("unet."): v.float() for k, v in tensors.items()})
    for key, value in plain.items():
        if not key.endswith((".lora_A.weight", ".lora_B.weight")):
            raise InputError(f"{path}: {abridged(key)} is no LoRA tensor; a relation LoRA was expected")
        if not torch.isfinite(value).all():
            raise InputError(
                f"{path}: {abridged(key)} holds NaN or infinite values; the training that made it diverged"
            )
    ranks = {value.shape[0 if key.endswith("lora_A.weight") else 1] for key, value in plain.items()}
    if len(ranks) != 1:
        raise InputError(f"{path}: LoRA matrices of differing ranks {sorted(ranks)}; one rank was expected")
    return LoraFile(path, plain, metadata, ranks.pop())


def attach(unet: Any, file: LoraFile, name: str) -> None:
    """Load a LoRA on some of ``LAYERS`` into a UNet under ``name``; :func:`use` switches it on.

    Raises:
        InputError: its layers or shapes are not this UNet's.
    """
    from peft.utils import set_peft_model_state_dict

    modules = {key.removesuffix(".weight").rsplit(".", 1)[0] for key in file.tensors}
    targets = next(t for t in LAYERS.values() if t == LAYERS["transformer"] or all(m.endswith(t) for m in modules))
    for key, value in file.tensors.items():
        module, side = key.removesuffix(".weight").rsplit(".", 1)
        if not module.endswith(targets):
            raise InputError(
                f"{file.path}: trains {abridged(module)}; a relation LoRA is on {', '.join(targets)} alone"
            )
        try:
            weight = unet.get_submodule(module)
        except AttributeError:
            raise InputError(f"{file.path}: made for another base; this one has no layer {abridged(module)}") from None
        weight = getattr(weight, "base_layer", weight).weight
        size = value.shape[1] if side == "lora_A" else value.shape[0]
        if size != (weight.shape[1] if side == "lora_A" else weight.shape[0]):
            shapes = f"{tuple(value.shape)} on a layer of {tuple(weight.shape)}"
            raise InputError(f"{file.path}: made for another base; {abridged(key)} is {shapes}")
    unet.add_adapter(_config(file.rank, file.rank, targets), adapter_name=name)
    expected = state(unet, name).keys()
    if missing := sorted(expected - file.tensors.keys()):
        unet.delete_adapters(name)
        raise InputError(f"{file.path}: made for another base, or incomplete; {abridged(missing[0])} is missing")
    set_peft_model_state_dict(unet, file.tensors, adapter_name=name)
    for key, parameter in unet.named_parameters():
        if f".{name}." in key:
            parameter.requires_grad_(False)


def use(unet: Any, name: str | Sequence[str] | None, weight: float = 1.0) -> None:
    """Switch on one attached LoRA at a weight, several at the same one, or none of them."""
    if not name:
        if getattr(unet, "peft_config", None):
            unet.disable_adapters()
        return
    names = [name] if isinstance(name, str) else list(name)
    unet.enable_adapters()
    unet.set_adapters(names, [weight] * len(names))
