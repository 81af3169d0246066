"""Stage ``annotate``: raw triplets -> triplets with boxes, masks, keypoints, captions, and a report on each."""

import click

from rbctl.options import StageCommand, config_options
from rbctl.plugins.annotate.config import AnnotateConfig


@click.command("annotate", cls=StageCommand)
@config_options(AnnotateConfig)
def command(config: AnnotateConfig) -> None:
    """Annotate the raw triplets in FOLDER, so that 'rbctl finetune --data FOLDER' can learn from them.

    In: raw.jsonl, or pictures by their names: a target 3.jpg, the individuals in it 3-red_cat.jpg and 3-bear.jpg. Out,
    in the same folder: metadata.jsonl and masks/, the whole native format, and annotations.jsonl, which tells of every
    triplet how sure each step was and which quality gates it passed. The same command again goes on where it stopped.

    \b
      rbctl annotate raw
      rbctl annotate photos --relation hug --grounding-dino models/grounding-dino-tiny --sam models/sam-vit-huge \\
        --vitpose models/vitpose-plus-base --bundle sdxl
      rbctl annotate photos --review
      rbctl annotate photos --apply corrections.json
      accelerate launch --num_processes 4 -m rbctl annotate photos

    \b
    Steps and their backends (--backend STEP=NAME, or STEP=PACKAGE.MODULE:FUNCTION for one's own):
      boxes      oracle, grounding-dino, owlv2
      masks      oracle, sam
      keypoints  oracle, vitpose
      identity   oracle, clip
      captions   llava; only on demand, for pictures without a text
    Of a set of the embedded world oracle is the default of all; else the second of each.
    """
    from rbctl.plugins.annotate.run import run

    run(config)
