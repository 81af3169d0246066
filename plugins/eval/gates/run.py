"""The work of ``rbctl eval gates``: section after section, each stored as soon as it is measured."""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import click

from rbctl import formats
from rbctl.bundle.catalogue import place_of, resolve
from rbctl.bundle.fingerprints import fingerprint, generator_fingerprint
from rbctl.device import pick_device
from rbctl.files import read_object, write_json
from rbctl.menagerie.judge import Judge
from rbctl.menagerie.oracle import load_oracle
from rbctl.plugins.eval.gates.figures import against
from rbctl.plugins.eval.gates.measuring import Measuring
from rbctl.plugins.eval.gates.recipe import Gates
from rbctl.plugins.eval.gates.sections import MEASURES
from rbctl.plugins.eval.stages import Stages
from rbctl.plugins.eval.tables import aligned
from rbctl.runs import RUNS, claim, versions

GATES = RUNS / "gates"


@dataclass(frozen=True, kw_only=True)
class _Held:
    """A figure against its limits."""

    passed: bool | None
    mean: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    at_least: float | None = None
    at_most: float | None = None


@dataclass(frozen=True)
class _Section:
    gates: dict[str, _Held]


@dataclass(frozen=True)
class _Measured:
    """What of a file of figures is used again."""

    sections: dict[str, _Section] = field(default_factory=dict)


def run(
    gates: Gates,
    output: Path,
    oracle: Path | None,
    jobs: int,
    device: Literal["auto", "cpu", "cuda"],
    keep: Path | None,
    quick: bool,
    as_json: bool,
) -> str:
    """Measure section after section, and store each as soon as it is done; returns what the terminal shows."""
    gates = gates.quick() if quick else gates
    bundle, place = resolve(gates.bundle), pick_device(device)
    oracle = oracle or place_of(bundle, "oracle")
    subject = {
        "bundle": bundle.resolve().name,
        "bundle_fingerprint": generator_fingerprint(bundle),
        "oracle_fingerprint": fingerprint(oracle),
    }
    files = [output / ("gates-quick.json" if quick else "gates.json")]
    files += [keep] if keep and not quick else []  # what a smoke test comes to is not worth keeping
    settings = {
        "scenes": gates.scenes,
        "seeds": list(gates.seeds),
        "verbs": list(gates.relations),
        "device": place.type,
        "quick": quick,
    }
    with claim(output):
        folder = output / ("quick" if quick else "full") / subject["bundle_fingerprint"][:12]
        stages = Stages(folder, gates.bundle, device, 1 if quick else jobs)
        measuring = Measuring(gates, folder, stages, Judge(load_oracle(oracle, place)))
        for name, section in gates.sections.items():
            click.echo(f"== {name}", err=True)
            content, figures = MEASURES[section.measures or name](measuring, section)
            held = {title: against(gate, figures[gate.figure]) for title, gate in section.gates.items()}
            for file in files:
                store(file, subject, name, {"settings": settings, **content, "gates": held})
            click.echo(table({name: held}), err=True)
    content = read_object(files[0])
    if as_json:
        return json.dumps(content, indent=2, ensure_ascii=False)
    return f"{table({name: section['gates'] for name, section in content['sections'].items()})}\n{files[0]}"


def store(path: Path, subject: Mapping[str, str], name: str, section: Mapping[str, Any]) -> None:
    """Put a section into the file; those on another bundle or by another oracle are dropped.

    Args:
        subject: what is measured and by what, fingerprints.

    Raises:
        InputError: what the file holds is damaged.
    """
    before = read_object(path) if path.is_file() else {}
    if {key: before.get(key) for key in subject} != dict(subject):
        before = {}
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    formats.read(_Measured, before, str(path), ignore_others=True)
    sections = {**before.get("sections", {}), name: {"date": now, **section}}
    content = {
        **subject,
        "machine": {"platform": platform.platform(), "cores": os.cpu_count()},
        "versions": versions(),
        "gates": {f"{key}: {title}": g["passed"] for key, s in sections.items() for title, g in s["gates"].items()},
        "sections": sections,
    }
    write_json(path, content)


def table(sections: Mapping[str, Mapping[str, Any]]) -> str:
    """All gates, a line each: section, what, value with interval, limit, verdict."""
    rows = [["section", "gate", "value", "95 % interval", "n", "limit", ""]]
    for name, gates in sections.items():
        for title, held in gates.items():
            limits = [f">= {held['at_least']:g}"] if "at_least" in held else []
            limits += [f"<= {held['at_most']:g}"] if "at_most" in held else []
            span = f"{held['low']:.3f} .. {held['high']:.3f}" if None not in (held.get("low"), held.get("high")) else ""
            value = "-" if held["mean"] is None else f"{held['mean']:.3f}"
            verdict = {True: "passed", False: "FAILED", None: "not measured"}[held["passed"]]
            rows.append([name, title, value, span, str(held.get("n", "")), " ".join(limits), verdict])
    return aligned(rows)
