"""The table in docs/clients.md: which programs find how many modules of a relation LoRA, and how exactly.

    make clients COMFYUI=~/ComfyUI SD_SCRIPTS=~/sd-scripts INVOKEAI=~/invokeai/bin/python

LoRAs of random weights are drawn at SDXL's full size, and for two blocks of each kind of the editors' transformers.
rbctl writes them. tests/clients/programs.py gives them to each program's own code, in a process of its own.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import save_file

from rbctl import lora, lora_names
from rbctl.bases import families
from rbctl.files import write_json, write_text

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "clients.md"
BEGIN, END = "<!-- written by make clients -->\n", "<!-- end -->\n"
RANK = 4


@dataclass(frozen=True)
class Form:
    """How a file is written.

    Attributes:
        names: of ``rbctl finetune --format``.
        alpha: not the rank, so that a program which leaves it out differs.
        blocks_of_sdxl: False writes diffusers' names of blocks, as other trainers may.
    """

    names: lora_names.LoraForm
    alpha: float = 2.0
    blocks_of_sdxl: bool = True


FORMS = {
    "`kohya`": Form("kohya"),
    "`kohya`, alpha 8": Form("kohya", alpha=8.0),
    "`kohya`, diffusers' blocks": Form("kohya", blocks_of_sdxl=False),
    "`official`": Form("official"),
}


@dataclass(frozen=True)
class Editor:
    """A base with references in its sequence, at full width with two blocks of each kind.

    Attributes:
        family: of rbctl.
        pipeline, transformer: classes of diffusers; the latter with its ``config``.
        comfyui: class of comfy.supported_models, with its ``comfyui_config``.
    """

    family: str
    pipeline: str
    transformer: str
    config: dict[str, Any]
    comfyui: str
    comfyui_config: dict[str, Any]


EDITORS = {
    "FLUX.2 Klein 4B": Editor(
        family="flux2",
        pipeline="Flux2KleinPipeline",
        transformer="Flux2Transformer2DModel",
        config={
            "num_layers": 2,
            "num_single_layers": 2,
            "num_attention_heads": 24,
            "joint_attention_dim": 7680,
            "guidance_embeds": False,
        },
        comfyui="Flux2",
        comfyui_config={  # as comfy.model_detection reads it from the names and shapes of a checkpoint
            "image_model": "flux2",
            "in_channels": 128,
            "out_channels": 128,
            "hidden_size": 3072,
            "context_in_dim": 7680,
            "vec_in_dim": None,
            "num_heads": 24,
            "mlp_ratio": 3.0,
            "depth": 2,
            "depth_single_blocks": 2,
            "axes_dim": [32, 32, 32, 32],
            "theta": 2000,
            "patch_size": 1,
            "qkv_bias": False,
            "ops_bias": False,
            "guidance_embed": False,
            "global_modulation": True,
            "mlp_silu_act": True,
            "txt_ids_dims": [3],
        },
    ),
    "Qwen-Image-Edit-Plus": Editor(
        family="qwen_image_edit",
        pipeline="QwenImageEditPlusPipeline",
        transformer="QwenImageTransformer2DModel",
        config={"num_layers": 2},
        comfyui="QwenImage",
        comfyui_config={"image_model": "qwen_image", "in_channels": 64, "num_layers": 2},
    ),
}

# The environment variables that name a program's checkout and the Python that runs it.
PROGRAMS = {
    "diffusers": ("", ""),
    "peft": ("", ""),
    "InvokeAI": ("", "INVOKEAI"),
    "ComfyUI": ("COMFYUI", "COMFYUI_PYTHON"),
    "sd-scripts": ("SD_SCRIPTS", "SD_SCRIPTS_PYTHON"),
}


def unet_of(config: dict[str, Any]) -> Any:
    with torch.device("meta"):
        return diffusers.UNet2DConditionModel.from_config(config)


def drawn(model: Any, targets: Sequence[str], seed: int = 0) -> dict[str, torch.Tensor]:
    """A LoRA of random weights in peft's names, for a model on the meta device."""
    with torch.device("meta"):
        lora.add(model, RANK, RANK, seed, targets=targets)
    shapes = {name: value.shape for name, value in lora.state(model).items()}
    model.delete_adapters(lora.ADAPTER)
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in sorted(shapes.items())}


def write_cases(folder: Path, config: dict[str, Any], editors: Mapping[str, Editor]) -> Path:
    """LoRAs of every choice of layers and form, and what a program's process needs to judge them.

    Args:
        config: of SDXL's UNet, or of one that is built like it.
    """
    unet, files, names = unet_of(config), [], {}
    shapes = {name: list(value.shape) for name, value in unet.state_dict().items()}
    for layers in lora.LAYERS:
        tensors, matrices = drawn(unet, lora.LAYERS[layers]), folder / f"{layers}.safetensors"
        save_file(tensors, matrices)
        for path in {name.rsplit(".lora_", 1)[0] for name in tensors}:
            names[path.replace(".", "_")] = path
            names[lora_names.kohya_name(path, lora.sdxl_blocks(unet)).removeprefix(lora_names.KOHYA)] = path
        for number, (label, form) in enumerate(FORMS.items()):
            path = folder / f"{layers}-{number}.safetensors"
            lora.save(path, tensors, {}, form.alpha, form.names, form.blocks_of_sdxl and lora.sdxl_blocks(unet))
            files.append({"form": label, "alpha": form.alpha, "path": str(path), "matrices": str(matrices)})
    for number, (label, editor) in enumerate(editors.items()):
        with torch.device("meta"):
            transformer = getattr(diffusers, editor.transformer).from_config(editor.config)
        family, modules = families()[editor.family], dict(transformer.named_modules())
        for layers in family.layers:
            targets = family.targets(modules, layers)
            names |= {name.replace(".", "_"): name for name in targets}
            tensors, matrices = drawn(transformer, targets), folder / f"editor-{number}-{layers}.safetensors"
            save_file(tensors, matrices)
            path = matrices.with_stem(f"{matrices.stem}-written")
            lora.save(path, tensors, {}, 2.0, "diffusers", network="transformer")
            files.append({"form": label, "alpha": 2.0, "path": str(path), "matrices": str(matrices)})
    cases = {
        "unet_config": config,
        "unet_shapes": shapes,
        "editors": {label: dataclasses.asdict(editor) for label, editor in editors.items()},
        "names": names,
        "files": files,
    }
    write_json(folder / "cases.json", cases)
    return folder / "cases.json"


def report_of(program: str, cases: Path) -> dict[str, Any] | str:
    """What the program makes of the files, or why it was not run."""
    checkout, python = (os.environ.get(variable, "") for variable in PROGRAMS[program])
    needed = next(filter(None, PROGRAMS[program]), "")
    if needed and not os.environ.get(needed):
        return f"skipped: `make clients {needed}=PATH`"
    script = Path(__file__).with_name("programs.py")
    arguments = [python or sys.executable, str(script), program, str(cases), *([checkout] if checkout else [])]
    process = subprocess.run(arguments, stdout=subprocess.PIPE, text=True)
    if process.returncode:
        return "failed: the message is above"
    return dict(json.loads(process.stdout.splitlines()[-1]))


def rows(program: str, report: dict[str, Any] | str) -> list[str]:
    if isinstance(report, str):
        return [f"| {program} | {report} | | | | |"]
    lines = []
    for form in (*FORMS, *EDITORS):
        results = [result for result in report["results"] if result["form"] == form]  # in the order of lora.LAYERS
        if not results:
            continue
        modules = " | ".join(str(result["modules"]) for result in results)
        differences = [result["difference"] for result in results if result["modules"]]
        difference = f"{max(differences):.2g}" if differences else ""
        lines.append(f"| {program} {report['version']} | {form} | {modules} | {difference} |")
    return lines


def main() -> None:
    config = json.loads((ROOT / "rbctl" / "bundle" / "sdxl" / "unet" / "config.json").read_text(encoding="utf-8"))
    layers = " | ".join(f"`{name}`" for name in lora.LAYERS)
    lines = [f"| Program | file | {layers} | largest difference |", "|---|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        cases = write_cases(Path(folder), config, EDITORS)
        for program in PROGRAMS:
            lines += (new := rows(program, report_of(program, cases)))
            print("\n".join(new), flush=True)
    lines.append("| A1111, Forge | not run, see below | | | | |")
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    write_text(PAGE, before + BEGIN + "\n".join(lines) + "\n" + END + rest.partition(END)[2])


if __name__ == "__main__":
    main()
