"""All randomness of distillation as a function of (seed, sample number): processes and resuming change nothing."""

from __future__ import annotations

import functools

import torch

from rbctl.draws import generator


@functools.lru_cache(maxsize=2)  # of an epoch and the next
def permutation(seed: int, what: str, epoch: int, count: int) -> torch.Tensor:
    """The order of ``count`` things in an epoch."""
    return torch.randperm(count, generator=generator(seed, what, epoch))


@functools.cache
def grids(max_split: int) -> tuple[tuple[int, int], ...]:
    """Every grid (rows M, columns N) that a picture may be cut into: ceil(M / 2) <= N <= min(2 M, max_split)."""
    return tuple(
        (rows, columns)
        for rows in range(1, max_split + 1)
        for columns in range((rows + 1) // 2, min(2 * rows, max_split) + 1)
    )


def draw_grid(seed: int, number: object, max_split: int, max_cells: int) -> tuple[int, int, list[int]]:
    """Rows, columns, and which cells are kept (row by row counted, shuffled) of sample ``number``."""
    random = generator(seed, "grid", number)
    choices = grids(max_split)
    rows, columns = choices[int(torch.randint(len(choices), (), generator=random))]
    return rows, columns, torch.randperm(rows * columns, generator=random)[:max_cells].tolist()


def draw_size(seed: int, step: int, sizes: tuple[int, ...], otherwise: int) -> int:
    """Side of the student's pictures at a step, the same in all processes."""
    if not sizes:
        return otherwise
    return sizes[int(torch.randint(len(sizes), (), generator=generator(seed, "size", step)))]
