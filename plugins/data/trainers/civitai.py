"""The trainer of Civitai: a ZIP of pictures with their texts. It trains no editor, so it takes no references."""

from __future__ import annotations

from rbctl.plugins.data.trainers.layout import Layout
from rbctl.plugins.data.trainers.training import Base, Training

ARCHIVE = "upload.zip"


def _settings(training: Training) -> dict[str, str]:
    return {"samples.txt": "".join(f"{sample.caption}\n" for sample in training.samples[:3])}  # it asks for three


LAYOUT = Layout(
    source="https://github.com/civitai/civitai",
    version="ebed661630d3 of 2026-08-08",
    bases={"flux2-klein": Base("FLUX.2 Klein base 4B, in the site's list", "")},
    target="targets/{stem}",
    caption="targets/{stem}.txt",
    sign=ARCHIVE,
    settings=_settings,
    archive=ARCHIVE,
)
