"""One process among several that share the work, whoever started them: nobody, accelerate or torchrun."""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from typing import Any, TypeVar

Item = TypeVar("Item")


class Share:
    """This process's part of the work.

    Args:
        cpu: no process takes a GPU, even where there is one.
    """

    def __init__(self, cpu: bool) -> None:
        self._state: Any = None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from accelerate import PartialState

            # A process may be done long before the slowest: by default it gives up after some minutes.
            self._state = PartialState(cpu=cpu, timeout=datetime.timedelta(days=7))

    @property
    def main(self) -> bool:
        """Whether this process puts the results together."""
        return self._state is None or bool(self._state.is_main_process)

    @property
    def device(self) -> str | None:
        """The device among several of its own, None where any will do."""
        return None if self._state is None else str(self._state.device)

    def of(self, items: Sequence[Item]) -> list[Item]:
        """The items of this process: each belongs to one, the same at every step."""
        if self._state is None:
            return list(items)
        with self._state.split_between_processes(list(range(len(items)))) as mine:
            return [items[number] for number in mine]

    def wait(self) -> None:
        """Until every process is here."""
        if self._state is not None:
            self._state.wait_for_everyone()

    def gather(self, mine: dict[Any, str]) -> dict[Any, str]:
        """The dictionaries of all processes as one."""
        if self._state is None:
            return mine
        from accelerate.utils import gather_object

        return dict(gather_object(list(mine.items())))

    def close(self) -> None:
        """Leave the group of processes."""
        if self._state is not None:
            self._state.destroy_process_group()
