"""SDXL checkpoints of one file, in Stability's names as on Civitai, made into a folder in diffusers' layout.

The names are translated by diffusers' own converters. What the objective is stands beside the weights: empty tensors
``v_pred`` and ``ztsnr`` (NoobAI's convention, which ComfyUI reads), sd-scripts' ``ss_*`` or the ``modelspec`` metadata.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rbctl.bundle.convert import check_tensors, save
from rbctl.bundle.tokenizer import write_tokenizer
from rbctl.errors import InputError, abridged
from rbctl.files import read_network_config, read_object, read_safetensors, write_json
from rbctl.pretrained import loading

if TYPE_CHECKING:
    import torch

SDXL = Path(__file__).parent / "sdxl"  # the configuration files of SDXL base 1.0
_PREFIXES = {
    "unet": "model.diffusion_model.",
    "text_encoder": "conditioner.embedders.0.transformer.",
    "text_encoder_2": "conditioner.embedders.1.model.",
    "vae": "first_stage_model.",
}
_EDM = ("edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min")  # Playground 2.5's and CosXL's
_PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}  # modelspec's words


def read_checkpoint(source: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a checkpoint of one file.

    Raises:
        InputError: it is no safetensors file.
    """
    if source.suffix.lower() in (".ckpt", ".pt", ".pth", ".bin"):
        raise InputError(f"{source}: pickled weights are not taken over; get or save it as .safetensors")
    return read_safetensors(source)


def write_base(source: Path, config: Path | None, dest: Path, vae: bool = True) -> None:
    """Networks, tokenizers and scheduler of a whole checkpoint, in the precision that the file has.

    Args:
        config: folder in diffusers' layout whose configurations fit the networks. [default: SDXL's]
        vae: take the file's VAE; else it may lack one.

    Raises:
        InputError: it is no whole SDXL checkpoint, or its objective is none of the method's.
    """
    tensors, metadata = read_checkpoint(source)
    parts = [part for part in _PREFIXES if vae or part != "vae"]
    if gaps := [part for part in parts if not any(name.startswith(_PREFIXES[part]) for name in tensors)]:
        raise InputError(f"{source}: not a whole SDXL checkpoint ({', '.join(gaps)} missing)")
    configs = config or SDXL
    scheduler = read_object(configs / "scheduler" / "scheduler_config.json") | objective(source, tensors, metadata)
    write_json(dest / "scheduler" / "scheduler_config.json", scheduler)
    for part in parts:
        settings = read_network_config(configs / part / "config.json")
        write_json(dest / part / "config.json", settings)
        own = {name: tensor for name, tensor in tensors.items() if name.startswith(_PREFIXES[part])}
        stem = "diffusion_pytorch_model" if part in ("unet", "vae") else "model"
        save(dest / part / f"{stem}.safetensors", _converted(source, part, own, settings), source)
    write_tokenizer(dest / "tokenizer", "<|endoftext|>")
    write_tokenizer(dest / "tokenizer_2", "!")
    write_json(dest / "model_index.json", read_object(configs / "model_index.json"))


def read_vae(source: Path, config: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors in diffusers' names and settings of a VAE of one file, alone or in a whole checkpoint.

    Args:
        source: in Stability's names or in diffusers'.
        config: its configuration, ``vae/config.json``.

    Raises:
        InputError: names or shapes do not fit the configuration.
    """
    tensors, settings = read_checkpoint(source)[0], read_network_config(config)
    prefix = _PREFIXES["vae"] if any(name.startswith(_PREFIXES["vae"]) for name in tensors) else ""
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    of_stability = any(name.startswith("decoder.mid.") for name in own)
    return (_converted if of_stability else _checked)(source, "vae", own, settings), settings


def write_vae(source: Path, config: Path, dest: Path) -> None:
    """Write what :func:`read_vae` reads in diffusers' layout."""
    tensors, settings = read_vae(source, config)
    save(dest / "diffusion_pytorch_model.safetensors", tensors, source)
    write_json(dest / "config.json", settings)


def objective(source: Path, names: Mapping[str, Any], metadata: Mapping[str, str]) -> dict[str, Any]:
    """What a checkpoint says of its objective, as keys of a scheduler's configuration.

    Args:
        names: of its tensors.

    Raises:
        InputError: the objective is none of the method's.
    """
    if edm := next((name for name in _EDM if name in names), None):
        raise InputError(f"{source}: {edm}: the base has an EDM objective; the method takes epsilon or v-prediction")
    word = metadata.get("modelspec.prediction_type", "epsilon").lower()
    if word not in _PREDICTIONS:
        raise InputError(
            f"{source}: modelspec.prediction_type is {abridged(word)}; the method takes epsilon or v (v-prediction)"
        )
    v_prediction = "v_pred" in names or metadata.get("ss_v_parameterization") == "True"
    said = {"prediction_type": "v_prediction" if v_prediction else _PREDICTIONS[word]}
    if "ztsnr" in names or metadata.get("ss_zero_terminal_snr") == "True":
        return said | ZERO_SNR
    return said


# Sampling must begin at the last timestep, where zero terminal SNR is.
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


def _converted(
    source: Path, part: str, tensors: dict[str, torch.Tensor], settings: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """One network in diffusers' or transformers' names."""
    from diffusers.loaders import single_file_utils

    prefix = _PREFIXES[part]
    converters: dict[str, Callable[[], dict[str, torch.Tensor]]] = {
        "unet": lambda: single_file_utils.convert_ldm_unet_checkpoint(tensors, dict(settings)),
        "vae": lambda: single_file_utils.convert_ldm_vae_checkpoint(tensors, dict(settings)),
        "text_encoder": lambda: single_file_utils.convert_ldm_clip_checkpoint(tensors),
        "text_encoder_2": lambda: single_file_utils.convert_open_clip_checkpoint(None, tensors, prefix=prefix),
    }
    with loading(source, f"SDXL's {part}"):
        named = converters[part]()
    named = {name: tensor for name, tensor in named.items() if not name.endswith(".position_ids")}
    return _checked(source, part, named, settings)


def _checked(
    source: Path, part: str, tensors: dict[str, torch.Tensor], settings: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    import torch
    import transformers
    from diffusers import UNet2DConditionModel

    from rbctl.bundle.vae import vae_class

    with loading(source, f"SDXL's {part}"), torch.device("meta"):
        if part == "unet":
            network: torch.nn.Module = UNet2DConditionModel.from_config(dict(settings))
        elif part == "vae":
            network = vae_class(settings, source).from_config(dict(settings))
        elif part == "text_encoder":
            network = transformers.CLIPTextModel(transformers.CLIPTextConfig(**settings))
        else:
            network = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**settings))
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    if part == "text_encoder":  # transformers from 5.6 on leaves the prefix out; published files have it
        shapes = {f"text_model.{name.removeprefix('text_model.')}": shape for name, shape in shapes.items()}
    check_tensors(source, tensors, shapes)
    return tensors
