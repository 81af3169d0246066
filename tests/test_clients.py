"""Other programs load a relation LoRA: diffusers by its own code, the others by the names and shapes they look for.

``make clients`` runs the others' own code too.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from clients import programs, table

from rbctl import lora, lora_names

# SDXL's blocks with transformer layers, as its checkpoint and sd-scripts name them: width, number of layers.
BLOCKS = {
    **{f"input_blocks_{number}_1": (640, 2) for number in (4, 5)},
    **{f"input_blocks_{number}_1": (1280, 10) for number in (7, 8)},
    "middle_block_1": (1280, 10),
    **{f"output_blocks_{number}_1": (1280, 10) for number in (0, 1, 2)},
    **{f"output_blocks_{number}_1": (640, 2) for number in (3, 4, 5)},
}
TEXT = 2048
MODULES = {"attn2": 280, "attention": 560, "transformer": 700}


def looked_for(layers: str) -> dict[str, tuple[int, int]]:
    """Names and shapes (out, in) of what ComfyUI, sd-scripts, A1111 and Forge look for in a LoRA of these layers."""
    shapes = {}
    for (block, (width, count)), target in itertools.product(BLOCKS.items(), lora.LAYERS[layers]):
        size = {
            "attn2.to_k": (width, TEXT),
            "attn2.to_v": (width, TEXT),
            "ff.net.0.proj": (8 * width, width),  # GEGLU's: values and gates
            "ff.net.2": (width, 4 * width),
        }.get(target, (width, width))
        for layer in range(count):
            shapes[f"lora_unet_{block}_transformer_blocks_{layer}_{target.replace('.', '_')}"] = size
    return shapes


@pytest.fixture(scope="module")
def sdxl() -> Any:
    config = table.ROOT / "rbctl" / "bundle" / "sdxl" / "unet" / "config.json"
    return table.unet_of(json.loads(config.read_text(encoding="utf-8")))


@pytest.mark.slow
@pytest.mark.parametrize("layers", lora.LAYERS)
def test_at_full_size_every_module_has_the_name_and_shape_that_programs_look_for(sdxl: Any, layers: str) -> None:
    with torch.device("meta"):
        lora.add(sdxl, rank=4, alpha=2.0, seed=0, targets=lora.LAYERS[layers])
        tensors = lora.state(sdxl)
        sdxl.delete_adapters(lora.ADAPTER)
    named = lora_names.to_kohya(tensors, 2.0, lora.sdxl_blocks(sdxl))
    names = {key.partition(".")[0] for key in named}
    shapes = {n: (len(named[f"{n}.lora_up.weight"]), named[f"{n}.lora_down.weight"].shape[1]) for n in names}
    assert shapes == looked_for(layers)
    assert len(names) == MODULES[layers]
    assert len(named) == 3 * len(names)
    assert all(float(named[f"{name}.alpha"]) == 2.0 for name in names)


@pytest.mark.slow
def test_diffusers_finds_every_module_and_adds_the_same_change(tiny_bundle: Path, tmp_path: Path) -> None:
    config = json.loads((tiny_bundle / "unet" / "config.json").read_text(encoding="utf-8"))
    cases = json.loads(table.write_cases(tmp_path, config, {}).read_text(encoding="utf-8"))
    assert len(cases["files"]) == len(lora.LAYERS) * len(table.FORMS)
    for file in cases["files"]:
        path, matrices = Path(file["path"]), Path(file["matrices"])
        result = programs.compare(programs.diffusers(path, cases), matrices, file["alpha"], cases["names"])
        assert result == {"modules": len(programs.load_file(matrices)) // 2, "difference": 0.0}, file
    without_alpha = programs.compare(programs.diffusers(path, cases), matrices, table.RANK, cases["names"])
    assert without_alpha["difference"] > 0.01


@pytest.mark.slow
def test_diffusers_finds_every_module_of_an_editors_transformer(tiny_bundle: Path, tmp_path: Path) -> None:
    config = json.loads((tiny_bundle / "unet" / "config.json").read_text(encoding="utf-8"))
    cases = json.loads(table.write_cases(tmp_path, config, table.EDITORS).read_text(encoding="utf-8"))
    files = [file for file in cases["files"] if file["form"] in table.EDITORS and "-transformer-" in file["path"]]
    assert len(files) == len(table.EDITORS)
    for file in files:
        changes = programs.diffusers_editor(Path(file["path"]), cases["editors"][file["form"]])
        result = programs.compare(changes, Path(file["matrices"]), file["alpha"], cases["names"])
        assert result == {"modules": len(programs.load_file(file["matrices"])) // 2, "difference": 0.0}, file


def test_a_program_that_is_not_there_is_a_row_that_says_how_to_give_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for program, (checkout, python) in table.PROGRAMS.items():
        if needed := checkout or python:
            monkeypatch.delenv(needed, raising=False)
            (row,) = table.rows(program, table.report_of(program, Path("cases.json")))
            assert row == f"| {program} | skipped: `make clients {needed}=PATH` | | | | |"
