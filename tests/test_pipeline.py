"""``RelationPipeline`` as a notebook uses it, and that it draws what ``rbctl sample`` draws."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import rbctl
from rbctl import RelationPipeline, lora
from rbctl.bundle.load import load
from rbctl.cli import main
from rbctl.errors import InputError

OURS = {"images", "boxes", "image_scale", "quality", "shortcuts"}  # arguments that diffusers' pipeline has not
FEW = {"num_inference_steps": 2}
BOXES = {"cat": (0, 0.2, 0.5, 1), "plush bear": (0.5, 0.2, 1, 1)}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def pipe(tiny_bundle: Path) -> RelationPipeline:
    pipe = RelationPipeline.from_pretrained(tiny_bundle, device="cpu")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("individuals")
    for name, colour in (("cat", "orange"), ("plush bear", "pink")):
        picture = Image.new("RGB", (90, 70), "white")
        picture.paste(Image.new("RGB", (40, 40), colour), (20, 15))
        picture.save(folder / f"{name}.png")
    return {path.stem: path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def relation(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA that changes pictures, with a layout of its own."""
    unet = load(str(tiny_bundle), torch.device("cpu"), torch.float32, encoders=False).unet
    lora.add(unet, rank=4, alpha=4, seed=0)
    generator = torch.Generator().manual_seed(1)
    tensors = {key: torch.randn(value.shape, generator=generator) for key, value in lora.state(unet).items()}
    prior = {"roles": ["a", "b"], "mean": [[0.3, 0.5, 0.4, 0.6], [0.7, 0.5, 0.4, 0.6]], "spread": [[0.0] * 4] * 2}
    path = tmp_path_factory.mktemp("relation") / "hug.safetensors"
    lora.save(path, tensors, {"rbctl.relation": "hug", "rbctl.layout_prior": json.dumps(prior)}, 4.0)
    return path


PROMPT = "A {cat} is hugging a {plush bear}"


def same(one: Any, other: Any) -> bool:
    return bool(np.array_equal(np.asarray(one), np.asarray(other)))


def test_the_arguments_are_those_of_diffusers() -> None:
    from diffusers import StableDiffusionXLPipeline

    theirs = inspect.signature(StableDiffusionXLPipeline.__call__).parameters
    ours = set(inspect.signature(RelationPipeline.__call__).parameters) - OURS
    assert ours <= set(theirs)


@pytest.mark.slow
@pytest.mark.parametrize("with_relation", [False, True])
def test_the_same_seed_gives_the_pixels_of_sample(
    pipe: RelationPipeline,
    images: dict[str, Path],
    relation: Path,
    tiny_bundle: Path,
    tmp_path: Path,
    with_relation: bool,
) -> None:
    text = "A {{cat: {}}} is hugging a {{plush bear: {}}}".format(images["cat"], images["plush bear"])
    (tmp_path / "p.txt").write_text(f"{text} --d 7 --s 2")
    flags = ["--bundle", str(tiny_bundle), "--lora", str(relation) if with_relation else "none"]
    result = CliRunner().invoke(main, ["sample", str(tmp_path / "p.txt"), "--output", str(tmp_path / "o"), *flags])
    assert result.exit_code == 0, result.output
    (row,) = [json.loads(line) for line in (tmp_path / "o" / "metadata.jsonl").read_text().splitlines()]
    if with_relation:
        pipe.load_relation(relation)
    made = pipe(PROMPT, images, generator=torch.Generator().manual_seed(7), **FEW).images[0]
    pipe.unload_relation()
    assert same(made, Image.open(tmp_path / "o" / row["file_name"]))


def test_a_relation_changes_the_picture_and_can_be_taken_back(
    pipe: RelationPipeline, images: dict[str, Path], relation: Path
) -> None:
    def draw() -> Image.Image:
        return pipe(PROMPT, images, BOXES, generator=torch.Generator().manual_seed(0), **FEW).images[0]

    base = draw()
    pipe.load_relation(relation)
    assert pipe.boxes("anything", ["cat", "bear"])[0] == pytest.approx((0.1, 0.2, 0.5, 0.8))
    related = draw()
    pipe.load_relation(relation, weight=0)
    weightless = draw()
    pipe.unload_relation()
    assert same(base, draw())
    assert same(base, weightless)
    assert not same(base, related)


def test_a_relation_that_was_tuned_anew_is_read_anew(
    pipe: RelationPipeline, images: dict[str, Path], relation: Path, tmp_path: Path
) -> None:
    path = tmp_path / "hug.safetensors"
    path.write_bytes(relation.read_bytes())
    made = []
    for factor in (1, 1, 0):
        file = lora.read(relation)
        lora.save(path, {key: value * factor for key, value in file.tensors.items()}, file.metadata, 4.0)
        pipe.load_relation(path)
        made.append(pipe(PROMPT, images, BOXES, generator=torch.Generator().manual_seed(0), **FEW).images[0])
    pipe.unload_relation()
    assert same(made[0], made[1])
    assert not same(made[0], made[2])


def test_paths_and_pictures_are_the_same(pipe: RelationPipeline, images: dict[str, Path]) -> None:
    opened = {name: Image.open(path) for name, path in images.items()}
    a, b = (pipe(PROMPT, i, generator=torch.Generator().manual_seed(0), **FEW).images[0] for i in (images, opened))
    assert same(a, b)


@pytest.mark.slow
def test_batches_and_what_is_returned(pipe: RelationPipeline, images: dict[str, Path]) -> None:
    seeds = [torch.Generator().manual_seed(seed) for seed in range(4)]
    both = pipe(
        [PROMPT, "A {cat} sleeps"], [images, {"cat": images["cat"]}], num_images_per_prompt=2, generator=seeds, **FEW
    )
    assert [image.size for image in both.images] == [(128, 128)] * 4
    alone = pipe("A {cat} sleeps", {"cat": images["cat"]}, generator=torch.Generator().manual_seed(2), **FEW).images[0]
    assert np.abs(np.asarray(both.images[2], int) - np.asarray(alone, int)).max() <= 1
    text = {"prompt": "A cat sleeps", "width": 96, "height": 64, **FEW}
    array = pipe(**text, output_type="np").images
    assert array.shape == (1, 64, 96, 3)
    assert 0 <= array.min() <= array.max() <= 1
    (tensor,) = pipe(**text, output_type="pt", return_dict=False)
    assert tensor.shape == (1, 3, 64, 96)
    latents = pipe(**text, output_type="latent").images
    assert latents.shape[-2:] == pipe.latent_size(_request(64, 96))


def _request(height: int, width: int) -> Any:
    from rbctl.request import Request

    options = {"negative_prompt": "", "steps": 1, "guidance_scale": 1.0}
    return Request(words="", subjects=(), height=height, width=width, **options)


def test_given_latents_and_a_callback(pipe: RelationPipeline) -> None:
    noise = torch.randn(1, pipe.bundle.unet.config.in_channels, *pipe.latent_size(_request(128, 128)))
    seen = []

    def look(
        pipe: RelationPipeline, step: int, timestep: Any, values: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        seen.append((step, int(timestep), values["latents"].shape))
        return {"latents": torch.zeros_like(values["latents"])} if step == 1 else {}

    made = pipe("A cat", latents=noise, callback_on_step_end=look, output_type="latent", **FEW).images
    assert [step for step, *_ in seen] == [0, 1]
    assert seen[0][1] > seen[1][1]
    assert not made.any()


def test_a_move_keeps_the_vae_in_float32(tiny_bundle: Path) -> None:
    pipe = RelationPipeline.from_pretrained(tiny_bundle, device="cpu", torch_dtype=torch.bfloat16)
    assert pipe.to(dtype=torch.float32) is pipe
    assert (pipe.dtype, pipe.bundle.unet.dtype, pipe.bundle.vae.dtype) == (torch.float32,) * 3
    pipe.to("cpu", torch.bfloat16)
    assert (pipe.bundle.unet.dtype, pipe.bundle.vae.dtype) == (torch.bfloat16, torch.float32)
    assert pipe("A cat", **FEW).images


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"images": {"cat": 0}}, "images: has no picture of 'plush bear'"),
        ({"images": {"cat": 0, "plush bear": 0, "dog": 0}}, "images: 'dog' has no place"),
        ({"boxes": {"cat": (0, 0, 1, 1)}}, "boxes: some"),
        ({"boxes": {"cat": (0, 0, 1, 2), "plush bear": (0, 0, 1, 1)}}, "boxes: cat: .*outside"),
        ({"width": 100}, "width: a multiple of 8 was expected, not 100"),
        ({"num_inference_steps": 0}, "num_inference_steps: 1 or more was expected"),
        ({"guidance_scale": float("nan")}, "guidance_scale: a finite number was expected, not nan"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt: 1 or more was expected"),
        ({"generator": [torch.Generator()] * 2}, "generator: 2 for 1"),
        ({"output_type": "jpeg"}, "output_type: 'jpeg'"),
        ({"images": [{}, {}]}, "2 mappings for 1 prompts"),
    ],
)
def test_what_is_wrong_is_named(
    pipe: RelationPipeline, images: dict[str, Path], arguments: dict[str, Any], told: str
) -> None:
    if isinstance(arguments.get("images"), dict):
        arguments = arguments | {"images": dict.fromkeys(arguments["images"], images["cat"])}
    with pytest.raises(InputError, match=told):
        pipe(**{"prompt": PROMPT, "images": images, **FEW, **arguments})


def test_import_rbctl_is_light() -> None:
    code = "import sys, rbctl; print(sorted({'torch', 'diffusers', 'click'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="has no attribute 'RelationPipelin'"):
        rbctl.RelationPipelin  # noqa: B018


ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="this runs a page of a checkout")
def test_the_example_of_the_docs_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = (ROOT / "docs" / "python.md").read_text().split("```python\n")[1].split("```")[0]
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    exec(example, {})
    assert Image.open(tmp_path / "beside.png").size == (128, 128)


@pytest.mark.slow
def test_mini_in_plain_diffusers_draws_the_picture_of_rbctl_sample(tmp_path: Path) -> None:
    """The lines of docs/python.md run as they stand there."""
    page = Path(__file__).resolve().parents[1] / "docs" / "python.md"
    if not page.is_file():
        pytest.skip("this runs a page of a checkout")
    (lines,) = re.findall(r"```python\n(import torch\nimport rbctl\.bundle\.vae.*?)```", page.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(lines, names)
    plain = names["plain"]
    plain.set_progress_bar_config(disable=True)
    text, options = "a red fox beside a tree", {"num_inference_steps": 3, "guidance_scale": 2.0, "negative_prompt": ""}
    theirs = plain(text, generator=torch.Generator().manual_seed(7), **options).images[0]
    (tmp_path / "prompts.txt").write_text(f"{text} --d 7 --s 3 --l 2.0\n")
    arguments = ["sample", str(tmp_path / "prompts.txt"), "--lora", "none", "--output", str(tmp_path / "out")]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    (ours,) = (tmp_path / "out").glob("a-red-fox*.png")
    assert np.array_equal(np.asarray(theirs), np.asarray(Image.open(ours)))
