"""What other programs, by their own code, make of LoRA files; tests/clients/table.py starts it for each.

    python tests/clients/programs.py PROGRAM CASES.json [CHECKOUT]

Each function yields what its program adds to the weights of SDXL's UNet, or of an editor's transformer: the name of
the layer and a matrix (out x in). It yields one layer at a time, as the whole would take 9 GB.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

Changes = Iterator[tuple[str, torch.Tensor]]


def unwritten(model_class: str, config: dict[str, Any]) -> Any:
    """A model of diffusers; no weight is written or read, so the system gives it no memory."""
    import diffusers

    with torch.device("meta"):
        model = getattr(diffusers, model_class).from_config(config)
    return model.to_empty(device="cpu")


def unwritten_unet(cases: dict[str, Any]) -> Any:
    return unwritten("UNet2DConditionModel", cases["unet_config"])


def of_peft(unet: Any) -> Changes:
    from peft.tuners.lora import LoraLayer

    for name, module in unet.named_modules():
        if isinstance(module, LoraLayer):
            (adapter,) = module.lora_A
            yield name, module.get_delta_weight(adapter)


def diffusers(path: Path, cases: dict[str, Any]) -> Changes:
    """The two steps of StableDiffusionXLPipeline.load_lora_weights that concern the UNet."""
    from diffusers.loaders import StableDiffusionXLLoraLoaderMixin as Loader

    unet = unwritten_unet(cases)
    tensors, alphas = Loader.lora_state_dict(load_file(path), unet_config=unet.config)
    Loader.load_lora_into_unet(tensors, alphas, unet, low_cpu_mem_usage=True)
    yield from of_peft(unet)


def diffusers_editor(path: Path, editor: dict[str, Any]) -> Changes:
    """The two steps of the editor pipeline's load_lora_weights."""
    import diffusers

    loader = getattr(diffusers, editor["pipeline"])
    transformer = unwritten(editor["transformer"], editor["config"])
    loader.load_lora_into_transformer(loader.lora_state_dict(load_file(path)), transformer, low_cpu_mem_usage=True)
    yield from of_peft(transformer)


def peft(path: Path, cases: dict[str, Any]) -> Changes:
    """rbctl's reader, which gives peft its own names, and peft's layers."""
    from peft import LoraConfig, inject_adapter_in_model
    from peft.utils import set_peft_model_state_dict

    from rbctl import lora

    file, unet = lora.read(path), unwritten_unet(cases)
    layers = sorted({name.rsplit(".lora_", 1)[0] for name in file.tensors})
    config = LoraConfig(r=file.rank, lora_alpha=file.rank, target_modules=layers)
    inject_adapter_in_model(config, unet, low_cpu_mem_usage=True)
    set_peft_model_state_dict(unet, file.tensors, low_cpu_mem_usage=True)
    yield from of_peft(unet)


def comfyui_added(model: Any, path: Path) -> Changes:
    """What ComfyUI adds to the weights of its model, by their names there; a weight with parts comes once for each."""
    import comfy.lora

    weights = model.state_dict()
    patches = comfy.lora.load_lora(load_file(path), comfy.lora.model_lora_keys_unet(model, {}))
    for place, patch in patches.items():
        key, part = place if isinstance(place, tuple) else (place, None)
        change = comfy.lora.calculate_weight([(1.0, patch, 1.0, part, None)], torch.zeros(weights[key].shape), key)
        yield key.removeprefix("diffusion_model."), change


def comfyui(path: Path, cases: dict[str, Any]) -> Changes:
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    import comfy.model_detection

    shapes = {name: torch.empty(shape, device="meta") for name, shape in cases["unet_shapes"].items()}
    config = comfy.model_detection.model_config_from_diffusers_unet(shapes)
    with torch.device("meta"):
        model = config.get_model({}, device="meta")
    for key, change in comfyui_added(model, path):
        yield key.removesuffix(".weight"), change


def comfyui_editor(path: Path, editor: dict[str, Any]) -> Changes:
    """ComfyUI has one weight where FLUX.2 has three in diffusers; diffusers' reader of its checkpoints splits it."""
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    import comfy.supported_models
    from diffusers.loaders.single_file_utils import convert_flux2_transformer_checkpoint_to_diffusers as in_parts

    with torch.device("meta"):
        model = getattr(comfy.supported_models, editor["comfyui"])(editor["comfyui_config"]).get_model({})
    for key, change in comfyui_added(model, path):
        parts = in_parts({key: change}) if editor["comfyui"] == "Flux2" else {key: change}
        for name, part in parts.items():
            if part.any():
                yield name.removesuffix(".weight"), part


def sd_scripts(path: Path, cases: dict[str, Any]) -> Changes:
    from library.sdxl_original_unet import SdxlUNet2DConditionModel
    from networks.lora import create_network_from_weights

    with torch.device("meta"):
        unet = SdxlUNet2DConditionModel()
    network, tensors = create_network_from_weights(1.0, str(path), None, [], unet, for_inference=True)
    for module in network.unet_loras:
        own = {key.partition(".")[2]: value for key, value in tensors.items() if key.startswith(module.lora_name + ".")}
        layer = module.org_module
        on_meta, layer.weight = layer.weight, torch.nn.Parameter(torch.zeros(layer.weight.shape), requires_grad=False)
        module.merge_to(own, torch.float32, "cpu")
        yield module.lora_name.removeprefix("lora_unet_"), layer.weight
        layer.weight = on_meta


def invokeai(path: Path, cases: dict[str, Any]) -> Changes:
    from invokeai.backend.model_manager.configs.factory import ModelConfigFactory
    from invokeai.backend.patches.layer_patcher import LayerPatcher
    from invokeai.backend.patches.lora_conversions.sd_lora_conversion_utils import lora_model_from_sd_state_dict
    from invokeai.backend.patches.lora_conversions.sdxl_lora_conversion_utils import (
        convert_sdxl_keys_to_diffusers_format,
    )

    if type(ModelConfigFactory.from_model_on_disk(path).config).__name__ != "LoRA_LyCORIS_SDXL_Config":
        return  # InvokeAI does not take it for a LoRA of SDXL, and offers it nowhere
    unet = unwritten_unet(cases)
    patches = lora_model_from_sd_state_dict(convert_sdxl_keys_to_diffusers_format(load_file(path))).layers
    for key, patch in patches.items():
        name, layer = LayerPatcher._get_submodule(unet, key.removeprefix("lora_unet_"), layer_key_is_flattened=True)
        yield name, patch.get_parameters({"weight": torch.zeros(layer.weight.shape)}, weight=1.0)["weight"]


def invokeai_editor(path: Path, editor: dict[str, Any]) -> Changes:
    from invokeai.backend.model_manager.configs.factory import ModelConfigFactory
    from invokeai.backend.patches.layer_patcher import LayerPatcher
    from invokeai.backend.patches.lora_conversions import flux_diffusers_lora_conversion_utils as flux
    from invokeai.backend.patches.lora_conversions import qwen_image_lora_conversion_utils as qwen_image

    kind = type(ModelConfigFactory.from_model_on_disk(path).config).__name__
    tensors, convert = load_file(path), None
    if kind == "LoRA_LyCORIS_Flux2_Config" and flux.is_state_dict_flux2_diffusers_format(tensors):
        convert = flux.lora_model_from_flux2_diffusers_state_dict
    elif kind == "LoRA_LyCORIS_QwenImage_Config":
        convert = qwen_image.lora_model_from_qwen_image_state_dict
    if convert is None:
        return
    transformer = unwritten(editor["transformer"], editor["config"])
    for key, patch in convert(tensors, alpha=None).layers.items():
        name = key.removeprefix("lora_transformer-")
        _, layer = LayerPatcher._get_submodule(transformer, name, layer_key_is_flattened=False)
        yield name, patch.get_parameters({"weight": torch.zeros(layer.weight.shape)}, weight=1.0)["weight"]


Load = Callable[[Path, dict[str, Any]], Changes]
PROGRAMS: dict[str, Load] = {
    "diffusers": diffusers,
    "peft": peft,
    "InvokeAI": invokeai,
    "ComfyUI": comfyui,
    "sd-scripts": sd_scripts,
}
WITH_EDITORS: dict[str, Load] = {"diffusers": diffusers_editor, "InvokeAI": invokeai_editor, "ComfyUI": comfyui_editor}


def compare(changes: Changes, path: Path, alpha: float, names: dict[str, str]) -> dict[str, float]:
    """How many modules the program has found, and its largest difference from B @ A * alpha / rank.

    Args:
        changes: one for each layer; its name is diffusers', or that of SDXL's checkpoint.
        path: of A and B in peft's names.
        names: from either name, with underscores for dots, to diffusers'.

    Raises:
        KeyError: the program has changed a layer that the LoRA is not on.
        RuntimeError: it has changed a layer of another shape.
    """
    matrices = load_file(path)
    modules, difference = set(), 0.0
    for name, change in changes:
        layer = names[name.replace(".", "_")]
        down, up = matrices[f"{layer}.lora_A.weight"], matrices[f"{layer}.lora_B.weight"]
        expected = up @ down * (alpha / len(down))
        difference = max(difference, float((expected - change.detach()).abs().max()))
        modules.add(layer)
    return {"modules": len(modules), "difference": difference}


def version_of(program: str, checkout: str | None) -> str:
    if checkout is None:
        return version(program.lower())
    if program == "ComfyUI":
        from comfyui_version import __version__

        return str(__version__)
    git = ["git", "-C", checkout, "rev-parse", "--short=8", "HEAD"]
    return subprocess.run(git, check=True, capture_output=True, text=True).stdout.strip()


@torch.no_grad()
def main(program: str, cases_path: str, checkout: str | None = None) -> None:
    sys.argv = sys.argv[:1]  # ComfyUI would read the arguments as its own
    if checkout:
        sys.path.insert(0, checkout)
    cases = json.loads(Path(cases_path).read_text(encoding="utf-8"))
    results = []
    for file in cases["files"]:
        if editor := cases["editors"].get(file["form"]):
            if program not in WITH_EDITORS:
                continue
            changes = WITH_EDITORS[program](Path(file["path"]), editor)
        else:
            changes = PROGRAMS[program](Path(file["path"]), cases)
        results.append({**file, **compare(changes, Path(file["matrices"]), file["alpha"], cases["names"])})
    print(json.dumps({"version": version_of(program, checkout), "results": results}))


if __name__ == "__main__":
    main(*sys.argv[1:])
