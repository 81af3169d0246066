"""Stage ``annotate``: raw triplets -> triplets with boxes, masks, keypoints, captions, and a report on each."""

import click

from rbctl.options import StageCommand, config_options
from rbctl.plugins.annotate.config import AnnotateConfig


@click.command("annotate", cls=StageCommand)
@config_options(AnnotateConfig)
def command(config: AnnotateConfig) -> None:
    """Annotate the raw triplets in FOLDER, so that 'rbctl finetune --data FOLDER' can learn from them.

    FOLDER has raw.jsonl, or only pictures with telling names: a target 3.jpg, and its individuals 3-red_cat.jpg and
    3-bear.jpg. The command writes metadata.jsonl and masks/, the native format, into the same folder. It also writes
    annotations.jsonl: how confident each step was, and which quality gates each triplet passed. The same command again
    resumes where it stopped.

    \b
      rbctl annotate raw
      rbctl annotate photos --relation hug --grounding-dino models/grounding-dino-tiny --sam models/sam-vit-huge \\
        --vitpose models/vitpose-plus-base --bundle sdxl
      rbctl annotate photos --review
      rbctl annotate photos --apply corrections.json
      accelerate launch --num_processes 4 -m rbctl annotate photos

    \b
    Steps and their backends (--backend STEP=NAME, or STEP=PACKAGE.MODULE:FUNCTION for your own):
      boxes      oracle, grounding-dino, owlv2
      masks      oracle, sam, sam2
      keypoints  oracle, vitpose, xpose
      identity   oracle, clip
      captions   llava, image-text-to-text; only on request, for pictures without a text
    For sets of the embedded world the default is oracle; for others it is the second of each.
    """
    from rbctl.plugins.annotate.run import run

    run(config)
