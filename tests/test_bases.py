"""Bases with reference pictures in their sequence: the same commands on tiny editors of random weights."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import call, refused
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_bases import tiny_flux2_klein, tiny_mini_dit, tiny_qwen_image_edit

from rbctl import RelationPipeline, lora
from rbctl.bases import families, family_of, recipe_of
from rbctl.bases.load import load, sampler, training
from rbctl.bases.reference_sampling import pixels_of, square
from rbctl.bases.reference_transformer import Reading, attention_mask
from rbctl.bundle import catalogue
from rbctl.bundle.catalogue import CATALOGUE, place_of, resolve
from rbctl.bundle.fingerprints import generator_fingerprint
from rbctl.files import write_json
from rbctl.instructions import instruction
from rbctl.menagerie.triplets import draw_triplets
from rbctl.plugins.finetune import encodings
from rbctl.plugins.finetune.config import FinetuneConfig
from rbctl.plugins.finetune.objective import Objective
from rbctl.plugins.finetune.samples import micro_batches
from rbctl.relations import load_relation
from rbctl.triplets import load as load_triplets

MAKERS: dict[str, Callable[[Path], Path]] = {
    "flux2": tiny_flux2_klein,
    "qwen_image_edit": tiny_qwen_image_edit,
    "mini_dit": tiny_mini_dit,
}
PROMPT = "A {cat} is hugging a {bear}"
TOLD = "The cat of image 1 is hugging the bear of image 2"
CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=MAKERS)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return MAKERS[request.param](tmp_path_factory.mktemp("base") / request.param)


@pytest.fixture(scope="module")
def klein(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_flux2_klein(tmp_path_factory.mktemp("klein") / "klein")


@pytest.fixture(scope="module")
def triplets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("triplets") / "hug"
    draw_triplets(load_relation("hug"), 3, 3, folder, size=64)
    return folder


@pytest.fixture(scope="module")
def individuals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("individuals")
    for name, colour in (("cat", "orange"), ("bear", "blue"), ("dog", "green")):
        picture = Image.new("RGB", (90, 70), "white")
        picture.paste(Image.new("RGB", (50, 50), colour), (20, 10))
        picture.save(folder / f"{name}.png")
    return {path.stem: path for path in folder.iterdir()}


def tune(bundle: Path, triplets: Path, output: Path, *flags: object) -> Any:
    options = ["--relation", "hug", "--bundle", bundle, "--data", triplets, "--output", output, "--prior", "none"]
    few = ["--steps", 3, "--precision", "fp32", "--batch-size", 2, "--learning-rate", 1e-2, "--preview-steps", 1]
    return call("finetune", *options, *few, *flags)


@pytest.fixture(scope="module")
def tuned(bundle: Path, triplets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps; its LoRA changes what the base draws."""
    folder = tmp_path_factory.mktemp("runs") / "hug"
    result = tune(bundle, triplets, folder, "--augmentation-draws", 2, "--micro-batch-size", 2, "--preview-every", 3)
    assert result.exit_code == 0, result.output
    return folder


def drawn(pipe: RelationPipeline, images: dict[str, Path], prompt: str = PROMPT, seed: int = 7, **options: Any) -> Any:
    made = pipe(prompt, images, generator=torch.Generator().manual_seed(seed), **options).images[0]
    return np.asarray(made, int)


@pytest.fixture(scope="module")
def pipe(bundle: Path) -> RelationPipeline:
    pipe = RelationPipeline.from_pretrained(bundle, device="cpu")
    pipe.set_progress_bar_config(disable=True)
    return pipe


# --- families


def test_every_family_has_the_same_files() -> None:
    root = Path(__file__).parents[1] / "rbctl" / "bases"
    for name in families():
        files = {path.name for path in (root / name).iterdir()}
        assert {"__init__.py", "base.py", "sampling.py", "training.py", "recipe.yaml"} <= files


def test_a_bundle_is_known_by_its_index(bundle: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    assert family_of(bundle).name == bundle.name
    assert family_of(tiny_bundle).name == family_of(tmp_path).name == "sdxl"
    (tmp_path / "model_index.json").write_text("{")
    assert "model_index.json" in refused(call("sample", "x.txt", "--bundle", tmp_path))


def test_a_distilled_base_has_a_recipe_of_its_own(tmp_path: Path, klein: Path) -> None:
    shutil.copytree(klein, tmp_path / "klein")
    (tmp_path / "klein" / "recipe.yaml").unlink()
    assert recipe_of(tmp_path / "klein")[1]["sample"]["steps"] == 50
    index = tmp_path / "klein" / "model_index.json"
    write_json(index, json.loads(index.read_text()) | {"is_distilled": True})
    assert recipe_of(tmp_path / "klein")[1]["sample"] == {"steps": 4, "guidance_scale": 1.0, "negative_prompt": ""}


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_an_incomplete_bundle_is_told_in_one_line(klein: Path, triplets: Path, tmp_path: Path, part: str) -> None:
    folder = Path(shutil.copytree(klein, tmp_path / "klein"))
    shutil.rmtree(folder / part)
    said = refused(tune(folder, triplets, tmp_path / "run"), f"({part} missing)")
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_weights_that_do_not_fit_are_told_in_one_line(bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundle, tmp_path / "base"))
    config = folder / "transformer" / "config.json"
    write_json(config, json.loads(config.read_text()) | {"num_layers": 3})
    (tmp_path / "p.txt").write_text("A cat sleeps")
    said = refused(call("sample", tmp_path / "p.txt", "--bundle", folder, "--lora", "none"), "do not fit config.json")
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("command", "flags", "told"),
    [
        ("finetune", ["--method", "dreambooth_lora"], "--method dreambooth_lora: has no meaning"),
        ("finetune", ["--gamma", "0.5"], "--gamma 0.5: has no meaning"),
        ("finetune", ["--resolution", "72"], "needs a multiple of 16"),
        ("sample", ["--scheduler", "Euler a"], "--scheduler"),
        ("sample", ["--local-tokens", "own"], "take none"),
        ("sample", ["--width", "72"], "needs multiples of 16 pixels"),
    ],
)
def test_what_has_no_meaning_there_is_refused(
    klein: Path, triplets: Path, tmp_path: Path, command: str, flags: list[str], told: str
) -> None:
    (tmp_path / "p.txt").write_text("A cat sleeps")
    if command == "finetune":
        refused(tune(klein, triplets, tmp_path / "run", *flags), told)
    else:
        refused(call("sample", tmp_path / "p.txt", "--bundle", klein, "--lora", "none", *flags), told)


# --- instructions


@pytest.mark.parametrize(
    ("text", "names", "numbers", "told"),
    [
        ("A cat is hugging a bear.", ["cat", "bear"], [1, 2], "The cat of image 1 is hugging the bear of image 2."),
        ("A bear is ridden by a cat", ["bear", "cat"], [2, 1], "The bear of image 2 is ridden by the cat of image 1"),
        ("My old dog sleeps", ["dog"], [1], "My old dog of image 1 sleeps"),
        ("a black cat hugs a cat", ["cat", "black cat"], [1, 2], "the black cat of image 2 hugs the cat of image 1"),
        ("Tom hugs a dog", ["Tom", "dog"], [1, 2], "Tom of image 1 hugs the dog of image 2"),
        ("It rains", ["cat"], [1], "It rains"),
    ],
)
def test_instructions(text: str, names: list[str], numbers: list[int], told: str) -> None:
    assert instruction(text, names, numbers) == told


# --- the mathematics


def test_noise_target_and_clean_estimate_are_those_of_the_scheduler(bundle: Path) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    base = load(bundle, CPU, torch.float32, encoders=False)
    course = training(base, FinetuneConfig(relation="hug"))
    latents, noise = torch.randn(2, 2, 1, 4, 4, 4)[0:2].unbind(0) if False else torch.randn(2, 3, 4, 4, 4)
    levels = course.levels(torch.tensor([0, 500, 999]), (8, 8))
    noisy, target = course.noised(latents, noise, levels)
    theirs = FlowMatchEulerDiscreteScheduler()
    theirs.timesteps, theirs.sigmas = levels, levels / 1000
    assert torch.allclose(noisy, theirs.scale_noise(latents, levels, noise), atol=1e-6)
    assert torch.allclose(course.clean(noisy, target, levels), latents, atol=1e-5)
    theirs.sigmas = torch.tensor([float(levels[1]) / 1000, 0.0])  # one step of the sampler, all the way
    theirs.timesteps = levels[1:2]
    assert torch.allclose(theirs.step(target[1:2], levels[1], noisy[1:2])[0], latents[1:2], atol=1e-5)


def test_training_times_have_the_schedulers_shift(bundle: Path) -> None:
    base = load(bundle, CPU, torch.float32, encoders=False)
    course, size = training(base, FinetuneConfig(relation="hug")), (64, 64)
    scheduler = base.scheduler()
    base.set_timesteps(scheduler, 50, size)
    drawn = ((1000 * torch.linspace(1, 1 / 50, 50)).round() - 1).long()
    assert torch.allclose(course.levels(drawn, size), scheduler.timesteps, rtol=1e-4)
    even = course.levels(torch.arange(1000), size)
    assert bool((even.diff() > 0).all())
    assert float(even[499]) > 500 or scheduler.config.shift == 1


def test_keypoints_are_read_at_the_cells_of_the_vae(bundle: Path) -> None:
    """A cell of the VAE, 8 pixels for most, also where the transformer sees several of them as one token."""
    base = load(bundle, CPU, torch.float32, encoders=False)
    course, h = training(base, FinetuneConfig(relation="hug")), 64 // base.latent_scale
    latents = torch.zeros(1, base.latent_channels, h, h)
    cells = course.cells(latents)
    side = 16 if bundle.name == "mini_dit" else 8
    assert cells.shape[-2:] == (side, side)
    assert cells[0].numel() == latents[0].numel()
    tokens = base.pack(torch.arange(latents.numel()).float().reshape(latents.shape))
    assert torch.equal(base.unpack(tokens, (h, h)), torch.arange(latents.numel()).float().reshape(latents.shape))


def test_masks_hide_padding_absent_references_and_places_outside_of_boxes() -> None:
    words, references = torch.zeros(2, 3, 5), torch.zeros(2, 2, 4, 2, 2)
    whole = torch.ones(2, 3, dtype=torch.bool)
    everyone = torch.ones(2, 2, dtype=torch.bool)
    grids = [(2, 2), (1, 1), (1, 1)]
    assert attention_mask(Reading(words, whole, references, everyone), grids) is None
    padded, absent = whole.clone(), everyone.clone()
    padded[1, 2], absent[1, 1] = False, False
    keys = attention_mask(Reading(words, padded, references, absent), grids)
    assert keys is not None
    assert keys.shape == (2, 1, 1, 9)
    assert keys[0].all()
    assert (~keys[1, 0, 0]).nonzero().flatten().tolist() == [2, 8]
    boxes = torch.tensor([[[0, 0, 0.5, 1], [0.5, 0, 1, 1]]] * 2)
    mask = attention_mask(Reading(words, whole, references, everyone, boxes), grids)
    assert mask is not None
    assert mask[0, 0, 3:7, 7].tolist() == [True, False, True, False]  # the left column sees the left one's picture
    assert mask[0, 0, 3:7, 8].tolist() == [False, True, False, True]
    assert mask[0, 0, :3].all()
    assert mask[0, 0, 7:].all()


# --- plain diffusers


@pytest.mark.slow
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_plain_diffusers_draws_the_same_with_the_same_lora(
    bundle: Path,
    tuned: Path,
    pipe: RelationPipeline,
    individuals: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    guidance_scale: float,
) -> None:
    if bundle.name == "mini_dit":
        pytest.skip("diffusers has no pipeline of it")
    import diffusers
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus

    monkeypatch.setattr(pipeline_qwenimage_edit_plus, "VAE_IMAGE_SIZE", 64 * 64)
    theirs = diffusers.DiffusionPipeline.from_pretrained(bundle)
    theirs.set_progress_bar_config(disable=True)
    images = {name: individuals[name] for name in ("cat", "bear")}
    squares = [square(Image.open(path), 64) for path in images.values()]
    options: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 3}
    own: dict[str, Any] = {"guidance_scale": guidance_scale}
    if bundle.name != "flux2":
        own = {"true_cfg_scale": guidance_scale, "negative_prompt": " "}

    def plain() -> Any:
        seed = [torch.Generator().manual_seed(7)]
        return np.asarray(theirs(image=squares, prompt=TOLD, generator=seed, **options, **own).images[0], int)

    few = {"num_inference_steps": 3, "guidance_scale": guidance_scale}
    pipe.unload_lora_weights()
    base = drawn(pipe, images, **few)
    assert np.abs(base - plain()).max() <= 1
    theirs.load_lora_weights(str(tuned / "hug.safetensors"))
    pipe.load_relation(tuned / "hug.safetensors")
    related = drawn(pipe, images, **few)
    pipe.unload_relation()
    assert np.abs(related - plain()).max() <= 1
    assert np.abs(related - base).max() > 3


def test_every_matrix_has_a_name_that_comfyui_knows(tuned: Path, bundle: Path) -> None:
    """transformer.PATH of diffusers; comfy/lora.py maps it for Flux and QwenImage (docs/bases.md)."""
    tensors = load_file(tuned / "hug.safetensors")
    assert all(key.startswith("transformer.") and key.endswith((".lora_A.weight", ".lora_B.weight")) for key in tensors)
    layers = {key.removeprefix("transformer.").rsplit(".", 2)[0] for key in tensors}
    double = "transformer_blocks.0.attn"
    assert {layer for layer in layers if layer.startswith(double)} == {
        f"{double}.{name}" for name in ("to_q", "add_k_proj", "add_v_proj", "to_out.0")
    }
    with safe_open(tuned / "hug.safetensors", "pt") as file:
        said = file.metadata()
    assert said["rbctl.relation"] == "hug"
    assert said["ss_network_alpha"] == "4.0"
    assert lora.read(tuned / "hug.safetensors").rank == 4
    assert family_of(bundle).layers_of(lora.read(tuned / "hug.safetensors").modules) == "attn2"


def test_show_and_check_know_it_and_convert_refuses_it(tuned: Path) -> None:
    path = tuned / "hug.safetensors"
    shown = call("lora", "show", path)
    assert shown.exit_code == 0
    rows = {line[:9].strip(): line[10:] for line in shown.output.splitlines()}
    assert rows["file"].endswith("the relation hug")
    architecture = lora.read(path).metadata["modelspec.architecture"].removesuffix("/lora")
    assert rows["base"].startswith(f"'{architecture}', trained on")
    assert rows["layers"].startswith("transformer: ")
    assert rows["loads in"] == "diffusers, InvokeAI, ComfyUI and rbctl"
    assert call("lora", "check", path).output == f"{path}: nothing is wrong\n"
    told = f"{path}: is of a transformer; diffusers, InvokeAI and ComfyUI load it as it is"
    refused(call("lora", "convert", path, "--format", "kohya"), told)


def test_alpha_is_in_the_matrices(bundle: Path, triplets: Path, tmp_path: Path) -> None:
    base = load(bundle, CPU, torch.float32, encoders=False)
    lora.add(base.model, 4, 8, seed=0, targets=base.lora_targets("attention"))
    for parameter in lora.named_parameters(base.model).values():
        parameter.data.normal_()
    base.save_lora(tmp_path / "x.safetensors", {}, 8, "diffusers")
    state, written = lora.state(base.model), load_file(tmp_path / "x.safetensors")
    for key, value in state.items():
        assert torch.equal(written[f"transformer.{key}"], value * 2 if "lora_B" in key else value)


# --- sampling


def test_one_to_three_individuals_and_none(pipe: RelationPipeline, individuals: dict[str, Path]) -> None:
    pictures = [
        drawn(pipe, {}, "A cat sleeps"),
        drawn(pipe, {"cat": individuals["cat"]}, "A {cat} sleeps"),
        drawn(pipe, {name: individuals[name] for name in ("cat", "bear")}),
        drawn(pipe, individuals, "A {cat}, a {bear} and a {dog} dance"),
    ]
    for number, picture in enumerate(pictures):
        assert picture.shape == (64, 64, 3)
        assert all(np.abs(picture - other).max() > 1 for other in pictures[:number])


def test_swapped_references_change_the_picture(pipe: RelationPipeline, individuals: dict[str, Path]) -> None:
    cat, bear = individuals["cat"], individuals["bear"]
    one, other = drawn(pipe, {"cat": cat, "bear": bear}), drawn(pipe, {"cat": bear, "bear": cat})
    assert np.abs(one - other).max() > 1


def test_references_stand_in_the_order_of_the_roles(
    pipe: RelationPipeline, individuals: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = {name: individuals[name] for name in ("cat", "bear")}
    seen: list[Any] = []
    read = pipe.bundle.encode_text

    def noted(text: str, pictures: Any) -> torch.Tensor:
        seen.append((text, [picture.getpixel((32, 32)) for picture in pictures]))
        return read(text, pictures)

    monkeypatch.setattr(pipe.bundle, "encode_text", noted)
    drawn(pipe, images, "A {bear} is being ridden by a {cat}")
    text, pixels = seen[0]
    assert text == "The bear of image 2 is being ridden by the cat of image 1"
    if bundle_sees(pipe):
        assert pixels == [(255, 165, 0), (0, 0, 255)]  # the rider first: the orange cat


def bundle_sees(pipe: RelationPipeline) -> bool:
    return pipe.bundle.folder.name == "qwen_image_edit"


def test_a_batch_is_as_one_by_one(pipe: RelationPipeline, individuals: dict[str, Path]) -> None:
    """Prompts of several lengths, with one, two and three individuals."""
    prompts = ["A {cat} sleeps", PROMPT, "A {cat}, a {bear} and a {dog} dance in the rain"]
    images = [{n: individuals[n] for n in names} for names in (("cat",), ("cat", "bear"), ("cat", "bear", "dog"))]
    seeds = [torch.Generator().manual_seed(seed) for seed in range(3)]
    together = pipe(prompts, images, generator=seeds).images
    for number, picture in enumerate(together):
        alone = drawn(pipe, images[number], prompts[number], number)
        assert np.abs(np.asarray(picture, int) - alone).max() <= 1


def test_the_mask_of_boxes_changes_the_picture(bundle: Path, individuals: dict[str, Path]) -> None:
    images, boxes = {n: individuals[n] for n in ("cat", "bear")}, {"cat": (0, 0, 0.5, 1), "bear": (0.5, 0, 1, 1)}
    masked = RelationPipeline.from_pretrained(bundle, device="cpu", reference_mask="boxes")
    masked.set_progress_bar_config(disable=True)
    swapped = {"cat": boxes["bear"], "bear": boxes["cat"]}
    one, other = (
        masked(PROMPT, images, places, generator=torch.Generator().manual_seed(0), output_type="latent").images
        for places in (boxes, swapped)
    )
    assert float((one - other).abs().max()) > 1e-3
    everywhere = dict.fromkeys(boxes, (0.0, 0.0, 1.0, 1.0))
    free = RelationPipeline(masked.bundle)
    free.set_progress_bar_config(disable=True)
    assert np.abs(drawn(masked, images, boxes=everywhere) - drawn(free, images)).max() <= 1


@pytest.mark.slow
def test_sample_draws_what_the_pipeline_draws_and_goes_on_where_it_stopped(
    bundle: Path, tuned: Path, pipe: RelationPipeline, individuals: dict[str, Path], tmp_path: Path
) -> None:
    line = f"A {{cat: {individuals['cat']}}} is hugging a {{bear: {individuals['bear']}}} --d 7"
    (tmp_path / "p.txt").write_text(line)
    path = tuned / "hug.safetensors"
    arguments = ["sample", tmp_path / "p.txt", "--bundle", bundle, "--lora", path, "--output", tmp_path / "out"]
    first = call(*arguments)
    assert first.exit_code == 0, first.output
    (row,) = [json.loads(line) for line in (tmp_path / "out" / "metadata.jsonl").read_text().splitlines()]
    pipe.load_relation(path)
    made = drawn(pipe, {name: individuals[name] for name in ("cat", "bear")})
    pipe.unload_relation()
    assert np.array_equal(made, np.asarray(Image.open(tmp_path / "out" / row["file_name"]), int))
    assert "0 made, 1 were there" in call(*arguments).stderr


@pytest.mark.slow
def test_a_lora_of_another_base_is_refused(tuned: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("A cat sleeps")
    flags = ["--lora", tuned / "hug.safetensors", "--allow-other-base"]
    refused(call("sample", tmp_path / "p.txt", "--bundle", tiny_bundle, *flags), "made for another base")


# --- finetuning


@pytest.mark.slow
def test_a_stopped_run_ends_as_an_uninterrupted_one(bundle: Path, tuned: Path, triplets: Path, tmp_path: Path) -> None:
    from rbctl.plugins.finetune import finetune

    options = {"bundle": str(bundle), "prior": "none", "steps": 3, "batch_size": 2, "learning_rate": 1e-2}
    options |= {
        "preview_steps": 1,
        "augmentation_draws": 2,
        "micro_batch_size": 2,
        "preview_every": 3,
        "precision": "fp32",
    }
    for enough in (lambda step, row: step == 1, None):
        finetune("hug", triplets, tmp_path / "run", callback=enough, **options)
    assert (tmp_path / "run" / "hug.safetensors").read_bytes() == (tuned / "hug.safetensors").read_bytes()
    preview = "previews/step-000003.png"
    assert (tmp_path / "run" / preview).read_bytes() == (tuned / preview).read_bytes()


@pytest.mark.slow
def test_micro_batches_change_nothing(bundle: Path, triplets: Path, tuned: Path, tmp_path: Path) -> None:
    assert tune(bundle, triplets, tmp_path / "run", "--augmentation-draws", 2, "--micro-batch-size", 1).exit_code == 0
    alone, together = (load_file(run / "hug.safetensors") for run in (tmp_path / "run", tuned))
    assert all(torch.allclose(alone[key], together[key], atol=2e-4) for key in together)


@pytest.mark.slow
def test_every_part_of_the_loss_reaches_the_lora(bundle: Path, triplets: Path) -> None:
    config = FinetuneConfig(relation="hug", local_tokens="none", resolution=64)
    base = load(bundle, CPU, torch.float32)
    encoded = encodings.encode(base, load_triplets(triplets), [], config, 64)
    shapes = family_of(bundle).module("training").Training.shapes
    assert encodings.fit(encoded, shapes, 1, [(64, 64)] * 3)
    lora.add(base.model, 4, 4, seed=0, targets=base.lora_targets("attn2"))
    for name, parameter in lora.named_parameters(base.model).items():
        parameter.data.normal_(std=0.1) if "lora_B" in name else None
    (batch,) = micro_batches(encoded, None, [0, 1], config, 1000, CPU)

    def gradients(**options: Any) -> torch.Tensor:
        tuning = FinetuneConfig(relation="hug", local_tokens="none", **options)
        base.model.zero_grad()
        loss, parts = Objective.of(base, tuning).loss(base.model, batch)
        assert all(math.isfinite(float(part)) and float(part) > 0 for part in parts.values())
        loss.backward()
        return torch.cat([p.grad.flatten() for p in lora.named_parameters(base.model).values()])

    plain = gradients(kml_weight=0.0)
    assert plain.isfinite().all()
    assert not torch.allclose(plain, gradients(kml_weight=1.0))
    assert torch.equal(plain, gradients(kml_weight=1.0, kml_max_timestep=0))
    assert not torch.allclose(plain, gradients(kml_weight=0.0, reference_mask="boxes"))


@pytest.mark.slow
def test_kml_is_zero_where_target_and_references_are_one_picture(bundle: Path, triplets: Path) -> None:
    """Clean latents of the target at a keypoint are those of the picture itself at the same place."""
    base = load(bundle, CPU, torch.float32)
    config = FinetuneConfig(relation="hug", local_tokens="none", resolution=64)
    encoded = encodings.encode(base, load_triplets(triplets)[:1], [], config, 64)
    (batch,) = micro_batches(encoded, None, [0], config, 1000, CPU)
    course = training(base, config)
    from rbctl import losses

    own = course.cells(batch.latents)
    points = batch.encoded["target_keypoints"]
    visible = torch.ones(points.shape[:-1], dtype=torch.bool)
    twice = own[:, None].expand(-1, points.shape[1], -1, -1, -1)
    assert float(losses.keypoint_matching(own, twice, points, points, visible)) == 0
    assert float(losses.keypoint_matching(own, twice.roll(1, -1), points, points, visible)) > 0


@pytest.mark.slow
def test_a_prior_set_and_masked_references_train_too(bundle: Path, triplets: Path, tmp_path: Path) -> None:
    flags = [
        "--prior",
        triplets,
        "--reference-mask",
        "boxes",
        "--lora-layers",
        "transformer",
        "--gradient-checkpointing",
    ]
    result = tune(bundle, triplets, tmp_path / "run", *flags)
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "run" / "forgetting.json").read_text())["without"] > 0
    with safe_open(tmp_path / "run" / "hug.safetensors", "pt") as file:
        assert file.metadata()["rbctl.reference_mask"] == "boxes"


def test_a_picture_goes_through_the_vae_and_back_in_the_size_it_has(bundle: Path) -> None:
    base = load(bundle, CPU, torch.float32, encoders=False)
    mean, deviation = base.encode_pictures(pixels_of(Image.new("RGB", (96, 64), "red")))
    assert mean.shape == (1, base.latent_channels, 64 // base.latent_scale, 96 // base.latent_scale)
    assert bool(deviation.any()) == (bundle.name == "mini_dit")  # the others take the mean
    assert base.decode_latents(mean).shape == (1, 3, 64, 96)
    assert sampler(base, RelationPipeline(base).options) is not None


def test_mini_dit_shares_what_it_lacks_with_mini(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_mini_dit(tmp_path / "dit")
    assert place_of(folder, "vae") == resolve("mini") / "vae"
    assert place_of(folder, "transformer") == folder / "transformer"
    before = generator_fingerprint(folder)
    write_json(tmp_path / "mini" / "vae" / "config.json", {})
    monkeypatch.setitem(CATALOGUE, "mini", dataclasses.replace(CATALOGUE["mini"], packaged=tmp_path / "mini"))
    monkeypatch.setattr(catalogue, "missing_parts", lambda folder: [])
    assert generator_fingerprint(folder) != before  # its pictures are others then
    monkeypatch.undo()
    shutil.copytree(resolve("mini") / "vae", folder / "vae")
    assert place_of(folder, "vae") == folder / "vae"


def test_references_of_mini_dit_are_seen_at_their_place_in_the_sequence(tmp_path: Path) -> None:
    """A reference's tokens hold all of its latents, in channels that the picture's tokens leave at zero."""
    base = load(tiny_mini_dit(tmp_path / "dit"), CPU, torch.float32, encoders=False)
    latents = torch.randn(1, 4, 16, 16)
    picture, reference = base.pack(latents), base.pack_references(latents)
    assert (picture.shape, reference.shape) == ((1, 64, 272), (1, 4, 272))
    assert not picture[..., 16:].any()
    assert not reference[..., :16].any()
    assert torch.equal(reference[..., 16:].flatten().sort().values, latents.flatten().sort().values)
    assert base.places(0, (2, 2))[:, 1:3].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert base.places(2, (1, 1)).tolist() == [[2, 1.5, 1.5, 0]]  # the middle of its 4 x 4 tokens of the picture
