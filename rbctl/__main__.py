"""``python -m rbctl``."""

import os
import sys

# Python looks for modules in the current folder first, which may be data: a torch.py of a stranger is not to be run.
sys.path[:] = [place for place in sys.path if place not in ("", os.getcwd())]

from rbctl.cli import main  # noqa: E402

main(prog_name="rbctl")
