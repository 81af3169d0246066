"""``rbctl distill`` as a user runs it: learning, interruption, processes, and every way it can go wrong."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file

from rbctl.cli import main

pytestmark = pytest.mark.slow  # its runs, shared by the tests, take seconds

_context = multiprocessing.get_context("forkserver")

TINY: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 48, "head_width": 12, "mlp_ratio": 2.0, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Coloured patches, large and small, so that crops differ."""
    folder = tmp_path_factory.mktemp("photographs")
    for number in range(12):
        random = np.random.default_rng(number)
        cells = random.integers(0, 256, (random.integers(2, 5), random.integers(2, 5), 3), dtype=np.uint8)
        size = (int(random.integers(60, 90)), int(random.integers(60, 90)))
        Image.fromarray(cells).resize(size, Image.Resampling.NEAREST).save(folder / f"{number:02d}.png")
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole CLIP of random weights in open_clip's layout."""
    import torch
    from open_clip.model import CLIP

    from rbctl.files import write_json, write_safetensors

    folder = tmp_path_factory.mktemp("clip") / "tiny"
    torch.manual_seed(0)
    write_json(folder / "open_clip_config.json", TINY)
    write_safetensors(folder / "model.safetensors", CLIP(**TINY).state_dict(), {})
    return folder


def _main(arguments: list[str], log: str, surroundings: dict[str, str], file_limit: int | None) -> None:
    import torch

    descriptor = os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(surroundings)
    torch.set_num_threads(1)
    if file_limit is not None:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that the write fails with an error, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
        sys.dont_write_bytecode = True  # Python would leave modules cut short for all that come after
    sys.argv = ["rbctl", *arguments]
    main(arguments)


class Road:
    """One set of arguments, in one folder."""

    def __init__(self, clip: Path, data: Path, folder: Path) -> None:
        self.clip, self.data, self.folder, self.log = clip, data, folder, folder / "log.txt"

    def arguments(self, output: str, **options: Any) -> list[str]:
        chosen = {
            "model": self.clip,
            "data": self.data,
            "output": self.folder / output,
            "image_size": 64,
            "train_blocks": 2,
            "batch_size": 4,
            "micro_batch_size": 1,
            "steps": 8,
            "checkpoint_every": 2,
            "evaluate_every": 4,
            "learning_rate": 1e-3,
            "warmup_steps": 2,
            "held_out": 3,
            "pca_pictures": 2,
            "workers": 0,
            "zero_stage": 2,
            **options,
        }
        flags = ["distill"]
        for name, value in chosen.items():
            if value is not None:
                flags += [f"--{name.replace('_', '-')}", str(value)]
        return flags

    def start(self, output: str, processes: int = 1, file_limit: int | None = None, **options: Any) -> list[Any]:
        # Only here: a test run without this file's tests shall not import DeepSpeed.
        _context.set_forkserver_preload(["torch", "deepspeed", "open_clip", "rbctl.plugins.distill.run"])
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        started = []
        for rank in range(processes):
            who = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
            place = {**who, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} if processes > 1 else {}
            arguments = (self.arguments(output, **options), str(self.log), place, file_limit)
            started.append(_context.Process(target=_main, args=arguments))
            started[-1].start()
        return started

    def __call__(self, output: str, processes: int = 1, file_limit: int | None = None, **options: Any) -> list[int]:
        started = self.start(output, processes, file_limit, **options)
        for process in started:
            process.join()
        return [process.exitcode for process in started]

    def kill(self, output: str, processes: int, which: list[int], steps: int, **options: Any) -> list[int]:
        """Start, kill some of the processes after so many steps, and wait for the others to end."""
        started = self.start(output, processes, **options)
        while len(self.rows(output, "metrics")) < steps:
            assert all(process.is_alive() for process in started), self.said()
            time.sleep(0.02)
        for rank in which:
            started[rank].kill()
        for process in started:
            process.join()
        return [process.exitcode for process in started]

    def said(self) -> str:
        return self.log.read_text()

    def rows(self, output: str, name: str) -> list[dict[str, Any]]:
        path = self.folder / output / f"{name}.jsonl"
        if not path.is_file():
            return []
        return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]

    def losses(self, output: str) -> list[float]:
        return [row["loss"] for row in self.rows(output, "metrics")]

    def weights(self, output: str) -> dict[str, Any]:
        return load_file(self.folder / output / "clipself" / "model.safetensors")

    def same(self, one: str, other: str, tolerance: float = 0.0) -> None:
        assert [row["step"] for row in self.rows(other, "metrics")] == [
            row["step"] for row in self.rows(one, "metrics")
        ]
        assert self.losses(other) == pytest.approx(self.losses(one), abs=max(tolerance, 1e-12))
        weights = self.weights(one)
        for name, value in self.weights(other).items():
            assert float((value - weights[name]).abs().max()) <= 10 * tolerance, name


@pytest.fixture(scope="module")
def road(clip: Path, photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Road:
    """With one run done: ``straight``."""
    made = Road(clip, photographs, tmp_path_factory.mktemp("runs"))
    assert made("straight", official_checkpoint=None) == [0], made.said()
    return made


@pytest.mark.slow
def test_a_run_leaves_what_it_promises(road: Road) -> None:
    folder = road.folder / "straight"
    rows = road.rows("straight", "evaluation")
    assert [row["step"] for row in rows] == [0, 4, 8]
    assert rows[-1]["region_cosine"] > rows[0]["region_cosine"]
    assert [row["step"] for row in road.rows("straight", "metrics")] == list(range(1, 9))
    with Image.open(folder / "local_tokens.png") as sheet:
        assert sheet.width > 3 * 224
        assert sheet.height > 2 * 224
    assert len(list((folder / "checkpoints").glob("step-*"))) == 2
    assert "straight/clipself" in road.said()


def test_the_blocks_in_front_stay_as_they_were(road: Road) -> None:
    before = load_file(road.clip / "model.safetensors")
    changed = {name for name, value in road.weights("straight").items() if not value.equal(before[name])}
    assert {".".join(name.split(".")[:4]) for name in changed} == {
        "visual.transformer.resblocks.1",
        "visual.transformer.resblocks.2",
    }


@pytest.mark.slow
def test_a_killed_run_ends_as_the_straight_one(road: Road) -> None:
    assert road.kill("killed", 1, [0], 5) == [-signal.SIGKILL]
    assert road("killed") == [0], road.said()
    road.same("straight", "killed")


@pytest.mark.slow
def test_a_full_disk_leaves_the_checkpoint_before(road: Road) -> None:
    assert road.kill("full", 1, [0], 5) == [-signal.SIGKILL]
    kept = {path.parent.name for path in (road.folder / "full").glob("checkpoints/*/complete.json")}
    assert kept
    assert road("full", file_limit=20_000) == [2]
    assert "the checkpoint before it is good" in road.said().splitlines()[-1]
    assert {path.parent.name for path in (road.folder / "full").glob("checkpoints/*/complete.json")} == kept
    assert road("full") == [0], road.said()
    road.same("straight", "full")


@pytest.mark.parametrize("stage", [0, 2])
def test_weights_learnt_in_bf16_are_written_finer(road: Road, stage: int) -> None:
    chosen = {"steps": 2, "precision": "bf16", "zero_stage": stage, "evaluate_every": 0, "pca_pictures": 0}
    assert road(f"bf16-{stage}", **chosen) == [0], road.said()
    learnt = road.weights(f"bf16-{stage}")["visual.transformer.resblocks.2.mlp.c_fc.weight"]
    assert not learnt.bfloat16().float().equal(learnt)


@pytest.mark.slow
def test_a_linear_map_learns_beside_the_tower(road: Road) -> None:
    """The tower (48 wide) learns as without a map to mini's adapter (128 wide), however the run is made."""
    options: dict[str, Any] = {"bundle": "mini", "map_learning_rate": 1e-2}
    assert road("mapped", **options) == [0], road.said()
    cosines = [row["map_cosine"] for row in road.rows("mapped", "evaluation")]
    assert cosines[-1] > cosines[0] + 0.2
    road.same("straight", "mapped")
    assert road.kill("mapped-torn", 1, [0], 5, **options) == [-signal.SIGKILL]
    assert road("mapped-torn", **options) == [0], road.said()
    road.same("mapped", "mapped-torn")
    assert road("mapped-two", 2, **options, zero_stage=3) == [0, 0], road.said()
    road.same("mapped", "mapped-two", 1e-4)
    for other, tolerance in (("mapped-torn", 0.0), ("mapped-two", 1e-3)):
        ours, theirs = (load_file(road.folder / o / "clipself/adapter_map.safetensors") for o in ("mapped", other))
        assert ours["weight"].shape == (128, 48)
        assert float((ours["weight"] - theirs["weight"]).abs().max()) <= tolerance
    assert road("mapped") == [2]
    assert "holds a run with bundle 'mini', not None" in road.said().splitlines()[-1]


def run(arguments: list[Any], code: int = 0) -> str:
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == code, done.output
    return done.output


EXAMPLES = Path(__file__).resolve().parents[1] / "recipes" / "examples"
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1}
OTHERS: dict[str, dict[str, Any]] = {
    "ViT-L": {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 28, "layers": 3, "width": 96, "head_width": 24, "patch_size": 14},
        "text_cfg": TEXT,
    },
    "EVA": {
        "embed_dim": 24,
        "vision_cfg": {
            "image_size": 224,
            "timm_model_name": "eva02_tiny_patch14_224",
            "timm_pool": "token",
            "timm_proj": None,
        },
        "text_cfg": TEXT,
        "custom_text": True,
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", OTHERS)
def test_an_encoder_of_another_kind_is_distilled_imported_and_sampled_with(
    kind: str, photographs: Path, tmp_path: Path
) -> None:
    """It is written by open_clip as for the hub, and its patches do not tile the pictures of the bundle."""
    import open_clip
    import torch
    from open_clip.model import CLIP, CustomTextCLIP

    from rbctl.bundle.catalogue import place
    from rbctl.files import write_json, write_safetensors

    config = OTHERS[kind]
    torch.manual_seed(0)
    towers = {key: config[key] for key in ("embed_dim", "vision_cfg", "text_cfg")}
    whole = (CustomTextCLIP if "custom_text" in config else CLIP)(**towers)
    write_json(tmp_path / kind / "open_clip_config.json", {"model_cfg": config, "preprocess_cfg": {}})
    write_safetensors(tmp_path / kind / "open_clip_model.safetensors", whole.state_dict(), {"format": "pt"})
    made = Road(tmp_path / kind, photographs, tmp_path)
    sizes: dict[str, Any] = {"image_size": 56, "steps": 2, "batch_size": 2, "max_split": 2, "held_out": 2}
    assert made("run", **sizes, bundle="mini", evaluate_every=0) == [0], made.said()
    clipself = tmp_path / "run" / "clipself"
    loaded = open_clip.create_model(f"local-dir:{clipself}")
    text = {name: tensor for name, tensor in whole.state_dict().items() if not name.startswith("visual.")}
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in text.items())

    bundle = shutil.copytree(place("mini"), tmp_path / "bundle")
    run(["models", "import", bundle, "--local-encoder", clipself])
    shutil.copytree(EXAMPLES / "pictures", tmp_path / "pictures")
    prompt = "A {fox: pictures/white-fox.png} is riding a {pig: pictures/gray-pig.png} --d 7"
    (tmp_path / "prompts.txt").write_text(prompt)
    own = ["--relation", "ride", "--lora", "none", "--steps", "2"]
    pictures = []
    for output, base in (("theirs", bundle), ("mini", "mini")):
        run(["sample", tmp_path / "prompts.txt", "--bundle", base, *own, "--output", tmp_path / output])
        pictures += [np.asarray(Image.open(path)) for path in (tmp_path / output).glob("a-fox*.png")]
    theirs, minis = pictures
    assert theirs.shape == minis.shape
    assert (theirs != minis).any()

    (clipself / "adapter_map.safetensors").unlink()
    said = run(["models", "import", bundle, "--local-encoder", clipself], 2)
    assert "wide, the adapter takes 128; they do not fit; 'rbctl distill --bundle' trains a linear map" in said


def test_another_recipe_is_refused(road: Road) -> None:
    assert road("straight", learning_rate=2e-3) == [2]
    assert "holds a run with learning_rate 0.001, not 0.002" in road.said().splitlines()[-1]


def test_too_many_unreadable_pictures_stop_the_run(clip: Path, photographs: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for path in photographs.iterdir():
        (data / path.name).write_bytes(path.read_bytes() if path.name > "03.png" else b"torn")
    road = Road(clip, data, tmp_path)
    assert road("torn") == [2]
    assert "cannot be read, more than 1 %" in road.said().splitlines()[-1]
    assert road.rows("torn", "unreadable")


@pytest.mark.slow
def test_shards_are_learnt_from_and_labelled_boxes_evaluated_on(clip: Path, photographs: Path, tmp_path: Path) -> None:
    pictures = sorted(photographs.iterdir())
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as archive:
            for path in pictures[shard::2]:
                archive.add(path, path.name)
    images, boxes = [], []
    for number, path in enumerate(pictures):
        with Image.open(path) as image:
            images.append({"id": number, "file_name": path.name, "width": image.width, "height": image.height})
        boxes.append({"id": number, "image_id": number, "category_id": number % 2, "bbox": [5, 5, 40, 30], "area": 1})
    named = tmp_path / "instances.json"
    categories = [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]
    named.write_text(json.dumps({"images": images, "annotations": boxes, "categories": categories}))
    road = Road(clip, tmp_path / "{0..1}.tar", tmp_path)
    chosen = {"steps": 3, "evaluation_data": photographs, "evaluation_annotations": named, "workers": 1}
    assert road("shards", **chosen) == [0], road.said()
    rows = road.rows("shards", "evaluation")
    assert [row["step"] for row in rows] == [0, 3]
    assert all(0 <= row["region_accuracy"] <= 1 for row in rows)
    assert road("shards", **{**chosen, "evaluation_data": None, "evaluation_annotations": None}) == [2]
    assert "shards need --evaluation-data" in road.said().splitlines()[-1]


def wrong(*arguments: object) -> str:
    result = CliRunner().invoke(main, ["distill", *map(str, arguments)])
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    return line


def test_wrong_input_is_one_line(clip: Path, photographs: Path, tmp_path: Path) -> None:
    tiny = ("--model", clip, "--image-size", 64, "--train-blocks", 2)
    assert "--data: name a folder" in wrong(*tiny)
    assert "no pictures in it" in wrong(*tiny, "--data", tmp_path)
    assert "did you mean 'ViT-B-32'" in wrong("--model", "ViT-B-23", "--data", photographs)
    assert "needs --zero-stage 3" in wrong("--zero-init", "--data", photographs)
    assert "leaves none to train on" in wrong(*tiny, "--data", photographs, "--held-out", 12)
    assert "--train-blocks 9: tiny has 3" in wrong(*tiny, "--train-blocks", 9)


@pytest.mark.parametrize(("name", "model"), [("bigG-coco", "ViT-bigG-14"), ("mini", "mini")])
def test_the_stages_own_recipes_are_found_by_name(name: str, model: str) -> None:
    """Also with the option that deepspeed's launcher adds."""
    result = CliRunner().invoke(main, ["--local_rank=0", "distill", "--recipe", name, "--dry-run"])
    assert result.exit_code == 0, result.output
    assert f"model: {model}" in result.stdout


def test_the_help_needs_no_torch() -> None:
    import subprocess

    code = (
        "import sys; from click.testing import CliRunner; from rbctl.cli import main;"
        "assert CliRunner().invoke(main, ['distill', '--help']).exit_code == 0;"
        "sys.exit(bool({'torch', 'deepspeed', 'open_clip'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_two_processes_do_as_one_and_another_number_goes_on(road: Road, stage: int) -> None:
    """Two processes end as one does; a kill of one stops both; one goes on with what two began."""
    assert road(f"one-{stage}", zero_stage=stage) == [0], road.said()
    assert road(f"two-{stage}", 2, zero_stage=stage) == [0, 0], road.said()
    road.same(f"one-{stage}", f"two-{stage}", 1e-4)
    assert road.kill(f"torn-{stage}", 2, [1], 5, zero_stage=stage) == [2, -signal.SIGKILL]
    assert "another process of the run has ended" in road.said().splitlines()[-1]
    assert road(f"torn-{stage}", 2, zero_stage=stage) == [0, 0], road.said()
    road.same(f"two-{stage}", f"torn-{stage}")
    road.kill(f"fewer-{stage}", 2, [0, 1], 5, zero_stage=stage)
    assert road(f"fewer-{stage}", 1, zero_stage=stage) == [0], road.said()
    road.same(f"one-{stage}", f"fewer-{stage}", 1e-4)
