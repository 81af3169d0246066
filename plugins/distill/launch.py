"""Which of how many processes this is, whoever started it: nobody, deepspeed, torchrun or Slurm."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from dataclasses import dataclass

import torch

from rbctl.errors import InputError, reason


@dataclass(frozen=True)
class World:
    """This process among all.

    Attributes:
        local_rank: its number on its machine, and of its device there.
    """

    rank: int
    size: int
    local_rank: int

    @property
    def main(self) -> bool:
        return self.rank == 0


def surroundings(env: dict[str, str]) -> dict[str, str]:
    """The five variables of torch.distributed, from what a launcher set.

    Raises:
        InputError: a launcher set only some of them.
    """
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if "RANK" in env:
        if missing := [name for name in names if name not in env]:
            raise InputError(f"RANK is set but {', '.join(missing)} not; start with deepspeed, torchrun or srun")
        return {name: env[name] for name in names}
    if "SLURM_STEP_NUM_TASKS" in env:  # set by srun alone: in a batch script a plain call is one process
        job = int(env.get("SLURM_JOB_ID", "0"))
        return {
            "RANK": env["SLURM_PROCID"],
            "LOCAL_RANK": env["SLURM_LOCALID"],
            "WORLD_SIZE": env["SLURM_STEP_NUM_TASKS"],
            "MASTER_ADDR": env.get("MASTER_ADDR") or _first_host(env),
            "MASTER_PORT": env.get("MASTER_PORT") or str(20000 + job % 20000),
        }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return dict(zip(names, ("0", "0", "1", "127.0.0.1", str(port)), strict=True))


def _first_host(env: dict[str, str]) -> str:
    hosts = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST", "")
    if not any(sign in hosts for sign in "[,"):
        return hosts or "127.0.0.1"
    try:
        shown = subprocess.run(["scontrol", "show", "hostnames", hosts], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise InputError(f"MASTER_ADDR is not set, and scontrol does not tell it ({reason(error)})") from error
    return shown.stdout.split()[0]


def join(device: torch.device) -> World:
    """Become one of the processes: DeepSpeed's communication is up afterwards (NCCL on CUDA, gloo on the CPU).

    Raises:
        InputError: the others cannot be reached.
    """
    os.environ.update(surroundings(dict(os.environ)))
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    import deepspeed
    from deepspeed.ops import __compatible_ops__

    # init_distributed would compile it, for over a minute; gloo serves without.
    __compatible_ops__["deepspeed_shm_comm"] = False
    quiet_logs()
    world = World(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"]))
    if device.type == "cuda":
        torch.cuda.set_device(world.local_rank)
    try:
        deepspeed.init_distributed("nccl" if device.type == "cuda" else "gloo", auto_mpi_discovery=False, verbose=False)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"process {world.rank} of {world.size}: cannot reach {os.environ['MASTER_ADDR']}:"
            f"{os.environ['MASTER_PORT']} ({reason(error)})"
        ) from error
    return world


def quiet_logs() -> None:
    """DeepSpeed logs to stdout, which is for results."""
    logger = logging.getLogger("DeepSpeed")
    logger.setLevel(logging.ERROR)
    for handler in logger.handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sys.stderr)


def total(value: float | torch.Tensor, device: torch.device) -> float:
    """Sum of a number over all processes."""
    from torch import distributed

    summed = torch.as_tensor(value, dtype=torch.float64).detach().to(device)
    distributed.all_reduce(summed)
    return float(summed)
