"""Pictures of cases by the very code of ``rbctl sample``, one model load for all of them; made once, then kept."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import yaml
from click.testing import CliRunner

from bench.gates.cases import Case
from bench.gates.sheets import write_sheet
from rbctl import lora
from rbctl.bundle.catalogue import resolve
from rbctl.bundle.config import summary
from rbctl.bundle.fingerprints import BASE, fingerprint, generator_fingerprint, local_encoder_hash
from rbctl.cli import main
from rbctl.denoising import to_pictures
from rbctl.device import DTYPES, pick_device, pick_precision
from rbctl.errors import InputError
from rbctl.files import atomic_write, read_object
from rbctl.pipeline import RelationPipeline
from rbctl.plugins.sample.config import SampleConfig
from rbctl.plugins.sample.jobs import Defaults, Job, plan
from rbctl.progress import progress
from rbctl.prompts import Prompt, PromptObject
from rbctl.relations import Box


def resolved(stage: str, *arguments: str) -> dict[str, Any]:
    """The options of a command line as the stage would run it: flags, the bundle's own recipe, defaults.

    Raises:
        InputError: the stage refuses them.
    """
    result = CliRunner().invoke(main, [stage, *arguments, "--dry-run"])
    if result.exit_code:
        raise InputError(result.output.strip() or repr(result.exception))
    return dict(yaml.safe_load(result.stdout)[stage])


def sample_config(bundle: str, *flags: str) -> SampleConfig:
    """What ``rbctl sample`` takes for a bundle where the user says nothing but ``flags``."""
    given = resolved("sample", "prompts.txt", "--bundle", bundle, *flags)
    for name in ("prompts", "config", "output"):
        given[name] = Path(given[name]) if given.get(name) else None
    return SampleConfig(**given)


@dataclass
class Sampler:
    """Samples cases with one bundle; pictures lie in ``folder`` by all that they depend on.

    Attributes:
        flags: of ``rbctl sample``, besides the bundle.
    """

    bundle: str
    folder: Path
    device: str = "auto"
    batch_size: int = 8
    flags: tuple[str, ...] = ()
    _loaded: RelationPipeline | None = field(default=None, repr=False)

    def __call__(
        self,
        cases: Sequence[Case],
        name: str,
        boxes: Sequence[Sequence[Box]] | None = None,
        lora_path: Path | None = None,
    ) -> np.ndarray:
        """uint8 (n, 3, H, W).

        Args:
            name: of the files, for people.
            boxes: per case; None for those that ``rbctl sample`` takes itself.
            lora_path: None for the base model.
        """
        config = sample_config(self.bundle, "--device", self.device, *self.flags)
        jobs = self._jobs(cases, boxes, lora_path, config)
        digest = hashlib.sha256("".join(job.record["fingerprint"] for job in jobs).encode()).hexdigest()
        kept = self.folder / "pictures" / f"{name}-{digest[:12]}.npz"
        if kept.is_file():
            with np.load(kept) as archive:
                return np.asarray(archive["pictures"])
        made = self._sample(jobs, config, lora_path, name)
        with atomic_write(kept) as partial, partial.open("wb") as file:
            np.savez(file, pictures=made)
        write_sheet(kept.with_suffix(".png"), made)
        return made

    def _jobs(
        self,
        cases: Sequence[Case],
        boxes: Sequence[Sequence[Box]] | None,
        lora_path: Path | None,
        config: SampleConfig,
    ) -> list[Job]:
        folder = resolve(self.bundle)
        prompts = [
            Prompt(
                text=case.scene.caption,
                objects=tuple(
                    PromptObject(name=one.species, image=path, box=boxes[k][role] if boxes else None)
                    for role, (one, path) in enumerate(zip(case.individuals, case.portraits, strict=True))
                ),
                seed=case.seed,
                relation=case.spoken_to,
                lora=str(lora_path) if lora_path else "none",
                source=f"{case.relation.name}:{k}",
            )
            for k, case in enumerate(cases)
        ]
        facts, scheduler = summary(folder), read_object(folder / "scheduler" / "scheduler_config.json")
        defaults = Defaults(
            resolution=facts.resolution,
            gamma=facts.gamma,
            bundle=folder.resolve().name,
            bundle_fingerprint=generator_fingerprint(folder),
            base=fingerprint(folder, BASE),
            local_encoder=local_encoder_hash(folder),
            scheduler=str(scheduler.get("_class_name")),
            precision=pick_precision(config.precision, pick_device(config.device)),
        )
        return plan(prompts, config, defaults, {str(lora_path): lora.read(lora_path)} if lora_path else {})

    def _sample(self, jobs: Sequence[Job], config: SampleConfig, lora_path: Path | None, name: str) -> np.ndarray:
        pipe = self.load(config)
        pipe.load_relation(lora_path) if lora_path else pipe.unload_relation()
        made: list[np.ndarray] = []
        with progress(len(jobs), name, unit="picture") as bar:
            for first in range(0, len(jobs), self.batch_size):
                batch = jobs[first : first + self.batch_size]
                decoded = pipe.sample([job.request for job in batch])
                made += [np.asarray(picture).transpose(2, 0, 1) for picture in to_pictures(decoded)]
                bar.update(len(batch))
        return np.stack(made)

    def load(self, config: SampleConfig) -> RelationPipeline:
        """The bundle, loaded once."""
        if self._loaded is None:
            click.echo(f"loading {self.bundle}", err=True)
            precision = pick_precision(config.precision, pick_device(config.device))
            self._loaded = RelationPipeline.from_pretrained(
                self.bundle,
                torch_dtype=DTYPES[precision],
                device=config.device,
                local_tokens=config.local_tokens,
                local_grid=config.local_grid,
                local_injection=config.local_injection,
                attention=config.attention,
            )
        return self._loaded

    def fresh(self) -> Sampler:
        """The same without what is loaded, to be sent to another process."""
        return dataclasses.replace(self, _loaded=None)

    def command_seconds(self, cases: Sequence[Case], lora_path: Path) -> float:
        """Wall clock of ``rbctl sample`` on the cases, a process of its own from start to end."""
        lines = []
        for case in cases:
            text = case.scene.caption
            for one, path in zip(case.individuals, case.portraits, strict=True):
                text = re.sub(rf"\b{one.species}\b", f"{{{one.species}: {path.resolve()}}}", text, count=1)
            lines.append(f"{text} --d {case.seed} --relation {case.spoken_to}")
        with tempfile.TemporaryDirectory() as name:
            prompts = Path(name) / "prompts.txt"
            prompts.write_text("\n".join(lines) + "\n")
            command = [sys.executable, "-m", "rbctl", "sample", str(prompts), "--output", str(Path(name) / "pictures")]
            command += ["--bundle", self.bundle, "--device", self.device, "--lora", str(lora_path), *self.flags]
            begun = time.perf_counter()
            result = subprocess.run(command, capture_output=True, text=True)
            if result.returncode:
                raise InputError(f"rbctl sample: ended with code {result.returncode}: {result.stderr[-400:]}")
            return time.perf_counter() - begun

    def round_trip(self, pictures: np.ndarray) -> np.ndarray:
        """Pictures through the VAE and back, uint8 (n, 3, H, W)."""
        device = pick_device(self.device)
        config = sample_config(self.bundle, "--device", self.device, *self.flags)
        bundle = self.load(config).bundle
        back: list[np.ndarray] = []
        for first in range(0, len(pictures), self.batch_size):
            pixels = torch.from_numpy(pictures[first : first + self.batch_size]).to(device).float() / 127.5 - 1
            latents, _ = bundle.encode_pictures(pixels)
            decoded = to_pictures(bundle.decode_latents(latents))
            back += [np.asarray(picture).transpose(2, 0, 1) for picture in decoded]
        return np.stack(back)
