"""What this machine can run: the report behind ``rbctl doctor``."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import Any

from rbctl.runs import versions


def examine(stages: dict[str, list[EntryPoint]]) -> dict[str, list[dict[str, str]]]:
    """Rows of {name, state} per topic: versions, devices, attention backends, bundles, stages."""
    return {
        "versions": [{"name": name, "state": found} for name, found in versions().items()],
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
    import torch

    from rbctl.kernels import BACKENDS, choose

    rows = []
    for device in ("cpu", "cuda"):
        if device == "cuda" and not torch.cuda.is_available():
            continue
        default = choose(torch.device(device), torch.float32).name
        for backend in BACKENDS:
            reason = backend.why_not(torch.device(device), torch.float32)
            state = f"not usable: {reason}" if reason else "usable" + (", default" if backend.name == default else "")
            rows.append({"name": f"{backend.name} on {device}", "state": state})
    return rows


def _bundles() -> list[dict[str, str]]:
    from rbctl.bundle.catalogue import survey

    return [{"name": name, "state": state} for name, state in survey()]


def _stages(stages: dict[str, list[EntryPoint]]) -> list[dict[str, Any]]:
    rows = []
    for name, offered in sorted(stages.items()):
        where = " and ".join(f"{e.dist.name} {e.dist.version}" if e.dist else e.value for e in offered)
        rows.append({"name": name, "state": where + (" (conflict)" if len({e.value for e in offered}) > 1 else "")})
    return rows


def table(report: dict[str, list[dict[str, str]]]) -> str:
    """The report as aligned text."""
    width = max(len(row["name"]) for rows in report.values() for row in rows)
    lines = []
    for topic, rows in report.items():
        lines.append(topic)
        lines += [f"  {row['name']:<{width}}  {row['state']}" for row in rows] or ["  none"]
    return "\n".join(lines)
