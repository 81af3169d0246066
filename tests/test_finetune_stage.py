"""``rbctl finetune`` as a user runs it: learning, interruption, resuming, and every way it can go wrong."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from processes import run, start
from safetensors import safe_open
from safetensors.torch import load_file

from rbctl import lora
from rbctl.bases.sdxl import sampling
from rbctl.bases.sdxl.training import Training
from rbctl.bundle.load import load as load_bundle
from rbctl.errors import InputError
from rbctl.files import read_yaml
from rbctl.layout import LayoutPrior
from rbctl.menagerie.triplets import draw_scenes, draw_triplets
from rbctl.options import configured, find_recipe
from rbctl.plugins.finetune import command, encodings, finetune, preview
from rbctl.plugins.finetune.config import EASY, FinetuneConfig
from rbctl.plugins.finetune.objective import Objective
from rbctl.plugins.finetune.relation_lora import layout
from rbctl.plugins.finetune.samples import micro_batch, micro_batches, prior_number, random_timestep
from rbctl.processes import divide_batch
from rbctl.relations import load_relation
from rbctl.triplets import Triplet, data_hash, load
from rbctl.triplets.keypoints import KEYPOINTS, absent, faces_left


@pytest.fixture(scope="session")
def triplets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn triplets of "hug"."""
    folder = tmp_path_factory.mktemp("triplets") / "hug"
    draw_triplets(load_relation("hug"), 5, 0, folder)
    return folder


class Road:
    """One set of arguments, in one folder."""

    def __init__(self, bundle: Path, data: Path, folder: Path) -> None:
        self.bundle, self.data, self.folder = bundle, data, folder
        self.log = folder / "log.txt"

    def arguments(self, output: str, **options: Any) -> list[object]:
        chosen = {
            "relation": "hug",
            "data": self.data,
            "bundle": self.bundle,
            "output": self.folder / output,
            "steps": 12,
            "batch_size": 2,
            "micro_batch_size": 8,
            "checkpoint_every": 2,
            "learning_rate": 1e-3,
            "precision": "fp32",  # mixed is of some CPUs alone, and rounds by how a batch is divided
            **options,
        }
        flags: list[object] = ["finetune"]
        for name, value in chosen.items():
            if value is not None:
                flags += [f"--{name.replace('_', '-')}", value]
        return flags

    def __call__(self, output: str, file_limit: int | None = None, **options: Any) -> int:
        return run(self.arguments(output, **options), self.log, file_limit)

    def said(self) -> str:
        return self.log.read_text()

    def lora(self, output: str) -> Path:
        return self.folder / output / "hug.safetensors"

    def losses(self, output: str) -> list[dict[str, float]]:
        return [json.loads(line) for line in (self.folder / output / "metrics.jsonl").read_text().splitlines()]


# Decay that overshoots: every step makes the weights a hundred times as large.
DIVERGES = {"learning_rate": 1.0, "weight_decay": 100.0, "steps": 40}


@pytest.fixture
def road(tiny_bundle: Path, triplets: Path, tmp_path: Path) -> Road:
    return Road(tiny_bundle, triplets, tmp_path)


@pytest.mark.slow
def test_the_run_folder_and_the_lora_file(road: Road, triplets: Path) -> None:
    assert road("one", alpha=2.0, preview_every=6, preview_steps=2, save_every=10) == 0, road.said()
    folder = road.folder / "one"
    assert len(list((folder / "checkpoints").iterdir())) == 2
    assert {p.name for p in (folder / "previews").iterdir()} == {f"step-{s:06d}.png" for s in (0, 6, 12)}
    assert [row["step"] for row in road.losses("one")] == list(range(1, 13))
    with safe_open(road.lora("one"), framework="pt") as file:
        metadata = file.metadata()
    assert metadata["rbctl.relation"] == "hug"
    assert metadata["rbctl.data_hash"] == data_hash(load(triplets))
    assert len(LayoutPrior.from_json(metadata["rbctl.layout_prior"]).boxes()) == 2
    assert metadata["modelspec.architecture"] == "tiny-sdxl/lora"  # narrower than SDXL, so it does not call itself so
    assert metadata["modelspec.prediction_type"] == "epsilon"
    assert metadata["modelspec.license"] == "CC0-1.0"
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("4", "2.0")
    assert metadata["ss_output_name"] == "hug"
    assert sum(json.loads(metadata["ss_tag_frequency"])["hug"].values()) == len(load(triplets))
    kind, _, encoded = metadata["modelspec.thumbnail"].partition(",")
    assert kind == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as picture:
        assert max(picture.size) <= 256
    # Civitai's AutoV3: whatever a tool does to the metadata, the hash of what follows stays
    raw = road.lora("one").read_bytes()
    assert metadata["sshs_model_hash"] == hashlib.sha256(raw[8 + int.from_bytes(raw[:8], "little") :]).hexdigest()
    # the name that every run's LoRA once had leads to it
    assert (folder / "lora.safetensors").read_bytes() == raw
    # a LoRA of a step is the one in its checkpoint, which is read too
    assert sorted(path.name for path in folder.glob("hug-*")) == ["hug-000010.safetensors"]
    saved, kept = (
        lora.read(folder / "hug-000010.safetensors"),
        lora.read(folder / "checkpoints/step-000010.safetensors"),
    )
    assert all(torch.equal(saved.tensors[key], value) for key, value in kept.tensors.items())
    assert kept.metadata["rbctl.layout_prior"] == saved.metadata["rbctl.layout_prior"]
    # the saved recipe makes the same LoRA again
    again = run(["finetune", "--recipe", folder / "recipe.yaml", "--output", road.folder / "two"], road.log)
    assert again == 0, road.said()
    assert road.lora("one").read_bytes() == road.lora("two").read_bytes()
    # a finished run is not run again
    before = road.lora("one").stat().st_mtime_ns
    assert road("one", alpha=2.0) == 0
    assert len(road.losses("one")) == 12
    assert road.lora("one").stat().st_mtime_ns >= before


def learns(road: Road, **options: Any) -> None:
    """On the very same samples, draws and noise, the last steps of a run cost less than without learning."""
    options = {"steps": 50, "batch_size": 8, "checkpoint_every": 0, **options}
    assert road("learn", learning_rate=1e-2, **options) == 0, road.said()
    assert road("still", learning_rate=0, **options) == 0, road.said()
    trained, untrained = (sum(row["loss"] for row in road.losses(name)[-10:]) / 10 for name in ("learn", "still"))
    assert trained < 0.97 * untrained


@pytest.mark.slow
def test_the_loss_goes_down(road: Road) -> None:
    learns(road)


@pytest.mark.slow
def test_the_real_triplets_of_hug(road: Road, real_hug: Path) -> None:
    learns(road, data=real_hug, resolution=128)


@pytest.mark.slow
def test_killed_ten_times_and_resumed_it_ends_bit_for_bit_the_same(road: Road) -> None:
    chance = random.Random(0)
    options = {"steps": 40, "checkpoint_every": 3}
    assert road("straight", **options) == 0, road.said()
    kills = 0
    while kills < 10:
        process = start(road.arguments("killed", **options), road.log)
        deadline = time.monotonic() + chance.uniform(0.3, 4.0)
        while process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.02)
        if not process.is_alive():
            assert process.exitcode == 0, road.said()
            shutil.rmtree(road.folder / "killed")  # it came through before its kill: once more
            continue
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += 1
    assert road("killed", **options) == 0, road.said()
    assert road.lora("killed").read_bytes() == road.lora("straight").read_bytes()
    assert [row["step"] for row in road.losses("killed")] == list(range(1, 41))


@pytest.mark.slow
def test_control_c_saves_and_the_same_command_goes_on(road: Road) -> None:
    assert road("straight", steps=30) == 0, road.said()
    process = start(road.arguments("stopped", steps=30, checkpoint_every=0), road.log)
    metrics = road.folder / "stopped" / "metrics.jsonl"
    while not (metrics.is_file() and len(metrics.read_text().splitlines()) >= 5):
        assert process.is_alive(), road.said()
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    process.join()
    assert process.exitcode == 130, road.said()
    assert len(list((road.folder / "stopped" / "checkpoints").iterdir())) == 1
    assert road("stopped", steps=30, checkpoint_every=0) == 0, road.said()
    assert load_equal(road.lora("stopped"), road.lora("straight"))


@pytest.mark.slow
def test_the_last_checkpoint_survives_a_full_disk(road: Road) -> None:
    assert road("straight", steps=8) == 0, road.said()
    assert road("full", steps=4) == 0
    checkpoints = road.folder / "full" / "checkpoints"
    good = {p.name: p.read_bytes() for p in checkpoints.iterdir()}
    road.log.write_text("")
    assert road("full", steps=8, file_limit=min(map(len, good.values())) - 1000) == 2
    assert road.said().count("no space left") == 1
    assert "Traceback" not in road.said()
    assert {p.name: p.read_bytes() for p in checkpoints.iterdir()} == good
    assert road("full", steps=8) == 0, road.said()
    assert load_equal(road.lora("full"), road.lora("straight"))


def load_equal(one: Path, other: Path) -> bool:
    a, b = load_file(one), load_file(other)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29511"]
LAUNCHER += ["-m", "rbctl"]
TWO_ON_CPU = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}


@pytest.mark.slow
@pytest.mark.parametrize("prior_target", ["picture", "base"])
def test_the_papers_recipe_has_8_samples_a_step_in_one_process_and_in_two(road: Road, prior_target: str) -> None:
    """On drawn triplets with a prior set: only the first process draws them."""
    paper = {"recipe": "paper", "batch_size": None, "micro_batch_size": None, "resolution": 64}
    options = {"data": None, "prior_count": 3, "prior_target": prior_target, "device": "cpu", "resolution": 64}
    assert road("one", batch_size=8, micro_batch_size=8, steps=6, seed=0, **options) == 0, road.said()
    arguments = [str(a) for a in road.arguments("two", steps=4, **(options | paper))]
    done = subprocess.run([*LAUNCHER, *arguments], env=TWO_ON_CPU, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # another number of processes takes it up
    assert road("two", steps=6, **(options | paper)) == 0, road.said()
    same_course(road, "one", "two")
    first, *others = [row["prior"] for row in road.losses("two")]
    assert (first < 1e-9) == (prior_target == "base")  # a LoRA that does nothing yet
    assert first >= 0
    assert all(prior > 1e-9 for prior in others)


@pytest.mark.parametrize("processes", [1, 2, 4, 8])
def test_the_papers_batch_is_divided_among_processes(processes: int) -> None:
    config = configured(command, "paper", relation="hug")
    size, micro_steps = divide_batch(config.batch_size, config.micro_batch_size, processes)
    assert size * micro_steps * processes == 8
    assert size <= 4


@pytest.mark.parametrize("recipe", ["paper", "official"])
def test_the_papers_lora_is_on_the_cross_attention_alone_whatever_suits_the_bundle(recipe: str) -> None:
    assert configured(command, relation="hug", bundle="mini").lora_layers == "transformer"
    assert configured(command, recipe, relation="hug", bundle="mini").lora_layers == "attn2"


def test_a_batch_that_processes_cannot_share_names_numbers_that_fit() -> None:
    with pytest.raises(InputError, match=r"among 3 processes; start 1, 2, 4, 8 of them, or take --batch-size 6 or 9$"):
        divide_batch(8, 4, 3)
    with pytest.raises(InputError, match=r"among 16 processes; .*--batch-size 16$"):
        divide_batch(8, 4, 16)


@pytest.mark.slow
def test_what_took_the_place_of_gradient_accumulation_is_told(road: Road, tmp_path: Path) -> None:
    place = "--batch-size counts the samples of a step over all processes now"
    assert road("old", gradient_accumulation=8) == 2
    assert place in road.said()
    assert run(["finetune", "--gradient-accumulation", "1", "--relation", "nowhere"], road.log) == 2
    assert "Error: 'nowhere': no such relation" in road.said()
    (tmp_path / "old.yaml").write_text("finetune: {batch_size: 1, gradient_accumulation: 8}\n")
    assert run(["finetune", "--recipe", tmp_path / "old.yaml"], road.log) == 2
    assert f"old.yaml: gradient_accumulation is no longer an option; {place}" in road.said()
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "step-000002.safetensors").touch()
    (folder / "recipe.yaml").write_text("finetune: {batch_size: 1, gradient_accumulation: 8}\n")
    (folder / "run.json").write_text("{}")
    assert road("run") == 2
    assert f"run: holds a run of an earlier version with gradient_accumulation: {place}" in road.said()


@pytest.mark.slow
def test_control_c_under_torchrun_saves_too(road: Road) -> None:
    options = {"steps": 30, "checkpoint_every": 0, "device": "cpu"}
    arguments = [str(a) for a in road.arguments("stopped", **options)]
    process = subprocess.Popen([*LAUNCHER, *arguments], env=TWO_ON_CPU, stderr=subprocess.DEVNULL, process_group=0)
    metrics = road.folder / "stopped" / "metrics.jsonl"
    while not (metrics.is_file() and len(metrics.read_text().splitlines()) >= 3):
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the launcher and to both processes
    assert process.wait() != 0
    assert len(list((road.folder / "stopped" / "checkpoints").iterdir())) == 1
    done = subprocess.run([*LAUNCHER, *arguments], env=TWO_ON_CPU, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in road.losses("stopped")] == list(range(1, 31))


def same_course(road: Road, one: str, other: str) -> None:
    """Equal losses and gradient norms at every step; Adam blows rounding up in weights whose gradient is near zero."""
    for a, b in zip(road.losses(one), road.losses(other), strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() & {"loss", "denoising", "kml", "prior", "grad_norm"}:
            assert a[name] == pytest.approx(b[name], rel=2e-3), (a, b)


@pytest.mark.slow
def test_accumulated_micro_steps_equal_one_batch(road: Road) -> None:
    assert road("batch", steps=4, batch_size=4) == 0, road.said()
    assert road("micro", steps=4, batch_size=4, micro_batch_size=2) == 0, road.said()
    same_course(road, "batch", "micro")


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"precision": "bf16"},
        {"precision": "mixed"},
        {"format": "official", "rank": 2, "alpha": 1.0},
        {"kml_weight": 0.1, "kml_max_timestep": 333, "kml_gather": "as_code", "attention_loss_weight": 0.001},
        {"augmentation_draws": 3, "local_tokens": "none"},
        {"attention": "eager", "local_tokens": "first_image", "lr_scheduler": "cosine", "lr_warmup_steps": 2},
    ],
)
def test_options(road: Road, options: dict[str, Any]) -> None:
    assert road("run", steps=3, **options) == 0, road.said()
    assert all(value.isfinite().all() for value in load_file(road.lora("run")).values())


@pytest.mark.slow
def test_gradient_checkpointing_changes_nothing(road: Road) -> None:
    assert road("plain", steps=2) == 0, road.said()
    flags = [*road.arguments("checkpointed", steps=2), "--gradient-checkpointing"]
    assert run(flags, road.log) == 0, road.said()
    one, two = load_file(road.lora("plain")), load_file(road.lora("checkpointed"))
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_lowvram_changes_nothing(road: Road) -> None:
    assert road("plain", steps=2) == 0, road.said()
    assert run([*road.arguments("low", steps=2), "--lowvram"], road.log) == 0, road.said()
    plain, low = load_file(road.lora("plain")), load_file(road.lora("low"))
    assert all(torch.equal(low[key], value) for key, value in plain.items())


def test_each_network_is_on_the_device_when_triplets_are_encoded(
    tiny_bundle: Path, triplets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = load_bundle(str(tiny_bundle), torch.device("cpu"), torch.float32, lowvram=True)
    placed: list[tuple[str, ...]] = []
    monkeypatch.setattr(type(bundle), "place", lambda _bundle, *parts: placed.append(parts))
    for part in ("text_encoder", "text_encoder_2", "image_prompt_encoder", "vae"):
        for module in getattr(bundle, part).modules():
            module.register_forward_pre_hook(lambda *_, part=part: check(part))

    def check(part: str) -> None:
        assert part in placed[-1]

    encodings.encode(bundle, load(triplets)[:2], [], FinetuneConfig(relation="hug", augmentation_draws=2), 128)
    assert placed.count(("image_prompt_encoder",)) == 2  # once a triplet, not once a version
    bundle.drop_encoders()
    assert placed[-1] == ("unet", "vae")
    assert not bundle.lowvram


def test_single_objects_and_mixed_numbers_of_objects(road: Road, tmp_path: Path) -> None:
    """One individual alone, and sets where triplets differ in their number of objects."""
    mixed = tmp_path / "mixed"
    shutil.copytree(road.data, mixed)
    rows = [json.loads(line) for line in (mixed / "metadata.jsonl").read_text().splitlines()]
    for row in rows[:2]:
        row["objects"] = row["objects"][:1]
    (mixed / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert road("mixed", data=mixed, steps=3) == 0, road.said()
    (mixed / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    assert road("single", data=mixed, steps=3) == 0, road.said()


def refused(road: Road, told: str, output: str = "bad", **options: Any) -> None:
    """The command fails with one line that says ``told``, exit code 2, no traceback."""
    road.log.write_text("")
    assert road(output, **options) == 2, road.said()
    errors = [line for line in road.said().splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, road.said()
    assert told in errors[0]
    assert "Traceback" not in road.said()


@pytest.mark.slow
def test_bad_input_is_one_line(road: Road, tmp_path: Path) -> None:
    refused(road, "did you mean 'ride'", relation="ridee")
    refused(road, "no such", data=tmp_path / "nowhere")
    refused(road, "no such bundle", bundle="sdxxl")
    assert not (road.folder / "bad").exists()  # nothing is begun before the input is known to be good
    refused(road, "rbctl models pull sdxl", bundle="sdxl")
    refused(road, "multiple of 8", resolution=130)
    refused(road, "CUDA", attention="xformers", device="cpu")
    refused(road, "CUDA", precision="fp16", device="cpu")
    recipe = tmp_path / "typo.yaml"
    recipe.write_text("finetune: {stepz: 3}\n")
    refused(road, "did you mean 'steps'", recipe=recipe)
    recipe.write_text("finetune: {steps: many}\n")
    refused(road, "steps", recipe=recipe)
    recipe.write_text("finetoon: {steps: 3}\n")
    refused(road, "did you mean 'finetune'", recipe=recipe)

    unreadable = tmp_path / "unreadable"
    shutil.copytree(road.data, unreadable)
    picture = next(unreadable.glob("*.png"))
    picture.write_bytes(picture.read_bytes()[:200])
    refused(road, picture.name, data=unreadable)


@pytest.mark.slow
def test_another_recipe_in_the_same_folder_is_refused(road: Road) -> None:
    assert road("run", steps=2) == 0, road.said()
    before = road.lora("run").read_bytes()
    refused(road, "learning_rate", output="run", steps=2, learning_rate=5e-4)
    assert road.lora("run").read_bytes() == before
    assert run([*road.arguments("run", steps=2, learning_rate=5e-4), "--no-resume"], road.log) == 0, road.said()
    assert road.lora("run").read_bytes() != before


@pytest.mark.slow
def test_no_resume_drops_its_own_files_alone(road: Road) -> None:
    assert road("run", steps=2) == 0, road.said()
    other = road.folder / "run" / "precious.safetensors"
    other.write_bytes(b"mine")
    assert run([*road.arguments("run", steps=3), "--no-resume"], road.log) == 0, road.said()
    assert other.read_bytes() == b"mine"
    assert [row["step"] for row in road.losses("run")] == [1, 2, 3]
    # a failing start drops nothing
    before = road.lora("run").read_bytes()
    assert run([*road.arguments("run", bundle="nowhere"), "--no-resume"], road.log) == 2
    assert road.lora("run").read_bytes() == before
    # a LoRA that no run wrote is not ours to overwrite
    foreign = road.folder / "foreign"
    foreign.mkdir()
    (foreign / "hug.safetensors").write_bytes(b"mine")
    refused(road, "no run here wrote", output="foreign")


@pytest.mark.slow
def test_a_run_is_taken_up_only_with_the_same_data(road: Road, tmp_path: Path) -> None:
    assert road("run", steps=2) == 0, road.said()
    moved, other = tmp_path / "moved", tmp_path / "other"
    shutil.copytree(road.data, moved)
    assert road("run", steps=2, data=moved) == 0, road.said()
    shutil.copytree(road.data, other)
    lines = (other / "metadata.jsonl").read_text().splitlines()
    (other / "metadata.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    refused(road, "holds a run with data", output="run", steps=2, data=other)
    refused(road, "2 steps are done", output="run", steps=1)
    assert road("run", steps=4) == 0, road.said()  # more steps of a constant schedule go on
    assert road("straight", steps=4) == 0, road.said()
    assert load_equal(road.lora("run"), road.lora("straight"))


@pytest.mark.slow
def test_a_run_that_diverged_at_once_does_not_block_the_folder(road: Road) -> None:
    refused(road, "NaN", output="run", checkpoint_every=0, **DIVERGES)
    assert road("run", steps=2) == 0, road.said()


@pytest.mark.slow
def test_the_weights_of_the_last_step_are_looked_at_before_they_are_saved(road: Road) -> None:
    """The loss is that of the weights before the step, so it alone does not tell."""
    options = {"output": "run", "checkpoint_every": 1, **DIVERGES}
    refused(road, "NaN", **options)
    checkpoints = sorted((road.folder / "run" / "checkpoints").iterdir())
    assert checkpoints  # the last good one is kept
    for path in (*checkpoints, *(road.folder / "run").glob("hug.safetensors")):
        assert all(bool(tensor.isfinite().all()) for tensor in load_file(path).values())


@pytest.mark.slow
def test_a_damaged_checkpoint_or_cache_is_passed_over(road: Road) -> None:
    assert road("straight", steps=8) == 0, road.said()
    assert road("run", steps=4) == 0, road.said()
    newest = sorted((road.folder / "run" / "checkpoints").iterdir())[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    cache = road.folder / "run" / "frozen.safetensors"
    cache.write_bytes(cache.read_bytes()[:1000])
    assert road("run", steps=8) == 0, road.said()
    assert "trying the one before" in road.said()
    assert load_equal(road.lora("run"), road.lora("straight"))


@pytest.mark.slow
def test_runs_of_the_same_data_encode_it_once(road: Road) -> None:
    for output, options, encodes in (
        ("one", {}, True),
        ("other", {"rank": 2, "alpha": 2.0}, False),
        ("local", {"local_tokens": "none"}, True),  # of other encodings
    ):
        road.log.unlink(missing_ok=True)
        assert road(output, steps=2, **options) == 0, road.said()
        assert ("encoding triplets" in road.said()) == encodes


def test_the_layout_prior_goes_by_role(triplets: Path) -> None:
    found = load(triplets)
    turned = [dataclasses.replace(t, objects=t.objects[::-1]) if i % 2 else t for i, t in enumerate(found)]

    def boxes(rows: list[Any]) -> list[list[Any]]:
        return [[thing.box for thing in row.objects] for row in rows]

    ride = load_relation("ride")
    assert layout(turned, boxes(turned), ride) == layout(found, boxes(found), ride)


@pytest.mark.slow
def test_doubtful_triplets_are_told(road: Road, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(road.data, bare)
    rows = [json.loads(line) for line in (bare / "metadata.jsonl").read_text().splitlines()]
    for thing in rows[0]["objects"]:
        thing["target_keypoints"] = [[0.0, 0.0, 0]] * 17
    rows[1]["predicate"] = "kissing"
    (bare / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert road("bare", data=bare, steps=1) == 0, road.said()
    assert "has no keypoints" in road.said()
    refused(road, "does not hold the predicate 'kissing'", data=bare, attention_loss_weight=0.001)


@pytest.mark.slow
def test_no_clipping(road: Road) -> None:
    assert road("run", steps=2, max_grad_norm=0) == 0, road.said()
    assert any(value.abs().max() > 0 for key, value in load_file(road.lora("run")).items() if "lora_up" in key)


@pytest.mark.slow
def test_a_second_run_in_the_same_folder_is_refused(road: Road) -> None:
    process = start(road.arguments("busy", steps=500), road.log)
    try:
        metrics = road.folder / "busy" / "metrics.jsonl"
        while not metrics.is_file():
            assert process.is_alive(), road.said()
            time.sleep(0.02)
        other = Road(road.bundle, road.data, road.folder)
        other.log = road.folder / "other.txt"
        refused(other, "another run is writing here", output="busy", steps=500)
        assert process.is_alive()
    finally:
        process.kill()
        process.join()


def forgotten(road: Road, output: str) -> dict[str, Any]:
    return json.loads((road.folder / output / "forgetting.json").read_text())


@pytest.mark.slow
def test_triplets_are_drawn_where_none_are_given(road: Road) -> None:
    options = {"data": None, "triplets": 3, "prior_count": 4, "checkpoint_every": 2}
    assert road("one", steps=4, **options) == 0, road.said()
    folder = road.folder / "one"
    assert len(load(folder / "triplets")) == 3
    assert {t.prompt for t in load(folder / "triplets")}.isdisjoint(t.prompt for t in load(folder / "prior"))
    assert {t.id.partition("-")[2] for t in load(folder / "prior")} == set(EASY[:4])
    assert [row["prior"] > 0 for row in road.losses("one")] == [False, True] * 2  # every fourth sample
    assert "prior scenes (4): denoising loss" in road.said()
    assert forgotten(road, "one")["scenes"] == 4
    # once: taken up again, they are as they were, and the course is that of a run that was never stopped
    drawn = {path: path.stat().st_mtime_ns for path in folder.glob("*/*.png")}
    assert road("one", steps=8, **options) == 0, road.said()
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/*.png")} == drawn
    assert run(["finetune", "--recipe", folder / "recipe.yaml", "--output", road.folder / "two"], road.log) == 0
    assert load_equal(road.lora("one"), road.lora("two"))
    refused(road, "holds a run with prior_count", output="one", steps=8, **{**options, "prior_count": 5})


@pytest.mark.slow
def test_what_the_world_cannot_draw_is_told(road: Road) -> None:
    refused(road, "give triplets with --data", data=None, relation="whisper_to")
    refused(road, "'whisper_to': cannot be drawn", data=None, prior_relations="whisper_to")
    refused(road, "--prior-relations", data=None, relation="chase", prior_relations="chase")
    refused(road, "no such folder", prior=road.folder / "nowhere")
    assert not (road.folder / "bad").exists()


def test_the_drawn_prior_is_what_the_small_bundle_was_taught() -> None:
    taught = read_yaml(find_recipe("mini"))["pretrain"]
    assert set(EASY) < set(taught["easy"])
    assert not set(EASY) & set(taught["held_out"])


@pytest.mark.slow
def test_the_relation_itself_is_no_prior(road: Road) -> None:
    assert road("run", data=None, relation="chase", steps=1, prior_count=8) == 0, road.said()
    assert not [t for t in load(road.folder / "run" / "prior") if "chase" in t.id]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.5, 0.9])
def test_the_share_of_the_prior(share: float) -> None:
    kinds = [prior_number(number, share) for number in range(1000)]
    assert abs(sum(is_prior for is_prior, _ in kinds) - 1000 * share) <= 1
    for kind in (False, True):  # each kind counts up by itself, so that its epochs are whole
        numbers = [which for is_prior, which in kinds if is_prior is kind]
        assert numbers == list(range(len(numbers)))
    if share == 0.25:
        assert [sum(is_prior for is_prior, _ in kinds[first : first + 8]) for first in range(0, 1000, 8)] == [2] * 125


@pytest.fixture(scope="module")
def encoded(tiny_bundle: Path, triplets: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A bundle with a LoRA, the encodings of two triplets and of three prior scenes."""
    prior = tmp_path_factory.mktemp("prior") / "scenes"
    draw_scenes([load_relation(name) for name in EASY], 3, 0, prior)
    bundle = load_bundle(str(tiny_bundle), torch.device("cpu"), torch.float32)
    lora.add(bundle.unet, 4, 4, seed=0)
    config = FinetuneConfig(relation="hug", data=triplets)
    encoded = encodings.encode(bundle, load(triplets)[:2], load(prior), config, 128)
    return bundle, *encodings.split(encoded, 2)


@pytest.mark.parametrize(("relation", "mirrored"), [("jump", True), ("ride", True), ("hug", False)])
def test_face_right_is_for_boxes_that_do_not_tell_the_side(
    tiny_bundle: Path, tmp_path: Path, relation: str, mirrored: bool
) -> None:
    draw_triplets(load_relation(relation), 5, 0, tmp_path / "drawn")
    drawn = load(tmp_path / "drawn")
    assert {faces_left(triplet.objects[0].target_keypoints) for triplet in drawn} == {False, True}
    config = FinetuneConfig(relation=relation, augmentation_draws=4, face_right=True)
    bundle = load_bundle(str(tiny_bundle), torch.device("cpu"), torch.float32)
    own, prior = encodings.split(encodings.encode(bundle, drawn, drawn, config, 128), len(drawn))
    assert prior is not None
    nose, neck = (KEYPOINTS.index(name) for name in ("nose", "neck"))

    def looks_right(encoded: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The subject of each version, (S, A)."""
        points = encoded["target_keypoints"][:, :, 0, :, 0]
        return points[..., nose] > points[..., neck]

    assert bool(looks_right(own).all()) == mirrored
    assert not looks_right(prior).all()  # a prior set is mirrored at random


def boxes_of(triplets: list[Triplet]) -> encodings.Layout:
    return layout(triplets, [[entry.box for entry in triplet.objects] for triplet in triplets], load_relation("hug"))


@pytest.mark.parametrize(("relation", "apart"), [("shake_hands", True), ("jump", True), ("hug", False)])
def test_only_boxes_that_lie_apart_are_trained_in(tmp_path: Path, relation: str, apart: bool) -> None:
    draw_triplets(load_relation(relation), 6, 0, tmp_path / "drawn")
    place, config = boxes_of(load(tmp_path / "drawn")), FinetuneConfig(relation=relation)
    assert place.for_training(config) is None
    assert place.for_training(dataclasses.replace(config, layout_share=0.5)) == (place if apart else None)


@pytest.mark.parametrize(("share", "due"), [(0.0, []), (0.5, [1, 3]), (1.0, [0, 1, 2, 3])])
def test_a_share_of_the_versions_is_in_the_boxes_of_sampling(
    tiny_bundle: Path, triplets: Path, share: float, due: list[int]
) -> None:
    config = FinetuneConfig(relation="hug", augmentation_draws=4, layout_share=share)
    bundle, drawn = load_bundle(str(tiny_bundle), torch.device("cpu"), torch.float32), load(triplets)[:2]
    place = boxes_of(drawn)
    encoded = encodings.encode(bundle, drawn, drawn, config, 128, place)
    sizes, sampled = encoded["boxes"][..., 2:] - encoded["boxes"][..., :2], torch.tensor(place.prior.boxes())
    inside = ((encoded["boxes"] > 0) & (encoded["boxes"] < 1)).all(-1)  # others are cut off at the picture's edge
    alike = ((sizes - (sampled[:, 2:] - sampled[:, :2])).abs() < 1e-5).all(-1)
    for version in range(4):
        own, prior = (alike[rows, version][inside[rows, version]] for rows in (slice(2), slice(2, None)))
        assert own.numel()
        assert bool(own.all()) == (version in due)
        assert not prior.any()


def test_without_keypoints_triplets_are_mirrored_at_random(triplets: Path) -> None:
    alone = [dataclasses.replace(t, objects=t.objects[:1]) for t in load(triplets)]
    blank = dataclasses.replace(alone[0].objects[0], target_keypoints=absent())
    config = FinetuneConfig(relation="hug", face_right=True)
    first, *others = encodings.mirroring([dataclasses.replace(alone[0], objects=(blank,)), *alone[1:]], config)
    assert first is None
    assert set(others) == {False, True}


@pytest.mark.slow
def test_face_right_is_an_option_and_the_layout_prior_follows(road: Road, tmp_path: Path) -> None:
    """A rider who looks right sits left of its mount's middle; the first triplet's rider looks left."""
    draw_triplets(load_relation("ride"), 6, 0, tmp_path / "ride")
    arguments = road.arguments("right", data=tmp_path / "ride", relation="ride", steps=2)
    assert run([*arguments, "--face-right"], road.log) == 0, road.said()
    with safe_open(road.folder / "right" / "ride.safetensors", framework="pt") as file:
        rider, mount = LayoutPrior.from_json(file.metadata()["rbctl.layout_prior"]).mean
    assert rider[0] < mount[0]  # it sits behind the head


def test_encodings_come_apart(encoded: Any, tiny_bundle: Path, triplets: Path) -> None:
    bundle, own, prior = encoded
    assert (own["boxes"].shape[0], prior["boxes"].shape[0]) == (2, 3)
    alone = encodings.encode(bundle, load(triplets)[:2], [], FinetuneConfig(relation="hug"), 128)
    assert alone.keys() == own.keys() == prior.keys()
    assert all(torch.allclose(alone[name].float(), own[name].float(), atol=1e-5) for name in own)
    assert encodings.split(alone, 2)[1] is None


@pytest.fixture
def wide(triplets: Path, tmp_path: Path) -> Path:
    """The triplets, the first of them three times as wide: its individuals are at its left end."""
    folder = Path(shutil.copytree(triplets, tmp_path / "wide"))
    content = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    row = content[0]
    for name in (row["file_name"], *(entry["mask"] for entry in row["objects"])):
        picture = Image.open(folder / name)
        canvas = Image.new(picture.mode, (picture.width * 3, picture.height))
        canvas.paste(picture, (0, 0))
        canvas.save(folder / name)
    for entry in row["objects"]:
        x0, y0, x1, y1 = entry["box"]
        entry["box"] = [x0 / 3, y0, x1 / 3, y1]
        entry["target_keypoints"] = [[x / 3, y, v] for x, y, v in entry["target_keypoints"]]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    return folder


@pytest.mark.slow
def test_a_wide_target_is_trained_on_whole_beside_square_ones(
    encoded: Any, wide: Path, triplets: Path, tmp_path: Path
) -> None:
    bundle, square, prior = encoded
    config = FinetuneConfig(relation="hug", preview_steps=1, batch_size=3, gradient_checkpointing=False)
    own = encodings.encode(bundle, load(wide)[:2], [], config, 128)
    assert own["time_ids"][:, 0, -2:].tolist() == [[72, 216], [128, 128]]
    assert own["latents_mean"].shape[-2:] == (16, 27)
    assert (own["boxes"][0, 0, :, 2:] > own["boxes"][0, 0, :, :2]).all()  # nobody is cut off
    assert own["boxes"][0, 0, :, 2].max() < 0.36
    sizes = encodings.training_sizes([triplet.target for triplet in load(wide)[:2]], config, 128)
    assert encodings.fit(own, Training.shapes, 1, sizes)
    for name in ("latents_mean", "object_mask"):  # the square one is as it was
        side = square[name].shape[-1]
        assert torch.allclose(own[name][1, ..., :side, :side].float(), square[name][1].float(), atol=1e-5)
        assert not own[name][1, ..., side:].any()

    batches = micro_batches(own, prior, range(8), config, 1000, "cpu")
    assert sorted(tuple(batch.latents.shape[-2:]) for batch in batches) == [(9, 27), (16, 16)]
    assert sum(len(batch.timesteps) for batch in batches) == 8
    alone = encodings.encode(bundle, load(wide)[:1], [], config, 128)
    (batch,) = micro_batches(alone, None, [0], config, 1000, "cpu")
    other = next(batch for batch in batches if batch.latents.shape[-2] == 9)
    assert torch.allclose(batch.encoded["boxes"][0], other.encoded["boxes"][0], atol=1e-6)
    assert torch.isfinite(Objective.of(bundle, config).loss(bundle.unet, batch)[0])
    preview.preview(bundle, own, config, tmp_path / "preview.png")
    with Image.open(tmp_path / "preview.png") as sheet:
        assert sheet.width > 2 * 216

    cut = encodings.encode(bundle, load(wide)[:1], [], dataclasses.replace(config, aspect_buckets=False), 128)
    assert cut["latents_mean"].shape[-2:] == (16, 16)


@pytest.mark.slow
def test_a_wide_set_trains_and_its_layout_prior_is_of_whole_targets(road: Road, wide: Path) -> None:
    assert road("wide", data=wide, steps=4, preview_every=4, preview_steps=1) == 0, road.said()
    with safe_open(road.lora("wide"), framework="pt") as file:
        metadata = file.metadata()
    triplets = load(wide)
    boxes = [[entry.box for entry in triplet.objects] for triplet in triplets]
    whole = layout(triplets, boxes, load_relation("hug")).prior
    written = LayoutPrior.from_json(metadata["rbctl.layout_prior"])
    assert np.abs(np.subtract(written.mean, whole.mean)).max() < 0.01
    # cut to squares it cannot be trained on
    assert run([*road.arguments("cut", data=wide), "--no-aspect-buckets"], road.log) == 2
    assert "is cut off when the target is cut to 128 x 128" in road.said()


@pytest.mark.slow
def test_what_data_check_calls_an_error_stops_a_run_unless_it_is_allowed(
    road: Road, triplets: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(triplets, tmp_path / "wrong"))
    for path in sorted((folder / "masks").iterdir()):
        Image.eval(Image.open(path).convert("L"), lambda value: 255 - value).save(path)
    assert road("wrong", data=folder) == 2
    assert "is not the mask's" in road.said()
    assert "more, see 'rbctl data check" in road.said()
    assert not road.lora("wrong").exists()
    assert run([*road.arguments("wrong", data=folder, steps=2), "--allow-errors"], road.log) == 0, road.said()
    assert "allowed: " in road.said()
    with safe_open(road.lora("wrong"), framework="pt") as file:
        assert "the mask is white where the object is not" in file.metadata()["rbctl.allowed_errors"]


@pytest.mark.slow
def test_prior_samples_cost_denoising_alone(encoded: Any) -> None:
    bundle, own, prior = encoded

    def loss(number: int, **options: Any) -> tuple[float, dict[str, torch.Tensor]]:
        config = FinetuneConfig(relation="hug", **options)
        total, parts = Objective.of(bundle, config).loss(
            bundle.unet, micro_batch(own, prior, [number], config, 1000, "cpu")
        )
        return float(total.detach()), parts

    of_prior, of_own = 3, 0  # with a share of a quarter
    plain, parts = loss(of_prior)
    assert plain == pytest.approx(float(parts["prior"]) * 0.25)
    assert float(parts["kml"]) == float(parts["denoising"]) == 0
    assert loss(of_prior, kml_weight=1e3, attention_loss_weight=1e3)[0] == plain
    assert loss(of_prior, prior_weight=2)[0] == pytest.approx(2 * plain)
    for options in ({"kml_weight": 1e3}, {"attention_loss_weight": 1e3}):
        assert loss(of_own, **options)[0] != pytest.approx(loss(of_own)[0])
    assert loss(of_own, prior_weight=2)[0] == loss(of_own)[0]


@pytest.mark.slow
def test_prior_samples_are_pulled_to_what_the_base_predicts(encoded: Any) -> None:
    bundle, own, prior = encoded
    config = FinetuneConfig(relation="hug", prior_target="base")
    objective = Objective.of(bundle, config)
    batch = micro_batch(own, prior, [0, 1, 2, 3], config, 1000, "cpu")  # the last of the prior set
    assert batch.own.tolist() == [1, 1, 1, 0]
    weights = [value for name, value in lora.named_parameters(bundle.unet).items() if "lora_B" in name]
    kept = [weight.detach().clone() for weight in weights]
    try:
        with torch.no_grad():
            for weight in weights:
                weight.zero_()  # a LoRA that does nothing
        base = objective.predict(bundle.unet, batch).output.detach()
        assert float(objective.loss(bundle.unet, batch)[1]["prior"]) == pytest.approx(0, abs=1e-9)
        with torch.no_grad():
            for weight in weights:
                weight.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
        total, parts = objective.loss(bundle.unet, batch)
        output = objective.predict(bundle.unet, batch).output.detach()
        away = (output[3] - base[3]).square().mean()
        assert away > 1e-4
        assert float(parts["prior"]) == pytest.approx(float(away), rel=1e-4)
        (gradient,) = torch.autograd.grad(total, weights[:1])
        assert gradient.any()
        pictures = Objective.of(bundle, FinetuneConfig(relation="hug")).loss(bundle.unet, batch)[1]
        assert pictures["prior"] != parts["prior"]
        assert pictures["denoising"] == parts["denoising"]
    finally:
        with torch.no_grad():
            for weight, value in zip(weights, kept, strict=True):
                weight.copy_(value)


@pytest.mark.slow
def test_the_variable_names_the_attention_backend(
    encoded: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bundle, own, _ = encoded
    asked = []

    def taken(**options: Any) -> str | None:
        config = FinetuneConfig(relation="hug", preview_steps=1, **options)
        preview.preview(bundle, own, config, tmp_path / "preview.png")
        predicted = Objective.of(bundle, config).predict(bundle.unet, micro_batch(own, None, [0], config, 1000, "cpu"))
        backend = predicted.made.conditioning.backend
        assert asked.pop() == backend
        return backend

    def noted(encoded: Any, **options: Any) -> Any:
        asked.append(options["backend"])
        return guided(encoded, **options)

    guided = sampling.guided
    monkeypatch.setattr(sampling, "guided", noted)
    monkeypatch.delenv("RBCTL_ATTENTION", raising=False)
    assert taken() is None
    monkeypatch.setenv("RBCTL_ATTENTION", "eager")
    assert taken() == "eager"
    assert taken(attention="sdpa") == "sdpa"


@pytest.mark.slow
def test_forgetting_is_measured(road: Road) -> None:
    options = {"data": None, "steps": 8, "batch_size": 4, "checkpoint_every": 0, "prior_count": 4}
    assert road("still", learning_rate=0, **{**options, "steps": 1}) == 0, road.said()
    still = forgotten(road, "still")
    assert still["with"] == still["without"] > 0
    for name, share in (("without", 0), ("with", 0.5)):
        assert road(name, learning_rate=1e-2, prior_share=share, **options) == 0, road.said()
    without, with_prior = forgotten(road, "without"), forgotten(road, "with")
    assert without["without"] == with_prior["without"] == still["without"]  # the same scenes, noise and timesteps
    assert "prior" not in road.losses("without")[0]
    # A network of random weights has nothing to forget, so only that it is the LoRAs that are measured.
    assert len({with_prior["with"], without["with"], still["with"]}) == 3


@pytest.mark.slow
def test_a_folder_of_triplets_as_prior(road: Road, tmp_path: Path) -> None:
    prior = tmp_path / "prior"
    draw_scenes([load_relation("face")], 3, 1, prior)
    assert road("none", steps=4) == 0, road.said()
    assert "prior" not in road.losses("none")[0]
    assert not (road.folder / "none" / "forgetting.json").exists()
    assert road("given", steps=4, prior=prior) == 0, road.said()
    assert forgotten(road, "given")["scenes"] == 3
    moved = tmp_path / "moved"
    shutil.copytree(prior, moved)
    assert road("given", steps=4, prior=moved) == 0, road.said()
    refused(road, "holds a run with prior", output="given", steps=4)
    (moved / "metadata.jsonl").write_text((moved / "metadata.jsonl").read_text().partition("\n")[0] + "\n")
    refused(road, "holds a run with prior", output="given", steps=4, prior=moved)


@pytest.mark.slow
def test_pictures_of_the_base_model_as_prior(road: Road, triplets: Path, tmp_path: Path) -> None:
    first, second = (thing.image for thing in load(triplets)[0].objects)
    prompts, made = tmp_path / "prompts.txt", tmp_path / "made"
    prompts.write_text(f"A {{cat: {first}}} stands next to a {{dog: {second}}} --images 2\nA meadow\n")
    sample = ["sample", prompts, "--bundle", road.bundle, "--lora", "none", "--steps", 1, "--output", made]
    assert run(sample, road.log) == 0, road.said()
    assert road("run", steps=4, prior=made) == 0, road.said()
    assert forgotten(road, "run")["scenes"] == 2
    next(made.glob("a-cat*.png")).unlink()
    refused(road, "sample into the folder again", prior=made)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")  # as the command has it: sums over two threads round otherwise
def test_a_lora_from_python_is_that_of_the_command_line(road: Road, triplets: Path) -> None:
    assert road("command", steps=4) == 0, road.said()
    # As Road.arguments has them.
    options = {
        "bundle": str(road.bundle),
        "batch_size": 2,
        "micro_batch_size": 8,
        "learning_rate": 1e-3,
        "precision": "fp32",
    }
    seen: list[int] = []

    def stop_at_two(step: int, row: Mapping[str, float]) -> bool:
        assert row["loss"] == road.losses("command")[step - 1]["loss"]
        seen.append(step)
        return step == 2

    output = road.folder / "python"
    first = finetune("hug", load(triplets), output, callback=stop_at_two, steps=4, **options)
    assert first == road.lora("python")
    half = load_file(first)
    # the same call goes on where the callback stopped; data in a folder is the same data
    finetune("hug", triplets, output, callback=lambda step, row: seen.append(step), steps=4, **options)
    assert seen == [1, 2, 3, 4]
    assert load_equal(road.lora("python"), road.lora("command"))
    assert not all(torch.equal(half[key], value) for key, value in load_file(first).items())


@pytest.mark.slow
def test_a_recipe_from_python_is_won_over_by_options(road: Road, triplets: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("finetune: {steps: 3, batch_size: 1, micro_batch_size: 1, rank: 2}\n")
    common: dict[str, Any] = {"relation": "hug", "data": triplets, "bundle": str(road.bundle), "steps": 1}
    by_file = finetune(output=tmp_path / "file", recipe=tmp_path / "recipe.yaml", **common)
    config = FinetuneConfig(batch_size=1, micro_batch_size=1, rank=2, steps=7)
    by_config = finetune(output=tmp_path / "config", recipe=config, **common)
    assert load_equal(by_file, by_config)
    assert {value.shape[0] for key, value in load_file(by_file).items() if "lora_down" in key} == {2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stepz": 3}, "no option stepz; did you mean 'steps'"),
        ({"steps": "many"}, "'many' is not a whole number"),
        ({"relation": "ridee"}, "did you mean 'ride'"),
        ({"recipe": "papre"}, "did you mean 'paper'"),
        ({"resolution": 130}, "multiple of 8"),
        ({"data": []}, "the list holds no triplets"),
        ({"data": ["a"], "method": "relation_inversion"}, "a list of triplets serves the method relation_lora alone"),
    ],
)
def test_wrong_options_from_python_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        finetune(**{"relation": "ride", **options})


def test_importing_finetune_imports_no_torch() -> None:
    code = "import sys; from rbctl.plugins.finetune import finetune; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_timesteps_follow_the_law_asked_for() -> None:
    def drawn(**given: Any) -> torch.Tensor:
        config, chance = FinetuneConfig(relation="ride", **given), torch.Generator().manual_seed(0)
        return torch.stack([random_timestep(config, 1000, chance) for _ in range(4000)]).double()

    uniform, normal = drawn(), drawn(timestep_sampling="logit_normal", logit_mean=0.5, logit_std=0.8)
    assert abs(uniform.mean() - 499.5) < 20
    assert abs(uniform.std() - 288.7) < 10
    logits = torch.logit((normal + 0.5) / 1000)
    assert abs(logits.mean() - 0.5) < 0.05
    assert abs(logits.std() - 0.8) < 0.05
    extreme = drawn(timestep_sampling="logit_normal", logit_mean=5.0, logit_std=5.0)
    assert extreme.max() == 999
    assert extreme.min() >= 0


@pytest.mark.slow
def test_a_run_starts_from_a_lora(road: Road) -> None:
    assert road("first", steps=2, alpha=2.0) == 0, road.said()
    start = road.lora("first")
    own = {"steps": 1, "learning_rate": 0.0, "alpha": 1.0, "checkpoint_every": 1}
    assert road("second", init_lora=start, **own) == 0, road.said()
    before, after = lora.read(start).tensors, lora.read(road.lora("second")).tensors
    assert any(value.any() for key, value in before.items() if "lora_B" in key)
    assert all(torch.equal(after[key], value) for key, value in before.items())
    # the same command is done; it is another run without the file, or with another content of it
    assert road("second", init_lora=start, **own) == 0, road.said()
    whole = road.lora("second").read_bytes()
    assert road("second", **own) == 2
    assert "init_lora" in road.said()
    lora.save(start, {key: value + 1 for key, value in before.items()}, {}, 4.0)
    assert road("second", init_lora=start, **own) == 2
    assert "init_lora" in road.said().splitlines()[-1]
    assert road.lora("second").read_bytes() == whole


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 8}, "has rank 4, not 8; take --rank 4"),
        ({"lora_layers": "attention"}, "take --lora-layers attn2"),
        ({"output": "OUTER"}, "lies in the folder of this run"),
        ({"init_lora": "missing.safetensors"}, "no such file"),
        ({"method": "relation_inversion"}, "learns no LoRA"),
    ],
)
def test_a_lora_that_cannot_be_started_from_is_told_before_anything_is_written(
    tiny_bundle: Path, triplets: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    unet = load_bundle(str(tiny_bundle), torch.device("cpu"), torch.float32, encoders=False).unet
    lora.add(unet, 4, 4.0, 0)
    start = tmp_path / "start" / "hug.safetensors"
    lora.save(start, lora.state(unet), {}, 4.0)
    options = {key: start.parent if value == "OUTER" else value for key, value in options.items()}
    chosen = {"data": triplets, "bundle": str(tiny_bundle), "output": tmp_path / "run", "init_lora": start, **options}
    with pytest.raises(InputError, match=message):
        finetune("hug", **chosen)
    assert [path.name for path in tmp_path.rglob("*.*")] == ["hug.safetensors"]
