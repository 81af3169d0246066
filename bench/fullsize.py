# ruff: noqa: E402  (the checkout comes onto the path before its modules are imported)
"""SDXL, the MS-Diffusion adapter and the bigG encoders at full size on a CUDA device: what everything takes there.

python bench/fullsize.py                               # all; the part "compiled" takes long
python bench/fullsize.py --only attention,sampling
python bench/fullsize.py --only floors                 # the arithmetic of docs/performance.md, on any machine
python bench/fullsize.py --device cpu --tiny           # the whole road at small sizes

Weights are random and made here, so nothing is downloaded: the figures are of speed, never of quality. What is found
is printed as it comes and written to FOLDER/fullsize.json and .md, row by row. What cannot run (out of memory, a
backend that fails) says so on its row, and the rest goes on.

rbctl need not be installed, only what it imports: torch, torchvision, diffusers, transformers, peft, accelerate,
open_clip_torch (with ftfy and wcwidth), safetensors, click, pyyaml, pillow, numpy, tqdm, huggingface_hub. xformers and
triton where present.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # bench is no part of the distribution
    sys.path.insert(0, str(ROOT))

import rbctl

if importlib.util.find_spec("rbctl.kernels") is None:  # a checkout that is not installed
    rbctl.__path__.append(str(ROOT))

import torch

from bench.full import attention, floors, sampling, tuning
from bench.full.clocks import measure_rates
from bench.full.results import Bench, shown
from bench.full.sizes import FULL, SMALL
from rbctl.device import pick_device
from rbctl.runs import versions

PARTS: dict[str, Callable[[Bench], None]] = {
    "floors": floors.measure,
    "attention": attention.measure,
    "sampling": sampling.measure,
    "finetune": tuning.measure,
    "compiled": sampling.measure_compiled,
}


def main(arguments: Sequence[str] | None = None) -> Path:
    """Measure, print as it goes, write; returns the path of fullsize.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--tiny", action="store_true", help="small sizes and weights: to see that everything runs")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "out", help="folder of the results")
    parser.add_argument("--bundle", type=Path, help="folder to keep the weights in (15 GB); left there, they are used")
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts, of {', '.join(PARTS)}")
    options = parser.parse_args(arguments)
    wanted = [name for name in options.only.split(",") if name]
    if unknown := set(wanted) - PARTS.keys():
        parser.error(f"--only: no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    device, scale = pick_device(options.device), SMALL if options.tiny else FULL
    measured = [name for name in wanted if name != "floors"]
    if measured and device.type == "cpu" and not options.tiny:
        parser.error("full size needs CUDA; without it there are --tiny and --only floors")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        bench = Bench(device, scale, options.out, work, options.bundle or work / "bundle")
        bench.facts |= {
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "versions": ", ".join(f"{name} {number}" for name, number in _versions().items()),
        }
        if measured:
            bench.rates = measure_rates(scale.matrix, scale.copied, device, bench.dtype, scale.rounds)
            bench.free()
            bench.facts["matrix product, TFLOP/s"] = bench.rates.flops / 1e12
            bench.facts["copy, TB/s"] = bench.rates.bandwidth / 1e12
        for key, value in bench.facts.items():
            print(f"{key}: {shown(value)}", flush=True)
        for part in (part for part in PARTS if part in wanted):
            with bench.row(part, "all of this part") as row:
                begun = time.perf_counter()
                PARTS[part](bench)
                row["took s"] = time.perf_counter() - begun
            bench.write()
        return bench.write()


def _versions() -> dict[str, str]:
    numbers = versions()
    if torch.version.cuda:
        numbers["cuda"] = torch.version.cuda
    if importlib.util.find_spec("triton"):
        import triton  # type: ignore[import-untyped]

        numbers["triton"] = triton.__version__
    return numbers


if __name__ == "__main__":
    main()
