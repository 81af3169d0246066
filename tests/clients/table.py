"""The table in docs/clients.md: which programs find how many modules of a relation LoRA, and how exactly.

    make clients COMFYUI=~/ComfyUI SD_SCRIPTS=~/sd-scripts INVOKEAI=~/invokeai/bin/python

LoRAs of random weights are drawn at SDXL's full size and written by rbctl. tests/clients/programs.py gives them to each
program's own code, in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file

from rbctl import lora, lora_names
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
        return UNet2DConditionModel.from_config(config)


def drawn(unet: Any, layers: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """A LoRA of random weights in peft's names, for a UNet on the meta device."""
    with torch.device("meta"):
        lora.add(unet, RANK, RANK, seed, targets=lora.LAYERS[layers])
    shapes = {name: value.shape for name, value in lora.state(unet).items()}
    unet.delete_adapters(lora.ADAPTER)
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in sorted(shapes.items())}


def write_cases(folder: Path, config: dict[str, Any]) -> Path:
    """LoRAs of every choice of layers and form, and what a program's process needs to judge them."""
    unet, files, names = unet_of(config), [], {}
    shapes = {name: list(value.shape) for name, value in unet.state_dict().items()}
    for layers in lora.LAYERS:
        tensors, matrices = drawn(unet, layers), folder / f"{layers}.safetensors"
        save_file(tensors, matrices)
        for path in {name.rsplit(".lora_", 1)[0] for name in tensors}:
            names[path.replace(".", "_")] = path
            names[lora_names.kohya_name(path, lora.sdxl_blocks(unet)).removeprefix(lora_names.KOHYA)] = path
        for number, (label, form) in enumerate(FORMS.items()):
            path = folder / f"{layers}-{number}.safetensors"
            lora.save(path, tensors, {}, form.alpha, form.names, form.blocks_of_sdxl and lora.sdxl_blocks(unet))
            files.append({"form": label, "alpha": form.alpha, "path": str(path), "matrices": str(matrices)})
    cases = {"unet_config": config, "unet_shapes": shapes, "names": names, "files": files}
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
    for form in FORMS:
        results = [result for result in report["results"] if result["form"] == form]  # in the order of lora.LAYERS
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
        cases = write_cases(Path(folder), config)
        for program in PROGRAMS:
            lines += (new := rows(program, report_of(program, cases)))
            print("\n".join(new), flush=True)
    lines.append("| A1111, Forge | not run, see below | | | | |")
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    write_text(PAGE, before + BEGIN + "\n".join(lines) + "\n" + END + rest.partition(END)[2])


if __name__ == "__main__":
    main()
