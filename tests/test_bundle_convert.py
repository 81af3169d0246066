"""Official checkpoints to safetensors, and bundles put together from local files."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from rbctl.bundle.assemble import import_bundle
from rbctl.bundle.catalogue import missing_parts
from rbctl.bundle.convert import (
    adapter_shapes,
    attention_layers,
    check_tensors,
    convert_adapter,
    convert_image_encoder,
    convert_local_encoder,
    default_open_clip_config,
    official_adapter_config,
)
from rbctl.bundle.download import verify
from rbctl.errors import InputError
from rbctl.files import read_json, read_safetensors, write_json
from rbctl.runs import claim

GOLDENS = Path(__file__).resolve().parents[2] / "shared" / "goldens"
SDXL_UNET = {
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 2,
    "transformer_layers_per_block": [1, 2, 10],
}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def nested(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Flat adapter names as the official file nests them."""
    parts: dict[str, Any] = {"image_proj": {}, "ms_adapter": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        if rest:
            parts[part][rest] = tensor
        else:
            parts[name] = tensor
    return parts


@pytest.fixture
def official(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A folder with the tiny bundle's parts as their publishers ship them."""
    folder = tmp_path / "official"
    for part in ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"):
        shutil.copytree(tiny_bundle / part, folder / "base" / part)
    shutil.copy(tiny_bundle / "model_index.json", folder / "base")
    (folder / "adapter").mkdir()
    torch.save(nested(read_safetensors(tiny_bundle / "ms_adapter.safetensors")[0]), folder / "adapter/ms_adapter.bin")
    shutil.copy(tiny_bundle / "ms_adapter_config.json", folder / "adapter")
    (folder / "local").mkdir()
    state = read_safetensors(tiny_bundle / "clipself/model.safetensors")[0]
    wrapped = {"epoch": 6, "name": "clipself", "state_dict": {f"module.{k}": v for k, v in state.items()}}
    torch.save(wrapped, folder / "local/epoch_6.pt")
    shutil.copy(tiny_bundle / "clipself/open_clip_config.json", folder / "local")
    whole_clip(tiny_bundle, folder / "clip")
    return folder


def whole_clip(tiny_bundle: Path, folder: Path) -> None:
    """A CLIPModel in two pickled shards, with a text tower that a bundle does not need."""
    folder.mkdir(parents=True)
    tensors = read_safetensors(tiny_bundle / "clip_vision/model.safetensors")[0]
    names = sorted(tensors)
    shards = [{n: tensors[n] for n in names[:20]}, {n: tensors[n] for n in names[20:]}]
    shards[0]["text_model.final_layer_norm.bias"] = torch.zeros(4)
    shards[1]["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    for k, shard in enumerate(shards, 1):
        torch.save(shard, folder / f"pytorch_model-0000{k}-of-00002.bin")
    vision = {**read_json(tiny_bundle / "clip_vision/config.json"), "projection_dim": 512}
    write_json(folder / "config.json", {"model_type": "clip", "projection_dim": 24, "vision_config": vision})


def unet_of(official: Path) -> dict[str, Any]:
    return read_json(official / "base/unet/config.json")


# --- names and shapes


def test_official_adapter_shapes() -> None:
    path = GOLDENS / "lora_keys" / "ms_adapter_keys.json"
    if not path.is_file():
        pytest.skip("the reference's fixtures are not beside this checkout")
    keys = json.loads(path.read_text())
    expected = {f"image_proj.{k}": tuple(v) for k, v in keys["image_proj"]["tensors"].items()}
    expected |= {f"ms_adapter.{k}": tuple(v) for k, v in keys["ms_adapter"]["tensors"].items()}
    expected["dummy_image_tokens"] = tuple(keys["dummy_image_tokens"])
    empty = {name: torch.empty(shape, device="meta") for name, shape in expected.items()}
    config = official_adapter_config(Path("ms_adapter.bin"), empty)
    assert config["resampler"] == keys["image_proj"]["config"]
    assert (config["clip_image_size"], config["local_image_size"], config["num_dummy_tokens"]) == (224, 896, 4)
    assert adapter_shapes(config, SDXL_UNET) == expected


@pytest.mark.slow
def test_official_local_encoder_shapes() -> None:
    path = GOLDENS / "lora_keys" / "ms_adapter_keys.json"
    if not path.is_file():
        pytest.skip("the reference's fixtures are not beside this checkout")
    from open_clip.model import CLIP

    with torch.device("meta"):
        whole = CLIP(**default_open_clip_config())
    ours = {k: list(v.shape) for k, v in whole.state_dict().items() if k.startswith("visual.")}
    theirs = json.loads(path.read_text())["local_encoder"]["visual_tensors"]
    assert {k: v for k, v in ours.items() if k in theirs} == theirs


@pytest.mark.slow
def test_layers_are_counted_as_diffusers_does(tiny_bundle: Path) -> None:
    from diffusers import UNet2DConditionModel

    config = read_json(tiny_bundle / "unet/config.json")
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    assert [name for name, _ in attention_layers(config)] == list(unet.attn_processors)


def test_check_tensors_says_everything_in_one_line() -> None:
    tensors = {"a": torch.zeros(2), "b": torch.zeros(3), "c": torch.zeros(1)}
    with pytest.raises(InputError) as caught:
        check_tensors(Path("x.bin"), tensors, {"a": (2,), "b": (4,), **{f"m{k}": (1,) for k in range(5)}})
    message = str(caught.value)
    assert "\n" not in message
    assert "missing m0, m1, m2 and 2 more" in message
    assert "unexpected c" in message
    assert "b is [3], [4] expected" in message


# --- the adapter


def test_adapter_round_trip(official: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    config = read_json(official / "adapter/ms_adapter_config.json")
    convert_adapter(official / "adapter/ms_adapter.bin", tmp_path / "out.safetensors", unet_of(official), config)
    assert same(
        read_safetensors(tmp_path / "out.safetensors")[0], read_safetensors(tiny_bundle / "ms_adapter.safetensors")[0]
    )


def test_adapter_round_trip_of_the_reference(tmp_path: Path) -> None:
    folder = GOLDENS / "tiny_sdxl"
    if not folder.is_dir():
        pytest.skip("the reference's fixtures are not beside this checkout")
    config = read_json(folder / "ms_adapter_config.json")
    unet = read_json(folder / "unet/config.json")
    assert convert_adapter(folder / "ms_adapter.bin", tmp_path / "out.safetensors", unet, config) == config
    assert same(
        read_safetensors(tmp_path / "out.safetensors")[0], read_safetensors(folder / "ms_adapter.safetensors")[0]
    )


def test_head_width_of_an_unofficial_adapter_is_asked_for(official: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"dim_head is not known; put ms_adapter_config\.json beside it"):
        convert_adapter(official / "adapter/ms_adapter.bin", tmp_path / "out.safetensors", unet_of(official))


def test_adapter_of_another_base_is_refused(official: Path, tmp_path: Path) -> None:
    config = read_json(official / "adapter/ms_adapter_config.json")
    config.pop("adapter_index_to_layer")
    with pytest.raises(InputError, match=r"ms_adapter.bin: does not fit: .*to_k_ip.weight"):
        convert_adapter(official / "adapter/ms_adapter.bin", tmp_path / "out.safetensors", SDXL_UNET, config)
    assert not (tmp_path / "out.safetensors").exists()


class _Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_pickled_code_is_refused_and_not_run(official: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    plain = tmp_path / "plain.bin"
    plain.write_bytes(pickle.dumps({"image_proj": _Bomb(marker)}, protocol=2))
    zipped = tmp_path / "zipped.bin"
    torch.save({"state_dict": _Bomb(marker)}, zipped)
    for source in (plain, zipped):
        with pytest.raises(InputError, match=source.name):
            convert_adapter(source, tmp_path / "out.safetensors", SDXL_UNET)
        with pytest.raises(InputError, match=source.name):
            convert_local_encoder(source, tmp_path / "out.safetensors")
        with pytest.raises(InputError, match=source.name):
            import_bundle(tmp_path / "bundle", base=official / "base", adapter=source)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"image_proj": {}}, "not an MS-Diffusion adapter .holds image_proj"),
        ([1], "holds list"),
        ({"image_proj": {}, "ms_adapter": {"x": 3}, "dummy_image_tokens": torch.zeros(1)}, "dicts of tensors"),
        ({"image_proj": {}, "ms_adapter": {}, "dummy_image_tokens": torch.zeros(1, 4, 32)}, "missing image_proj"),
    ],
)
def test_other_files_are_no_adapters(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "a.bin")
    with pytest.raises(InputError, match=message):
        convert_adapter(tmp_path / "a.bin", tmp_path / "out.safetensors", SDXL_UNET)


# --- the encoders


def test_local_encoder(official: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    config = read_json(official / "local/open_clip_config.json")
    convert_local_encoder(official / "local/epoch_6.pt", tmp_path / "out.safetensors", config)
    kept = read_safetensors(tmp_path / "out.safetensors")[0]
    whole = read_safetensors(tiny_bundle / "clipself/model.safetensors")[0]
    assert same(kept, {name: t for name, t in whole.items() if name.startswith("visual.")})


def test_local_encoder_must_be_complete(official: Path, tmp_path: Path) -> None:
    config = read_json(official / "local/open_clip_config.json")
    state = torch.load(official / "local/epoch_6.pt", weights_only=True)
    state["state_dict"].pop("module.visual.proj")
    state["state_dict"]["module.visual.extra"] = torch.zeros(1)
    torch.save(state, tmp_path / "broken.pt")
    with pytest.raises(InputError, match=r"missing visual\.proj; unexpected visual\.extra"):
        convert_local_encoder(tmp_path / "broken.pt", tmp_path / "out.safetensors", config)


def test_image_encoder_keeps_the_image_tower(official: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    from transformers import CLIPVisionModelWithProjection

    convert_image_encoder(official / "clip", tmp_path / "vision")
    names = {p.name for p in (tmp_path / "vision").iterdir()}
    assert names == {"config.json", "model.safetensors"}
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    ours, theirs = (
        CLIPVisionModelWithProjection.from_pretrained(folder, local_files_only=True)(pixels).image_embeds
        for folder in (tmp_path / "vision", tiny_bundle / "clip_vision")
    )
    assert torch.equal(ours, theirs)


# --- a whole bundle


def sources(official: Path) -> dict[str, Path]:
    return {
        "base": official / "base",
        "adapter": official / "adapter/ms_adapter.bin",
        "image_encoder": official / "clip",
        "local_encoder": official / "local/epoch_6.pt",
    }


def test_import_makes_a_whole_bundle(official: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    dest = tmp_path / "bundle"
    assert import_bundle(dest, **sources(official)) == []
    assert verify(dest) == []
    assert not list(dest.rglob("*.bin"))
    assert not list(dest.rglob("*.pt"))
    assert not list(tmp_path.glob(".bundle*"))  # nothing staged is left
    unet = "unet/diffusion_pytorch_model.safetensors"
    assert (dest / unet).stat().st_ino == (official / "base" / unet).stat().st_ino  # linked, not copied
    assert read_json(dest / "ms_adapter_config.json") == read_json(tiny_bundle / "ms_adapter_config.json")
    assert read_json(dest / "bundle.json")["files"]["clipself/model.safetensors"]["source"] == "epoch_6.pt"


def test_import_copies_where_links_are_impossible(
    official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    import_bundle(tmp_path / "bundle", **sources(official))
    assert verify(tmp_path / "bundle") == []


def test_parts_are_added_one_by_one(official: Path, tmp_path: Path) -> None:
    dest, parts = tmp_path / "bundle", sources(official)
    assert import_bundle(dest, base=parts["base"]) == ["clip_vision", "ms_adapter"]
    assert import_bundle(dest, adapter=parts["adapter"]) == ["clip_vision"]
    assert import_bundle(dest, image_encoder=parts["image_encoder"]) == []
    assert import_bundle(dest, local_encoder=parts["local_encoder"]) == []
    assert verify(dest) == []
    # As a folder of rbctl distill: safetensors with its configuration beside it.
    made = shutil.copytree(dest / "clipself", tmp_path / "clipself")
    assert import_bundle(dest, local_encoder=made) == []
    assert verify(dest) == []


def test_lone_fp16_variant_takes_the_plain_name(official: Path, tmp_path: Path) -> None:
    unet = official / "base/unet"
    (unet / "diffusion_pytorch_model.safetensors").rename(unet / "diffusion_pytorch_model.fp16.safetensors")
    import_bundle(tmp_path / "bundle", base=official / "base")
    assert (tmp_path / "bundle/unet/diffusion_pytorch_model.safetensors").is_file()


def test_a_failed_import_changes_nothing(official: Path, tmp_path: Path) -> None:
    parts = sources(official)
    write_json(official / "local/open_clip_config.json", {"embed_dim": 24})
    with pytest.raises(InputError, match="open_clip configuration lacks or garbles"):
        import_bundle(tmp_path / "bundle", **parts)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["official"]  # no empty bundle either
    dest = tmp_path / "bundle"
    import_bundle(dest, base=parts["base"])
    before = sorted(p.name for p in dest.iterdir())
    with pytest.raises(InputError):
        import_bundle(dest, local_encoder=parts["local_encoder"])
    assert sorted(p.name for p in dest.iterdir()) == before


def test_an_import_is_recorded_under_its_claim(official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rbctl.bundle import assemble

    def record(folder: Path, *_: Any) -> None:
        with pytest.raises(InputError, match="another run is writing here"), claim(folder):
            pass
        recorded.append(folder)

    recorded: list[Path] = []
    monkeypatch.setattr(assemble, "record", record)
    import_bundle(tmp_path / "bundle", base=official / "base")
    assert recorded == [tmp_path / "bundle"]


@pytest.mark.parametrize("vision", [{"width": "x"}, [], None])
def test_garbled_open_clip_configuration(official: Path, tmp_path: Path, vision: Any) -> None:
    config = {**read_json(official / "local/open_clip_config.json"), "vision_cfg": vision}
    with pytest.raises(InputError, match="open_clip configuration lacks or garbles"):
        convert_local_encoder(official / "local/epoch_6.pt", tmp_path / "out.safetensors", config)


def test_unet_configuration_that_is_none(official: Path, tmp_path: Path) -> None:
    write_json(official / "base/unet/config.json", [])
    with pytest.raises(InputError, match=r"unet/config\.json: a JSON object was expected"):
        import_bundle(tmp_path / "bundle", **sources(official))


def test_encoders_must_fit_the_adapter(official: Path, tmp_path: Path) -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = {**read_json(official / "clip/config.json")["vision_config"], "hidden_size": 24}
    other = official / "other"
    other.mkdir()
    write_json(other / "config.json", config)
    save_file(CLIPVisionModelWithProjection(CLIPVisionConfig(**config)).state_dict(), other / "model.safetensors")
    with pytest.raises(InputError, match="the encoder is 24 wide, the adapter takes 48"):
        import_bundle(tmp_path / "bundle", **{**sources(official), "image_encoder": other})
    assert "unet" in missing_parts(tmp_path / "bundle")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": Path("/nowhere/base")}, "no such file or folder"),
        ({"base": Path(__file__)}, "not a readable safetensors file"),
        ({"adapter": Path("/nowhere/ms_adapter.bin")}, "no such file"),
        ({"image_encoder": Path("/nowhere/clip")}, "no such file"),
        ({"local_encoder": Path("/nowhere/epoch_6.pt")}, "no such file"),
        ({"base": None}, "the adapter belongs to a base"),
        (dict.fromkeys(("base", "adapter", "image_encoder", "local_encoder")), "nothing to import"),
    ],
)
def test_missing_sources_are_told(official: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        import_bundle(tmp_path / "bundle", **{**sources(official), **changes})
