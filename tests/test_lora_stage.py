"""``rbctl lora`` as a user runs it: what a file is, what is wrong with it, its other form."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from rbctl import any_lora, lora
from rbctl.cli import main
from rbctl.files import read_safetensors
from rbctl.lora_names import LoraForm

LAYERS = ("down_blocks.1.attentions.0", "up_blocks.0.attentions.2")  # of SDXL
KOHYA = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
METADATA = {
    "rbctl.relation": "hug",
    "modelspec.trigger_phrase": "hugging",
    "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
}


def rbctl(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["lora", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result.exit_code, result.output


def matrices(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """A relation LoRA on two blocks of SDXL."""
    generator, tensors = torch.Generator().manual_seed(0), {}
    for layer in LAYERS:
        for target in lora.TARGETS:
            width = 2048 if target.endswith(("to_k", "to_v")) else 640
            path = f"{layer}.transformer_blocks.0.{target}"
            tensors[f"{path}.lora_A.weight"] = torch.randn(4, width, generator=generator).to(dtype)
            tensors[f"{path}.lora_B.weight"] = torch.randn(640, 4, generator=generator).to(dtype)
    return tensors


def saved(path: Path, form: LoraForm = "kohya", alpha: float = 4.0, dtype: torch.dtype = torch.float32) -> Path:
    lora.save(path, matrices(dtype), METADATA, alpha, form)
    return path


def changed(path: Path, changes: Mapping[str, torch.Tensor | None]) -> Path:
    """The file with other tensors, as a stranger's tool leaves it: without hashes."""
    tensors = {**load_file(path), **changes}
    save_file({key: value for key, value in tensors.items() if value is not None}, path)
    return path


def effect(path: Path) -> dict[str, torch.Tensor]:
    """What each layer gains."""
    tensors = lora.read(path).tensors
    return {key: tensors[key.replace("lora_A", "lora_B")] @ tensors[key] for key in tensors if "lora_A" in key}


def test_show_says_what_it_is_and_where_it_loads(tmp_path: Path) -> None:
    code, said = rbctl("show", saved(tmp_path / "hug.safetensors", alpha=2.0))
    assert code == 0
    rows = {line[:9].strip(): line[10:] for line in said.splitlines()}
    assert rows["file"].endswith("the relation hug")
    assert rows["trigger"] == "'hugging'"
    assert rows["base"] == "SDXL"
    assert rows["layers"] == "unet: 8 modules (8 attn2)"
    assert (rows["rank"], rows["alpha"], rows["dtype"], rows["hashes"]) == ("4", "2", "float32", "right")
    assert "SDXL's block numbers" in rows["names"]
    assert "ComfyUI" in rows["loads in"]


def test_show_says_that_other_programs_do_not_load_the_official_form(tmp_path: Path) -> None:
    code, said = rbctl("show", saved(tmp_path / "hug.safetensors", "official"))
    assert code == 0
    assert "ComfyUI" not in said
    assert "lora convert FILE --format kohya" in said


def test_someone_elses_lora_is_shown_with_counts_and_not_converted(tmp_path: Path) -> None:
    path = tmp_path / "style.safetensors"
    encoder = "lora_te1_text_model_encoder_layers_0_mlp_fc1"
    convolution = "lora_unet_input_blocks_1_0_in_layers_2"
    tensors = {
        f"{encoder}.lora_down.weight": torch.ones(8, 768),
        f"{encoder}.lora_up.weight": torch.ones(3072, 8),
        f"{encoder}.dora_scale": torch.ones(3072, 1),
        f"{convolution}.lora_down.weight": torch.ones(4, 320, 3, 3),
        f"{convolution}.lora_up.weight": torch.ones(320, 4, 1, 1),
        f"{KOHYA}.lora_down.weight": torch.ones(4, 2048),
        f"{KOHYA}.lora_up.weight": torch.ones(640, 4),
    }
    save_file(tensors, path)
    code, said = rbctl("show", path)
    assert code == 0
    assert "no relation" in said
    assert "unet: 2 modules (" in said
    assert "1 convolutions" in said
    assert "text_encoder: 1 modules (1 other layers, 1 of them DoRA)" in said
    assert "4 (2), 8 (1)" in said
    assert rbctl("check", path)[0] == 0
    code, said = rbctl("convert", path, "--format", "official")
    assert code == 2
    assert "1 DoRA, 1 on other layers of the unet" in said
    assert len(said.splitlines()) == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_loha_is_no_fault_but_is_neither_used_nor_converted(tmp_path: Path) -> None:
    path = tmp_path / "loha.safetensors"
    save_file({f"{KOHYA}.hada_{part}": torch.ones(4, 4) for part in ("w1_a", "w1_b", "w2_a", "w2_b")}, path)
    assert rbctl("check", path)[0] == 0
    code, said = rbctl("show", path)
    assert code == 0
    assert "left out  by rbctl and diffusers: LoHa" in said
    code, said = rbctl("convert", path, "--format", "official")
    assert code == 2
    assert "(1 LoHa)" in said


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_there_and_back_is_the_same_file(tmp_path: Path, dtype: torch.dtype) -> None:
    first = saved(tmp_path / "hug.safetensors", dtype=dtype)
    assert rbctl("convert", first, "--format", "official") == (0, f"{tmp_path / 'hug-official.safetensors'}\n")
    official = tmp_path / "hug-official.safetensors"
    assert official.read_bytes() == saved(tmp_path / "own.safetensors", "official", dtype=dtype).read_bytes()
    back = tmp_path / "back.safetensors"
    assert rbctl("convert", official, "--format", "kohya", "-o", back)[0] == 0
    assert back.read_bytes() == first.read_bytes()


def test_convert_keeps_effect_and_metadata_where_alpha_is_not_the_rank(tmp_path: Path) -> None:
    first, official = saved(tmp_path / "hug.safetensors", alpha=2.0), tmp_path / "official.safetensors"
    assert rbctl("convert", first, "--format", "official", "-o", official)[0] == 0
    before, after = effect(first), effect(official)
    assert all(torch.equal(after[key], value) for key, value in before.items())
    metadata = read_safetensors(official)[1]
    assert METADATA.items() <= metadata.items()
    assert metadata["ss_network_alpha"] == "4.0"
    assert metadata["sshs_model_hash"] == lora.autov3(official)
    kohya = tmp_path / "kohya.safetensors"
    assert rbctl("convert", first, "--format", "kohya", "-o", kohya)[0] == 0
    assert float(load_file(kohya)[f"{KOHYA}.alpha"]) == 2.0


def test_a_lora_that_diffusers_saved_keeps_the_alpha_of_its_settings(tmp_path: Path) -> None:
    path, kohya = tmp_path / "peft.safetensors", tmp_path / "kohya.safetensors"
    tensors = {f"unet.{key}": value for key, value in matrices().items()}
    save_file(tensors, path, {"lora_adapter_metadata": '{"unet.lora_alpha": 2, "unet.r": 4}'})
    assert rbctl("convert", path, "--format", "kohya", "-o", kohya)[0] == 0
    assert {float(value) for key, value in load_file(kohya).items() if key.endswith(".alpha")} == {2.0}
    theirs, ours = any_lora.read(path), any_lora.read(kohya)
    assert isinstance(theirs, any_lora.ForeignLora)
    assert isinstance(ours, any_lora.ForeignLora)
    assert all(torch.equal(m.up, ours.networks["unet"][layer].up) for layer, m in theirs.networks["unet"].items())


def test_the_names_of_a_smaller_unet_stay_diffusers_own(tmp_path: Path) -> None:
    path, kohya = tmp_path / "mini.safetensors", tmp_path / "kohya.safetensors"
    tensors = {key: value for key, value in matrices().items() if ".attentions.2." not in key}
    lora.save(path, tensors, METADATA, 4.0, "official")
    assert rbctl("convert", path, "--format", "kohya", "-o", kohya)[0] == 0
    assert all(key.startswith("lora_unet_down_blocks_1_attentions_0_") for key in load_file(kohya))


def test_convert_overwrites_nothing_but_the_same(tmp_path: Path) -> None:
    first = saved(tmp_path / "hug.safetensors")
    other = tmp_path / "hug-official.safetensors"
    other.write_bytes(b"mine")
    code, said = rbctl("convert", first, "--format", "official")
    assert code == 2
    assert "holds something else" in said
    assert other.read_bytes() == b"mine"
    whole = first.read_bytes()
    assert rbctl("convert", first, "--format", "official", "-o", first)[0] == 2
    assert rbctl("convert", first, "--format", "kohya", "-o", first)[0] == 0  # it is in that form already
    assert first.read_bytes() == whole


CLASH = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({f"{KOHYA}.lora_up.weight": None}, "has no up matrix"),
        ({f"{KOHYA}.lora_down.weight": None}, "has no down matrix"),
        ({f"{KOHYA}.lora_up.weight": torch.ones(640, 3)}, r"do not fit together, down [4, 2048] and up [640, 3]"),
        ({f"{KOHYA}.lora_down.weight": torch.tensor(1.0)}, "do not fit together"),
        ({f"{KOHYA}.lora_up.weight": torch.full((640, 4), torch.nan)}, "NaN or infinite"),
        ({f"{KOHYA}.alpha": torch.tensor(torch.inf)}, "NaN or infinite"),
        (
            {f"{CLASH}.lora_down.weight": torch.ones(4, 2048), f"{CLASH}.lora_up.weight": torch.ones(640, 4)},
            "is for the same layer as",
        ),
        ({"epoch": torch.ones(1)}, "no tensor of a LoRA"),
    ],
)
def test_check_names_what_is_wrong(tmp_path: Path, changes: Mapping[str, torch.Tensor | None], message: str) -> None:
    path = changed(saved(tmp_path / "hug.safetensors"), changes)
    code, said = rbctl("check", path)
    assert code == 2
    assert len(said.splitlines()) == 1
    assert said.startswith(f"{path}: ")
    assert message in said
    code, said = rbctl("show", path)
    assert code == 0
    assert "faults    1" in said
    assert rbctl("convert", path, "--format", "official")[0] == 2
    assert list(tmp_path.iterdir()) == [path]


def test_check_knows_hashes_of_other_tensors_and_convert_writes_them_anew(tmp_path: Path) -> None:
    path = saved(tmp_path / "hug.safetensors")
    assert rbctl("check", path) == (0, f"{path}: nothing is wrong\n")
    tensors, metadata = read_safetensors(path)
    save_file({key: value * 2 if "lora_up" in key else value for key, value in tensors.items()}, path, metadata)
    code, said = rbctl("check", path)
    assert code == 2
    assert [line.split("metadata ")[1].split(":")[0] for line in said.splitlines()] == [
        "sshs_model_hash",
        "modelspec.hash_sha256",
    ]
    new = tmp_path / "new.safetensors"
    assert rbctl("convert", path, "--format", "kohya", "-o", new)[0] == 0
    assert rbctl("check", new)[0] == 0


@pytest.mark.parametrize("command", [["show"], ["check"], ["convert", "--format", "kohya"]])
def test_what_is_no_lora_is_told_in_one_line(tmp_path: Path, command: list[str]) -> None:
    other, text = tmp_path / "other.safetensors", tmp_path / "notes.safetensors"
    save_file({"weight": torch.ones(2, 2)}, other)
    shutil.copy(__file__, text)
    for path in (other, text, tmp_path / "missing.safetensors"):
        code, said = rbctl(*command, path)
        assert code == 2
        assert len(said.splitlines()) == 1
        assert path.name in said
