"""LoRAs, a few low-rank matrices on a UNet's transformer layers (the paper's: on attn2 alone), and their file."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from rbctl import formats, lora_names
from rbctl.errors import InputError, abridged
from rbctl.files import read_safetensors, write_safetensors
from rbctl.layout import LayoutPrior
from rbctl.lora_names import KOHYA, LoraForm
from rbctl.parsing import parse_json
from rbctl.relations import Relation, load_relation, shipped

TARGETS = ("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0")
_ATTENTION = tuple(target.replace("attn2", layer) for layer in ("attn1", "attn2") for target in TARGETS)
LAYERS = {"attn2": TARGETS, "attention": _ATTENTION, "transformer": (*_ATTENTION, "ff.net.0.proj", "ff.net.2")}
ADAPTER = "relation"

_CHECKPOINT = "lora."  # what the names of a LoRA begin with in a checkpoint of 'rbctl finetune'


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

    @property
    def modules(self) -> set[str]:
        """Names of the layers that it is on."""
        return {key.removesuffix(".weight").rsplit(".", 1)[0] for key in self.tensors}


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


def start_from(unet: Any, file: LoraFile, alpha: float, name: str = ADAPTER) -> None:
    """Give the LoRA that :func:`add` put on a UNet the matrices of a file.

    Args:
        alpha: that of the LoRA on the UNet, by which its B is scaled; the file's is folded into its B.

    Raises:
        InputError: the file has other layers or shapes.
    """
    parameters = named_parameters(unet, name)
    if strange := sorted(parameters.keys() ^ file.tensors.keys()):
        raise InputError(f"{file.path}: made for another base or other layers; {abridged(strange[0])} is not in both")
    for key, parameter in parameters.items():
        value = file.tensors[key]
        if value.shape != parameter.shape:
            shapes = f"{tuple(value.shape)}, not {tuple(parameter.shape)}"
            raise InputError(f"{file.path}: made for another base or rank; {abridged(key)} is {shapes}")
        parameter.data.copy_(value / (alpha / file.rank) if "lora_B" in key else value)


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


def sdxl_blocks(unet: Any) -> bool:
    """Whether sd-scripts' numbers of SDXL's blocks mean the same in this UNet: it has as many layers in a block."""
    return int(unet.config.layers_per_block) == 2


def save(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str],
    alpha: float,
    form: LoraForm = "kohya",
    sdxl_blocks: bool = True,
    network: str = "unet",
) -> None:
    """Write the LoRA file, atomically.

    Args:
        tensors: in peft naming, all of one rank.
        metadata: what the caller knows; how the matrices are stored and their hashes are added to it.
        alpha: the scale is alpha / rank.
        form: of the names, see :mod:`rbctl.lora_names`.
        sdxl_blocks: in kohya's form with SDXL's numbers of blocks, for a UNet that is built like SDXL's.
        network: that they are of, in diffusers' form.

    Raises:
        InputError: a tensor is not finite, or the disk is full.
    """
    rank = next(value.shape[0] for key, value in tensors.items() if "lora_A" in key)
    if form == "kohya":
        named = lora_names.to_kohya(tensors, alpha, sdxl_blocks)
    else:
        # These forms have no place for alpha, and loaders take it to be the rank: fold the scale in.
        folded = {k: v * (alpha / rank) if "lora_B" in k else v for k, v in tensors.items()}
        named = lora_names.to_official(folded) if form == "official" else lora_names.to_diffusers(folded, network)
        alpha = rank
    named = {key: value.detach().cpu().contiguous() for key, value in named.items()}
    stored = {
        "format": "pt",
        **metadata,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(float(alpha)),
    }
    write_safetensors(path, named, stored | hashes(named, stored))


def hashes(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """The keys by which galleries know a LoRA whatever else its metadata says: kohya's two and modelspec's.

    The first 12 digits of ``sshs_model_hash`` are Civitai's AutoV3. ``sshs_legacy_hash`` is of one stretch of a file
    that has no metadata but ``ss_*``, as sd-scripts computes it.
    """
    from safetensors.torch import save

    raw = save(dict(tensors), {key: value for key, value in metadata.items() if key.startswith("ss_")})
    content = hashlib.sha256(raw[8 + int.from_bytes(raw[:8], "little") :]).hexdigest()
    return {
        "sshs_model_hash": content,
        "sshs_legacy_hash": hashlib.sha256(raw[0x100000:0x110000]).hexdigest()[:8],
        "modelspec.hash_sha256": f"0x{content}",
    }


def autov3(path: Path) -> str:
    """SHA-256 of all that stands behind a file's header; its first 12 digits are Civitai's AutoV3."""
    with path.open("rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read(path: Path) -> LoraFile:
    """Read a relation LoRA in kohya's, the authors' or peft's naming, or the one in a checkpoint of a run.

    Raises:
        InputError: not a LoRA for a UNet's attention, two modules are for one layer, or a tensor is not finite.
    """
    tensors, metadata = read_safetensors(path)
    if not tensors:
        raise InputError(f"{path}: holds no tensors; a relation LoRA was expected")
    if "step" in tensors:
        tensors = _from_checkpoint(path, tensors, metadata)
    for key, value in tensors.items():
        if not key.endswith(".alpha") and (value.ndim != 2 or not value.numel()):
            shape = list(value.shape)
            raise InputError(
                f"{path}: {abridged(key)} {shape} is no LoRA tensor, a matrix; a relation LoRA was expected"
            )
    plain = _to_peft(path, tensors)
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


def _from_checkpoint(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
) -> dict[str, torch.Tensor]:
    """The LoRA in a checkpoint, which stands beside the optimizer's state, in kohya's form."""
    plain = {key.removeprefix(_CHECKPOINT): value for key, value in tensors.items() if key.startswith(_CHECKPOINT)}
    try:
        alpha = float(metadata["ss_network_alpha"])
    except (KeyError, ValueError):
        mend = f"the run's LoRA is in {path.parent.parent}"
        raise InputError(f"{path}: a checkpoint without its alpha; {mend}") from None
    if any(".attentions." in key for key in plain):
        return lora_names.to_kohya(plain, alpha, sdxl_blocks=False)
    rank = next(value.shape[0] for key, value in plain.items() if "lora_A" in key)
    folded = {key: value * (alpha / rank) if "lora_B" in key else value for key, value in plain.items()}
    return lora_names.to_diffusers(folded, lora_names.TRANSFORMER)


def _to_peft(path: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names of any form -> peft's, in float32, every module's alpha / rank folded into its up matrix."""
    from diffusers.utils import convert_unet_state_dict_to_peft

    of_kohya = {key: value for key, value in tensors.items() if key.startswith(KOHYA)}
    others = {key: value for key, value in tensors.items() if key not in of_kohya}
    of_transformer = lora_names.of_transformer(others)
    others = {key: value for key, value in others.items() if key not in of_transformer.values()}
    for key in others:
        if not key.startswith("unet."):
            what = "is no LoRA tensor of a UNet or transformer; a relation LoRA was expected"
            raise InputError(f"{path}: {abridged(key)} {what}")
    plain = _from_kohya(path, of_kohya)
    for key, value in others.items():
        ((name, matrix),) = convert_unet_state_dict_to_peft({key.removeprefix("unet."): value.float()}).items()
        if name in plain:
            raise _clash(path, name.partition(".lora_")[0])
        plain[name] = matrix
    return plain | {name: tensors[key].float() for name, key in of_transformer.items()}


def _from_kohya(path: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
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
        down, up, alpha = parts["lora_down.weight"].float(), parts["lora_up.weight"].float(), parts.get("alpha")
        if alpha is not None:
            if alpha.numel() != 1 or not torch.isfinite(alpha).all():
                raise InputError(f"{path}: the alpha of {abridged(module)} is not a finite number")
            up = up * (float(alpha) / down.shape[0])
        layer = lora_names.path_of(module)
        if layer is None:
            what = "a relation LoRA is on attention and feed-forward layers alone"
            raise InputError(f"{path}: trains {abridged(module)}; {what}")
        if f"{layer}.lora_A.weight" in plain:
            raise _clash(path, layer)
        plain |= {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}
    return plain


def _clash(path: Path, layer: str) -> InputError:
    return InputError(f"{path}: holds two modules for one layer, {abridged(layer)}; merge LoRAs of one form of names")


def attach(unet: Any, file: LoraFile, name: str, layers: Mapping[str, str] | None = None) -> None:
    """Load a LoRA into a UNet or transformer under ``name``; :func:`use` switches it on.

    Args:
        layers: patterns of the model's names of layers, the fewest first; a LoRA is on all layers of one of them. None
            is a UNet's, ``LAYERS``.

    Raises:
        InputError: its layers or shapes are not this UNet's.
    """
    from peft.utils import set_peft_model_state_dict

    own = layers or {name: rf".*({'|'.join(map(re.escape, ends))})" for name, ends in LAYERS.items()}
    fitting = (pattern for pattern in own.values() if all(re.fullmatch(pattern, module) for module in file.modules))
    widest = [*own.values()][-1]
    pattern = next(fitting, widest)
    for key, value in file.tensors.items():
        module, side = key.removesuffix(".weight").rsplit(".", 1)
        try:
            weight = unet.get_submodule(module)
        except AttributeError:
            raise InputError(f"{file.path}: made for another base; this one has no layer {abridged(module)}") from None
        if not re.fullmatch(pattern, module):
            what = ", ".join(LAYERS["transformer"]) if layers is None else "attention and feed-forward layers"
            raise InputError(f"{file.path}: trains {abridged(module)}; a relation LoRA is on {what} alone")
        weight = getattr(weight, "base_layer", weight).weight
        size = value.shape[1] if side == "lora_A" else value.shape[0]
        if size != (weight.shape[1] if side == "lora_A" else weight.shape[0]):
            shapes = f"{tuple(value.shape)} on a layer of {tuple(weight.shape)}"
            raise InputError(f"{file.path}: made for another base; {abridged(key)} is {shapes}")
    targets = [module for module, _ in unet.named_modules() if re.fullmatch(pattern, module)]
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
