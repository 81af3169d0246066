"""Samples cut for student and teacher in worker processes, and put together into micro-batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from rbctl.errors import InputError
from rbctl.image_prompt import CLIP_MEAN, CLIP_STD
from rbctl.plugins.distill.config import DistillConfig
from rbctl.plugins.distill.grid import cells, crop, enlarged, fit, in_square, random_grid
from rbctl.plugins.distill.pictures import Order
from rbctl.processes import World, divide_batch


@dataclass(frozen=True)
class Cut:
    """One picture, or several together.

    Attributes:
        pixels: (B, 3, S, S) uint8, what the student sees.
        crops: (K, 3, c, c) uint8, what the teacher sees, picture by picture.
        boxes: per picture (K_b, 4), the crops' cells relative to the student's square.
        unreadable: names of pictures that were skipped, and why.
    """

    pixels: torch.Tensor
    crops: torch.Tensor
    boxes: list[torch.Tensor]
    unreadable: tuple[tuple[str, str], ...] = ()

    def pin_memory(self) -> Cut:
        return Cut(self.pixels.pin_memory(), self.crops.pin_memory(), self.boxes, self.unreadable)


def cut(image: Image.Image, number: object, config: DistillConfig, crop_size: int) -> Cut:
    """Cut a picture into the random cells of sample ``number``.

    Args:
        crop_size: side of the teacher's crops in pixels.
    """
    rows, columns, chosen = random_grid(config.seed, number, config.max_split, config.max_cells)
    grid = cells(rows, columns)
    boxes = [grid[index] for index in chosen]
    crops = [fit(crop(image, enlarged(box, config.crop_scale)), crop_size, centred=True) for box in boxes]
    return Cut(fit(image, config.image_size, centred=False)[None], torch.stack(crops), [in_square(boxes, *image.size)])


def together(cuts: Sequence[Cut | InputError]) -> Cut | InputError:
    """Several cuts as one, or the first error among them."""
    whole = []
    for each in cuts:
        if isinstance(each, InputError):
            return each
        whole.append(each)
    return Cut(
        torch.cat([each.pixels for each in whole]),
        torch.cat([each.crops for each in whole]),
        [boxes for each in whole for boxes in each.boxes],
        tuple(reason for each in whole for reason in each.unreadable),
    )


def normalised(pixels: torch.Tensor, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """uint8 pixels as CLIP wants them."""
    mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    return ((pixels.to(device, non_blocking=True).float() / 255 - mean) / std).to(dtype)


class Samples(Dataset[Any]):
    """Sample ``number`` of the order, cut; or why there is none: torch would bury a worker's error in its traceback."""

    def __init__(self, order: Order, config: DistillConfig, crop_size: int) -> None:
        self.order, self.config, self.crop_size = order, config, crop_size

    def __getitem__(self, number: int) -> Cut | InputError:
        try:
            sample = self.order.at(number)
        except InputError as error:
            return error
        whole = cut(sample.image, number, self.config, self.crop_size)
        return dataclasses.replace(whole, unreadable=sample.unreadable)


def numbers(config: DistillConfig, processes: int, rank: int, steps: range) -> Iterator[list[int]]:
    """The samples of a process, micro-batch after micro-batch: each step's are divided among the processes."""
    size, micro_steps = divide_batch(config.batch_size, config.micro_batch_size, processes)
    for step in steps:
        for micro in range(micro_steps):
            first = step * config.batch_size + (micro * processes + rank) * size
            yield list(range(first, first + size))


def cell_count(config: DistillConfig, step: int) -> int:
    """Cells in the whole batch of a step. It depends on the numbers alone, so every process knows it by itself."""
    first = step * config.batch_size
    return sum(
        len(random_grid(config.seed, number, config.max_split, config.max_cells)[2])
        for number in range(first, first + config.batch_size)
    )


def _one_thread(_worker: int) -> None:
    torch.set_num_threads(1)


def loader(order: Order, config: DistillConfig, crop_size: int, world: World, steps: range, pin: bool) -> Iterator[Cut]:
    """Micro-batches of a process, cut ahead of their turn in ``config.workers`` processes.

    Raises:
        InputError: the data cannot be read.
    """
    for batch in DataLoader(
        Samples(order, config, crop_size),
        batch_sampler=numbers(config, world.size, world.rank, steps),
        num_workers=config.workers,
        collate_fn=together,
        worker_init_fn=_one_thread,
        pin_memory=pin,
    ):
        if isinstance(batch, InputError):
            raise batch
        yield batch
