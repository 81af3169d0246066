"""``python -m kill``: kill every command of the table at random moments, and print what became of each."""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: so that results are the same bit for bit


def main() -> int:
    """Run the table; the exit code is 1 where anything differs."""
    import processes

    from kill.commands import COMMANDS
    from kill.harness import Kills, may_mount
    from kill.images_api import serving

    parser = argparse.ArgumentParser(prog="python -m kill", description=__doc__)
    parser.add_argument("--kills", type=int, default=300, help="over all commands")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the signals")
    parser.add_argument("--only", nargs="+", choices=COMMANDS, default=list(COMMANDS), metavar="NAME")
    parser.add_argument("--work", type=Path, help="folder of all runs; a temporary one by default")
    options = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as temporary, serving():
        work = (options.work or Path(temporary)).resolve()
        (work / "inputs").mkdir(parents=True, exist_ok=True)
        processes.run(["--version"], work / "inputs.log")  # so that the first run's seconds hold no imports
        mounts = may_mount(work)
        if not mounts:
            print("full disks are not tried: that takes the right to mount one", flush=True)
        print(f"{'command':<30}{'seconds':>8}{'kills':>7}{'runs':>6}{'full disks':>12}  differences", flush=True)
        for number, name in enumerate(options.only):
            share = (number + 1) * options.kills // len(options.only) - number * options.kills // len(options.only)
            kills = Kills(work, name, random.Random(f"{options.seed} {name}"))
            kills.undisturbed()
            kills.run_anew()
            result = kills.result
            while result.kills < share and result.runs < 2 * share + 2:
                kills.kill_and_resume(share - result.kills)
            if mounts:
                kills.fill_the_disk()
            failed = failed or bool(result.differences)
            print(
                f"{name:<30}{result.seconds:>8.1f}{result.kills:>7}{result.runs:>6}{result.full:>12}"
                f"  {len(result.differences) or 'none'}",
                flush=True,
            )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
