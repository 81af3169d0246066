"""What the parts share, and the rows they find."""

from __future__ import annotations

import contextlib
import gc
import math
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from bench.full.clocks import Rates, Row, hot_spots, once
from bench.full.sizes import FULL, Scale
from rbctl.bundle.bundle import Bundle
from rbctl.bundle.load import load
from rbctl.bundle.random_weights import write_random
from rbctl.device import DTYPES, pick_precision
from rbctl.errors import reason
from rbctl.files import write_json, write_text
from rbctl.kernels import BACKENDS


class Bench:
    """What the parts share: the device, its rates, the bundle, and the rows found so far.

    Attributes:
        out: folder of the results. work: folder of what is thrown away. folder: of the bundle.
    """

    def __init__(self, device: torch.device, scale: Scale, out: Path, work: Path, folder: Path) -> None:
        self.device, self.scale, self.out, self.work, self.folder = device, scale, out, work, folder
        self.precision = pick_precision("auto", device)
        self.dtype = DTYPES[self.precision]
        self.facts: Row = {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "sizes": "full" if scale is FULL else "small: no figure of these means anything",
        }
        self.sections: dict[str, list[Row]] = {}
        self._bundle: Bundle | None = None
        self.rates = Rates(math.nan, math.nan)

    @property
    def backends(self) -> list[str]:
        return [backend.name for backend in BACKENDS if backend.why_not(self.device, self.dtype) is None]

    @contextlib.contextmanager
    def row(self, section: str, what: str, **columns: Any) -> Iterator[Row]:
        """A row to fill; what fails in the block becomes its column ``failed``, and the bench goes on."""
        row: Row = {"what": what, **columns}
        try:
            yield row
        except Exception as error:  # foreign code of every kind: the rest shall be measured all the same
            row["failed"] = f"{type(error).__name__}: {reason(error)}"
            traceback.clear_frames(error.__traceback__)  # they hold what the next row needs the memory for
        self.sections.setdefault(section, []).append(row)
        self.write()  # the run may be cut off
        print(f"{section} | " + "  ".join(f"{key} {shown(value)}" for key, value in row.items()), flush=True)
        self.free()

    def free(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def profile(self, section: str, call: Callable[[], Any]) -> None:
        """Where a call spends its time, as a section of its own."""
        spots: list[Row] = []
        with self.row(section, "all", share=1.0) as row:
            row["ms"], spots = hot_spots(call, self.device)
        for spot in spots:
            with self.row(section, **spot):
                pass

    @property
    def bundle(self) -> Bundle:
        """The whole bundle; its weights are drawn and written the first time, unless they lie there already."""
        if self._bundle is None:
            if not (self.folder / "bundle.json").is_file():  # the last file written
                with self.row("bundle", "drawn and written") as row:
                    row["s"] = once(self._write, self.device)
                    row["GB"] = sum(path.stat().st_size for path in self.folder.rglob("*.safetensors")) / 1e9
            with self.row("bundle", "loaded onto the device") as row:
                row["s"] = once(self._load, self.device)
                if self.device.type == "cuda":
                    row["GB"] = torch.cuda.memory_allocated() / 1e9
            if self._bundle is None:
                raise RuntimeError("there is no bundle to measure with")
        return self._bundle

    def _write(self) -> None:
        generator = torch.Generator(self.device).manual_seed(0)
        write_random(self.folder, self.scale.architecture, generator, self.dtype)

    def _load(self) -> None:
        self._bundle = load(str(self.folder), self.device, self.dtype)

    def drop(self) -> None:
        """Let the bundle go, and its memory with it."""
        self._bundle = None
        self.free()

    def write(self) -> Path:
        """Write the two files of results; returns the path of the first."""
        content = {**self.facts, "sections": self.sections}
        path = self.out / "fullsize.json"
        write_json(path, content)
        write_text(path.with_suffix(".md"), markdown(content))
        return path


def shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def markdown(content: Mapping[str, Any]) -> str:
    """The facts, then a table a section; every row has the columns of all."""
    lines = [f"{key}: {shown(value)}  " for key, value in content.items() if key != "sections"]
    for name, rows in content["sections"].items():
        columns = list(dict.fromkeys(key for row in rows for key in row))
        lines += ["", f"### {name}", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        cells = ([shown(row.get(key, "")).replace("|", "\\|") for key in columns] for row in rows)
        lines += [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join(lines) + "\n"
