"""Checkpoints as DeepSpeed writes them, a folder each; one counts once its ``complete.json`` stands.

DeepSpeed's files are pickles: they are read for tensors and DeepSpeed's own few types only, never run as code.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from torch import distributed

from rbctl import kept
from rbctl.errors import InputError, reason
from rbctl.files import read_json, write_json
from rbctl.processes import World
from rbctl.runs import Run

COMPLETE = "checkpoints/step-*/complete.json"
_UNIVERSAL = "universal"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: its folder, the steps done, how many processes wrote it, and SHA-256 by file."""

    folder: Path
    step: int
    processes: int
    files: object


def last(run: Run) -> Checkpoint | None:
    """The newest complete checkpoint.

    Raises:
        InputError: its ``complete.json`` is damaged.
    """
    for path in reversed(run.checkpoints()):
        content = read_json(path)
        try:
            return Checkpoint(path.parent, int(content["step"]), int(content["processes"]), content.get("files"))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{path}: is damaged; remove {path.parent} and run the same command again") from error
    return None


def drop_torn(run: Run) -> None:
    """Remove what a killed or failed save left: half a checkpoint, or one more than are kept."""
    _tidy(run)
    whole = {path.parent for path in run.checkpoints()}
    for path in run.folder.glob("checkpoints/step-*"):
        if path not in whole:
            shutil.rmtree(path, ignore_errors=True)


def _tidy(run: Run) -> None:
    for old in run.superseded():
        old.unlink()  # first, so that a kill leaves no half that counts
        shutil.rmtree(old.parent, ignore_errors=True)


def save(engine: Any, run: Run, step: int) -> None:
    """Write a checkpoint with all processes, then drop all but the last ``keep_checkpoints``.

    Raises:
        InputError: the disk is full, or cannot be written; the checkpoints before it stay as they are.
    """
    folder = run.folder / "checkpoints" / f"step-{step:07d}"
    complete = folder / Path(COMPLETE).name
    if complete.is_file():
        return
    try:
        engine.save_checkpoint(str(folder.parent), tag=folder.name, save_latest=False, exclude_frozen_parameters=True)
    except (OSError, RuntimeError) as error:  # torch tells a full disk as a RuntimeError
        shutil.rmtree(folder, ignore_errors=True)
        raise InputError(
            f"{folder}: cannot be written ({reason(error)}); the checkpoint before it is good: free some space and run "
            "the same command again"
        ) from error
    run.world.wait()
    if run.world.first:
        write_json(complete, {"step": step, "processes": run.world.size, "files": kept.digests(folder)})
        _tidy(run)
    run.world.wait()


def restore(engine: Any, checkpoint: Checkpoint, world: World, universal: bool) -> None:
    """Load a checkpoint into the engine, with all processes.

    Raises:
        InputError: it is damaged, was changed since it was written, holds NaN, or is of another model.
    """
    folder, optimizer = checkpoint.folder, engine.optimizer
    mend = f"remove {folder} to go on from the one before, or start again with --no-resume"
    if world.first:
        try:
            kept.compare_files(folder, checkpoint.files)
        except InputError as error:
            raise InputError(f"{error}; {mend}") from error
    decays = [group["weight_decay"] for group in optimizer.param_groups]
    if universal:
        if world.first:
            facts = {"files": checkpoint.files}
            try:
                kept.check(folder / _UNIVERSAL, facts)
            except InputError:  # as a rule there is none yet
                click.echo(
                    f"{folder}: {checkpoint.processes} processes wrote it; dividing it for {world.size}", err=True
                )
                _make_universal(folder)
                kept.seal(folder / _UNIVERSAL, facts)
        world.wait()
        folder = folder / _UNIVERSAL
    try:
        with _only_tensors():
            loaded, _ = engine.load_checkpoint(
                str(folder.parent), tag=folder.name, load_module_strict=False, load_lr_scheduler_states=False
            )
    except Exception as error:  # DeepSpeed and torch raise all sorts on a damaged file
        raise InputError(f"{folder}: cannot be taken up ({reason(error)}); {mend}") from error
    if loaded is None:
        raise InputError(f"{folder}: cannot be taken up; {mend}")
    if universal:
        # DeepSpeed (0.19) gives all groups the first one's settings, and with ZeRO-3 one step counter together, which
        # then counts once for each group.
        for group, decay in zip(optimizer.param_groups, decays, strict=True):
            group["weight_decay"] = decay
        for state in optimizer.optimizer.state.values():
            state["step"] = torch.tensor(float(checkpoint.step))
    if not finite(engine):
        raise InputError(f"{folder}: holds NaN or infinite weights; {mend}")


def finite(engine: Any) -> bool:
    """Whether the weights that train are finite, in all processes alike; with ZeRO-3 each looks at its own part."""
    weights = [getattr(p, "ds_tensor", p) for p in engine.module.parameters() if p.requires_grad]
    whole = torch.tensor(float(all(bool(part.isfinite().all()) for part in weights)), device=engine.device)
    distributed.all_reduce(whole, distributed.ReduceOp.MIN)
    return bool(whole)


def _make_universal(folder: Path) -> None:
    from deepspeed.checkpoint import ds_to_universal

    work = folder / _UNIVERSAL
    shutil.rmtree(work, ignore_errors=True)
    arguments = argparse.Namespace(
        input_folder=str(folder),
        output_folder=str(work),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    with contextlib.redirect_stdout(sys.stderr), _only_tensors():  # it prints, and stdout is for results
        ds_to_universal.main(arguments)


@contextlib.contextmanager
def _only_tensors() -> Iterator[None]:
    """Let torch.load take nothing but tensors and the few types that DeepSpeed puts beside them."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    before = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        with torch.serialization.safe_globals([LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]):
            yield
    finally:
        os.environ.pop("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
        if before is not None:
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = before
