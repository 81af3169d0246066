"""The embedded world's transformer: built like FLUX.2 Klein's, with the VAE and the text encoders of ``mini``.

It proves the road of reference transformers by the oracle, on a CPU. ``rbctl pretrain dit`` trains it.
"""

import dataclasses

from rbctl.bases import NETWORK, RECIPE
from rbctl.bases.flux2 import FAMILY as FLUX2

FAMILY = dataclasses.replace(
    FLUX2,
    name="mini_dit",
    pipelines=("MiniDiTPipeline",),
    parts={"transformer": NETWORK, "scheduler": (("scheduler_config.json",),)},
    shares="mini",
    snapshot=False,
    recipe=lambda folder: RECIPE,
)
