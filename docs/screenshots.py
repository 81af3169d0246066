"""Takes the pictures of docs/ui.md: ``python docs/screenshots.py [--work FOLDER] [NAME ...]`` plays the page.

The first play trains the LoRA that the others sample with, some ten minutes on two idle cores. FOLDER keeps it.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path

import click
from PIL import Image

from rbctl.plugins.ui.config import UiConfig
from rbctl.plugins.ui.run import serve

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests"))

from browser import Browser, field, text  # noqa: E402

PICTURES = ROOT / "recipes" / "examples" / "pictures"
INDIVIDUALS = [PICTURES / "white-cat.png", PICTURES / "teal-bear.png"]
WIDTH = 1400  # pixels of the window


def take(page: Browser, name: str, height: int) -> None:
    """A picture of the page's upper part, in ``docs/pictures/NAME.jpg``."""
    page.resize(WIDTH, height)
    page.run("window.scrollTo(0, 0)")
    time.sleep(2)  # curves and pictures fade in
    with tempfile.TemporaryDirectory() as folder:
        image = Image.open(page.picture(Path(folder) / "window.png"), formats=["PNG"]).convert("RGB")
    image.thumbnail((1000, height))
    image.save(ROOT / "docs" / "pictures" / f"{name}.jpg", quality=80, optimize=True)
    print(name, flush=True)


def relation(page: Browser) -> None:
    page.open_tab("Relation")
    page.wait("document.querySelector('#own button')")
    page.run("document.querySelector('#own button').click()")
    page.wait("document.querySelector('#keep')?.offsetParent")
    page.click("#keep")
    page.wait(f"{field('#learned')} === 'sit_back_to_back'")
    page.run("document.querySelector('#own button').click()")
    page.write("#train-steps input", "60", "Tab")
    page.write("#preview-every input", "20", "Tab")
    page.click("#train")
    page.wait(f"{field('#log')}.includes('Trained.')", seconds=3600)
    take(page, "ui-relation", 1250)


def picture(page: Browser) -> None:
    page.open_tab("Picture")
    page.drop("#individuals", INDIVIDUALS)
    page.wait("document.querySelectorAll('#boxes .box').length === 2")
    page.write("#relation input", "sit_back_to_back", "Enter")
    page.wait(f"{field('#prompt')}.includes('back')")
    page.write("#count input[type=number]", "4", "Tab")
    page.click("#sample")
    page.wait(f"{text('#state')} === '4 of 4 made.'", seconds=1200)
    take(page, "ui-picture", 1040)


def compare(page: Browser) -> None:
    page.open_tab("Compare")
    page.wait("document.querySelector('#compare')?.offsetParent")
    page.click("#compare")
    page.wait(f"{text('#compared')}.includes('the sheet is')", seconds=1200)
    take(page, "ui-compare", 800)


def score(page: Browser) -> None:
    page.open_tab("Score")
    page.wait("document.querySelector('#score')?.offsetParent")
    page.write("#scored input", "runs/sample/ui", "Enter")
    page.click("#score")
    page.wait("document.querySelector('#report iframe')", seconds=1200)
    take(page, "ui-score", 1250)


PLAYS = {"ui-relation": relation, "ui-picture": picture, "ui-compare": compare, "ui-score": score}


@click.command()
@click.option("--work", type=click.Path(path_type=Path), help="Work folder of the page. [default: a temporary one]")
@click.argument("names", type=click.Choice(list(PLAYS)), nargs=-1)
def main(work: Path | None, names: tuple[str, ...]) -> None:
    """Take the pictures NAMES, all by default. Needs gradio and Chromium."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise click.ClickException("docs/screenshots.py needs Chromium; install the package chromium")
    with tempfile.TemporaryDirectory() as folder:
        blocks, address = serve(UiConfig(work=work or Path(folder) / "work", port=7861, open=False))
        page = Browser(chromium, Path(folder) / "profile")
        try:
            page.open(address)
            page.wait("document.querySelector('#individuals input[type=file]')")
            for name in names or PLAYS:
                PLAYS[name](page)
        finally:
            page.close()
            blocks.close(verbose=False)


if __name__ == "__main__":
    main()
