"""The work of ``rbctl finetune``: the same course for every method."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from rbctl import lora, unet_weights
from rbctl.bases import Base, family_of
from rbctl.bases.load import summary
from rbctl.bundle.catalogue import resolve
from rbctl.bundle.fingerprints import generator_fingerprint
from rbctl.device import DTYPES, pick_attention, pick_device, pick_tuning_precision, products_in_bf16
from rbctl.errors import InputError
from rbctl.plugins.finetune.baselines import Baseline
from rbctl.plugins.finetune.config import UNET_PARTS, WITH_LORA, Callback, FinetuneConfig
from rbctl.plugins.finetune.loop import Task, train
from rbctl.plugins.finetune.relation_lora import RelationLora
from rbctl.processes import divide_batch, together
from rbctl.runs import ANY_LORA, Run
from rbctl.triplets import Triplet

# Options that may differ when a run is taken up again. Data, prior set, bundle and precision are compared as facts.
_FREE = {"output", "resume", "device", "checkpoint_every", "keep_checkpoints", "preview_every", "preview_steps"}
_FREE |= {
    "micro_batch_size",
    "gradient_checkpointing",
    "lowvram",
    "format",
    "save_every",
    "author",
    "licence",
    "tensorboard",
}
_FREE |= {"data", "prior", "bundle", "precision", "save_precision"}


class Method(Protocol):
    """What is learned, and from what. It is built before anything is written, and refuses what cannot work.

    Attributes:
        config: the options, with what the method fills in.
        output: the run folder.
        name: of what is learned; its files are called by it.
    """

    config: FinetuneConfig
    output: Path
    name: str

    def render(self, resolution: int) -> None:
        """Render the data that is not given; in the first process alone."""
        ...

    def read(self, resolution: int) -> dict[str, Any]:
        """Read the data; its hashes, which the run depends on."""
        ...

    def load(self, run: Run, resolution: int, device: torch.device, facts: Mapping[str, Any]) -> Base:
        """The bundle, and encode the data with it."""
        ...

    def task(self, facts: Mapping[str, Any]) -> Task:
        """What is trained; a LoRA is on the base's model by now."""
        ...

    def save(self, steps: int, facts: Mapping[str, Any]) -> Path:
        """Write what was learned in so many steps."""
        ...


def run(config: FinetuneConfig, callback: Callback | None = None, triplets: Sequence[Triplet] = ()) -> Path:
    """Learn what ``config.method`` says; returns the file, in every process.

    Args:
        callback: see :func:`rbctl.plugins.finetune.finetune`.
        triplets: in place of the folder ``config.data``.

    Raises:
        InputError: options, data or bundle are not what the method needs.
    """
    method: Method = RelationLora(config, triplets) if config.method == "relation_lora" else Baseline(config)
    config, output, base = method.config, method.output, resolve(config.bundle)
    said = summary(base)
    resolution = config.resolution or said.resolution
    if resolution % said.multiple:
        raise InputError(f"--resolution {resolution}: {base.name} needs a multiple of {said.multiple}")
    device = pick_device(config.device)
    precision = pick_tuning_precision(config.precision, device)
    if precision == "fp16" and device.type == "cpu":
        raise InputError("--precision fp16: training in fp16 needs CUDA; take bf16 or fp32")
    pick_attention(config.attention, device, DTYPES[precision])
    initial = _initial(config, output)
    with together(device, timeout=None) as world:
        divide_batch(config.batch_size, config.micro_batch_size, world.size)  # refuses numbers that do not fit
        accelerator = _accelerator(config, precision, device, output)
        facts = {"bundle": generator_fingerprint(base), "precision": precision}
        if initial:
            facts["init_lora"] = lora.autov3(initial.path)
        run = Run(
            output,
            "finetune",
            config,
            free=_FREE | ({"steps"} if config.lr_scheduler.startswith("constant") else set()),
            results=(f"{method.name}.safetensors", ANY_LORA, "embedding.safetensors"),
            left=("previews/step-*.png", f"{method.name}-[0-9]*.safetensors"),
            world=world,
        )
        with run.claimed():
            run.check(facts)
            if world.first:
                method.render(resolution)
            world.wait()
            facts |= method.read(resolution)
            run.check(facts)
            world.wait()
            bundle = method.load(run, resolution, accelerator.device, facts)
            prepare(bundle, config)
            if initial:
                lora.start_from(bundle.model, initial, config.alpha)
            run.begin(facts | {"processes": world.size})  # only now is all the input known to be good
            world.wait()
            with products_in_bf16([bundle.model], accelerator.device, precision == "mixed"):
                steps = train(run, method.task(facts), accelerator, facts, callback)
            path = method.save(steps, facts) if world.first else output
            if world.first:
                _link(path)
            return world.gathered(path)[0]


def _initial(config: FinetuneConfig, output: Path) -> lora.LoraFile | None:
    """The LoRA to start from.

    Raises:
        InputError: it cannot be read, is of other layers or rank, or would be overwritten.
    """
    path, where = config.init_lora, f"--init-lora {config.init_lora}"
    if path is None:
        return None
    if config.method not in WITH_LORA:
        raise InputError(f"{where}: --method {config.method} learns no LoRA; leave it out")
    if output.resolve() in path.resolve().parents:
        raise InputError(f"{where}: lies in the folder of this run, which writes it; choose another --output")
    file = lora.read(path)
    if file.rank != config.rank:
        raise InputError(f"{where}: has rank {file.rank}, not {config.rank}; take --rank {file.rank}")
    layers = family_of(resolve(config.bundle)).layers_of(file.modules)
    if layers != config.lora_layers:
        mend = f"take --lora-layers {layers}" if layers else "take another LoRA"
        raise InputError(f"{where}: is not on the layers of --lora-layers {config.lora_layers}; {mend}")
    return file


def _link(path: Path) -> None:
    """Let the name that the LoRA of every run once had lead to this one; a file system without links goes without."""
    link = path.with_name(ANY_LORA)
    if path.name not in (ANY_LORA, "embedding.safetensors"):
        with contextlib.suppress(OSError):
            link.unlink(missing_ok=True)
            link.symlink_to(path.name)


def _accelerator(config: FinetuneConfig, precision: str, device: torch.device, output: Path) -> Any:
    from accelerate import Accelerator

    return Accelerator(
        mixed_precision=precision if precision in ("bf16", "fp16") else "no",
        cpu=device.type == "cpu",
        log_with="tensorboard" if config.tensorboard else None,
        project_dir=str(output),
    )


def prepare(base: Base, config: FinetuneConfig) -> None:
    """Make a base's model ready for training: with a LoRA on it, or with weights of its own that learn."""
    model = base.model
    if config.method in WITH_LORA:
        lora.add(model, config.rank, config.alpha, config.seed, targets=base.lora_targets(config.lora_layers))
    if part := UNET_PARTS.get(config.method):
        unet_weights.make_trainable(model, part)
    if config.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    if config.compile:
        base.compile()
    model.train()
