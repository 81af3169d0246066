"""The tiny bundle: whole, the same for the same seed, and alive enough to sample with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rbctl.bundle.catalogue import missing_parts
from rbctl.bundle.download import verify
from rbctl.bundle.random_weights import write_tiny
from rbctl.files import read_safetensors, sha256

pytestmark = pytest.mark.slow  # what its tests share takes seconds

GOLDENS = Path(__file__).resolve().parents[2] / "shared" / "goldens"


def test_whole_and_as_recorded(tiny_bundle: Path) -> None:
    assert missing_parts(tiny_bundle) == []
    assert verify(tiny_bundle) == []


@pytest.mark.slow
def test_same_seed_same_bytes(tiny_bundle: Path, tmp_path: Path) -> None:
    write_tiny(tmp_path / "again")
    write_tiny(tmp_path / "other", seed=1)
    manifest = (tiny_bundle / "bundle.json").read_text()
    assert manifest == (tmp_path / "again" / "bundle.json").read_text()
    assert sha256(tiny_bundle / "unet/diffusion_pytorch_model.safetensors") != sha256(
        tmp_path / "other" / "unet/diffusion_pytorch_model.safetensors"
    )


def test_tokenizers_are_clips(tiny_bundle: Path) -> None:
    from transformers import CLIPTokenizer

    first = CLIPTokenizer.from_pretrained(tiny_bundle / "tokenizer")
    second = CLIPTokenizer.from_pretrained(tiny_bundle / "tokenizer_2")
    prompt = "A cat is hugging with a plushie bear."
    ids = [49406, 320, 2368, 533, 27058, 593, 320, 2052, 26638, 4298, 269, 49407]
    for tokenizer, pad in ((first, 49407), (second, 0)):  # SDXL's second tokenizer pads with "!"
        padded = tokenizer(prompt, padding="max_length", max_length=77)["input_ids"]
        assert padded == ids + [pad] * (77 - len(ids))


def test_tokenizer_agrees_with_the_reference(tiny_bundle: Path) -> None:
    path = GOLDENS / "phrase_index" / "phrase_index.json"
    if not path.is_file():
        pytest.skip("the reference's fixtures are not beside this checkout")
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(tiny_bundle / "tokenizer")
    for case in json.loads(path.read_text())["cases"]:
        ids = tokenizer(case["prompt"], padding="max_length", max_length=77, truncation=True)["input_ids"]
        assert ids[:40] == case["ids"]


@pytest.mark.parametrize(
    "file",
    [
        "unet/diffusion_pytorch_model",
        "vae/diffusion_pytorch_model",
        "text_encoder/model",
        "text_encoder_2/model",
        "clip_vision/model",
        "clipself/model",
        "ms_adapter",
    ],
)
def test_names_and_shapes_are_the_references(tiny_bundle: Path, file: str) -> None:
    path = GOLDENS / "tiny_sdxl" / f"{file}.safetensors"
    if not path.is_file():
        pytest.skip("the reference's fixtures are not beside this checkout")
    ours, theirs = (
        read_safetensors(folder / f"{file}.safetensors")[0]
        for folder in (tiny_bundle, path.parents[len(Path(file).parts) - 1])
    )
    # The text tower that the reference's local encoder carries along is of no use.
    used = {k: v.shape for k, v in theirs.items() if not file.startswith("clipself") or k.startswith("visual.")}
    assert {k: v.shape for k, v in ours.items()} == used


@pytest.mark.parametrize("seed", [0, 1])
def test_pictures_are_finite_and_follow_the_text(tmp_path: Path, seed: int) -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    write_tiny(tmp_path, seed)
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "unet")
    vae = AutoencoderKL.from_pretrained(tmp_path / "vae")
    draw = torch.Generator().manual_seed(0)
    latents, text = torch.randn(1, 4, 16, 16, generator=draw), torch.randn(2, 77, 32, generator=draw)
    condition = {"text_embeds": torch.randn(2, 16, generator=draw), "time_ids": torch.full((2, 6), 128.0)}
    with torch.no_grad():
        noise = unet(latents.repeat(2, 1, 1, 1), 500, text, added_cond_kwargs=condition).sample
        picture = vae.decode(10 * latents).sample
        back = vae.encode(picture.clamp(-1, 1)).latent_dist.mean
    assert all(tensor.isfinite().all() for tensor in (noise, picture, back))
    assert 0.1 < noise.std() < 2
    assert (noise[0] - noise[1]).abs().mean() > 0.05
    assert 0.2 < picture.std() < 1.5  # in [-1, 1]: neither flat nor black and white
    assert picture.mean().abs() < 0.9
    assert back.std() > 0.1
