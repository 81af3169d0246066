"""Schedulers by name: which class they are, and that a seed gives one picture with every one of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from rbctl.cli import main
from rbctl.errors import InputError
from rbctl.pipeline import RelationPipeline
from rbctl.schedulers import SCHEDULERS, check_scheduler, make_scheduler, sampler_and_schedule

SDXL = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
MINI = SDXL | {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("euler a", "Euler a"),
        ("k_euler_a", "Euler a"),
        ("euler_ancestral", "Euler a"),
        ("EulerAncestralDiscreteScheduler", "Euler a"),
        ("dpmpp_2m_karras", "DPM++ 2M Karras"),
        ("dpmsolver++", "DPM++ 2M"),
        ("DPM++ 2M SDE Karras", "DPM++ 2M SDE Karras"),
        ("uni_pc", "UniPC"),
        ("Euler trailing", "Euler SGM Uniform"),
        ("lcm", "LCM"),
    ],
)
def test_names_of_other_programs_are_names_here(written: str, name: str) -> None:
    assert check_scheduler(written) == name


def test_an_unknown_scheduler_names_the_nearest_or_all() -> None:
    with pytest.raises(ValueError, match="no scheduler 'Eulr'; did you mean 'Euler'"):
        check_scheduler("Eulr")
    with pytest.raises(ValueError, match=r"schedulers: Euler, Euler a.*TCD; schedules: Karras"):
        check_scheduler("xyz")


@pytest.mark.parametrize("config", [SDXL, MINI], ids=["sdxl", "zero_snr"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_keeps_the_noise_schedule_of_the_bundle(name: str, config: dict[str, Any]) -> None:
    scheduler = make_scheduler(config, name, steps=8)
    assert scheduler.config.prediction_type == config["prediction_type"]
    assert not scheduler.config.get("clip_sample")
    euler = make_scheduler(config, "Euler").alphas_cumprod
    assert scheduler.alphas_cumprod[:-1] == pytest.approx(euler[:-1], rel=2e-4)
    assert scheduler.alphas_cumprod[-1] == pytest.approx(float(euler[-1]), abs=1e-6)


def test_a_schedule_is_a_setting_of_its_class() -> None:
    karras, trailing = make_scheduler(SDXL, "DPM++ 2M Karras"), make_scheduler(SDXL, "Euler SGM Uniform")
    assert (type(karras).__name__, karras.config.use_karras_sigmas) == ("DPMSolverMultistepScheduler", True)
    assert (type(trailing).__name__, trailing.config.timestep_spacing) == ("EulerDiscreteScheduler", "trailing")
    assert sampler_and_schedule("DPM++ 2M Karras") == ("DPM++ 2M", "Karras")
    assert sampler_and_schedule("PNDMScheduler") == ("PNDM", "")
    with pytest.raises(InputError, match="--scheduler Euler a Karras: Euler a has no schedule Karras"):
        make_scheduler(SDXL, "Euler a Karras")
    with pytest.raises(InputError, match="--steps 60: not with this scheduler"):
        make_scheduler(SDXL, "LCM", steps=60)


@pytest.mark.slow
def test_a_seed_gives_one_picture_with_every_scheduler(tiny_bundle: Path, tmp_path: Path) -> None:
    """Alone, third of three, and after a resume. In a batch, one of 255 is the rounding of a product of more rows."""
    Image.new("RGB", (64, 64), "orange").save(tmp_path / "cat.png")
    names = [*SCHEDULERS, "DPM++ 2M Karras", "Euler Exponential", "DPM++ 2M SDE Karras", "Euler a SGM Uniform"]

    def sample(file: str, options: str, output: str, *flags: str) -> dict[str, np.ndarray]:
        lines = [f"A {{cat: cat.png}} sleeps. --s 3 --ss {name} {options}" for name in names]
        (tmp_path / file).write_text("\n".join(lines))
        command = ["sample", tmp_path / file, "--bundle", tiny_bundle, "--lora", "none", *flags]
        command += ["--output", tmp_path / output]
        result = CliRunner().invoke(main, [str(part) for part in command])
        assert result.exit_code == 0, result.output
        rows = [json.loads(line) for line in (tmp_path / output / "metadata.jsonl").read_text().splitlines()]
        pictures = {f"{row['scheduler']} {row['seed']}": tmp_path / output / row["file_name"] for row in rows}
        return {name: np.asarray(Image.open(path), int) for name, path in pictures.items()}

    three = sample("three.txt", "--d 7 --images 3", "out")
    alone = sample("alone.txt", "--d 9", "alone")
    assert len(alone) == len(names)
    assert all(np.array_equal(three[name], alone[name]) for name in alone)
    assert len({picture.tobytes() for picture in three.values()}) == len(three)
    for path in (tmp_path / "out").glob("*-9-*.png"):
        path.unlink()
    again = sample("three.txt", "--d 7 --images 3", "out")
    assert all(np.array_equal(three[name], again[name]) for name in three)
    batched = sample("three.txt", "--d 7 --images 3", "batched", "--batch-size", "3")
    assert all(np.abs(three[name] - batched[name]).max() <= 1 for name in three)


@pytest.mark.slow
def test_a_pipeline_takes_a_scheduler_as_diffusers_does(tiny_bundle: Path) -> None:
    from diffusers import EulerAncestralDiscreteScheduler

    pipe = RelationPipeline.from_pretrained(tiny_bundle, device="cpu")
    pipe.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 3, "output_type": "latent"}

    def draw(seed: int = 7) -> torch.Tensor:
        return pipe("A cat sleeps.", generator=torch.Generator().manual_seed(seed), **settings).images

    default = draw()
    pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config)
    ancestral = draw()
    pipe.scheduler = "Euler a"
    assert torch.equal(draw(), ancestral)
    assert torch.equal(draw(), ancestral)
    assert not torch.equal(default, ancestral)
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6, 7)]
    three = pipe("A cat sleeps.", generator=generators, num_images_per_prompt=3, **settings).images
    assert torch.allclose(three[2:], ancestral, atol=1e-3)


@pytest.mark.slow
def test_guidance_of_one_or_less_is_none(tiny_bundle: Path) -> None:
    pipe = RelationPipeline.from_pretrained(tiny_bundle, device="cpu")
    pipe.set_progress_bar_config(disable=True)

    def draw(guidance_scale: float) -> np.ndarray:
        generator = torch.Generator().manual_seed(0)
        return np.asarray(
            pipe("A cat.", generator=generator, num_inference_steps=2, guidance_scale=guidance_scale).images[0]
        )

    assert np.array_equal(draw(0), draw(1))
    assert np.array_equal(draw(0.5), draw(1))
    assert not np.array_equal(draw(1.5), draw(1))
