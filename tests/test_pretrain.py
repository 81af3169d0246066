"""Pretraining: the loop, the drawn data, and every part that is built here for a few steps on a handful of scenes."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch._dynamo.testing import CompileCounter

from rbctl.bases.load import load as load_base
from rbctl.bundle import catalogue
from rbctl.bundle.fingerprints import generator_fingerprint
from rbctl.bundle.load import load
from rbctl.bundle.random_weights import write_random
from rbctl.bundle.tokenizer import write_small_tokenizer
from rbctl.bundle.vae import UnshuffleVAE, vae_class
from rbctl.cli import main
from rbctl.device import pick_training_precision, pick_tuning_precision, products_in_bf16
from rbctl.draws import generator
from rbctl.errors import InputError
from rbctl.files import read_jsonl, read_safetensors, write_json, write_safetensors
from rbctl.menagerie.drawing import paint
from rbctl.menagerie.oracle import look
from rbctl.menagerie.oracle_training import UNKNOWN
from rbctl.plugins.pretrain import dit_part, rendering, renders, unet_part
from rbctl.plugins.pretrain.architecture import MINI, VAE
from rbctl.plugins.pretrain.bundle import write_tokenizers
from rbctl.plugins.pretrain.config import EASY, HELD_OUT, PretrainConfig
from rbctl.plugins.pretrain.decoder_part import partly_smooth_noise, with_coarse_level
from rbctl.plugins.pretrain.loop import Part, average_decay, rate, train
from rbctl.plugins.pretrain.optimizer import orthogonalised
from rbctl.plugins.pretrain.rendering import pool, write_renders
from rbctl.plugins.pretrain.weights import write_network
from rbctl.relations import load_relation

pytestmark = pytest.mark.slow  # what its tests share takes seconds

CPU = torch.device("cpu")
SMALL = {"individuals": 6, "portraits": 2, "easy_scenes": 18, "all_scenes": 17, "shard": 9}


class Toy(Part):
    """A part that learns to give back what is drawn; stops by force where it is told to."""

    name, device, batch_size, learning_rate = "vae", CPU, 4, 1e-3

    def __init__(self, stop_at: int | None = None) -> None:
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Conv2d(2, 32, 3, padding=1), nn.Conv2d(32, 40, 3, padding=1), nn.SiLU(), nn.Conv2d(40, 2, 1)
        )
        self.net.to(memory_format=torch.channels_last)
        self.stop_at, self.finished = stop_at, 0
        self.previews: list[int] = []

    def modules(self) -> dict[str, nn.Module]:
        return {"net": self.net}

    def loss(self, step: int, chance: torch.Generator) -> tuple[torch.Tensor, Mapping[str, Any]]:
        if step == self.stop_at:
            raise KeyboardInterrupt
        x = torch.randn(4, 2, 5, 5, generator=chance)
        loss = (self.net(x) - x).square().mean()
        return loss, {"twice": 2 * loss.detach()}

    def preview(self, folder: Path, step: int) -> Mapping[str, float]:
        assert not self.net.training
        self.previews.append(step)
        return {"seen": 1.0}

    def finish(self) -> None:
        self.finished += 1
        self.final = {name: tensor.clone() for name, tensor in self.net.state_dict().items()}

    def weights(self) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in self.net.parameters()])


def trained(part: Toy, work: Path, **changes: Any) -> torch.Tensor:
    options: dict[str, Any] = {"vae_steps": 12, "checkpoint_every": 5, "preview_every": 6, "seed": 3}
    train(part, PretrainConfig(work=work, **(options | changes)))
    return part.weights()


@pytest.mark.slow
def test_a_stopped_training_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    straight = trained(whole := Toy(), tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        trained(Toy(stop_at=8), tmp_path / "stopped")
    resumed = trained(part := Toy(), tmp_path / "stopped")
    assert torch.equal(straight, resumed)
    assert all(torch.equal(whole.final[name], part.final[name]) for name in whole.final)  # the averages too
    assert (whole.previews, part.previews) == ([6, 12], [6, 12])
    assert [row["step"] for row in read_jsonl(tmp_path / "stopped" / "vae" / "metrics.jsonl")] == [6, 12, 12]
    assert part.finished == 1


def test_no_minutes_only_finishes(tmp_path: Path) -> None:
    part = Toy()
    before = part.weights().clone()
    assert torch.equal(trained(part, tmp_path, minutes=0), before)
    assert part.finished == 1
    assert not (tmp_path / "vae" / "checkpoint.safetensors").exists()


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    trained(Toy(), tmp_path)
    other = Toy()
    other.net.append(nn.Conv2d(2, 2, 1))
    with pytest.raises(InputError, match="another network or optimizer"):
        trained(other, tmp_path)


def test_a_loss_that_is_no_number_is_told(tmp_path: Path) -> None:
    part = Toy()
    with torch.no_grad():
        part.net[0].weight.fill_(float("nan"))  # type: ignore[operator, union-attr]
    with pytest.raises(InputError, match="loss became NaN by step 12"):
        trained(part, tmp_path, checkpoint_every=0)


def test_schedule_and_averages() -> None:
    rates = [rate(step, 1000) for step in range(1000)]
    assert rates[0] == pytest.approx(0.01)
    assert max(rates) == rates[99] == rates[100] == 1.0
    assert rates[-1] == pytest.approx(0.02, abs=1e-4)
    assert {rate(step, 1000, decay=0.0) for step in range(100, 1000)} == {1.0}
    late = [rate(step, 1000, decay=0.3) for step in range(1000)]
    assert late[699] == late[700] == 1.0 > late[701]
    assert late[-1] == pytest.approx(0.02, abs=1e-3)
    assert average_decay(0) == pytest.approx(0.1)
    assert average_decay(10**6) == 0.998


def test_products_in_bf16_leave_weights_and_previews_as_they_are() -> None:
    net = nn.Sequential(nn.Conv2d(2, 8, 3), nn.GroupNorm(2, 8), nn.Conv2d(8, 2, 1))
    x = torch.randn(4, 2, 9, 9, generator=generator("bf16"))
    exact = net(x)
    with products_in_bf16([net], CPU, enabled=True):
        rounded = net(x)
    rounded.square().mean().backward()
    assert rounded.dtype == torch.float32
    assert 0 < float((rounded - exact).detach().abs().max()) < 0.1
    assert {p.dtype for p in net.parameters()} == {p.grad.dtype for p in net.parameters() if p.grad is not None}
    assert torch.equal(net(x), exact)
    with products_in_bf16([net], CPU, enabled=False):
        assert torch.equal(net(x), exact)


def test_products_in_bf16_are_compiled_once() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 2))
    compiled_once = CompileCounter()
    compiled = torch.compile(net, backend=compiled_once)
    for _ in range(3):
        with products_in_bf16([net], CPU, enabled=True):
            compiled(torch.ones(3, 4))
    assert compiled_once.frame_count == 1


def test_bf16_is_for_machines_that_multiply_it(monkeypatch: pytest.MonkeyPatch) -> None:
    avx, amx = {"avx512_bf16": True}, {"avx512_bf16": True, "amx_bf16": True}
    for features, trained_in, tuned_in in (({}, "fp32", "fp32"), (avx, "mixed", "fp32"), (amx, "mixed", "mixed")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda features=features: features)
        assert pick_training_precision("auto", CPU) == trained_in
        assert pick_tuning_precision("auto", CPU) == tuned_in
        assert pick_training_precision("fp32", CPU) == "fp32"
    assert pick_tuning_precision("auto", torch.device("cuda")) == "bf16"


@pytest.mark.slow
def test_two_processes_hold_the_same_weights(tmp_path: Path) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    code = (
        "import sys, torch; from pathlib import Path; from tests.test_pretrain import Toy, trained\n"
        "torch.save(trained(Toy(), Path(sys.argv[1])), sys.argv[2])\n"
    )
    processes = []
    for number in range(2):
        world = {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2"}
        world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        command = [sys.executable, "-c", code, str(tmp_path / "run"), str(tmp_path / f"{number}.pt")]
        root = Path(__file__).resolve().parents[1]
        processes.append(subprocess.Popen(command, env={**os.environ, **world, "OMP_NUM_THREADS": "1"}, cwd=root))
    assert [process.wait(120) for process in processes] == [0, 0]
    first, second = (torch.load(tmp_path / f"{number}.pt") for number in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, trained(Toy(), tmp_path / "alone"))  # the second process drew samples of its own
    assert generator(3, 0, 0).initial_seed() != generator(3, 1, 0).initial_seed()


def test_small_tokenizer(tmp_path: Path) -> None:
    from transformers import CLIPTokenizer

    write_small_tokenizer(tmp_path)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    ids = tokenizer("An orange rabbit hugs a plain red fox", padding="max_length")["input_ids"]
    assert (len(tokenizer), len(ids), ids[0], ids[-1]) == (4096, 32, 4094, 4095)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "an orange rabbit hugs a plain red fox"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder with a handful of renders and random encoders in the place of trained ones."""
    folder = tmp_path_factory.mktemp("pretrain")
    write_renders(config(folder), CPU)
    write_random(folder / "bundle", MINI, torch.Generator().manual_seed(0), torch.float16)
    shutil.rmtree(folder / "bundle" / "unet")
    (folder / "bundle" / "ms_adapter.safetensors").unlink()
    write_tokenizers(folder / "bundle")
    return folder


def config(folder: Path, **changes: Any) -> PretrainConfig:
    return PretrainConfig(**{"work": folder, **SMALL, **changes})


def test_renders_are_what_the_scenes_say(work: Path) -> None:
    scenes, portraits = renders.scenes(work / "renders", "easy"), renders.portraits(work / "renders")
    plan = config(work)
    assert (len(scenes), len(portraits), portraits.people) == (18, 12, 6)
    assert scenes.pictures.shape == (18, 3, 128, 128)
    assert scenes.mask32.shape == (18, 3, 32, 32)
    assert len(scenes.captions) == 18
    assert np.bincount(scenes.counts).tolist() == [0, 4, 9, 5]
    people = pool(plan)
    for row, count in enumerate(scenes.counts):
        assert len(load_relation(plan.easy[scenes.relation[row]]).roles) == count
        for person, looks in zip(scenes.person[row][:count], scenes.individuals[row], strict=False):
            assert list(look(people[person])) == looks.tolist()
            assert people[person].species in scenes.captions[row]
        for lacking in (scenes.boxes, scenes.keypoints, scenes.mask32):
            assert lacking[row][:count].any(tuple(range(1, lacking[row].ndim))).all()
            assert not lacking[row][count:].any()
        assert (scenes.person[row][count:] == renders.NOBODY).all()
    assert np.array_equal(portraits.person.all(), np.repeat(np.arange(6), 2))
    assert np.array_equal(scenes.pictures[[17, 3]], scenes.pictures.all()[[17, 3]])
    assert np.array_equal(scenes.pictures[-1], scenes.pictures[17])
    x0, y0, x1, y1 = np.moveaxis(scenes.boxes.all()[scenes.person.all() != renders.NOBODY], -1, 0)
    assert ((x0 < x1) & (y0 < y1)).all()


def test_scenes_with_a_fault_show_what_is_left(work: Path) -> None:
    faulty, plan = renders.scenes(work / "renders", "faults"), config(work)
    names = [*plan.easy, *plan.held_out]
    assert len(faulty) == 6
    both = renders.scenes(work / "renders", "all", "faults")
    assert np.array_equal(both.pictures[17:], faulty.pictures.all())
    shown = faulty.mask32.all().any((-2, -1))
    relations = faulty.relation.all()
    for row, relation in enumerate(relations):
        if relation == UNKNOWN:  # somebody is left out, nobody is there, or all stand wrongly
            assert shown[row].sum() <= faulty.counts[row]
        else:  # somebody is there twice, beside the relation
            looks = faulty.individuals[row][: faulty.counts[row]].tolist()
            assert faulty.counts[row] == len(load_relation(names[relation]).roles) + 1
            assert looks[-1] in looks[:-1]
    assert UNKNOWN in relations
    assert not (shown & (faulty.individuals.all()[..., 0] == renders.NOBODY)).any()


def test_merged_bodies_are_one_that_looks_like_whoever_shows_more() -> None:
    row = {
        "boxes": np.arange(3)[:, None].repeat(4, 1),
        "keypoints": np.arange(3)[:, None, None].repeat(17, 1),
        "mask32": np.zeros((3, 32, 32), np.uint8),
        "individuals": np.array([[5, 1, 1, 0], [6, 2, 2, 1], [7, 3, 3, 2]]),
        "person": np.array([50, 60, 70]),
    }
    row["mask32"][0, :4], row["mask32"][1, 2:12], row["mask32"][2, 20:] = 200, 200, 255
    rendering.as_one_body(row)
    assert row["person"].tolist() == [60, 70, renders.NOBODY]
    assert row["individuals"][:, 0].tolist() == [6, 7, renders.NOBODY]
    assert [int(mask.any(1).sum()) for mask in row["mask32"]] == [12, 12, 0]
    assert row["mask32"].max() == 255
    assert row["keypoints"][:, 0, 0].tolist() == row["boxes"][:, 0].tolist() == [0, 2, 1]


def test_held_out_individuals_stand_in_no_other_scene(work: Path) -> None:
    def looks(kind: str) -> set[tuple[int, ...]]:
        rows = renders.scenes(work / "renders", kind).individuals.all().reshape(-1, 4)
        return {tuple(i) for i in rows[rows[:, 0] != renders.NOBODY].tolist()}

    held_out = renders.scenes(work / "renders", "held_out")
    assert not looks("held_out") & (looks("easy") | looks("all"))
    assert held_out.portraits.shape == (len(held_out), 3, 3, 128, 128)
    assert set(held_out.counts) == {1, 2, 3}


def test_shares_say_how_many_individuals_scenes_have() -> None:
    relations = [load_relation(name) for name in (*EASY, *HELD_OUT)]
    drawn = [rendering.scene_relation(number, relations, (0.2, 0.5, 0.3)) for number in range(2000)]
    counts = np.bincount([len(relation.roles) for relation in drawn]) / 2000
    assert counts.tolist() == pytest.approx([0, 0.2, 0.5, 0.3], abs=0.005)
    of_two = [relation.name for relation in drawn if len(relation.roles) == 2]
    assert min(of_two.count(name) for name in set(of_two)) > 0.8 * len(of_two) / len(set(of_two))
    none = [rendering.scene_relation(number, relations, (0, 1, 0)) for number in range(100)]
    assert {len(relation.roles) for relation in none} == {2}


@pytest.mark.slow
def test_a_shard_is_the_same_whoever_renders_it(work: Path, tmp_path: Path) -> None:
    write_renders(config(tmp_path, render_rank=1, render_world=2), CPU)
    some = sorted((tmp_path / "renders").glob("*/*/*.npy"))
    assert 0 < len(some) < len(list((work / "renders").glob("*/*/*.npy")))
    for path in some:
        assert np.array_equal(np.load(path), np.load(work / path.relative_to(tmp_path)))
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "renders").rglob("*.npy")}
    write_renders(config(tmp_path), CPU)  # does what is missing
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert len(renders.scenes(tmp_path / "renders", "easy")) == 18
    with pytest.raises(InputError, match="holds renders of other relations"):
        write_renders(config(tmp_path, seed=1), CPU)


def test_a_compiled_painter_sees_lots_of_one_size(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = set()

    def painter(_compiled: bool) -> Any:
        def counted(parts: torch.Tensor, *rest: Any) -> Any:
            sizes.add(len(parts))
            return paint(parts, *rest)

        return counted

    monkeypatch.setattr(rendering, "_painter", painter)
    write_renders(config(tmp_path, compile=True, render_batch=5), CPU)
    assert sizes == {5}
    for path in (tmp_path / "renders").glob("*/*/boxes.npy"):
        same = work / path.relative_to(tmp_path)
        assert np.allclose(np.load(path), np.load(same), atol=1e-5)
        pictures = np.load(path.with_name("pictures.npy")).astype(int)
        assert np.abs(pictures - np.load(same.with_name("pictures.npy"))).max() <= 1


def test_a_coarse_level_starts_as_the_identity() -> None:
    plain = UnshuffleVAE.from_config({**VAE, "coarse_channels": None, "scaling_factor": 0.7})
    deep = with_coarse_level(plain, VAE["coarse_channels"], VAE["coarse_layers"])
    assert deep.config.scaling_factor == 0.7
    pictures = torch.rand(2, 3, 64, 96, generator=generator("coarse")) * 2 - 1
    assert torch.equal(deep(pictures), plain(pictures))
    assert deep.decoder.state_dict().keys() == UnshuffleVAE.from_config(VAE).decoder.state_dict().keys()


def test_noise_of_latents_has_unit_size_and_smooth_parts() -> None:
    noise = partly_smooth_noise(torch.Size((64, 4, 32, 32)), generator("noise"))
    assert float(noise.std()) == pytest.approx(1.0, abs=0.05)
    beside = (noise[..., 1:] * noise[..., :-1]).mean((1, 2, 3))
    assert float(beside.min()) < 0.2 < 0.5 < float(beside.max())  # white in some pictures, smooth in others


def test_vae_is_loaded_as_any_other(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae = UnshuffleVAE.from_config({**VAE, "scaling_factor": 0.7}).eval()
    pictures = torch.rand(2, 3, 64, 96) * 2 - 1
    posterior = vae.encode(pictures).latent_dist
    assert posterior.mean.shape == posterior.std.shape == posterior.sample().shape == (2, 4, 16, 24)
    assert vae.decode(posterior.mean).sample.shape == pictures.shape
    assert vae.decode(posterior.mean, return_dict=False)[0].shape == pictures.shape
    vae.save_pretrained(tmp_path / "one")
    write_network(tmp_path / "vae", {**VAE, "scaling_factor": 0.7}, vae.state_dict())
    for name, tolerance in (("one", 0.0), ("vae", 2e-2)):  # the second in half precision
        settings = json.loads((tmp_path / name / "config.json").read_text())
        again = vae_class(settings, name).from_pretrained(tmp_path / name)
        assert again.config.scaling_factor == 0.7
        assert torch.allclose(again(pictures), vae(pictures), atol=tolerance)
    with pytest.raises(InputError, match="_class_name is 'Other'"):
        vae_class({"_class_name": "Other"}, "vae/config.json")


def test_jittered_boxes_stay_boxes() -> None:
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.5, 0.5, 0.52, 0.52], [0.2, 0.3, 0.6, 0.7]]).expand(200, 3, 4)
    moved = unet_part.jittered(boxes, generator("boxes"))
    assert float(moved.min()) >= 0
    assert float(moved.max()) <= 1
    assert float((moved[..., 2:] - moved[..., :2]).min()) > 0.05
    assert float((moved[:, 2] - boxes[:, 2]).abs().max()) <= unet_part.JITTER + 1e-6
    assert not unet_part.jittered(torch.zeros(9, 4), generator("none")).any()  # nobody stays nowhere


@pytest.mark.slow
def test_conditions_are_dropped_as_often_as_they_should(work: Path) -> None:
    part = unet_part.UNetPart(config(work, unet_batch_size=500), CPU)
    batches = [part.draw(generator("rates", number)) for number in range(40)]
    no_text = np.array([[caption == "" for caption in b["captions"]] for b in batches]).flatten()
    no_image = torch.cat([b["no_image"] for b in batches]).numpy()
    no_grounding = torch.cat([b["no_grounding"] for b in batches]).float().mean()
    assert np.mean(no_text & ~no_image) == pytest.approx(unet_part.NO_TEXT, abs=0.01)
    assert np.mean(~no_text & no_image) == pytest.approx(unet_part.NO_IMAGE, abs=0.01)
    assert np.mean(no_text & no_image) == pytest.approx(unet_part.NEITHER, abs=0.01)
    assert float(no_grounding) == pytest.approx(unet_part.NO_GROUNDING, abs=0.01)
    lengths = [b["tokens"].shape[2] for b in batches]
    assert set(lengths) == {1 + 64, 1 + 64 + 16}
    assert 0.05 < lengths.count(65) / len(lengths) < 0.6


def test_timesteps_are_dense_where_shapes_are_decided_and_rare_nowhere() -> None:
    timesteps = torch.cat([unet_part.drawn_timesteps(32, 1000, generator(number)) for number in range(1000)])
    assert (int(timesteps.min()), int(timesteps.max())) == (0, 999)
    shares = torch.histc(timesteps.float(), 10, 0, 1000) / len(timesteps)
    assert float(shares.min()) > 0.025  # a quarter is uniform
    assert float(shares[4:7].sum()) > 0.4
    assert len(unet_part.drawn_timesteps(1, 1000, generator("one"))) == 1


@pytest.mark.slow
def test_a_unet_goes_on_from_the_bundles_own(work: Path, tmp_path: Path) -> None:
    for name in ("renders", "bundle"):
        shutil.copytree(work / name, tmp_path / name)
    with pytest.raises(InputError, match=r"--unet-init bundle: .*unet is not there"):
        unet_part.UNetPart(config(tmp_path, unet_init="bundle"), CPU)
    torch.manual_seed(1)
    first = unet_part.UNetPart(config(tmp_path), CPU)
    first.finish()
    torch.manual_seed(2)
    again = unet_part.UNetPart(config(tmp_path, unet_init="bundle"), CPU)
    for mine, theirs in ((again.unet, first.unet), (again.resampler, first.resampler)):
        stored = {name: tensor.bfloat16().float() for name, tensor in theirs.state_dict().items()}
        assert all(torch.equal(tensor, stored[name]) for name, tensor in mine.state_dict().items())


@pytest.mark.slow
def test_the_joints_loss_reaches_the_middle_of_the_unet(work: Path) -> None:
    part = unet_part.UNetPart(config(work, unet_batch_size=2), CPU)

    def gradient() -> torch.Tensor:
        part.unet.zero_grad()
        part.loss(0, generator("joints"))[0].backward()
        found: torch.Tensor = part.unet.mid_block.resnets[-1].conv2.weight.grad
        return found

    with_head = gradient()
    nn.init.zeros_(part.joint_head.heat.weight)  # a head that listens to nothing passes nothing back
    assert not torch.allclose(with_head, gradient())


@pytest.mark.slow
def test_image_prompts_reach_the_unet_and_zero_boxes_do_not(work: Path) -> None:
    part = unet_part.UNetPart(config(work, unet_batch_size=4), CPU)
    drawn = part.draw(generator(1))

    def loss(tokens: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        adapter = part.adapter_tokens(tokens.flatten(0, 1), drawn["boxes"], part.phrases[drawn["species"]])
        inputs = (drawn["latents"], drawn["noise"], drawn["timesteps"], drawn["captions"])
        return part.denoising(*inputs, adapter, boxes).detach()

    swapped = drawn["tokens"].flip(1)
    assert not torch.equal(loss(drawn["tokens"], drawn["boxes"]), loss(swapped, drawn["boxes"]))
    nowhere = torch.zeros_like(drawn["boxes"])
    assert torch.equal(loss(drawn["tokens"], nowhere), loss(swapped, nowhere))


@pytest.mark.slow
def test_parts_run_and_make_a_bundle(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tmp_path / "few.yaml"
    parts = ("vae", "decoder", "unet")
    steps = {f"{part}_steps": 3 for part in parts} | {f"{part}_batch_size": 4 for part in parts}
    write_json(recipe, {"pretrain": {"work": str(work), "preview_every": 3, **SMALL, **steps}})  # YAML holds JSON

    def pretrain(*parts: str) -> Any:
        return CliRunner().invoke(main, ["pretrain", *parts, "--recipe", str(recipe)], catch_exceptions=False)

    weights_file = work / "bundle" / "vae" / "diffusion_pytorch_model.safetensors"
    for part in parts:
        before, _ = read_safetensors(weights_file)
        assert pretrain(part).exit_code == 0
        assert (work / part / "previews" / "step-000003.png").is_file()
        (*_, last) = read_jsonl(work / part / "metrics.jsonl")
        assert last["step"] == 3
        if part == "decoder":  # it alone has moved: the UNet goes on with the latents it knows
            moved = {
                name for name, tensor in read_safetensors(weights_file)[0].items() if not tensor.equal(before[name])
            }
            assert moved
            assert all(name.startswith("decoder.") for name in moved)
    weights, _ = read_safetensors(weights_file)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}

    # What the distill stage would leave there becomes the local encoder, halved.
    local = work / "bundle" / "clipself"
    shutil.copytree(local, work / "distill" / "clipself")
    weights, _ = read_safetensors(local / "model.safetensors")
    doubled = {name: 2 * tensor.float() for name, tensor in weights.items()}
    write_safetensors(work / "distill" / "clipself" / "model.safetensors", doubled, {})
    assert pretrain("pictures").exit_code == 0
    assert len(list((work / "pictures").glob("portrait-*.png"))) == SMALL["individuals"] * SMALL["portraits"]
    assert len(list((work / "pictures").glob("scene-*.png"))) == SMALL["all_scenes"]
    assert pretrain("clipself").exit_code == 0
    taken, _ = read_safetensors(local / "model.safetensors")
    assert all(torch.equal(taken[name], 2 * tensor) for name, tensor in weights.items())

    spec = dataclasses.replace(catalogue.CATALOGUE["mini"], packaged=tmp_path / "package" / "mini")
    monkeypatch.setitem(catalogue.CATALOGUE, "mini", spec)
    absent = CliRunner().invoke(main, ["models", "list"])
    assert "mini: not here; install rbctl again" in absent.stdout
    with pytest.raises(InputError, match="'mini' is not whole in this installation"):
        catalogue.resolve("mini")
    card = work / "bundle" / "README.md"
    card.write_text("- vae: 9 steps; of elsewhere\n- oracle: 7 steps; of elsewhere\n")
    made = pretrain("bundle")
    assert made.exit_code == 0, made.stderr
    assert "- oracle: 7 steps; of elsewhere\n" in card.read_text()  # that part was not trained here
    assert "- vae: 3 steps" in card.read_text()
    measured = tmp_path / "gates.json"
    figure = {"mean": 0.812, "low": 0.7, "high": 0.9, "n": 12, "at_least": 0.75, "passed": True}
    content = {"bundle_fingerprint": "of others", "sections": {"base": {"gates": {"main colour": figure}}}}
    write_json(measured, content)
    refused = pretrain("bundle", "--gates", str(measured))
    assert refused.exit_code == 2
    assert "measured on other weights" in refused.stderr
    write_json(measured, {**content, "bundle_fingerprint": generator_fingerprint(work / "bundle")})
    made = pretrain("bundle", "--gates", str(measured))
    assert "| base: main colour | 0.812 | 0.700 .. 0.900 | 12 | >= 0.75 |" in card.read_text()
    assert "mini: complete" in CliRunner().invoke(main, ["models", "list"]).stdout
    assert CliRunner().invoke(main, ["models", "verify", "mini"]).exit_code == 0
    assert "nothing to pull" in CliRunner().invoke(main, ["models", "pull", "mini"]).stdout
    refused = CliRunner().invoke(main, ["models", "import", "mini", "--base", str(tmp_path)])
    assert refused.exit_code == 2
    bundle = load("mini", CPU, torch.float32)
    assert (bundle.name, bundle.resolution, bundle.latent_scale) == ("mini", 128, 4)
    assert bundle.training_schedule()[1] == "v_prediction"
    assert not list((tmp_path / "package").glob(".mini*"))


@pytest.fixture
def beside(work: Path, tmp_path: Path) -> Path:
    """A work folder of one's own."""
    for name in ("renders", "bundle"):
        shutil.copytree(work / name, tmp_path / "work" / name)
    return tmp_path / "work"


@pytest.mark.slow
def test_a_transformer_runs_goes_on_and_becomes_a_bundle(
    beside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "few.yaml"
    options = {"dit_steps": 3, "dit_coarse_steps": 2, "dit_batch_size": 2, "dit_init": "bundle"}
    write_json(recipe, {"pretrain": {"work": str(beside), "preview_every": 3, **SMALL, **options}})

    def pretrain(*arguments: str) -> Any:
        return CliRunner().invoke(main, ["pretrain", *arguments, "--recipe", str(recipe)], catch_exceptions=False)

    refused = pretrain("dit")
    assert refused.exit_code == 2
    assert "--dit-init bundle" in refused.stderr
    refused = pretrain("dit-bundle")
    assert refused.exit_code == 2
    assert "not there yet; make it with 'rbctl pretrain dit'" in refused.stderr
    made = pretrain("dit", "--dit-init", "random")
    assert made.stdout.splitlines()[-1] == f"dit: {beside / 'bundle-dit'}"
    assert (beside / "dit" / "previews" / "step-000003.png").is_file()
    weights, _ = read_safetensors(beside / "bundle-dit" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert (weights["x_embedder.weight"].shape[1], weights["proj_out.weight"].shape[0]) == (272, 16)
    torch.manual_seed(1)
    again = dit_part.DiTPart(config(beside, dit_init="bundle"), CPU).transformer.state_dict()
    for name, tensor in weights.items():
        assert torch.equal(again[name][tuple(slice(0, side) for side in tensor.shape)], tensor.float())

    spec = dataclasses.replace(catalogue.CATALOGUE["mini-dit"], packaged=tmp_path / "package" / "mini-dit")
    monkeypatch.setitem(catalogue.CATALOGUE, "mini-dit", spec)
    assert pretrain("dit-bundle").exit_code == 0
    assert "- dit: 3 steps" in (tmp_path / "package" / "mini-dit" / "README.md").read_text()
    assert "mini-dit: complete" in CliRunner().invoke(main, ["models", "list"]).stdout
    assert load_base("mini-dit", CPU, torch.float32).name == "mini-dit"


@pytest.mark.slow
def test_most_of_the_first_steps_are_coarse_and_both_reach_the_trunk(beside: Path) -> None:
    part = dit_part.DiTPart(config(beside, dit_coarse_steps=32, dit_batch_size=2), CPU)
    assert [step for step in range(40) if part.is_fine(step)] == [0, 16, *range(32, 40)]
    for parameter in part.transformer.parameters():  # gates begin at zero, which pass nothing back
        nn.init.normal_(parameter, std=0.1)
    for step, own in ((0, slice(0, 16)), (1, slice(16, 80))):
        part.transformer.zero_grad()
        part.loss(step, generator(step))[0].backward()
        read, written = part.transformer.x_embedder.weight.grad, part.transformer.proj_out.weight.grad
        used = torch.zeros(len(written), dtype=torch.bool)
        used[own] = True
        assert torch.equal(written.any(1), used)
        channels = read.abs().sum(0)
        assert bool((channels[:16] > 0).all()) == part.is_fine(step)
        assert bool((channels[272:] > 0).all()) != part.is_fine(step)
        assert bool((channels[16:272] > 0).all())


@pytest.mark.slow
def test_a_transformer_sees_the_references_that_are_there(beside: Path) -> None:
    part = dit_part.DiTPart(config(beside), CPU)
    for parameter in part.transformer.parameters():
        nn.init.normal_(parameter, std=0.1)
    reading, latents = part.measured, part.measured_latents
    noise, times = torch.randn(latents.shape, generator=generator("noise")), torch.full((len(latents),), 0.5)

    def loss(fine: bool, **changes: Any) -> torch.Tensor:
        return part.denoising(latents, noise, times, dataclasses.replace(reading, **changes), fine).detach()

    for fine in (True, False):
        alone, swapped = ~reading.present[:, 1], reading.references.flip(1)
        assert alone.any()
        assert not torch.allclose(loss(fine), loss(fine, references=swapped))
        other = torch.stack((reading.references[:, 0], swapped[:, 0].roll(1, 0)), dim=1)
        assert torch.equal(loss(fine)[alone], loss(fine, references=other)[alone])  # nobody looks at the second


def test_mistakes_are_one_line(work: Path, tmp_path: Path) -> None:
    def told(*arguments: str) -> str:
        result = CliRunner().invoke(main, ["pretrain", *arguments, "--work", str(tmp_path)])
        assert result.exit_code == 2
        assert len(result.stderr.splitlines()) == 1
        return result.stderr

    def shown(part: str) -> str:
        return CliRunner().invoke(main, ["pretrain", part, "--work", str(tmp_path)]).stdout

    assert "no part 'vea'; did you mean 'vae'?" in told("vea")
    assert "no renders yet; make them with 'rbctl pretrain renders'" in told("vae")
    assert "no renders yet" in told("unet")
    (tmp_path / "renders").symlink_to(work / "renders")
    assert "make it with 'rbctl pretrain vae'" in told("unet")
    assert "either learnt or held out" in told("--easy", "ride", "--held-out", "ride")
    assert "the CLIP's own tower stays; 'rbctl distill --recipe mini" in shown("clipself")


@pytest.mark.parametrize("shape", [(2, 40, 48), (3, 32, 288), (1, 160, 32)])
def test_orthogonal_steps(shape: tuple[int, int, int]) -> None:
    moves = orthogonalised(torch.randn(shape, generator=generator(*shape)))
    sizes = torch.linalg.svdvals(moves)
    assert moves.shape == shape
    assert 0.5 < float(sizes.quantile(0.1)) <= float(sizes.max()) < 1.3
