"""LoRAs of any origin beside a relation's, held against what the formulas and diffusers' own loader make of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from rbctl import any_lora, lora
from rbctl.any_lora import ForeignLora
from rbctl.bundle.bundle import Bundle
from rbctl.bundle.load import load
from rbctl.cli import main
from rbctl.errors import InputError
from rbctl.files import write_safetensors
from rbctl.lora import LoraFile
from rbctl.pipeline import RelationPipeline

ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0"
CONVOLUTION = "down_blocks.1.resnets.0.conv1"
TEXT = "encoder.layers.0.self_attn.out_proj"


@pytest.fixture
def bundle(tiny_bundle: Path) -> Bundle:
    return load(str(tiny_bundle), torch.device("cpu"), torch.float32)


def kohya(layers: dict[str, torch.nn.Module], ranks: list[int], dora: bool = False) -> dict[str, torch.Tensor]:
    """A LoRA in the names of sd-scripts, random, with alpha 1 and ranks in turn."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for number, (name, layer) in enumerate(layers.items()):
        rank, weight = ranks[number % len(ranks)], layer.weight
        down = torch.randn(rank, *weight.shape[1:], generator=generator) * 0.1
        up = torch.randn(weight.shape[0], rank, *[1] * (weight.ndim - 2), generator=generator) * 0.1
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(1.0)}
        if dora:
            tensors[f"{name}.dora_scale"] = weight.flatten(1).norm(dim=1)[:, None] * 1.1
    return tensors


def unet_layers(bundle: Bundle, *names: str) -> dict[str, torch.nn.Module]:
    return {f"lora_unet_{name.replace('.', '_')}": bundle.unet.get_submodule(name) for name in names}


def text_layers(bundle: Bundle) -> dict[str, torch.nn.Module]:
    encoders = {"te1": bundle.text_encoder, "te2": bundle.text_encoder_2}
    name = "encoder.layers.0.self_attn.out_proj"
    return {
        f"lora_{key}_text_model_{name.replace('.', '_')}": encoder.get_submodule(
            name if not hasattr(encoder, "text_model") else f"text_model.{name}"
        )
        for key, encoder in encoders.items()
    }


def delta(tensors: dict[str, torch.Tensor], name: str, weight: torch.Tensor) -> torch.Tensor:
    """What the file's formula adds to a weight: up @ down * alpha / rank."""
    down, up = tensors[f"{name}.lora_down.weight"].flatten(1), tensors[f"{name}.lora_up.weight"].flatten(1)
    return (up @ down * (float(tensors[f"{name}.alpha"]) / down.shape[0])).reshape(weight.shape)


def merged(layer: Any) -> torch.Tensor:
    """The weight of a layer with all active LoRAs in it."""
    layer.merge()
    weight = layer.base_layer.weight.detach().clone()
    layer.unmerge()
    return weight


def relation(bundle: Bundle, path: Path) -> Path:
    shapes = load(str(bundle.folder), torch.device("cpu"), torch.float32, encoders=False).unet
    lora.add(shapes, rank=4, alpha=4, seed=0)
    generator = torch.Generator().manual_seed(1)
    tensors = {key: torch.randn(v.shape, generator=generator) * 0.1 for key, v in lora.state(shapes).items()}
    lora.save(path, tensors, {"rbctl.relation": "hug"}, 4.0)
    return path


@pytest.mark.slow
def test_text_encoders_convolutions_and_mixed_ranks_beside_a_relation(bundle: Bundle, tmp_path: Path) -> None:
    names = (f"{ATTENTION}.attn2.to_q", f"{ATTENTION}.attn1.to_out.0", f"{ATTENTION}.ff.net.2", CONVOLUTION)
    layers = unet_layers(bundle, *names, f"{ATTENTION}".rpartition(".transformer")[0] + ".proj_in") | text_layers(
        bundle
    )
    before = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    tensors = kohya(layers, [2, 3, 5])
    write_safetensors(tmp_path / "style.safetensors", tensors, {"ss_network_dim": "Dynamic"})
    files = [
        any_lora.read(relation(bundle, tmp_path / "hug.safetensors")),
        any_lora.read(tmp_path / "style.safetensors"),
    ]
    assert isinstance(files[0], LoraFile)
    assert isinstance(files[1], ForeignLora)
    for name, file in zip(("hug", "style"), files, strict=True):
        any_lora.attach(bundle, file, name)
    any_lora.use(bundle, {"hug": 0.5, "style": 0.8})
    for name, weight in before.items():
        path = name.removeprefix("lora_").partition("_")[2]
        if "_te" in name:
            encoder = bundle.text_encoder if "te1" in name else bundle.text_encoder_2
            layer = encoder.get_submodule(TEXT if not hasattr(encoder, "text_model") else f"text_model.{TEXT}")
        else:
            layer = bundle.unet.get_submodule(
                next(n for n, _ in bundle.unet.named_modules() if n.replace(".", "_") == path)
            )
        expected = weight + 0.8 * delta(tensors, name, weight)
        if path.endswith("attn2_to_q"):
            own = files[0].tensors
            key = f"{ATTENTION}.attn2.to_q"
            expected += 0.5 * own[f"{key}.lora_B.weight"] @ own[f"{key}.lora_A.weight"]
        assert (merged(layer) - expected).abs().max() < 1e-6, name
    any_lora.use(bundle, {})
    without, base = (each.encode_prompts(["a cat"])[0] for each in (bundle, load_again(bundle)))
    assert torch.allclose(without, base, atol=1e-4)  # merging and taking out again rounds


def load_again(bundle: Bundle) -> Bundle:
    return load(str(bundle.folder), torch.device("cpu"), torch.float32)


@pytest.mark.slow
def test_the_pictures_are_those_of_diffusers_own_loader(tiny_bundle: Path, bundle: Bundle, tmp_path: Path) -> None:
    from diffusers import StableDiffusionXLPipeline

    layers = unet_layers(bundle, f"{ATTENTION}.attn2.to_k", f"{ATTENTION}.attn1.to_v", CONVOLUTION) | text_layers(
        bundle
    )
    write_safetensors(tmp_path / "style.safetensors", kohya(layers, [2, 4]), {})
    pipe = RelationPipeline(bundle)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(tmp_path, weight_name="style.safetensors", adapter_name="style")
    pipe.set_adapters("style", 0.7)
    theirs = StableDiffusionXLPipeline.from_pretrained(tiny_bundle, dtype=torch.float32)
    theirs.load_lora_weights(tmp_path, weight_name="style.safetensors", adapter_name="style")
    theirs.set_adapters("style", 0.7)
    theirs.set_progress_bar_config(disable=True)
    settings: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 4.0, "output_type": "latent"}
    pictures = [
        p("a cat", negative_prompt="low", generator=torch.Generator().manual_seed(3), **settings).images
        for p in (pipe, theirs)
    ]
    base = load_again(bundle)
    plain = RelationPipeline(base)(
        "a cat", negative_prompt="low", generator=torch.Generator().manual_seed(3), **settings
    )
    assert (pictures[0] - pictures[1]).abs().max() < 1e-3 * plain.images.abs().max()
    assert (pictures[0] - plain.images).abs().max() > 1e-2 * plain.images.abs().max()


@pytest.mark.slow
def test_dora_scales_each_output(bundle: Bundle, tmp_path: Path) -> None:
    layers = unet_layers(bundle, f"{ATTENTION}.attn2.to_q", CONVOLUTION)
    before = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    tensors = kohya(layers, [4], dora=True)
    write_safetensors(tmp_path / "dora.safetensors", tensors, {})
    any_lora.attach(bundle, any_lora.read(tmp_path / "dora.safetensors"), "dora")
    any_lora.use(bundle, {"dora": 1.0})
    for (name, weight), path in zip(before.items(), (f"{ATTENTION}.attn2.to_q", CONVOLUTION), strict=True):
        changed = weight + delta(tensors, name, weight)
        size = changed.flatten(1).norm(dim=1)
        magnitude = tensors[f"{name}.dora_scale"].flatten()
        expected = changed * (magnitude / size).reshape(-1, *[1] * (weight.ndim - 1))
        assert (merged(bundle.unet.get_submodule(path)) - expected).abs().max() < 1e-5


@pytest.mark.slow
def test_what_is_left_out_is_told_with_counts(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = kohya(unet_layers(bundle, f"{ATTENTION}.attn2.to_q"), [2])
    tensors |= {f"lora_unet_x{k}.{part}": torch.ones(2, 2) for k in range(3) for part in ("hada_w1_a", "hada_w2_a")}
    tensors |= {
        f"lora_te1_text_model_encoder_layers_77_mlp_fc1.{part}": torch.ones(2, 2)
        for part in ("lora_down.weight", "lora_up.weight")
    }
    write_safetensors(tmp_path / "mix.safetensors", tensors, {})
    any_lora.attach(bundle, any_lora.read(tmp_path / "mix.safetensors"), "mix")
    told = capsys.readouterr().err.splitlines()
    assert told == [
        f"{tmp_path / 'mix.safetensors'}: 1 modules used; left out: 3 of LoHa, "
        "1 of layers that the text_encoder of this bundle lacks"
    ]
    write_safetensors(
        tmp_path / "other.safetensors", {key: value for key, value in tensors.items() if "unet_x" in key}, {}
    )
    with pytest.raises(InputError, match="holds no LoRA of a UNet, transformer or text encoder that diffusers reads"):
        any_lora.read(tmp_path / "other.safetensors")


def test_peft_settings_in_the_metadata_give_alpha(tmp_path: Path) -> None:
    key = f"unet.{ATTENTION}.attn2.to_q"
    tensors = {f"{key}.lora_A.weight": torch.ones(4, 8), f"{key}.lora_B.weight": torch.ones(8, 4)}
    for settings, scale in (({"unet.lora_alpha": 8}, 2), ({"unet.lora_alpha": 8, "unet.use_rslora": True}, 4), ({}, 1)):
        write_safetensors(tmp_path / "a.safetensors", tensors, {"lora_adapter_metadata": json.dumps(settings)})
        file = any_lora.read(tmp_path / "a.safetensors")
        assert isinstance(file, ForeignLora)
        assert float(file.networks["unet"][f"{ATTENTION}.attn2.to_q"].up[0, 0]) == scale


@pytest.mark.slow
def test_a_lora_of_another_base_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    name = f"lora_unet_{ATTENTION.replace('.', '_')}_attn2_to_q"
    pair = {f"{name}.lora_down.weight": torch.ones(2, 7), f"{name}.lora_up.weight": torch.ones(9, 2)}
    write_safetensors(tmp_path / "sd15.safetensors", pair, {})
    with pytest.raises(InputError, match="made for another base"):
        any_lora.attach(bundle, any_lora.read(tmp_path / "sd15.safetensors"), "x")


@pytest.mark.slow
def test_each_lora_has_its_weight_on_the_command_line_and_in_a_prompt(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    relation(bundle, tmp_path / "hug.safetensors")
    (tmp_path / "styles" / "deep").mkdir(parents=True)
    style = tmp_path / "styles" / "deep" / "film.safetensors"
    write_safetensors(style, kohya(unet_layers(bundle, CONVOLUTION) | text_layers(bundle), [2]), {})
    Image.new("RGB", (64, 64), "orange").save(tmp_path / "cat.png")

    def sample(text: str, *flags: object) -> tuple[dict[str, Any], bytes]:
        (tmp_path / "p.txt").write_text(text)
        command = ["sample", "p.txt", "--bundle", bundle.folder, "--steps", 1, "--output", "out", *flags]
        result = CliRunner().invoke(main, [str(part) for part in command])
        assert result.exit_code == 0, result.output
        row = json.loads((tmp_path / "out" / "metadata.jsonl").read_text().splitlines()[0])
        return row, Image.open(tmp_path / "out" / row["file_name"]).tobytes()

    cat = "A {cat: cat.png} hugs a bear"
    both, picture = sample(cat, "--lora", f"hug.safetensors:0.5,{style}:0.8")
    assert both["lora_weight"] == [0.5, 0.8]
    assert picture == sample(cat, "--lora", "hug.safetensors:0.5", "--lora", f"{style}:0.8")[1]
    assert picture == sample(f"{cat} --lora hug.safetensors,{style} --am .5,.8")[1]
    tagged, same = sample(f"{cat} <lora:film:0.8>", "--lora", "hug.safetensors:0.5", "--lora-dir", "styles")
    assert (tagged["text"], tagged["fingerprint"], same) == ("A cat hugs a bear", both["fingerprint"], picture)
    assert picture != sample(cat, "--lora", f"hug.safetensors:0.8,{style}:0.5")[1]


@pytest.mark.slow
def test_adapters_of_a_pipeline_are_named_as_in_diffusers(bundle: Bundle, tmp_path: Path) -> None:
    write_safetensors(tmp_path / "film.safetensors", kohya(unet_layers(bundle, CONVOLUTION), [2]), {})
    pipe = RelationPipeline(bundle)
    pipe.set_progress_bar_config(disable=True)

    def draw() -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return pipe("A cat.", generator=generator, num_inference_steps=1, output_type="latent").images

    base = draw()
    pipe.load_relation(relation(bundle, tmp_path / "hug.safetensors"))
    related = draw()
    pipe.load_lora_weights(tmp_path / "film.safetensors")
    assert pipe.get_active_adapters() == ["relation", "film"]
    both = draw()
    pipe.set_adapters(["relation", "film"], [1.0, 0.0])
    assert torch.equal(draw(), related)
    pipe.set_adapters(["relation", "film"], [0.5, 1.0])
    assert not torch.equal(draw(), both)
    pipe.set_adapters("relation")
    assert torch.equal(draw(), related)
    with pytest.raises(InputError, match="no LoRA 'x' is loaded; there are relation, film"):
        pipe.set_adapters("x")
    layers = {name: torch.nn.Linear(3, 3) for name in unet_layers(bundle, CONVOLUTION)}
    write_safetensors(tmp_path / "relations.safetensors", kohya(layers, [2]), {})
    with pytest.raises(InputError, match="made for another base"):
        pipe.load_lora_weights(tmp_path / "relations.safetensors")
    assert pipe.get_active_adapters() == ["relation"]  # all stays as it was
    assert torch.equal(draw(), related)
    pipe.load_lora_weights(tmp_path / "film.safetensors", adapter_name="relations")
    pipe.unload_relation()
    assert pipe.get_active_adapters() == ["relations"]
    pipe.unload_lora_weights()
    assert torch.equal(draw(), base)


# Layers of a transformer, as diffusers names them, with the sizes (out, in) of their weights.
FLUX = {
    "transformer_blocks.0.attn.to_q": (16, 16),
    "transformer_blocks.0.attn.to_k": (16, 16),
    "transformer_blocks.0.attn.to_v": (16, 16),
    "transformer_blocks.0.attn.to_out.0": (16, 16),
    "single_transformer_blocks.1.attn.to_qkv_mlp_proj": (144, 16),
}
QWEN = {
    "transformer_blocks.0.attn.to_q": (16, 16),
    "transformer_blocks.1.attn.add_k_proj": (16, 16),
    "transformer_blocks.1.img_mlp.net.0.proj": (64, 16),
}
QKV = "double_blocks.0.img_attn.qkv"  # one weight in the names of FLUX's authors
AUTHORS = {"transformer_blocks.0.attn.to_out.0": "double_blocks.0.img_attn.proj"}
AUTHORS["single_transformer_blocks.1.attn.to_qkv_mlp_proj"] = "single_blocks.1.linear1"


def of_another_trainer(layers: dict[str, tuple[int, int]], form: str) -> tuple[dict[str, torch.Tensor], Any]:
    """A file's tensors with alpha 2 and rank 4, and what each layer gains by them."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = ("transformer_blocks.0.attn.to_" + letter for letter in "qkv")
    down_name, up_name = ("lora_A", "lora_B") if form == "ai-toolkit" else ("lora_down", "lora_up")
    shared, tensors, gained = torch.randn(4, 16, generator=generator), {}, {}
    ups = {}
    for name, (out, wide) in layers.items():
        fused = layers is FLUX and name in (q, k, v)
        down = shared if fused else torch.randn(4, wide, generator=generator)
        ups[name] = up = torch.randn(out, 4, generator=generator)
        gained[name] = up @ down / 2
        if not fused:
            tensors[AUTHORS.get(name, name) if layers is FLUX else name] = (down, up)
    if layers is FLUX:
        tensors[QKV] = (shared, torch.cat([ups[q], ups[k], ups[v]]))
    file = {}
    for name, (down, up) in tensors.items():
        module = {
            "ai-toolkit": f"diffusion_model.{name}",
            "kohya": f"lora_unet_{name.replace('.', '_')}",
            "without a prefix": name,
        }[form]
        file |= {f"{module}.{down_name}.weight": down, f"{module}.{up_name}.weight": up}
        file[f"{module}.alpha"] = torch.tensor(2.0)
    return file, gained


@pytest.mark.parametrize(
    ("layers", "form"),
    [
        (FLUX, "ai-toolkit"),
        (FLUX, "kohya"),
        (QWEN, "ai-toolkit"),
        (QWEN, "kohya"),
        (QWEN, "without a prefix"),
    ],
    ids=str,
)
def test_names_of_other_trainers_for_a_transformer_are_read(
    layers: dict[str, tuple[int, int]], form: str, tmp_path: Path
) -> None:
    path = tmp_path / "style.safetensors"
    tensors, gained = of_another_trainer(layers, form)
    write_safetensors(path, tensors, {})
    file = any_lora.read(path)
    assert isinstance(file, ForeignLora)
    assert file.networks.keys() == {"transformer"}
    assert not file.left_out
    read = {name: matrices.up @ matrices.down for name, matrices in file.networks["transformer"].items()}
    assert read.keys() == gained.keys()
    for name, matrix in gained.items():
        torch.testing.assert_close(read[name], matrix, rtol=0, atol=1e-5)
    shown = CliRunner().invoke(main, ["lora", "show", str(path)])
    assert shown.exit_code == 0
    assert f"transformer: {len(tensors) // 3} modules" in shown.output
    assert CliRunner().invoke(main, ["lora", "check", str(path)]).exit_code == 0
