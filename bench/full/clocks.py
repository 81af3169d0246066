"""Time, memory, the device's own rates, and where a call spends its time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch.autograd import DeviceType

Row = dict[str, Any]  # column, unit included -> value
SPOTS = 15  # lines of a profile


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(call: Callable[[], Any], device: torch.device, rounds: int, warm_up: int = 1) -> float:
    """Median seconds of a call as it is made, launches included; by CUDA events where there is CUDA."""
    for _ in range(warm_up):
        call()
    times = []
    for _ in range(rounds):
        synchronize(device)
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / 1e3)
        else:
            begun = time.perf_counter()
            call()
            times.append(time.perf_counter() - begun)
    return statistics.median(times)


def device_seconds(calls: Sequence[Callable[[], Any]], device: torch.device, rounds: int) -> float:
    """Median seconds of one of several alike calls, launches left out: they are replayed as one CUDA graph.

    On the CPU launches cannot be told apart.
    """
    if device.type != "cuda":
        return seconds(calls[0], device, rounds)
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for call in calls[:3]:
            call()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        held = [call() for call in calls]  # so that no result is written where another still lies in the cache
    median = seconds(graph.replay, device, rounds) / len(calls)
    del held
    return median


def once(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call, the first included."""
    begun = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - begun


def peak(call: Callable[[], Any], device: torch.device) -> tuple[Any, int | None]:
    """What a call gives, and the most bytes PyTorch held at once meanwhile, weights and all (None on the CPU)."""
    if device.type != "cuda":
        return call(), None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    result = call()
    torch.cuda.synchronize(device)
    return result, torch.cuda.max_memory_allocated(device)


def gigabytes(count: int | None) -> Row:
    """Of :func:`peak`, as a column."""
    return {} if count is None else {"peak GB": count / 1e9}


class Rates(NamedTuple):
    """What the device does at best: FLOP/s of a large matrix product, bytes/s read and written by a large copy."""

    flops: float
    bandwidth: float


def measure_rates(side: int, copied: int, device: torch.device, dtype: torch.dtype, rounds: int) -> Rates:
    """The rates on random numbers: matrices of ``side`` x ``side``, ``copied`` bytes."""
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    product = seconds(lambda: torch.mm(a, b), device, rounds, warm_up=3)
    source = torch.randn(copied // 4, device=device)
    target = torch.empty_like(source)
    copy = seconds(lambda: target.copy_(source), device, rounds, warm_up=3)
    return Rates(2 * side**3 / product, 2 * copied / copy)


def hot_spots(call: Callable[[], Any], device: torch.device) -> tuple[float, list[Row]]:
    """Milliseconds on the device of a call, and where they went: kernels on CUDA, operators on the CPU."""
    call()
    synchronize(device)
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=kinds) as profile:
        call()
        synchronize(device)
    events = profile.key_averages()
    if device.type == "cuda":
        costs = [(e.self_device_time_total, e) for e in events if e.device_type == DeviceType.CUDA]
        costs = [(cost, e) for cost, e in costs if not e.is_user_annotation]
    else:
        costs = [(e.self_cpu_time_total, e) for e in events]
    costs.sort(key=lambda pair: -pair[0])
    total = sum(cost for cost, _ in costs)
    rows = [
        {"what": e.key[:80], "share": cost / total, "ms": cost / 1e3, "calls": e.count}
        for cost, e in costs[:SPOTS]
        if cost
    ]
    return total / 1e3, rows
