"""``python -m bench.gates``: options, then section after section."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import click
import torch

from bench.gates import results
from bench.gates.judge import Judge
from bench.gates.sampling import Sampler
from bench.gates.sections import SECTIONS, Bench
from bench.gates.tuning import Tuner
from rbctl.bundle.catalogue import resolve
from rbctl.bundle.fingerprints import fingerprint, generator_fingerprint
from rbctl.device import pick_device
from rbctl.errors import InputError, nearest
from rbctl.files import read_yaml, write_json
from rbctl.menagerie.oracle import load_oracle
from rbctl.options import find_recipe

VERBS = ("ride", "hug", "shake_hands", "carry", "high_five")
OUT = Path(__file__).resolve().parents[1] / "out"
# A smoke test: everything runs, nothing is learnt.
_QUICK_FINETUNE = ("--steps", "2", "--batch-size", "2", "--gradient-accumulation", "1", "--prior-count", "2")
_QUICK_SAMPLE = ("--steps", "2")


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.gates", description=__doc__)
    add = parser.add_argument
    add("--only", default=",".join(SECTIONS), metavar="A,B", help="sections [default: %(default)s]")
    add("--bundle", default="mini", help="a name of 'rbctl models list', or a folder [default: %(default)s]")
    add("--oracle", type=Path, metavar="FOLDER", help="[default: BUNDLE/oracle]")
    add("--scenes", type=int, default=200, help="held-out scenes of a section, in all [default: %(default)s]")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the LoRAs [default: 0 1 2]")
    add("--verbs", nargs="+", default=list(VERBS), help=f"what LoRAs are tuned on [default: {' '.join(VERBS)}]")
    add("--jobs", type=int, default=2, help="processes at once, one thread each; 1: all cores for one [default: 2]")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"))
    add("--batch-size", type=int, help="pictures sampled at once [default: 8, on CUDA 100]")
    add("--out", type=Path, default=OUT, help="where everything goes [default: bench/out]")
    add("--keep", type=Path, metavar="FILE", help="write the result here too, as docs/mini-gates.json")
    add("--quick", action="store_true", help="a smoke test: one scene each, one verb, two steps; in gates-quick.json")
    return parser


def main(arguments: Sequence[str] | None = None) -> Path:
    """Measure the gates of a bundle and write gates.json, section by section; those measured before stay in it.

    Returns:
        Path of the file.
    """
    given = _options().parse_args(arguments)
    bundle, oracle, scenes, jobs, quick = given.bundle, given.oracle, given.scenes, given.jobs, given.quick
    names = [name for name in given.only.split(",") if name]
    for name in names:
        if name not in SECTIONS:
            raise InputError(f"--only {name}: no such section{nearest(name, SECTIONS) or ': ' + ', '.join(SECTIONS)}")
    folder, picked = resolve(bundle), pick_device(given.device)
    recipe = read_yaml(find_recipe("mini"))["pretrain"]
    easy, held_out = tuple(recipe["easy"]), tuple(recipe["held_out"])
    chosen, numbers = tuple(given.verbs), tuple(given.seeds)
    if quick:
        scenes, chosen, numbers, easy, held_out = 1, chosen[:1], numbers[:1], easy[:2], chosen[:1]
    else:
        held_out = (*held_out, *(verb for verb in chosen if verb not in held_out))
    subject = {
        "bundle": folder.resolve().name,
        "bundle_fingerprint": generator_fingerprint(folder),
        "oracle_fingerprint": fingerprint(oracle or folder / "oracle"),
    }
    if jobs > 1:
        torch.set_num_threads(1)
    work = given.out / ("gates-quick" if quick else "gates") / subject["bundle_fingerprint"][:12]
    bench = Bench(
        folder=work,
        scenes=scenes,
        seeds=numbers,
        verbs=chosen,
        easy=easy,
        held_out=held_out,
        sampler=Sampler(
            bundle=str(folder),
            folder=work,
            device=given.device,
            batch_size=given.batch_size or (100 if picked.type == "cuda" else 8),
            flags=_QUICK_SAMPLE if quick else (),
        ),
        tuner=Tuner(
            bundle=str(folder),
            folder=work,
            device=given.device,
            flags=_QUICK_FINETUNE if quick else (),
            triplets=2 if quick else 6,
            threads=1 if jobs > 1 else 0,
        ),
        judge=Judge(load_oracle(oracle or folder / "oracle", picked)),
        jobs=1 if quick else jobs,
        easy_each=1 if quick else Bench.easy_each,
    )
    path = given.out / ("gates-quick.json" if quick else "gates.json")
    settings = {"scenes": scenes, "seeds": list(numbers), "verbs": list(chosen), "device": picked.type, "quick": quick}
    for name in names:
        click.echo(f"== {name}", err=True)
        section = SECTIONS[name](bench)
        content = results.store(path, subject, name, {"settings": settings, **section})
        click.echo(results.table({**content, "sections": {name: content["sections"][name]}}), err=True)
    if given.keep and not quick:  # what a smoke test finds is not worth keeping
        write_json(given.keep, results.read(path))
    return path


if __name__ == "__main__":
    try:
        path = main()
    except (InputError, click.ClickException) as error:
        sys.exit(f"bench.gates: {error if isinstance(error, InputError) else error.format_message()}")
    print(results.table(results.read(path)))
    print(path)
