"""``python tests/fuzz``: break the input of every reader, judge what it does, and print how to repeat what is wrong."""

from __future__ import annotations

import resource
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import click
from fuzzing import fuzz
from readers import READERS

MEMORY = 8 << 30  # bytes


@click.command()
@click.option("--inputs", default=50_000, help="Broken inputs in all.")
@click.option("--seed", default=0, help="Another one gives other inputs.")
@click.option("--reader", "names", multiple=True, type=click.Choice(list(READERS)), help="Only these.")
@click.option("--case", type=int, help="Only this input of the reader, shown.")
def main(inputs: int, seed: int, names: Sequence[str], case: int | None) -> None:
    """Break the input of every reader, and print what each did."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    names = names or list(READERS)
    total: Counter[str] = Counter()
    click.echo(f"{'reader':<26}{'inputs':>8}{'refused':>9}{'taken':>8}{'failures':>10}{'seconds':>9}")
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(names):
            count = inputs // len(names) + (number < inputs % len(names))
            cases = range(count) if case is None else [case]
            tally = fuzz(name, cases, seed, Path(folder), show=case is not None)
            row = {k: getattr(tally, k) for k in ("inputs", "refused", "taken", "failures", "seconds")}
            total.update(row)
            click.echo(_row(name, row))
            for shown in tally.faults.values():
                first, fault = shown[0]
                repeat = f"python tests/fuzz --seed {seed} --reader {name} --case {first}"
                click.echo(f"  {len(shown)} x {fault[:400]}\n    {repeat}")
    click.echo(_row("in all", total))
    sys.exit(1 if total["failures"] else 0)


def _row(name: str, row: dict[str, float]) -> str:
    counts = (f"{row[key]:>{width}}" for key, width in (("inputs", 8), ("refused", 9), ("taken", 8), ("failures", 10)))
    return f"{name:<26}{''.join(counts)}{row['seconds']:>9.1f}"


if __name__ == "__main__":
    main()
