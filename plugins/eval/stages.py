"""Other stages as commands: asked what they would do, and run, several at once; what is made already stays."""

from __future__ import annotations

import functools
import os
import re
import signal
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from annotated_types import Interval

from rbctl import formats
from rbctl.bundle.catalogue import resolve
from rbctl.errors import InputError
from rbctl.files import content_hash, read_object, write_json, write_text
from rbctl.progress import progress
from rbctl.relations import Relation
from rbctl.runs import COMMAND, start, stop_signals

_PAUSE = 0.1  # seconds between looks at what runs
_MADE = "made.json"  # written last, so what it stands beside is whole

Options = dict[str, Any]
SEED = Interval(ge=0, le=2**63 - 10_001)  # the stages' own
# What whoever runs a stage says itself, and no recipe of variants or gates.
OURS = {
    "finetune": ("relation", "class_noun", "data", "bundle", "output", "resume", "seed", "device"),
    "sample": ("prompts", "config", "bundle", "output", "relation", "lora", "embedding", "seed", "images", "device"),
}


def digest(facts: Any) -> str:
    """Short name of plain data, by its content."""
    return content_hash(facts)[:10]


def complete(stage: str, options: Options, bundle: str, where: str, *arguments: str) -> Options:
    """Every option of a stage but ``OURS``, with what is not given as the stage and the bundle's own recipe have it.

    Args:
        arguments: that the stage cannot do without.

    Raises:
        InputError: the stage refuses one; it begins with ``where``.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "recipe.yaml"
        file.write_text(yaml.safe_dump({stage: options}), encoding="utf-8")
        command = [*COMMAND, stage, *arguments, "--bundle", bundle, "--recipe", str(file), "--dry-run"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"{where}: {stage}: {last_line(done.stderr).removeprefix(f'{file}: ')}")
    return {key: value for key, value in yaml.safe_load(done.stdout)[stage].items() if key not in OURS[stage]}


def last_line(text: str) -> str:
    """The last line that says something (a progress bar's are ended by carriage returns), without "Error: "."""
    lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
    return lines[-1].removeprefix("Error: ") if lines else "it said nothing"


@dataclass(frozen=True)
class Step:
    """A command line of ``rbctl``.

    Attributes:
        log: what it says on stderr is added here.
        done: called with what it printed and the seconds it took, once it has ended well.
    """

    arguments: tuple[str, ...]
    log: Path
    done: Callable[[str, float], None]


@dataclass(frozen=True)
class Stages:
    """The stages that make what is scored, on one bundle.

    Attributes:
        folder: holds all that they make; their recipes lie in recipes/ there.
        device: auto, cpu or cuda, for all stages.
        jobs: commands at once.
    """

    folder: Path
    bundle: str
    device: Literal["auto", "cpu", "cuda"] = "auto"
    jobs: int = 1

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of what the bundle generates with."""
        from rbctl.bundle.fingerprints import generator_fingerprint

        return generator_fingerprint(resolve(self.bundle))

    def tuning_key(self, relation: Relation, seed: int, *facts: Any) -> str:
        """Short name of a tuning, by all that its result depends on."""
        from rbctl.menagerie.triplets import DRAWN_AS  # here, since recipes are read without torch

        return digest([self.fingerprint, repr(relation), DRAWN_AS, seed, *facts])

    def finetune(self, tuned: Path, options: Options, *arguments: str) -> Step:
        """The tuning whose result lies in ``tuned``; :func:`learned` names its file once it has ended."""
        began_before = (tuned / "metrics.jsonl").is_file()

        def keep(printed: str, seconds: float) -> None:
            result = Path(last_line(printed))
            if not result.is_file():
                raise InputError(f"{tuned / 'log.txt'}: rbctl finetune ended without a result ({result})")
            facts = {"result": os.path.relpath(result, tuned), "threads": 1 if self.jobs > 1 else os.cpu_count()}
            write_json(tuned / _MADE, {**facts, "seconds": None if began_before else round(seconds, 1)})

        flags = self._flags("finetune", options)
        return Step(("finetune", *arguments, *flags, "--output", str(tuned)), tuned / "log.txt", keep)

    def sample(self, shown: Path, prompts: Mapping[str, Any], options: Options, done: Callable[[], None]) -> Step:
        """The pictures of prompts in ``shown``.

        Args:
            done: called once they are there.
        """
        file = shown.with_suffix(".yaml")
        write_text(file, yaml.safe_dump(prompts, sort_keys=False, allow_unicode=True))

        flags = self._flags("sample", options)
        command = ("sample", str(file), "--no-prompt-weighting", *flags, "--output", str(shown))
        return Step(command, shown / "log.txt", lambda printed, seconds: done())

    def _flags(self, stage: str, options: Options) -> list[str]:
        """Flags that give a stage its options, in a recipe file of their own."""
        path = self.folder / "recipes" / f"{stage}-{digest(options)}.yaml"
        write_text(path, yaml.safe_dump({stage: options}, sort_keys=False))
        return ["--recipe", str(path), "--bundle", self.bundle, "--device", self.device]


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """A tuning that has ended.

    Attributes:
        result: its file, by its path from the folder.
        threads: of the CPU that it had.
        seconds: it took; None where it was interrupted.
    """

    result: formats.Words
    threads: formats.Positive | None = None
    seconds: Annotated[float, Interval(ge=0)] | None = None


def tuning(tuned: Path) -> Tuning | None:
    """What is known of a tuning once it has ended; None before.

    Raises:
        InputError: what is known is damaged.
    """
    path = tuned / _MADE
    return formats.read(Tuning, read_object(path), str(path)) if path.is_file() else None


def learned(tuned: Path) -> Path | None:
    """The LoRA or embedding that a tuning made, once it has ended."""
    made = tuning(tuned)
    path = tuned / made.result if made else None
    return path if path and os.path.isfile(path) else None


def run_steps(steps: Iterable[Step], jobs: int, label: str) -> None:
    """Run commands, ``jobs`` at once, on one thread each where that is more than one.

    When this process is asked to stop, so are they; they save what they have. One that fails stops no other.

    Raises:
        InputError: commands failed: how many, the last line of the first, and where its log lies.
    """
    waiting = deque(steps)
    total, failed = len(waiting), list[str]()
    if not total:
        return
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} if jobs > 1 else None
    running: dict[subprocess.Popen[str], tuple[Step, float]] = {}  # and when each began
    with stop_signals() as stop, progress(total, label, unit="run") as bar:
        asked = False
        try:
            while running or (waiting and not stop.requested):
                while waiting and len(running) < jobs and not stop.requested:
                    step = waiting.popleft()
                    running[_start(step, environment)] = step, time.perf_counter()
                if stop.requested and not asked:
                    asked = True
                    _interrupt(running)
                for process in [p for p in running if p.poll() is not None]:
                    step, began = running.pop(process)
                    assert process.stdout is not None
                    printed = process.stdout.read()
                    process.stdout.close()
                    if process.returncode == 0:
                        step.done(printed, time.perf_counter() - began)
                        bar.update()
                    elif not stop.requested:
                        last = last_line(step.log.read_text(encoding="utf-8", errors="replace"))
                        code = "" if process.returncode == 2 else f" ended with code {process.returncode}"
                        failed.append(f"rbctl {step.arguments[0]}{code}: {last} (log: {step.log})")
                time.sleep(_PAUSE)
        finally:
            _interrupt(running)
            for process in running:
                process.wait()
    if stop.requested:
        raise KeyboardInterrupt
    if failed:
        several = f"{len(failed)} of {total} failed, the others are kept; the first: " if total > 1 else ""
        raise InputError(several + failed[0])


def _start(step: Step, environment: dict[str, str] | None) -> subprocess.Popen[str]:
    step.log.parent.mkdir(parents=True, exist_ok=True)
    with step.log.open("a", encoding="utf-8") as log:
        # In a session of its own: Ctrl-C reaches it through us alone, once.
        return start(step.arguments, stdout=subprocess.PIPE, stderr=log, env=environment, start_new_session=True)


def _interrupt(running: Iterable[subprocess.Popen[str]]) -> None:
    for process in running:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
