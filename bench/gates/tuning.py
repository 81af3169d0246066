"""LoRAs by ``rbctl finetune`` itself, a process each; finished ones are kept."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.gates.sampling import resolved
from rbctl import lora
from rbctl.errors import InputError
from rbctl.files import read_json, write_json
from rbctl.layout import LayoutPrior
from rbctl.menagerie.triplets import DRAWN_AS
from rbctl.plugins.finetune.config import FinetuneConfig
from rbctl.relations import Box, load_relation

_DEFAULTS = {field.name: field.default for field in dataclasses.fields(FinetuneConfig)}


@dataclass(frozen=True)
class Lora:
    """A finished LoRA.

    Attributes:
        boxes: of its layout prior, in the order of the roles.
        seconds: wall clock of the whole command on ``threads`` threads; None where it was taken up after a stop.
        steps: of the optimizer.
        forgetting: what ``rbctl finetune`` itself reported, None where there was no prior set.
    """

    path: Path
    boxes: tuple[Box, ...]
    seconds: float | None
    threads: int
    steps: int
    forgetting: dict[str, Any] | None = None


@dataclass(frozen=True)
class Tuner:
    """Tunes LoRAs on one bundle, under ``folder``.

    Attributes:
        flags: of ``rbctl finetune``, besides what is asked for.
        triplets: how many.
        threads: of a process on the CPU, 0 for as many as there are cores.
    """

    bundle: str
    folder: Path
    device: str = "auto"
    flags: tuple[str, ...] = ()
    triplets: int = 6
    threads: int = 1

    def __call__(self, spoken_to: str, seed: int, again: str = "") -> Lora:
        """Tune, unless it is done.

        Args:
            spoken_to: the relation, a name or a YAML's path.
            again: a word for a run of its own beside one that is done already, to take its time.

        Raises:
            InputError: the command failed; its last line is told.
        """
        relation = load_relation(spoken_to)
        arguments = ["--relation", spoken_to, "--bundle", self.bundle, "--seed", str(seed), "--device", self.device]
        arguments += ["--triplets", str(self.triplets), *self.flags]
        recipe = resolved("finetune", *arguments)
        # Only what differs from the defaults: a new option of finetune makes no LoRA old. The bundle names the folder.
        told = {n: value for n, value in recipe.items() if value != _DEFAULTS.get(n) and n != "bundle"}
        facts = json.dumps([told, repr(relation), DRAWN_AS], sort_keys=True, default=str)
        rules = hashlib.sha256(facts.encode()).hexdigest()
        output = self.folder / "loras" / "-".join(filter(None, (relation.name, f"s{seed}", rules[:8], again)))
        record = output / "timed.json"
        if not record.is_file():
            self._run([*arguments, "--output", str(output)], output, record, int(recipe["steps"]))
        forgetting, path = output / "forgetting.json", output / "lora.safetensors"
        prior = LayoutPrior.from_json(lora.read(path).metadata["rbctl.layout_prior"], str(path))
        return Lora(
            path=path,
            boxes=prior.boxes(),
            forgetting=read_json(forgetting) if forgetting.is_file() else None,
            **read_json(record),
        )

    def _run(self, arguments: Sequence[str], output: Path, record: Path, steps: int) -> None:
        begun_before = (output / "metrics.jsonl").is_file()
        environment = dict(os.environ, **({"OMP_NUM_THREADS": str(self.threads)} if self.threads else {}))
        output.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "rbctl", "finetune", *arguments]
        with (output / "log.txt").open("a") as log:
            begun = time.perf_counter()
            code = subprocess.run(command, stdout=log, stderr=log, env=environment).returncode
            seconds = time.perf_counter() - begun
        if code:
            said = re.split(r"[\r\n]+", (output / "log.txt").read_text().strip())
            raise InputError(f"{' '.join(command[2:])}: ended with code {code}: {said[-1]}")
        threads = self.threads or os.cpu_count() or 1
        write_json(record, {"seconds": None if begun_before else round(seconds, 1), "threads": threads, "steps": steps})
