"""The LoRA file is what other tools expect, and what is wrong with one is told."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.utils import convert_unet_state_dict_to_peft
from safetensors.torch import load_file, save_file

from rbctl import lora, lora_names
from rbctl.bundle.load import load
from rbctl.errors import InputError

SDXL = SimpleNamespace(layers_per_block=2)


@pytest.fixture
def unet(tiny_bundle: Path) -> Any:
    return load(str(tiny_bundle), torch.device("cpu"), torch.float32, encoders=False).unet


def trained(unet: Any, layers: str) -> dict[str, torch.Tensor]:
    """A relation LoRA with B filled, as after training."""
    lora.add(unet, rank=4, alpha=4, seed=0, targets=lora.LAYERS[layers])
    generator = torch.Generator().manual_seed(1)
    filled = {k: torch.randn(v.shape, generator=generator) * 0.1 for k, v in lora.state(unet).items()}
    unet.delete_adapters(lora.ADAPTER)
    return filled


@pytest.fixture
def tensors(unet: Any) -> dict[str, torch.Tensor]:
    return trained(unet, "attn2")


def predict(unet: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        return unet(
            torch.randn(1, 4, 16, 16, generator=generator),
            torch.tensor([500]),
            encoder_hidden_states=torch.randn(1, 77, 32, generator=generator),
            added_cond_kwargs={
                "text_embeds": torch.randn(1, 16, generator=generator),
                "time_ids": torch.full((1, 6), 128.0),
            },
        ).sample


@pytest.mark.slow
@pytest.mark.parametrize("form", ["official", "kohya"])
@pytest.mark.parametrize(
    ("alpha", "layers"), [(4.0, "attn2"), (2.0, "attn2"), (4.0, "attention"), (2.0, "transformer")]
)
def test_plain_diffusers_loads_it_to_the_same_effect(
    unet: Any, tiny_bundle: Path, tmp_path: Path, form: Any, alpha: float, layers: str
) -> None:
    path = tmp_path / "lora.safetensors"
    lora.save(path, trained(unet, layers), {}, alpha, form)
    base = predict(unet)
    lora.attach(unet, lora.read(path), "ours")
    lora.use(unet, "ours")
    ours = predict(unet) - base

    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_bundle, local_files_only=True)
    before = predict(pipeline.unet)
    pipeline.load_lora_weights(tmp_path, weight_name=path.name)
    theirs = predict(pipeline.unet) - before
    assert ours.abs().max() > 1e-3
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sdxl_blocks", [True, False])
def test_the_default_form_converts_back_to_the_same_weights(
    tensors: dict[str, torch.Tensor], tmp_path: Path, sdxl_blocks: bool
) -> None:
    path = tmp_path / "kohya.safetensors"
    lora.save(path, tensors, {"rbctl.relation": "hug"}, 4.0, sdxl_blocks=sdxl_blocks)
    assert all(key.startswith("lora_unet_") for key in load_file(path))
    back, _ = StableDiffusionXLPipeline.lora_state_dict(load_file(path), unet_config=SDXL)
    theirs = convert_unet_state_dict_to_peft({k.removeprefix("unet."): v for k, v in back.items()})
    theirs = {key: value for key, value in theirs.items() if not key.endswith(".alpha")}
    assert theirs.keys() == tensors.keys()
    assert all(torch.equal(theirs[key], value) for key, value in tensors.items())
    assert lora.read(path).metadata["rbctl.relation"] == "hug"
    assert lora.read(path).tensors.keys() == tensors.keys()


def test_weight_and_switch(unet: Any, tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    lora.save(path, tensors, {}, 4.0, "official")
    base = predict(unet)
    lora.attach(unet, lora.read(path), "one")
    lora.use(unet, "one", 0.5)
    half = predict(unet)
    lora.use(unet, None)
    assert torch.equal(predict(unet), base)
    lora.use(unet, "one", 1.0)
    assert not torch.allclose(predict(unet), half)


def test_names_of_sd_scripts(unet: Any, tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    lora.save(path, tensors, {}, 4.0)
    named = load_file(path)
    assert "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_q.lora_down.weight" in named
    assert "lora_unet_middle_block_1_transformer_blocks_1_attn2_to_out_0.alpha" in named
    assert "lora_unet_output_blocks_2_1_transformer_blocks_1_attn2_to_v.lora_up.weight" in named
    read = lora.read(path).tensors
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[key], value) for key, value in tensors.items())
    lora.attach(unet, lora.read(path), "theirs")


def test_two_modules_for_one_layer_are_refused(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """As sd-scripts' merge leaves them, where one LoRA has SDXL's numbers of blocks and the other diffusers'."""
    path = tmp_path / "merged.safetensors"
    sdxl, diffusers = lora_names.to_kohya(tensors, 4.0), lora_names.to_kohya(tensors, 4.0, sdxl_blocks=False)
    for one, other in itertools.combinations((sdxl, diffusers, lora_names.to_official(tensors)), 2):
        save_file({key: value.clone() for key, value in (one | other).items()}, path)
        with pytest.raises(InputError, match=r"two modules for one layer, '(down|up|mid)_block"):
            lora.read(path)


def test_every_module_keeps_its_alpha(unet: Any, tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path, named = tmp_path / "lora.safetensors", lora_names.to_kohya(tensors, 4.0, sdxl_blocks=False)
    first = min(key for key in named if key.endswith(".alpha"))
    named[first] = torch.tensor(1.0)
    gone = max(key for key in named if key.endswith(".alpha"))
    named.pop(gone)  # where none is given, it is the rank
    save_file(named, path)
    read = lora.read(path).tensors
    for key, value in tensors.items():
        kohya = f"lora_unet_{key.rsplit('.lora_', 1)[0].replace('.', '_')}.alpha"
        factor = 0.25 if kohya == first and "lora_B" in key else 1.0
        assert torch.equal(read[key], value * factor), key
    lora.attach(unet, lora.read(path), "ours")
    base = predict(unet)
    lora.use(unet, None)
    assert not torch.equal(predict(unet), base)


def broken(kind: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    named = {k: v.clone() for k, v in lora_names.to_official(tensors).items()}
    first = next(iter(named))
    if kind == "nan":
        named[first][0, 0] = float("nan")
    elif kind == "width":
        named[first] = torch.zeros(named[first].shape[0], named[first].shape[1] + 1)
    elif kind == "layer":
        named = {k.replace("down_blocks.1", "down_blocks.0"): v for k, v in named.items()}
    elif kind == "missing":
        named.pop(first)
    elif kind == "ranks":
        up = first.replace("down", "up")
        named[up] = named[up][:, :2].contiguous()
    elif kind == "vector":
        named[first] = named[first][0].clone()
    elif kind == "nameless":
        named = {"unet.lora_A.weight": torch.zeros(4, 8), "unet.lora_B.weight": torch.zeros(8, 4)}
    elif kind.startswith("kohya"):
        named = lora_names.to_kohya(tensors, 4.0, sdxl_blocks=False)
        alpha = next(key for key in named if key.endswith(".alpha"))
        if kind == "kohya nan":
            named[alpha] = torch.tensor(float("nan"))
        elif kind == "kohya alphas":
            named[alpha] = torch.ones(2)
        elif kind == "kohya foreign":
            named["lora_unet_foo.bar"] = torch.zeros(4, 4)
        elif kind == "kohya up":
            named.pop(alpha.replace("alpha", "lora_up.weight"))
        elif kind == "kohya dora":
            named[alpha.replace("alpha", "dora_scale")] = torch.ones(4, 1)
        elif kind == "kohya block":
            named = {k.replace("down_blocks_1", "input_blocks_x"): v for k, v in named.items() if "up_blocks" not in k}
            named = {k: v for k, v in named.items() if "input_blocks" in k}
        elif kind == "kohya text":
            named = {k.replace("lora_unet_", "lora_te1_"): v for k, v in named.items()}
    elif kind == "other":
        named = {"weight": torch.zeros(2)}
    elif kind == "empty":
        named = {}
    return named


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("nan", "NaN"),
        ("width", "another base"),
        ("layer", "another base"),
        ("missing", "is missing"),
        ("ranks", r"differing ranks \[2, 4\]"),
        ("vector", "no LoRA tensor"),
        ("nameless", "no LoRA tensor"),
        ("kohya nan", "not a finite number"),
        ("kohya alphas", "not a finite number"),
        ("kohya foreign", "'lora_unet_foo' holds"),
        ("kohya up", "lora_up.weight expected"),
        ("kohya dora", "dora_scale"),
        ("kohya block", "trains 'lora_unet_input_blocks_x"),
        ("kohya text", "no LoRA tensor of a UNet"),
        ("other", "no LoRA tensor"),
        ("empty", "no tensors"),
    ],
)
def test_a_wrong_lora_is_refused(
    unet: Any, tensors: dict[str, torch.Tensor], tmp_path: Path, kind: str, told: str
) -> None:
    path = tmp_path / "lora.safetensors"
    save_file(broken(kind, tensors), path)
    before = predict(unet)
    with pytest.raises(InputError, match=told) as caught:
        lora.attach(unet, lora.read(path), "bad")
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert torch.equal(predict(unet), before)
