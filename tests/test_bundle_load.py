"""What is wrong with a bundle is told in one line that names the file, and its fingerprint is that of its content."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rbctl.bundle import hashes
from rbctl.bundle.config import summary
from rbctl.bundle.fingerprints import fingerprint
from rbctl.bundle.load import load
from rbctl.errors import InputError
from rbctl.files import read_torch, sha256

UNET = "unet/diffusion_pytorch_model.safetensors"
Damage = Callable[[Path], None]


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A bundle to damage."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home; every file counts as large, so that its hash is remembered."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(hashes, "_LARGE", 0)
    return tmp_path / "home"


# --- damage


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def text(content: str) -> Damage:
    return lambda path: path.write_text(content) and None


def change(**entries: Any) -> Damage:
    return lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), **entries})) and None


def lose_a_tensor(path: Path) -> None:
    tensors = load_file(path)
    tensors.pop(min(tensors))
    save_file(tensors, path, {"format": "pt"})


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("ran",)


def pickled_code(path: Path) -> None:
    path.with_name("model.safetensors").unlink()
    path.write_bytes(pickle.dumps({"weight": _Bomb()}))  # a protocol that torch warns of, too


def saved(content: Any) -> Damage:
    def damage(path: Path) -> None:
        path.with_suffix(".safetensors").unlink()
        torch.save(content, path)

    return damage


DAMAGES: list[tuple[str, Damage, str]] = [
    (UNET, cut, UNET),
    (UNET, lose_a_tensor, "unet: weights do not fit config.json"),
    ("text_encoder/model.safetensors", cut, "text_encoder/model.safetensors"),
    ("text_encoder/model.safetensors", lose_a_tensor, "text_encoder: weights do not fit config.json"),
    ("text_encoder/pytorch_model.bin", pickled_code, "text_encoder/pytorch_model.bin: refused"),
    ("text_encoder/config.json", text("[]"), "text_encoder/config.json"),
    ("clip_vision/config.json", text("{}"), "clip_vision: weights do not fit config.json"),
    ("unet/config.json", text("{}"), "unet/config.json: sample_size: is missing"),
    ("unet/config.json", text("[]"), "unet/config.json"),
    ("unet/config.json", change(block_out_channels=3), "unet: cannot be loaded"),
    ("vae/config.json", change(block_out_channels=3), "vae/config.json: block_out_channels: a list was"),
    ("scheduler/scheduler_config.json", change(_class_name="Foo"), "scheduler/scheduler_config.json.*Foo"),
    ("scheduler/scheduler_config.json", change(beta_start="x"), "scheduler/scheduler_config.json"),
    ("scheduler/scheduler_config.json", text("[]"), "scheduler/scheduler_config.json"),
    ("ms_adapter_config.json", text("[]"), "ms_adapter_config.json"),
    ("ms_adapter_config.json", change(resampler=[]), "ms_adapter_config.json: resampler"),
    ("ms_adapter_config.json", change(resampler={"dim": "x"}), "_config.json: resampler.dim: a whole number was"),
    ("ms_adapter_config.json", change(scale="much"), "_config.json: scale: a number was expected, not .much."),
    ("ms_adapter_config.json", change(clip_image_size=0), "_config.json: clip_image_size: 1 or more was"),
    ("ms_adapter.safetensors", lose_a_tensor, "ms_adapter.safetensors: does not fit: missing dummy_image_tokens"),
    ("ms_adapter.bin", saved(torch.zeros(3)), "ms_adapter.bin: not an MS-Diffusion adapter"),
    ("ms_adapter.bin", saved({"a": 1}), "ms_adapter.bin: not an MS-Diffusion adapter"),
    ("tokenizer/vocab.json", cut, "tokenizer/vocab.json"),
    ("tokenizer/merges.txt", cut, "tokenizer: cannot be loaded"),
    ("tokenizer_2/tokenizer_config.json", text("{}"), "tokenizer_2/tokenizer_config.json: model_max_length"),
    ("clipself/open_clip_config.json", text("[]"), "clipself/open_clip_config.json"),
    ("clipself/open_clip_config.json", change(vision_cfg={"width": "x"}), "clipself/open_clip_config.json"),
    ("clipself/model.safetensors", lose_a_tensor, "clipself/model.safetensors: does not fit: missing"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("file", "damage", "told"), DAMAGES)
def test_damage_is_one_line_that_names_the_file(
    bundle: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    file: str,
    damage: Damage,
    told: str,
) -> None:
    monkeypatch.chdir(bundle.parent)
    damage(bundle / file)
    with pytest.raises(InputError, match=told) as caught:
        load(str(bundle), torch.device("cpu"), torch.float32)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""
    assert not Path("ran").exists()


def test_a_refused_pickle_is_told_without_warnings(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    path = tmp_path / "ms_adapter.bin"
    path.write_bytes(pickle.dumps({"image_proj": _Bomb()}))
    with pytest.raises(InputError, match=r"ms_adapter\.bin: refused"):
        read_torch(path)
    assert recwarn.list == []


@pytest.mark.parametrize("content", ["{}", "[]"])
@pytest.mark.parametrize("file", ["unet/config.json", "vae/config.json"])
def test_summary_of_a_damaged_bundle(bundle: Path, file: str, content: str) -> None:
    (bundle / file).write_text(content)
    with pytest.raises(InputError, match=file):
        summary(bundle)


def test_a_missing_local_encoder_is_told_before_anything_is_read(bundle: Path) -> None:
    shutil.rmtree(bundle / "clipself")
    cut(bundle / UNET)
    with pytest.raises(InputError, match=r"no local encoder; add one, or run with --local-tokens none"):
        load(str(bundle), torch.device("cpu"), torch.float32)


# --- the fingerprint


def halve(path: Path) -> None:
    """Other weights of the same size."""
    save_file({name: tensor / 2 for name, tensor in load_file(path).items()}, path, {"format": "pt"})


@pytest.mark.parametrize("manifest", [True, False])
def test_other_weights_have_another_fingerprint(bundle: Path, home: Path, manifest: bool) -> None:
    if not manifest:
        (bundle / "bundle.json").unlink()
    before, size = fingerprint(bundle), (bundle / UNET).stat().st_size
    halve(bundle / UNET)
    assert (bundle / UNET).stat().st_size == size
    assert fingerprint(bundle) != before


def test_dates_cannot_hide_other_weights(bundle: Path, home: Path) -> None:
    before, dates = fingerprint(bundle), (bundle / UNET).stat()
    halve(bundle / UNET)
    os.utime(bundle / UNET, ns=(dates.st_atime_ns, dates.st_mtime_ns))  # as cp -p and rsync -t do
    assert fingerprint(bundle) != before


def test_the_fingerprint_is_of_the_content_alone(bundle: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    before = fingerprint(bundle)
    assert before == fingerprint(tiny_bundle)  # wherever it lies
    (bundle / "bundle.json").unlink()
    (bundle / ".cache" / "deep").mkdir(parents=True)
    (bundle / ".cache" / "deep" / "notes.json").write_text("{}")
    assert fingerprint(bundle) == before
    shutil.move(bundle / "unet", tmp_path / "elsewhere")
    (bundle / "unet").symlink_to(tmp_path / "elsewhere")
    assert fingerprint(bundle) == before
    halve(tmp_path / "elsewhere" / Path(UNET).name)
    assert fingerprint(bundle) != before


def test_a_file_is_hashed_once(bundle: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    monkeypatch.setattr(hashes, "sha256", lambda path: hashed.append(path.name) or sha256(path))
    before = fingerprint(bundle)
    assert hashed
    hashed.clear()
    assert fingerprint(bundle) == before
    assert hashes.file_hashes(bundle, [UNET])[UNET] == sha256(bundle / UNET)
    assert hashed == []
    halve(bundle / UNET)
    fingerprint(bundle)
    assert hashed == [Path(UNET).name]


def test_what_was_just_recorded_is_not_hashed_again(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rbctl.bundle.random_weights import write_tiny

    write_tiny(tmp_path / "new")
    monkeypatch.setattr(hashes, "sha256", lambda path: pytest.fail(f"{path} was hashed"))
    fingerprint(tmp_path / "new")


def test_a_damaged_or_unwritable_memory_is_no_error(
    bundle: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fingerprint(bundle)
    for content in ("", "[]", json.dumps({str(bundle / UNET): "x"})):
        (home / ".cache/rbctl/hashes.json").write_text(content)
        assert fingerprint(bundle) == before
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    assert fingerprint(bundle) == before


def test_files_that_are_gone_are_forgotten(bundle: Path, home: Path) -> None:
    hashes.file_hashes(bundle, [UNET])[UNET]
    (bundle / UNET).unlink()
    hashes.file_hashes(bundle, ["vae/config.json"])
    assert list(json.loads((home / ".cache/rbctl/hashes.json").read_text())) == [str(bundle / "vae/config.json")]


def test_an_unreadable_file_is_told(bundle: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.bin: cannot be read"):
        hashes.file_hashes(bundle, ["nothing.bin"])
