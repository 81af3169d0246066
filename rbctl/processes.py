"""Which process this is among all of a run, whoever started them: nobody, torchrun, accelerate, deepspeed or srun.

with together() as world:  # a single process sets up nothing
    mine = world.part(pictures)
    everybodys = world.gathered(work(mine))
    world.wait()
    if world.first: ...
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rbctl.errors import InputError, reason

if TYPE_CHECKING:
    import torch

Item = TypeVar("Item")

# One process may be done long before the slowest; by default torch gives up after some minutes.
PATIENCE = datetime.timedelta(days=7)
_NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torch.distributed reads
_LOST = ("connection closed by peer", "connection reset by peer", "gloo", "nccl", "timed out")  # another has ended


@dataclass(frozen=True)
class World:
    """This process among all of a run. What needs the others works inside :func:`together`.

    Attributes:
        rank: its number, from 0.
        size: how many there are.
        local_rank: its number on its machine, and that of its GPU there.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this process writes what only one may write."""
        return self.rank == 0

    def device(self, device: torch.device) -> torch.device:
        """The process's own GPU where ``device`` is CUDA and several share the run; else ``device``."""
        import torch

        if self.size == 1 or device.type != "cuda":
            return device
        own = torch.device("cuda", self.local_rank)
        torch.cuda.set_device(own)
        return own

    def part(self, items: Sequence[Item]) -> list[Item]:
        """The items of this process: neighbours, each item in one process, the same at every call."""
        size, larger = divmod(len(items), self.size)
        start = self.rank * size + min(self.rank, larger)
        return list(items[start : start + size + (self.rank < larger)])

    def wait(self) -> None:
        """Go on when every process has come here."""
        if self.size > 1:
            from torch import distributed

            distributed.barrier()

    def gathered(self, value: Item) -> list[Item]:
        """The values of all processes, by rank."""
        if self.size == 1:
            return [value]
        from torch import distributed

        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values

    def anywhere(self, flag: bool, device: torch.device | None = None) -> bool:
        """Whether the flag is raised in any process. A signal may reach one alone, and all must stop at one step.

        Args:
            device: where the processes talk: CUDA inside ``together(device)`` on CUDA.
        """
        if self.size == 1:
            return flag
        import torch

        raised = torch.tensor(float(flag), device=device)
        torch.distributed.all_reduce(raised)
        return bool(raised > 0)


def world(environment: Mapping[str, str] = os.environ) -> World:
    """This process, as the launcher's variables have it; alone without a launcher."""
    for rank, size, local in (
        ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
        ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),  # the step's number is set by srun alone
    ):
        if rank in environment and size in environment:
            return World(int(environment[rank]), int(environment[size]), int(environment.get(local, "0")))
    return World()


def divide_batch(batch_size: int, most: int, processes: int) -> tuple[int, int]:
    """Divide the batch of an optimizer step evenly: samples of a process at a time, and micro-steps.

    Args:
        batch_size: samples of an optimizer step, over all processes.
        most: samples that a process takes at a time, at most.

    Raises:
        InputError: the batch cannot be divided among the processes; numbers of them that fit are told.
    """
    share, rest = divmod(batch_size, processes)
    if rest:
        fit = ", ".join(str(n) for n in range(1, min(batch_size, 1024) + 1) if batch_size % n == 0)
        less, more = share * processes, (share + 1) * processes
        sizes = f"{less} or {more}" if less else str(more)
        raise InputError(
            f"--batch-size {batch_size}: cannot be divided among {processes} processes; start {fit} of them, or take "
            f"--batch-size {sizes}"
        )
    size = max(n for n in range(1, min(share, most) + 1) if share % n == 0)
    return size, share // size


@contextlib.contextmanager
def together(
    device: torch.device | None = None, timeout: datetime.timedelta | None = PATIENCE, even_alone: bool = False
) -> Iterator[World]:
    """Let the processes of a run talk while the block lasts; a single process sets up nothing.

    Args:
        device: CUDA: they talk from GPU to GPU (NCCL); else from CPU to CPU (gloo).
        timeout: how long one waits for the others; None: torch's own, some minutes.
        even_alone: set up torch.distributed for a single process too; DeepSpeed needs it.

    Raises:
        InputError: the others cannot be reached, or one of them has ended.
    """
    here = world()
    if here.size == 1 and not even_alone:
        yield here
        return
    from torch import distributed

    if distributed.is_initialized():
        yield here
        return
    variables = launched(os.environ)
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    backend = "gloo" if device is None or device.type == "cpu" else "nccl"
    try:
        if device is not None:
            here.device(device)
        distributed.init_process_group(backend, timeout=timeout)
    except (RuntimeError, ValueError) as error:
        place = f"{variables['MASTER_ADDR']}:{variables['MASTER_PORT']}"
        raise InputError(f"process {here.rank} of {here.size}: cannot reach {place} ({reason(error)})") from error
    try:
        yield here
    except RuntimeError as error:
        if type(error).__name__ == "OutOfMemoryError" or not any(sign in str(error).lower() for sign in _LOST):
            raise
        raise InputError(
            "another process of the run has ended, by an error that it tells or by a kill; the same command again goes "
            "on from what was saved"
        ) from error
    finally:
        distributed.destroy_process_group()
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def launched(environment: Mapping[str, str]) -> dict[str, str]:
    """The five variables of torch.distributed, from what a launcher set; of a single process without one.

    Raises:
        InputError: a launcher set only some of them.
    """
    if "RANK" in environment:
        if missing := [name for name in _NAMES if name not in environment]:
            raise InputError(f"RANK is set but {', '.join(missing)} not; start with deepspeed, torchrun or srun")
        return {name: environment[name] for name in _NAMES}
    if "SLURM_STEP_NUM_TASKS" in environment:  # in a batch script a plain call, without srun, is one process
        job = int(environment.get("SLURM_JOB_ID", "0"))
        return {
            "RANK": environment["SLURM_PROCID"],
            "LOCAL_RANK": environment["SLURM_LOCALID"],
            "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
            "MASTER_ADDR": environment.get("MASTER_ADDR") or _first_host(environment),
            "MASTER_PORT": environment.get("MASTER_PORT") or str(20000 + job % 20000),
        }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return dict(zip(_NAMES, ("0", "0", "1", "127.0.0.1", str(port)), strict=True))


def first_to_tell(line: str) -> bool:
    """Whether no other process that the same launcher started on this machine has told this line.

    torchrun and accelerate give each process a file for its error, and show at their end what lies there.
    """
    if not (own := os.environ.get("TORCHELASTIC_ERROR_FILE")):
        return True
    details = {"py_callstack": line, "timestamp": str(int(time.time()))}
    everybodys = Path(own).parent.parent
    try:
        Path(own).write_text(json.dumps({"message": {"message": line, "extraInfo": details}}), encoding="utf-8")
        (everybodys / hashlib.sha256(line.encode()).hexdigest()).touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:  # the folder is gone; better told twice than never
        return True
    return True


def _first_host(environment: Mapping[str, str]) -> str:
    hosts = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
    if not any(sign in hosts for sign in "[,"):
        return hosts or "127.0.0.1"
    try:
        shown = subprocess.run(["scontrol", "show", "hostnames", hosts], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise InputError(f"MASTER_ADDR is not set, and scontrol does not give it ({reason(error)})") from error
    return shown.stdout.split()[0]
