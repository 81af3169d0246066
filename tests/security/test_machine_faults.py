"""A full disk, a file system without locks, a second run, too little memory, a kill at a bad moment: one line each."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import call
from PIL import Image
from processes import run as run_process
from safetensors import SafetensorError

from rbctl.errors import InputError
from rbctl.files import atomic_write
from rbctl.memory import forward_bytes, picture_bytes
from rbctl.menagerie.triplets import draw_triplets
from rbctl.relations import load_relation
from rbctl.runs import claim

pytestmark = pytest.mark.usefixtures("one_thread")


# --- the disk


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError("No space left on device (os error 28)"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:664] . PytorchStreamWriter failed writing file data/1"),
        RuntimeError("unexpected pos 704 vs 598"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_full_disk_in_the_words_of_any_library_is_one_line(tmp_path: Path, error: Exception) -> None:
    (tmp_path / "a").write_text("before")
    with pytest.raises(InputError, match="a: no space left on the disk"), atomic_write(tmp_path / "a"):
        raise error
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "before"


@pytest.mark.slow
@pytest.mark.parametrize("part", ["renders", "vae"])
def test_a_full_disk_while_pretraining_is_one_line(tmp_path: Path, part: str) -> None:
    few = [
        "--individuals",
        4,
        "--portraits",
        1,
        "--easy-scenes",
        8,
        "--all-scenes",
        8,
        "--shard",
        8,
        "--render-batch",
        4,
    ]
    few += ["--vae-steps", 2, "--vae-batch-size", 2, "--checkpoint-every", 1, "--device", "cpu", "--threads", 1]
    command = ["pretrain", part, "--work", tmp_path / "work", *few]
    if part == "vae":
        assert run_process(["pretrain", "renders", *command[2:]], tmp_path / "log") == 0, (tmp_path / "log").read_text()
    assert run_process(command, tmp_path / "full", file_limit=4096) == 2, (tmp_path / "full").read_text()
    said = (tmp_path / "full").read_text()
    assert "Traceback" not in said
    assert "no space left on the disk" in said
    assert run_process(command, tmp_path / "log") == 0  # nothing half made is in the way


@pytest.mark.slow
def test_a_full_disk_while_a_bundle_is_imported_is_one_line(tiny_bundle: Path, tmp_path: Path) -> None:
    encoder = tmp_path / "epoch_6.pt"
    from rbctl.files import read_safetensors

    torch.save({"state_dict": read_safetensors(tiny_bundle / "clipself" / "model.safetensors")[0]}, encoder)
    config = tiny_bundle / "clipself" / "open_clip_config.json"
    command = ["models", "import", tmp_path / "b", "--local-encoder", encoder, "--local-config", config]
    assert run_process(command, tmp_path / "full", file_limit=4096) == 2, (tmp_path / "full").read_text()
    said = (tmp_path / "full").read_text()
    assert "Traceback" not in said
    assert "no space left on the disk" in said
    assert not (tmp_path / "b" / "clipself").exists()


# --- locks and second runs


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_and_worked_on(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with claim(tmp_path / "out"):
        (tmp_path / "out" / "a").write_text("x")
    said = capsys.readouterr().err
    assert number == errno.ENOSYS or "its file system has no locks" in said  # filelock has a way of its own for that


@pytest.mark.parametrize(
    ("folder", "command"),
    [
        ("work/renders", ["pretrain", "renders", "--work", "work"]),
        ("work/vae", ["pretrain", "vae", "--work", "work"]),
        ("set", ["data", "import", "source", "set"]),
        ("out", ["generate", "--relation", "hug", "--number", "1", "--output", "out"]),
    ],
)
def test_a_second_run_in_the_same_folder_is_refused(
    tmp_path: Path, folder: str, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    draw_triplets(load_relation("hug"), 2, 0, tmp_path / "source", size=64)
    hold = "import sys, pathlib\nfrom rbctl.runs import claim\nwith claim(pathlib.Path(sys.argv[1])):\n"
    hold += "    print('held', flush=True)\n    sys.stdin.read()\n"
    with subprocess.Popen(
        [sys.executable, "-c", hold, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        result = call(*command)
        other.communicate("")
    assert result.exit_code == 2, result.output
    assert "another run is writing here" in result.output
    if command[0] == "data":
        assert call(*command).exit_code == 0


# --- memory


def test_pictures_that_do_not_fit_are_refused_before_they_are_begun(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rbctl.memory.available", lambda _device: 1 << 30)
    monkeypatch.setattr("rbctl.denoising.denoise", lambda *_: pytest.fail("begun"))
    Image.new("RGB", (8, 8)).save(tmp_path / "cat.png")
    (tmp_path / "p.txt").write_text("A {cat: cat.png} sleeps. --w 8192 --h 8192 --s 1")
    result = call("sample", tmp_path / "p.txt", "--bundle", tiny_bundle, "--lora", "none", "--output", tmp_path / "o")
    assert result.exit_code == 2, result.output
    assert "p.txt:1: 1 x 8192 x 8192 pixels at once: needs more than" in result.output


def test_pictures_that_would_take_a_cpu_hours_are_refused(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "cat.png")
    (tmp_path / "p.txt").write_text("A {cat: cat.png} sleeps. --w 8192 --h 8192 --s 1")
    result = call("sample", tmp_path / "p.txt", "--lora", "none", "--device", "cpu", "--output", tmp_path / "o")
    assert result.exit_code == 2, result.output
    assert "8192 x 8192" in result.output


def test_the_estimate_grows_with_all_that_takes_memory() -> None:
    unet, vae = {"block_out_channels": [320, 640, 1280]}, {"block_out_channels": [128, 256, 512, 512]}
    one = forward_bytes(unet, 2, (128, 128), 2)
    assert 100 << 20 < one < 4 << 30  # SDXL in half precision
    assert forward_bytes(unet, 2, (256, 128), 2) == 2 * one
    assert forward_bytes(unet, 4, (128, 128), 2) == 2 * one
    assert 1 << 30 < picture_bytes(vae, 1024, 1024) < 8 << 30


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried to ..."
        ),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_machine_without_memory_left_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("rbctl.plugins.sample.run.run", fail)
    (tmp_path / "p.txt").write_text("A cat.")
    result = call("sample", tmp_path / "p.txt")
    assert result.exit_code == 2, result.output
    assert "the machine's memory is used up; lower --batch-size" in result.output


def test_words_of_data_do_not_act_on_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "\\u001b[2Jx.png", "text": "a"}')
    result = call("eval", tmp_path)
    assert result.exit_code == 2
    assert "\x1b" not in result.output


# --- kills


@pytest.mark.slow
def test_a_kill_between_checkpoint_and_preview_costs_no_preview(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_triplets(load_relation("hug"), 4, 0, tmp_path / "set")
    few = ("--steps", 3, "--batch-size", 1, "--micro-batch-size", 8, "--preview-steps", 1)
    command = ("finetune", "--relation", "hug", "--data", tmp_path / "set", "--bundle", tiny_bundle, *few)
    command += ("--checkpoint-every", 1, "--preview-every", 1, "--output", tmp_path / "run")
    import rbctl.plugins.finetune.relation_lora as stage

    drawn, whole = [], stage.preview

    def killed(*arguments: object) -> None:
        drawn.append(arguments[-1])
        if len(drawn) == 3:  # that of step 2, whose checkpoint is written
            raise KeyboardInterrupt
        whole(*arguments)

    monkeypatch.setattr(stage, "preview", killed)
    assert call(*command).exit_code == 130
    monkeypatch.setattr(stage, "preview", whole)
    assert call(*command).exit_code == 0
    names = sorted(path.name for path in (tmp_path / "run" / "previews").iterdir())
    assert names == [f"step-{step:06d}.png" for step in range(4)]
