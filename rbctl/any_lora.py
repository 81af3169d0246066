"""LoRAs of any origin beside the relation's: of style, of a character, step-distilled; each at its own weight.

They may train the text encoders and convolutions, with ranks and alphas of each layer's own, and magnitudes (DoRA).
The names of their layers are read by the converters of diffusers, and peft puts them in.
"""

from __future__ import annotations

import functools
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import click
import torch

from rbctl import lora, lora_names, unet_weights
from rbctl.bases import families, family_of
from rbctl.errors import InputError, abridged, reason
from rbctl.files import read_safetensors
from rbctl.lora import LoraFile
from rbctl.parsing import parse_json
from rbctl.pretrained import silent
from rbctl.unet_weights import UNetWeights

if TYPE_CHECKING:
    from rbctl.bases import Base

NETWORKS = ("unet", "transformer", "text_encoder", "text_encoder_2")

_KOHYA = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_")
_SDXL = SimpleNamespace(layers_per_block=2)  # all that diffusers asks of a UNet to renumber kohya's blocks
# How other trainers' names of a transformer's layers begin; a UNet's blocks have none of these names at their top.
_BLOCK = re.compile(r"(double_blocks|single_blocks|(single_)?transformer_blocks)[._]\d")
OF_TRANSFORMER = re.compile(rf"(diffusion_model\.|base_model\.model\.|lora_unet_)?{_BLOCK.pattern}")
_PLAIN = {"lora_down.weight", "lora_up.weight", "alpha", "dora_scale"}
# How the parts of a module begin that is no plain LoRA, and what it is.
OTHER_KINDS = {"hada_": "LoHa", "lokr_": "LoKr", "lora_mid": "Tucker", "diff": "whole differences", "oft_": "OFT"}


class Matrices(NamedTuple):
    """What one layer gains: up @ down, with alpha / rank in ``up``, and DoRA's magnitude of each output or None."""

    down: torch.Tensor
    up: torch.Tensor
    magnitude: torch.Tensor | None = None


@dataclass(frozen=True, eq=False)
class ForeignLora:
    """A LoRA that is none of a relation.

    Attributes:
        networks: network of ``NETWORKS`` -> layer -> its matrices, float32.
        metadata: the file's own.
        left_out: why -> how many modules of the file.
    """

    path: Path
    networks: dict[str, dict[str, Matrices]]
    metadata: dict[str, str]
    left_out: Mapping[str, int]


_UNREADABLE = "holds no LoRA of a UNet, transformer or text encoder that diffusers reads"

AnyLora: TypeAlias = LoraFile | ForeignLora | UNetWeights


def read(path: Path) -> AnyLora:
    """Read a LoRA: strictly where it claims a relation, else of whatever layers; or tuned weights of a UNet.

    Raises:
        InputError: it holds nothing that can be used, or a tensor is not finite.
    """
    tensors, metadata = read_safetensors(path)
    if unet_weights.holds(tensors):
        return unet_weights.of_file(path, tensors, metadata)
    ranks = {value.shape[0] for key, value in tensors.items() if ("lora_down" in key or "lora_A" in key) and value.ndim}
    if "step" in tensors or (len(ranks) <= 1 and any(key.startswith("rbctl.") for key in metadata)):
        return lora.read(path)
    if any(map(OF_TRANSFORMER.match, tensors)):
        tensors = _named_as_in_diffusers(path, tensors)
    of_kohya = {key: value for key, value in tensors.items() if key.startswith(_KOHYA)}
    others = {key: value for key, value in tensors.items() if key not in of_kohya}
    left_out: Counter[str] = Counter()
    networks: dict[str, dict[str, Matrices]] = {}
    for layer, matrices in [*_of_kohya(path, of_kohya, left_out), *_of_diffusers(path, others, metadata, left_out)]:
        network, _, module = layer.partition(".")
        if module in networks.setdefault(network, {}):
            raise InputError(f"{path}: holds two modules for one layer, {abridged(layer)}")
        if not all(part is None or part.isfinite().all() for part in matrices):
            raise InputError(f"{path}: {abridged(layer)} holds NaN or infinite values")
        networks[network][module] = matrices
    if not networks:
        kinds = f" ({_counted(left_out)})" if left_out else ""
        raise InputError(f"{path}: {_UNREADABLE}{kinds}")
    return ForeignLora(path, networks, metadata, left_out)


def _named_as_in_diffusers(path: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Other trainers' names of a transformer's layers -> diffusers', by its loader that knows most of the layers.

    Those are the names of ai-toolkit, of kohya's scripts and of ComfyUI, and those without a prefix that step-distilled
    LoRAs have. alpha / rank goes into the matrices: not every loader looks at it.
    """
    import diffusers

    scaled = {f"diffusion_model.{key}" if _BLOCK.match(key) else key: value for key, value in tensors.items()}
    for key in [key for key in scaled if key.endswith(".alpha")]:
        alpha = scaled.pop(key)
        for side in ("lora_up.weight", "lora_B.weight"):
            up = f"{key.removesuffix('alpha')}{side}"
            if up in scaled and scaled[up].ndim == 2 and scaled[up].numel():
                if alpha.numel() != 1:
                    raise InputError(f"{path}: {abridged(key)} has {alpha.numel()} numbers; one was expected")
                scaled[up] = scaled[up].float() * (float(alpha) / scaled[up].shape[1])
    best, most = dict[str, torch.Tensor](), 0
    for family in families().values():
        if "transformer" not in family.learned_on:
            continue
        try:
            with silent():
                named = getattr(diffusers, family.pipelines[0]).lora_state_dict(dict(scaled))
        except (ValueError, LookupError, TypeError, AttributeError, RuntimeError, AssertionError):
            continue  # of names or shapes that this family has not
        modules = (key.removeprefix("transformer.").partition(".lora_")[0] for key in named)
        if (known := len(family.targets(modules, [*family.layers][-1]))) > most:
            best, most = named, known
    if not best:
        raise InputError(f"{path}: {_UNREADABLE}")
    return best


def tensors_hash(file: AnyLora) -> str:
    """SHA-256 of the tensors alone, as the trainer noted it, else of what stands behind the file's header."""
    noted = file.metadata.get("sshs_model_hash", "")
    return noted if re.fullmatch("[0-9a-f]{64}", noted) else _autov3(file.path)


_autov3 = functools.cache(lora.autov3)  # a whole UNet is large, and every picture asks for it


def _counted(left_out: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {why}" for why, count in left_out.items())


def _of_kohya(path: Path, tensors: Mapping[str, torch.Tensor], left_out: Counter[str]) -> list[tuple[str, Matrices]]:
    """Layers in the names of sd-scripts, LyCORIS and their like."""
    modules: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        module, _, part = key.partition(".")
        modules.setdefault(module, {})[part] = value
    layers = []
    for module, parts in modules.items():
        layer = _layer(module)
        if not {"lora_down.weight", "lora_up.weight"} <= parts.keys() <= _PLAIN:
            kinds = [kind for mark, kind in OTHER_KINDS.items() if any(part.startswith(mark) for part in parts)]
            left_out[f"of {kinds[0] if kinds else 'an unknown kind'}"] += 1
        elif layer is None:
            left_out["of layers that SDXL lacks"] += 1
        else:
            down, up = parts["lora_down.weight"], parts["lora_up.weight"]
            alpha = parts.get("alpha")
            _check_shapes(path, layer, down, up, alpha)
            scale = 1.0 if alpha is None else float(alpha) / down.shape[0]
            layers.append((layer, _matrices(down, up, scale, parts.get("dora_scale"))))
    return layers


@functools.cache
def _layer(module: str) -> str | None:
    """A module of kohya's names as NETWORK.LAYER; None where diffusers knows no such layer."""
    from diffusers import StableDiffusionXLPipeline

    blank = torch.zeros(1, 1)
    pair = {f"{module}.lora_down.weight": blank, f"{module}.lora_up.weight": blank}
    try:
        named = StableDiffusionXLPipeline.lora_state_dict(pair, unet_config=_SDXL)[0]
    except Exception:  # what they do not know makes diffusers' converters fail in any way
        return None
    return next((key.partition(".lora_A")[0] for key in _peft(named) if ".lora_A." in key), None)


def _peft(named: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names of diffusers' files, old and new -> NETWORK. and peft's names."""
    from diffusers.utils import convert_state_dict_to_peft, convert_unet_state_dict_to_peft
    from diffusers.utils.state_dict_utils import StateDictType

    converted: dict[str, torch.Tensor] = {}
    for key, value in named.items():
        network, _, name = key.partition(".")
        if network == lora_names.TRANSFORMER:
            plain = {name: value}
        elif network == "unet":
            plain = convert_unet_state_dict_to_peft({name: value})
        elif network in NETWORKS:
            kind = StateDictType.DIFFUSERS_OLD if "_lora." in name else StateDictType.DIFFUSERS
            plain = convert_state_dict_to_peft({name: value}, kind)
        else:
            continue
        converted |= {f"{network}.{own}": value for own in plain}
    return converted


def _of_diffusers(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str], left_out: Counter[str]
) -> list[tuple[str, Matrices]]:
    """Layers in the names of diffusers and its training scripts, with peft's settings where the metadata have them."""
    alphas = {key.removesuffix(".alpha").removesuffix(".lora"): v for key, v in tensors.items() if "alpha" in key}
    try:
        named = _peft({key: value for key, value in tensors.items() if "alpha" not in key})
    except Exception as error:  # as above
        raise InputError(f"{path}: its names are not those of diffusers ({reason(error)})") from error
    if strange := len([key for key in tensors if not key.startswith(tuple(f"{network}." for network in NETWORKS))]):
        left_out["tensors of unknown names"] += strange
    layers = []
    for key, down in named.items():
        layer, _, side = key.partition(".lora_A")
        if not side:
            continue
        up = named.get(f"{layer}.lora_B.weight")
        if up is None:
            raise InputError(f"{path}: {abridged(layer)} has no lora_B beside its lora_A")
        alpha = alphas.get(layer)
        _check_shapes(path, layer, down, up, alpha)
        rank = down.shape[0]
        scale = scale_in(path, metadata, layer, rank) if alpha is None else float(alpha) / rank
        magnitude = named.get(f"{layer}.lora_magnitude_vector", named.get(f"{layer}.lora_magnitude_vector.weight"))
        layers.append((layer, _matrices(down, up, scale, magnitude)))
    return layers


def scale_in(path: Path, metadata: Mapping[str, str], layer: str, rank: int) -> float:
    """alpha / rank of NETWORK.LAYER by peft's settings, which diffusers keeps in a file's metadata; 1 without them.

    Raises:
        InputError: the settings are damaged.
    """
    try:
        settings = parse_json(metadata.get("lora_adapter_metadata", "{}"), f"{path}: lora_adapter_metadata")
        network, _, module = layer.partition(".")
        patterns = settings.get(f"{network}.alpha_pattern") or {}
        alpha = patterns.get(module, settings.get(f"{network}.lora_alpha", rank))
        return float(alpha / rank**0.5 if settings.get(f"{network}.use_rslora") else alpha / rank)
    except (ValueError, TypeError, AttributeError, ArithmeticError) as error:
        raise InputError(f"{path}: lora_adapter_metadata: not peft's settings ({reason(error)})") from error


def _check_shapes(path: Path, layer: str, down: torch.Tensor, up: torch.Tensor, alpha: torch.Tensor | None) -> None:
    """Raises InputError unless these are the matrices of a layer and one number."""
    if down.ndim not in (2, 4) or up.ndim not in (2, 4) or down.shape[0] != up.shape[1] or not down.numel():
        shapes = f"{list(down.shape)} and {list(up.shape)}"
        raise InputError(f"{path}: {abridged(layer)}: {shapes} are no matrices of a LoRA")
    if alpha is not None and alpha.numel() != 1:
        raise InputError(f"{path}: {abridged(layer)}: the alpha has {alpha.numel()} numbers; one was expected")


def _matrices(down: torch.Tensor, up: torch.Tensor, scale: float, magnitude: torch.Tensor | None) -> Matrices:
    return Matrices(down.float(), up.float() * scale, None if magnitude is None else magnitude.float())


def attach(bundle: Base, file: AnyLora, name: str) -> None:
    """Put a LoRA into a bundle's networks under ``name``; :func:`use` switches it on. What does not fit is told.

    Raises:
        InputError: it is made for another base.
    """
    if isinstance(file, LoraFile):
        lora.attach(bundle.model, file, name, family_of(bundle.folder).layers)
        return
    if isinstance(file, UNetWeights):
        if not hasattr(bundle, "unet"):
            raise InputError(f"{file.path}: holds weights of a UNet, which {bundle.name} lacks")
        unet_weights.check(bundle.unet, file)
        return
    left_out = Counter(file.left_out)
    fitting = {network: _fitting(bundle, network, file, left_out) for network in file.networks}
    if not any(fitting.values()):
        raise InputError(f"{file.path}: made for another base; this one has none of its layers")
    for network, layers in fitting.items():
        for kind in (False, True):  # peft has DoRA for all layers of an adapter or for none
            own = {layer: m for layer, m in layers.items() if (m.magnitude is not None) is kind}
            if own:
                _inject(getattr(bundle, network), own, f"{name}_dora" if kind else name)
    if left_out:
        used = sum(map(len, fitting.values()))
        click.echo(f"{file.path}: {used} modules used; left out: {_counted(left_out)}", err=True)


def _fitting(bundle: Base, network: str, file: ForeignLora, left_out: Counter[str]) -> dict[str, Matrices]:
    """The layers that a network has, each with matrices of its layer's shape."""
    model, layers = getattr(bundle, network, None), dict[str, Matrices]()
    if model is None:
        left_out[f"of a {network}, which this bundle lacks"] += len(file.networks[network])
        return layers
    for name, matrices in file.networks[network].items():
        # transformers 5 has no "text_model." in front of a text encoder's layers; files do.
        layer = name if hasattr(model, "text_model") else name.removeprefix("text_model.")
        try:
            module = model.get_submodule(layer)
            weight = getattr(module, "base_layer", module).weight
        except AttributeError:
            left_out[f"of layers that the {network} of this bundle lacks"] += 1
            continue
        out, rank = weight.shape[0], matrices.down.shape[0]
        try:
            down = matrices.down.reshape(rank, *weight.shape[1:])
            up = matrices.up.reshape(out, rank, *[1] * (weight.ndim - 2))
        except RuntimeError:
            shapes = f"{tuple(matrices.up.shape)} x {tuple(matrices.down.shape)} on a layer of {tuple(weight.shape)}"
            raise InputError(f"{file.path}: made for another base; {abridged(name)} is {shapes}") from None
        magnitude = matrices.magnitude
        if magnitude is not None:
            if magnitude.numel() != out or (magnitude.ndim > 1 and out not in magnitude.shape[:2]):
                left_out["of DoRA over inputs, which peft lacks"] += 1
                continue
            magnitude = magnitude.reshape(-1) if weight.ndim == 2 else magnitude.reshape(1, -1, 1, 1)
        layers[layer] = Matrices(down, up, magnitude)
    return layers


def _inject(model: Any, layers: Mapping[str, Matrices], name: str) -> None:
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict

    ranks = {layer: matrices.down.shape[0] for layer, matrices in layers.items()}
    common = Counter(ranks.values()).most_common(1)[0][0]
    others = {f"^{layer}": rank for layer, rank in ranks.items() if rank != common}
    config = LoraConfig(
        r=common,
        lora_alpha=common,
        rank_pattern=others,
        alpha_pattern=others,
        target_modules=list(layers),
        use_dora=any(matrices.magnitude is not None for matrices in layers.values()),
    )
    state: dict[str, torch.Tensor] = {}
    for layer, (down, up, magnitude) in layers.items():
        state |= {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}
        if magnitude is not None:
            state[f"{layer}.lora_magnitude_vector"] = magnitude
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several LoRAs are meant
        inject_adapter_in_model(config, model, adapter_name=name)
    set_peft_model_state_dict(model, state, adapter_name=name)
    for key, parameter in model.named_parameters():
        if f".{name}." in key or key.endswith(f".{name}"):
            parameter.requires_grad_(False)


def use(bundle: Base, weights: Mapping[str, float]) -> None:
    """Switch on the LoRAs attached under these names, each at its weight, and no others."""
    from diffusers.utils import set_adapter_layers, set_weights_and_activate_adapters
    from peft.tuners.tuners_utils import BaseTunerLayer

    active = {name: weight for name, weight in weights.items() if weight}
    names: Sequence[str] = [kind for name in active for kind in (name, f"{name}_dora")]
    for network in NETWORKS:
        model = getattr(bundle, network, None)
        if model is not None and any(isinstance(module, BaseTunerLayer) for module in model.modules()):
            set_adapter_layers(model, enabled=bool(active))
            set_weights_and_activate_adapters(model, names, [weight for weight in active.values() for _ in range(2)])
