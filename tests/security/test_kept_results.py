"""What a run kept is taken up only if it is what was kept: made from the same, unchanged, finite and of its form."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from rbctl import kept, metrics
from rbctl.cli import main
from rbctl.errors import InputError
from rbctl.files import content_hash
from rbctl.menagerie.triplets import draw_triplets
from rbctl.relations import load_relation

FACTS = {"data": "abc", "steps": 3}

pytestmark = pytest.mark.usefixtures("one_thread")


def changed(path: Path, **tensors: torch.Tensor) -> None:
    """Other numbers in a kept file, its metadata as it was: what a stranger, or a bad disk, leaves."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file(load_file(path) | tensors, path, metadata)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda path: changed(path, w=torch.zeros(3)), "was changed since it was written"),
        (lambda path: changed(path, other=torch.zeros(3)), "was changed since it was written"),
        (flip_a_bit, "was changed since it was written"),
        (lambda path: path.write_bytes(path.read_bytes()[:-4]), "not a readable safetensors file"),
        (lambda path: save_file({"w": torch.ones(3)}, path), "does not say what it was made from"),
        (lambda path: kept.save(path, {"w": torch.ones(3)}, {"data": "other"}), "was made from other data"),
    ],
)
def test_a_kept_file_that_does_not_fit_is_told_and_not_taken_up(
    tmp_path: Path, damage: Callable[[Path], None], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "kept.safetensors"
    kept.save(path, {"w": torch.ones(3)}, FACTS)
    assert torch.equal(kept.read(path, FACTS)["w"], torch.ones(3))
    damage(path)
    assert kept.load(path, FACTS) is None
    (line,) = capsys.readouterr().err.splitlines()
    assert str(path) in line
    assert told in line
    assert line.endswith("computed again")


@pytest.mark.parametrize("name", ["w", ""])
def test_no_kept_file_holds_nan(tmp_path: Path, name: str) -> None:
    path = tmp_path / "kept.safetensors"
    with pytest.raises(InputError, match="NaN"):
        kept.save(path, {name: torch.tensor([math.nan])}, FACTS)
    content = {name: torch.tensor([math.nan])}
    save_file(content, path, {"made_from": content_hash(FACTS), "content": kept.digest_of(content)})
    with pytest.raises(InputError, match=f"{name} holds NaN"):
        kept.read(path, FACTS)


def test_a_sealed_folder_is_held_to_its_files(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(b"1")
    kept.seal(tmp_path, FACTS)
    kept.check(tmp_path, FACTS)
    (tmp_path / "a.npy").write_bytes(b"2")
    with pytest.raises(InputError, match=r"a\.npy: was changed"):
        kept.check(tmp_path, FACTS)
    (tmp_path / "a.npy").unlink()
    with pytest.raises(InputError, match=r"has no file .a\.npy"):
        kept.check(tmp_path, FACTS)
    with pytest.raises(InputError, match="made from other"):
        kept.check(tmp_path, {"data": "other"})


# --- whole commands


@pytest.fixture(scope="module")
def triplets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("triplets") / "hug"
    draw_triplets(load_relation("hug"), 4, 0, folder)
    return folder


def finetune(bundle: Path, triplets: Path, output: Path, steps: int) -> Result:
    few = ("--batch-size", 1, "--micro-batch-size", 8, "--checkpoint-every", 1, "--steps", steps)
    command = ("finetune", "--relation", "hug", "--data", triplets, "--bundle", bundle, "--output", output, *few)
    return CliRunner().invoke(main, [str(argument) for argument in command])


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "lora.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.slow
def test_changed_frozen_results_are_made_anew(tiny_bundle: Path, triplets: Path, tmp_path: Path) -> None:
    assert finetune(tiny_bundle, triplets, tmp_path / "straight", 3).exit_code == 0
    assert finetune(tiny_bundle, triplets, tmp_path / "run", 2).exit_code == 0
    frozen = tmp_path / "run" / "frozen.safetensors"
    changed(frozen, latents_mean=load_file(frozen)["latents_mean"] + 1)
    result = finetune(tiny_bundle, triplets, tmp_path / "run", 3)
    assert result.exit_code == 0, result.output
    assert "frozen.safetensors: was changed since it was written; computed again" in result.stderr
    assert same(weights(tmp_path / "straight"), weights(tmp_path / "run"))


@pytest.mark.slow
def test_a_changed_checkpoint_is_passed_over(tiny_bundle: Path, triplets: Path, tmp_path: Path) -> None:
    assert finetune(tiny_bundle, triplets, tmp_path / "straight", 3).exit_code == 0
    assert finetune(tiny_bundle, triplets, tmp_path / "run", 2).exit_code == 0
    newest = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    name = next(key for key in load_file(newest) if key.startswith("lora."))
    changed(newest, **{name: torch.full_like(load_file(newest)[name], 7.0)})
    result = finetune(tiny_bundle, triplets, tmp_path / "run", 3)
    assert result.exit_code == 0, result.output
    assert "was changed since it was written; trying the one before" in result.stderr
    assert same(weights(tmp_path / "straight"), weights(tmp_path / "run"))


# --- metrics


def test_a_torn_last_line_costs_itself_alone(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    assert [row["step"] for row in metrics.rows(path)] == [1, 2, 3]
    metrics.cut(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    path.write_text('{"step": 1}\nnonsense\n{"step": 3}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl:2: not valid JSON"):
        metrics.cut(path, 1)
    assert "nonsense" in path.read_text()
