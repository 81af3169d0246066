"""Bases as people have them: checkpoints of one file, other VAEs, fp16 shards; objectives that are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import save_file
from single_files import original_vae, write_single_file

from rbctl import RelationPipeline
from rbctl.bundle.assemble import import_bundle
from rbctl.bundle.catalogue import contents
from rbctl.bundle.config import summary
from rbctl.bundle.download import verify
from rbctl.bundle.load import load
from rbctl.cli import main
from rbctl.errors import InputError
from rbctl.files import read_jsonl, read_object, read_safetensors, sha256, write_json

NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 1.0}


def rbctl(*arguments: object) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (path,) = folder.glob("*.safetensors")
    return read_safetensors(path)[0]


def same(left: Path, right: Path) -> bool:
    one, other = weights(left), weights(right)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def scheduler_of(bundle: Path) -> dict[str, Any]:
    return read_object(bundle / "scheduler" / "scheduler_config.json")


@pytest.fixture(scope="module")
def checkpoint(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle's base as one file in Stability's names."""
    return write_single_file(tiny_bundle, tmp_path_factory.mktemp("civitai") / "tinyXL.safetensors")


@pytest.fixture
def other_vae(tiny_bundle: Path) -> dict[str, torch.Tensor]:
    return {name: tensor * 1.5 for name, tensor in weights(tiny_bundle / "vae").items()}


# --- one file


@pytest.mark.slow
def test_a_checkpoint_of_one_file_gives_the_pictures_of_its_folder(
    checkpoint: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    result = rbctl(
        "models", "import", tmp_path / "tiny-sdxl", "--base", checkpoint, "--base-config", tiny_bundle,
        "--adapter", tiny_bundle / "ms_adapter.safetensors", "--image-encoder", tiny_bundle / "clip_vision",
        "--local-encoder", tiny_bundle / "clipself",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert all(same(tmp_path / "tiny-sdxl" / part, tiny_bundle / part) for part in NETWORKS)
    assert verify(tmp_path / "tiny-sdxl") == []
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("A red fox in the snow. --d 3 --s 2\n")
    for name, bundle in (("file", tmp_path / "tiny-sdxl"), ("folder", tiny_bundle)):
        sampled = rbctl("sample", prompts, "--bundle", bundle, "--lora", "none", "--output", tmp_path / name)
        assert sampled.exit_code == 0, sampled.output
    (picture,) = (tmp_path / "file").glob("a-red-fox*.png")
    assert picture.read_bytes() == (tmp_path / "folder" / picture.name).read_bytes()


@pytest.mark.parametrize(
    ("extra", "metadata", "expected"),
    [
        ((), {}, ("epsilon", False)),
        (("v_pred",), {}, ("v_prediction", False)),
        (("v_pred", "ztsnr"), {}, ("v_prediction", True)),
        ((), {"modelspec.prediction_type": "v"}, ("v_prediction", False)),
        ((), {"ss_v_parameterization": "True", "ss_zero_terminal_snr": "True"}, ("v_prediction", True)),
    ],
)
def test_the_file_says_what_it_predicts(
    tiny_bundle: Path, tmp_path: Path, extra: tuple[str, ...], metadata: dict[str, str], expected: tuple[str, bool]
) -> None:
    source = write_single_file(
        tiny_bundle, tmp_path / "model.safetensors", {name: torch.tensor([]) for name in extra}, metadata
    )
    import_bundle(tmp_path / "bundle", base=source, base_config=tiny_bundle)
    config = scheduler_of(tmp_path / "bundle")
    assert (config["prediction_type"], config.get("rescale_betas_zero_snr", False)) == expected
    assert (config["timestep_spacing"] == "trailing") == expected[1]


def test_the_user_says_what_a_silent_base_predicts(checkpoint: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    for name, base in (("file", checkpoint), ("folder", tiny_bundle)):
        import_bundle(
            tmp_path / name, base=base, base_config=tiny_bundle, prediction_type="v_prediction", zero_snr=True
        )
        config = scheduler_of(tmp_path / name)
        assert (config["prediction_type"], config["rescale_betas_zero_snr"]) == ("v_prediction", True)
    assert scheduler_of(tiny_bundle)["prediction_type"] == "epsilon"  # files are linked, never changed in place


@pytest.mark.parametrize(
    ("extra", "metadata", "message"),
    [
        ("edm_mean", {}, "edm_mean: the base has an EDM objective"),
        ("edm_vpred.sigma_max", {}, "the base has an EDM objective"),
        ("", {"modelspec.prediction_type": "rectified flow"}, "modelspec.prediction_type is 'rectified flow'"),
    ],
)
def test_other_objectives_of_one_file_are_refused(
    tiny_bundle: Path, tmp_path: Path, extra: str, metadata: dict[str, str], message: str
) -> None:
    tensors = {extra: torch.ones(4)} if extra else {}
    source = write_single_file(tiny_bundle, tmp_path / "model.safetensors", tensors, metadata)
    with pytest.raises(InputError, match=message):
        import_bundle(tmp_path / "bundle", base=source, base_config=tiny_bundle)
    assert not (tmp_path / "bundle").exists()


def test_files_that_are_no_sdxl_checkpoint_are_told(checkpoint: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    lora = tmp_path / "lora.safetensors"
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(1)}, lora)
    with pytest.raises(InputError, match=r"not a whole SDXL checkpoint \(unet, text_encoder, text_encoder_2, vae"):
        import_bundle(tmp_path / "bundle", base=lora)
    with pytest.raises(InputError, match="does not fit: "):  # narrower than SDXL
        import_bundle(tmp_path / "bundle", base=checkpoint)
    (tmp_path / "model.ckpt").write_bytes(b"")
    with pytest.raises(InputError, match=r"pickled weights are not taken over; get or save it as \.safetensors"):
        import_bundle(tmp_path / "bundle", base=tmp_path / "model.ckpt")


# --- other VAEs


@pytest.mark.parametrize("names", ["stability", "diffusers", "whole checkpoint"])
def test_a_vae_of_one_file_takes_the_bases_place(
    tiny_bundle: Path, tmp_path: Path, other_vae: dict[str, torch.Tensor], names: str
) -> None:
    source = tmp_path / "vae.safetensors"
    if names == "whole checkpoint":
        save_file({f"first_stage_model.{name}": tensor for name, tensor in original_vae(other_vae).items()}, source)
    else:
        save_file(original_vae(other_vae) if names == "stability" else other_vae, source)
    import_bundle(tmp_path / "bundle", base=tiny_bundle, vae=source)
    made = weights(tmp_path / "bundle" / "vae")
    assert made.keys() == other_vae.keys()
    assert all(torch.equal(made[name], other_vae[name]) for name in made)


def test_a_vae_is_swapped_in_a_bundle_that_is_there(
    tiny_bundle: Path, tmp_path: Path, other_vae: dict[str, torch.Tensor]
) -> None:
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    (bundle / "vae" / "diffusion_pytorch_model-00001-of-00002.safetensors").write_bytes(b"of before")
    folder = tmp_path / "pipeline" / "vae"
    folder.mkdir(parents=True)
    write_json(folder / "config.json", {**read_object(tiny_bundle / "vae/config.json"), "force_upcast": False})
    save_file(other_vae, folder / "diffusion_pytorch_model.fp16.safetensors")
    for source in (folder, folder.parent):
        assert rbctl("models", "import", bundle, "--vae", source).exit_code == 0
        assert read_object(bundle / "vae/config.json")["force_upcast"] is False
        assert [path for path in contents(bundle) if path.startswith("vae/")] == [
            "vae/config.json",
            "vae/diffusion_pytorch_model.safetensors",
        ]
        assert verify(bundle) == []


def test_a_vae_of_another_model_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    write_json(bundle / "vae/config.json", {**read_object(bundle / "vae/config.json"), "latent_channels": 16})
    with pytest.raises(InputError, match="the UNet takes 4 channels, the VAE's latents have 16"):
        summary(bundle)


@pytest.fixture
def vae_folder(tiny_bundle: Path, tmp_path: Path, other_vae: dict[str, torch.Tensor]) -> Path:
    folder = tmp_path / "softer"
    folder.mkdir()
    write_json(folder / "config.json", read_object(tiny_bundle / "vae/config.json"))
    save_file(other_vae, folder / "diffusion_pytorch_model.fp16.safetensors")
    return folder


@pytest.mark.slow
def test_pictures_are_decoded_by_another_vae_as_by_one_that_was_imported(
    tiny_bundle: Path, tmp_path: Path, other_vae: dict[str, torch.Tensor], vae_folder: Path
) -> None:
    (tmp_path / "p.txt").write_text("a cat --d 3 --s 2")
    file = tmp_path / "soft.safetensors"
    save_file(original_vae(other_vae), file)
    swapped = shutil.copytree(tiny_bundle, tmp_path / "swapped")
    assert rbctl("models", "import", swapped, "--vae", file).exit_code == 0

    def sampled(output: str, bundle: Path, *flags: object) -> tuple[dict[str, Any], Image.Image]:
        command = ["sample", tmp_path / "p.txt", "--bundle", bundle, "--lora", "none", "--output", tmp_path / output]
        result = rbctl(*command, *flags)
        assert result.exit_code == 0, result.output
        (row,) = read_jsonl(tmp_path / output / "metadata.jsonl")
        return row, Image.open(tmp_path / output / row["file_name"])

    plain, own = sampled("own", tiny_bundle)
    _, imported = sampled("imported", swapped)
    row, of_file = sampled("file", tiny_bundle, "--vae", file)
    _, of_folder = sampled("folder", tiny_bundle, "--vae", vae_folder)
    _, of_bundle = sampled("bundle", tiny_bundle, "--vae", swapped)
    assert own.tobytes() != of_file.tobytes()
    assert imported.tobytes() == of_file.tobytes() == of_folder.tobytes() == of_bundle.tobytes()
    digest = sha256(file)
    assert (row["vae"], row["vae_hash"]) == ("soft.safetensors", digest)
    assert row["fingerprint"] != plain["fingerprint"]
    assert f"VAE hash: {digest[:10]}, VAE: soft.safetensors" in of_file.info["parameters"]
    assert f'"vae": "{digest[:10]}"' in of_file.info["parameters"]
    pipe = RelationPipeline.from_pretrained(tiny_bundle, device="cpu", vae=file)
    made = pipe("a cat", generator=torch.Generator().manual_seed(3), num_inference_steps=2).images[0]
    assert made.tobytes() == of_file.tobytes()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"latent_channels": 16}, "its latent_channels is 16, that of the bundle's VAE is 4"),
        ({"scaling_factor": 0.18215}, "its scaling_factor is 0.18215, that of the bundle's VAE is 0.13025"),
        ({"block_out_channels": [32, 32, 32, 32, 32]}, "16 pixels make one of its latents, "),
        (None, "no diffusion_pytorch_model.safetensors"),
    ],
)
def test_another_vae_that_does_not_fit_is_refused_before_sampling(
    tiny_bundle: Path, tmp_path: Path, vae_folder: Path, settings: dict[str, Any] | None, told: str
) -> None:
    config = vae_folder / "config.json"
    write_json(config, read_object(config) | (settings or {}))
    if settings is None:
        (vae_folder / "diffusion_pytorch_model.fp16.safetensors").unlink()
    (tmp_path / "p.txt").write_text("a cat")
    command = ["sample", tmp_path / "p.txt", "--bundle", tiny_bundle, "--lora", "none", "--output", tmp_path / "o"]
    result = rbctl(*command, "--vae", vae_folder)
    assert result.exit_code == 2
    assert f"Error: {vae_folder}: {told}" in result.output.splitlines()[-1]
    assert not (tmp_path / "o").exists()


def test_a_vae_of_one_file_and_other_shapes_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "wide.safetensors"
    save_file({"decoder.conv_in.weight": torch.zeros(8, 16, 3, 3)}, file)
    with pytest.raises(InputError, match=r"wide\.safetensors: does not fit: missing "):
        RelationPipeline.from_pretrained(tiny_bundle, device="cpu", vae=file)
    with pytest.raises(InputError, match="--vae 'nowhere': no such file, folder or bundle"):
        RelationPipeline.from_pretrained(tiny_bundle, device="cpu", vae="nowhere")


# --- fp16


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["{stem}.fp16-0000{k}-of-00002", "{stem}-0000{k}-of-00002.fp16"])
def test_fp16_shards_load(tiny_bundle: Path, tmp_path: Path, pattern: str) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_bundle, base)
    for part, stem in (("unet", "diffusion_pytorch_model"), ("text_encoder_2", "model")):
        tensors = {name: tensor.half() for name, tensor in weights(base / part).items()}
        (base / part / f"{stem}.safetensors").unlink()
        names, weight_map = sorted(tensors), {}
        for k, half in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
            file = pattern.format(stem=stem, k=k) + ".safetensors"
            save_file({name: tensors[name] for name in half}, base / part / file, {"format": "pt"})
            weight_map |= dict.fromkeys(half, file)
        index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
        (base / part / f"{stem}.safetensors.index.fp16.json").write_text(json.dumps(index))
    bundle = tmp_path / "bundle"
    import_bundle(
        bundle,
        base=base,
        adapter=tiny_bundle / "ms_adapter.safetensors",
        image_encoder=tiny_bundle / "clip_vision",
        local_encoder=tiny_bundle / "clipself",
    )
    ours = load(str(bundle), torch.device("cpu"), torch.float32)
    plain = load(str(tiny_bundle), torch.device("cpu"), torch.float32)
    for network in ("unet", "text_encoder_2"):
        wanted = getattr(plain, network).state_dict()
        for name, tensor in getattr(ours, network).state_dict().items():
            rounded = wanted[name] if "_ip." in name else wanted[name].half().float()
            assert torch.equal(tensor, rounded), name


def test_the_variant_is_asked_for_by_name(tiny_bundle: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_bundle, tmp_path / "base")
    for part in NETWORKS:
        (path,) = (base / part).glob("*.safetensors")
        halves = {name: tensor.half() for name, tensor in weights(base / part).items()}
        save_file(halves, path.with_name(f"{path.stem}.fp16.safetensors"), {"format": "pt"})
    for variant, dtype in (("", torch.float32), ("fp16", torch.float16)):
        import_bundle(tmp_path / f"bundle{variant}", base=base, variant=variant)
        assert {tensor.dtype for tensor in weights(tmp_path / f"bundle{variant}" / "unet").values()} == {dtype}
    with pytest.raises(InputError, match=r"no diffusion_pytorch_model\.bf16\.safetensors, whole or in shards"):
        import_bundle(tmp_path / "none", base=base, variant="bf16")


def test_an_index_that_leads_outside_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_bundle, tmp_path / "base")
    (base / "unet/diffusion_pytorch_model.safetensors").unlink()
    index = base / "unet/diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": "../../../outside.safetensors"}}))
    with pytest.raises(InputError, match="leaves the folder"):
        import_bundle(tmp_path / "bundle", base=base)


# --- objectives


@pytest.mark.parametrize(
    ("scheduler", "objective"),
    [
        (FLOW, "flow matching"),
        ({"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True}, "flow matching"),
        ({"_class_name": "DPMSolverMultistepScheduler", "prediction_type": "flow_prediction"}, "flow matching"),
        ({"_class_name": "EDMEulerScheduler", "sigma_data": 0.5}, "EDM"),
        ({"_class_name": "DDIMScheduler", "prediction_type": "sample"}, "prediction_type 'sample'"),
    ],
)
def test_objectives_that_the_method_does_not_do_are_refused(
    tiny_bundle: Path, tmp_path: Path, scheduler: dict[str, Any], objective: str
) -> None:
    base = shutil.copytree(tiny_bundle, tmp_path / "base")
    write_json(base / "scheduler" / "scheduler_config.json", scheduler)
    with pytest.raises(InputError, match=f"the base's objective is {objective}; the method takes epsilon or v_pred"):
        import_bundle(tmp_path / "bundle", base=base)
    with pytest.raises(InputError, match=f"the base's objective is {objective}"):
        load(str(base), torch.device("cpu"), torch.float32)


def test_every_stage_refuses_flow_matching_in_one_line(tiny_bundle: Path, drawn_hug: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_bundle, tmp_path / "base")
    write_json(base / "scheduler" / "scheduler_config.json", FLOW)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("A red fox in the snow.\n")
    out = ("--bundle", base, "--output", tmp_path / "out")
    for command in (
        ("sample", prompts, "--lora", "none", *out),
        ("finetune", "--relation", "hug", "--data", drawn_hug, "--prior", "none", *out),
        ("finetune", "--relation", "hug", "--data", drawn_hug, "--prior", "none", "--resolution", 128, *out),
        ("finetune", "--method", "relation_inversion", "--relation", "hug", "--data", drawn_hug, *out),
    ):
        result = rbctl(*command)
        assert result.exit_code == 2, (command, result.output)
        assert "objective is flow matching" in result.stderr, (command, result.stderr)
        assert result.stderr.splitlines()[-1].startswith("Error: ")
