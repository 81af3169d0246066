"""What this machine can run: the report behind ``rbctl doctor``."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any

import click

from rbctl.errors import InputError
from rbctl.progress import print_table
from rbctl.runs import versions

if TYPE_CHECKING:
    import torch


def examine(stages: dict[str, list[EntryPoint]]) -> dict[str, list[dict[str, str]]]:
    """Rows of {name, state} per topic: versions, devices, attention backends, bundles, stages."""
    return {
        "versions": [{"name": name, "state": version} for name, version in versions().items()],
        "devices": _devices(),
        "attention backends": _attention(),
        "bundles": _bundles(),
        "stages": _stages(stages),
    }


def _devices() -> list[dict[str, str]]:
    import torch

    rows = [{"name": "cpu", "state": f"{torch.get_num_threads()} threads"}]
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        rows.append({"name": f"cuda:{index}", "state": f"{card.name}, {card.total_memory / 2**30:.0f} GiB"})
    return rows


def _attention() -> list[dict[str, str]]:
    """The usable backends in the precision that ``auto`` picks on each device, and the one that ``auto`` takes."""
    import torch

    from rbctl.device import DTYPES, pick_precision
    from rbctl.kernels import BACKENDS

    rows = []
    for name in ("cpu", "cuda"):
        if name == "cuda" and not torch.cuda.is_available():
            continue
        device = torch.device(name)
        precision = pick_precision("auto", device)
        for backend in BACKENDS:
            reason = backend.why_not(device, DTYPES[precision])
            rows.append({"name": f"{backend.name} on {name}", "state": f"not usable: {reason}" if reason else "usable"})
        for work, plain in (("sampling", True), ("finetuning", False)):
            state = _default(device, DTYPES[precision], plain)
            rows.append({"name": f"default for {work} on {name} in {precision}", "state": state})
    return rows


def _default(device: torch.device, dtype: torch.dtype, plain: bool) -> str:
    """The backend that ``auto`` takes, and why it is that one."""
    from rbctl.device import pick_attention
    from rbctl.kernels import BACKENDS, choose

    try:
        named = pick_attention("auto", device, dtype)
    except InputError as error:
        return f"none: {error}"
    if named:
        return f"{named}: the environment variable RBCTL_ATTENTION names it"
    chosen = choose(device, dtype, plain=plain)
    before = BACKENDS[: BACKENDS.index(chosen)]
    reasons = [b.why_not(device, dtype) or f"{b.name} has a slow backward pass" for b in before]
    return f"{chosen.name}: {'; '.join(reasons) or 'the first in order of preference'}"


def _bundles() -> list[dict[str, str]]:
    from rbctl.bundle.catalogue import survey

    return [{"name": name, "state": state} for name, state in survey()]


def _stages(stages: dict[str, list[EntryPoint]]) -> list[dict[str, Any]]:
    rows = []
    for name, offered in sorted(stages.items()):
        where = " and ".join(f"{e.dist.name} {e.dist.version}" if e.dist else e.value for e in offered)
        rows.append({"name": name, "state": where + (" (conflict)" if len({e.value for e in offered}) > 1 else "")})
    return rows


def print_report(report: dict[str, list[dict[str, str]]]) -> None:
    """The report on stdout: a table for each topic."""
    for topic, rows in report.items():
        click.echo(topic)
        print_table([], [[f"  {row['name']}", row["state"]] for row in rows] or [["  none"]])
