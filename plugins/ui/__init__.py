"""Stage ``ui``: a page in the browser for pictures, relations, comparisons and scores."""

import click

from rbctl.options import StageCommand, config_options
from rbctl.plugins.ui.config import UiConfig


@click.command("ui", cls=StageCommand)
@config_options(UiConfig)
def command(config: UiConfig) -> None:
    """Serve a page in the browser: make pictures, learn relations, compare LoRAs, score folders.

    The page is for this machine alone, needs no network and reports to nobody. It reads and writes in the folder --work
    alone. Training and scoring are the commands of rbctl, and the page shows each one.

    \b
      rbctl ui
      rbctl ui --work pets --bundle sdxl
      rbctl ui --host 0.0.0.0         # other machines may reach it, with the token that is printed
    """
    from rbctl.plugins.ui.run import run

    run(config)
