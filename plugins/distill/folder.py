"""The run folder: whether a run can be taken up there, its beginning, and its results."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rbctl.errors import InputError
from rbctl.files import atomic_write, read_json, read_yaml, write_json, write_safetensors
from rbctl.options import as_plain, write_recipe
from rbctl.plugins.distill import checkpoint
from rbctl.plugins.distill.config import DistillConfig
from rbctl.runs import write_record

if TYPE_CHECKING:
    import torch

CHECKPOINTS, METRICS, EVALUATION, UNREADABLE = "checkpoints", "metrics.jsonl", "evaluation.jsonl", "unreadable.jsonl"
RESULT, PCA = "clipself", "local_tokens.png"

# Options that may differ when a run is taken up again: they change how it runs, not what it computes. Data, weights
# and precision are compared by what they are (see ``facts``), not by how they were written.
_FREE = {"output", "resume", "device", "workers", "micro_batch_size", "gradient_checkpointing", "zero_init", "offload"}
_FREE |= {"nvme_path", "checkpoint_every", "keep_checkpoints", "evaluate_every", "pca_pictures", "official_checkpoint"}
_FREE |= {"model", "weights", "data", "annotations", "evaluation_data", "evaluation_annotations", "precision"}
_FREE |= {"epochs", "steps", "estimate", "estimate_gpus"}


def check(output: Path, config: DistillConfig, facts: Mapping[str, Any]) -> None:
    """Refuse a folder that holds another run, or files that no run of ours wrote.

    Args:
        facts: what the result depends on besides the options: hashes of data and weights, precision, steps.

    Raises:
        InputError: it names what differs.
    """
    recipe, record = output / "recipe.yaml", output / "run.json"
    if not recipe.is_file():
        if (output / RESULT).exists():
            raise InputError(f"{output}: holds a {RESULT}/ that no run here wrote; choose another --output")
        return
    if not config.resume or not checkpoint.found(output / CHECKPOINTS):
        return
    mend = "choose another --output, or begin anew with --no-resume"
    before = read_yaml(recipe).get("distill")
    if not isinstance(before, dict) or not record.is_file():
        raise InputError(f"{output}: its recipe.yaml or run.json is damaged; {mend}")
    now = {key: value for key, value in as_plain(config).items() if value is not None}
    told = read_json(record)
    pairs = [(key, before.get(key), now.get(key)) for key in sorted((before.keys() | now.keys()) - _FREE)]
    pairs += [(key, told.get(key), value) for key, value in facts.items()]
    for key, then, new in pairs:
        if then != new:
            short = [value[:12] if isinstance(value, str) and len(value) == 64 else value for value in (then, new)]
            raise InputError(f"{output}: holds a run with {key} {short[0]!r}, not {short[1]!r}; {mend}")


def begin(output: Path, config: DistillConfig, facts: Mapping[str, Any]) -> None:
    """Write the recipe and the record; with ``--no-resume``, drop what the run before left."""
    if not config.resume:
        for name in (CHECKPOINTS, RESULT):
            shutil.rmtree(output / name, ignore_errors=True)
        for path in (*(output / name for name in (METRICS, EVALUATION, UNREADABLE, PCA)), *output.glob("epoch_*.pt")):
            path.unlink(missing_ok=True)
    checkpoint.drop_torn(output / CHECKPOINTS)
    write_recipe(output / "recipe.yaml", "distill", config)
    write_record(output, seed=config.seed, **facts)


def write_tower(
    output: Path, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], metadata: Mapping[str, str]
) -> Path:
    """Write ``clipself/`` as a bundle holds it: safetensors in open_clip naming, and open_clip's configuration.

    Args:
        tensors: by name, without ``visual.``.
    """
    named = {f"visual.{name}": tensor for name, tensor in tensors.items()}
    write_json(output / RESULT / "open_clip_config.json", dict(config))
    write_safetensors(output / RESULT / "model.safetensors", named, {"format": "pt", **metadata})
    return output / RESULT


def write_official(output: Path, tensors: Mapping[str, torch.Tensor], name: str, epoch: int) -> Path:
    """Write ``epoch_N.pt`` as CLIPSelf's own training does: {"epoch", "name", "state_dict"}."""
    import torch

    path = output / f"epoch_{epoch}.pt"
    state = {f"visual.{key}": tensor for key, tensor in tensors.items()}
    with atomic_write(path) as temporary:
        torch.save({"epoch": epoch, "name": name, "state_dict": state}, temporary)
    return path
