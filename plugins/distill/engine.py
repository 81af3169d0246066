"""Student and teacher, and the DeepSpeed engine around the student."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import logging
import os
import sys
from collections.abc import Mapping
from typing import Any

import torch

from rbctl.bundle.load import load_local_encoder
from rbctl.bundle.towers import fill_visual
from rbctl.device import DTYPES
from rbctl.errors import InputError, reason
from rbctl.plugins.distill.config import DistillConfig
from rbctl.plugins.distill.objective import Teacher
from rbctl.plugins.distill.tower import Student, Tower, initial_map
from rbctl.processes import World, divide_batch


def require_deepspeed() -> None:
    """Raises InputError where DeepSpeed is not installed, without importing it."""
    if importlib.util.find_spec("deepspeed") is None:
        raise InputError("rbctl distill needs the package deepspeed (Linux only); pip install 'rbctl[distill]'")


def prepare_deepspeed(device: torch.device) -> None:
    """Import DeepSpeed for a device, inside of ``together(even_alone=True)``; its log goes to stderr."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    import deepspeed
    from deepspeed.ops import __compatible_ops__

    # init_distributed would compile it, for over a minute; gloo serves without.
    __compatible_ops__["deepspeed_shm_comm"] = False
    logger = logging.getLogger("DeepSpeed")  # it logs to stdout, which is for results
    logger.setLevel(logging.ERROR)
    for handler in logger.handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sys.stderr)
    deepspeed.init_distributed("nccl" if device.type == "cuda" else "gloo", auto_mpi_discovery=False, verbose=False)


def deepspeed_config(config: DistillConfig, processes: int, precision: str, universal: bool = False) -> dict[str, Any]:
    """DeepSpeed's configuration.

    Args:
        precision: fp32 or bf16, of parameters and gradients; the optimizer keeps fp32 copies of the trained ones.
        universal: the checkpoint to take up is a universal one.
    """
    zero: dict[str, Any] = {"stage": config.zero_stage}
    if config.offload != "none":
        zero["offload_optimizer"] = {"device": config.offload, "pin_memory": True}
    if config.offload == "nvme":
        zero["offload_optimizer"]["nvme_path"] = str(config.nvme_path)
    size, micro_steps = divide_batch(config.batch_size, config.micro_batch_size, processes)
    return {
        "train_batch_size": config.batch_size,
        "train_micro_batch_size_per_gpu": size,
        "gradient_accumulation_steps": micro_steps,
        "gradient_clipping": config.max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": precision == "bf16"},
        "checkpoint": {"load_universal": universal},
        "steps_per_print": 2**31,
    }


def build_teacher(tower: Tower, weights: Mapping[str, torch.Tensor], device: torch.device, precision: str) -> Teacher:
    """The frozen networks, whole on every device, outside of ZeRO."""
    dtype = DTYPES[precision]
    clip = _filled(tower, {k: v.to(device, dtype, copy=True) for k, v in weights.items()}).eval()
    if tower.adapter is None:
        return Teacher(clip)
    replaced = load_local_encoder(tower.adapter.bundle / "clipself").to(device, dtype)
    image_size = replaced.picture_size(tower.adapter.image_size)
    return Teacher(clip, replaced.requires_grad_(False).eval(), image_size)


def _filled(tower: Tower, weights: Mapping[str, torch.Tensor]) -> Any:
    with torch.device("meta"):
        visual = tower.build()
    return fill_visual(visual, weights).requires_grad_(False)


def build_student(
    tower: Tower, weights: Mapping[str, torch.Tensor], trained: frozenset[str], config: DistillConfig, settings: Any
) -> Student:
    """The student with its starting weights; with ``--zero-init``, divided as it is built.

    Args:
        settings: DeepSpeed's configuration.
    """
    if config.zero_init:
        import deepspeed

        with deepspeed.zero.Init(config_dict_or_path=settings):
            visual, to_adapter = tower.build(), tower.build_map()
        for module, tensors in ((visual, weights), (to_adapter, initial_map(tower, config.seed))):
            for name, parameter in module.named_parameters() if module else ():
                with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                    parameter.data.copy_(tensors[name])
    else:
        visual = _filled(tower, {name: tensor.clone() for name, tensor in weights.items()})
        to_adapter = tower.build_map()
        if to_adapter:
            to_adapter.load_state_dict(initial_map(tower, config.seed))
    for name, parameter in visual.named_parameters():
        parameter.requires_grad_(name in trained)
    student = Student(visual, to_adapter, config.gradient_checkpointing)
    if config.zero_stage == 3:
        student.register_external()
    return student.train()


def start_engine(student: Student, tower: Tower, config: DistillConfig, settings: Any) -> Any:
    """DeepSpeed's engine over the student.

    Raises:
        InputError: DeepSpeed refuses the settings on this machine.
    """
    import deepspeed

    shapes = tower.shapes()  # ZeRO-3 leaves parameters without a shape of their own
    groups: dict[bool, list[Any]] = {True: [], False: []}
    for name, parameter in student.visual.named_parameters():
        if parameter.requires_grad:
            groups[len(shapes[name]) >= 2].append(parameter)
    kind: Any = torch.optim.AdamW
    if config.offload != "none":
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        kind = DeepSpeedCPUAdam
    parameters = [
        {"params": groups[True], "weight_decay": config.weight_decay},
        {"params": groups[False], "weight_decay": 0.0},
    ]
    if tower.adapter:
        parameters.append({"params": list(student.to_adapter.parameters()), "weight_decay": 0.0})
    try:
        optimizer = kind(parameters, lr=config.learning_rate)
        return deepspeed.initialize(model=student, optimizer=optimizer, config=settings)[0]
    except (AssertionError, ValueError, deepspeed.ops.op_builder.builder.CUDAMismatchException) as error:
        raise InputError(f"--zero-stage {config.zero_stage}: DeepSpeed refuses it here ({reason(error)})") from error


def consolidated(engine: Any, module: Any, world: World) -> dict[str, torch.Tensor]:
    """Weights of a part of the student by name, float32 on the CPU; empty on all processes but the first.

    Gathered one by one, so that no device ever holds them all.
    """
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param

    # Without ZeRO and in bf16 DeepSpeed keeps float32 copies too, in a place that its own reader does not know.
    names = () if engine.zero_optimization_stage() else ("fp16_groups", "fp32_groups")
    pairs = zip(*(getattr(engine.optimizer, name, ()) for name in names), strict=True)
    copies = {id(p): own for low, high in pairs for p, own in zip(low, high, strict=True)}
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in module.named_parameters():
        divided = hasattr(parameter, "ds_id")
        with deepspeed.zero.GatheredParameters([parameter]) if divided else contextlib.nullcontext():
            value = parameter.data
            # The optimizer's own copy is finer than the bf16 parameter.
            finer = safe_get_full_fp32_param(parameter) if parameter.requires_grad else None
            finer = copies.get(id(parameter)) if finer is None else finer
            if world.first:
                tensors[name] = (value if finer is None else finer).detach().float().cpu().clone()
            del value, finer
    gc.collect()
    return tensors
