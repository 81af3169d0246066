"""Judges by the name that ``--judge`` gives them."""

from __future__ import annotations

from pathlib import Path

from rbctl.bundle.catalogue import place_of, resolve
from rbctl.defaults import BUNDLE
from rbctl.device import pick_device
from rbctl.errors import InputError
from rbctl.plugins.eval.encoders import Encoder, load_clip
from rbctl.plugins.eval.features import Digests
from rbctl.plugins.eval.judges.config import JudgeOptions, read_spec
from rbctl.plugins.eval.judges.judge import AnswerStore, PictureJudge
from rbctl.processes import World
from rbctl.runs import RUNS


def answer_stores(
    options: JudgeOptions, digests: Digests, world: World, clip: Encoder | None = None
) -> list[AnswerStore]:
    """Every judge that is asked for, loaded, with the answers that are kept.

    Args:
        clip: of these options, where it is loaded already.

    Raises:
        InputError: see :func:`open_judge`; or two have the same name, so that no table could tell them apart.
    """
    judges = [open_judge(spec, options, world, clip) for spec in options.judge]
    for judge in judges:
        if [other.name for other in judges].count(judge.name) > 1:
            raise InputError(f"--judge {' '.join(options.judge)}: two are called {judge.name}; ask one at a time")
    return [AnswerStore(answers(options), judge, digests, options.batch_size, world) for judge in judges]


def answers(options: JudgeOptions) -> Path:
    """Folder of kept answers; a paid judge counts there what they cost."""
    return options.answers or RUNS / "eval" / "answers"


def oracle_folder(options: JudgeOptions) -> Path:
    """``--oracle``, else the bundle's, else that of the bundle that comes with rbctl."""
    own = options.oracle or place_of(resolve(options.bundle), "oracle")
    return own if options.oracle or own.is_dir() else resolve(BUNDLE) / "oracle"


def clip_folder(options: JudgeOptions) -> Path:
    """``--clip``, else the bundle that has the bundle's image encoder."""
    return options.clip or place_of(resolve(options.bundle), "clip_vision").parent


def open_judge(spec: str, options: JudgeOptions, world: World, clip: Encoder | None = None) -> PictureJudge:
    """The judge of ``--judge KIND[=WHAT]``, loaded.

    Raises:
        InputError: its folder is not there or damaged, or its server has no key.
    """
    kind, what = read_spec(spec)
    device = world.device(pick_device(options.device))
    if kind == "clip":
        from rbctl.plugins.eval.judges.clip import ClipJudge

        return ClipJudge(clip or load_clip(clip_folder(options), device))
    if kind == "oracle":
        from rbctl.plugins.eval.judges.oracle import OracleJudge

        return OracleJudge(Path(what) if what else oracle_folder(options), device)
    if kind == "vlm":
        from rbctl.plugins.eval.judges.vision_language import VisionLanguageJudge

        return VisionLanguageJudge(Path(what), device)
    if kind == "server":
        from rbctl.plugins.eval.judges.server import ServerJudge

        return ServerJudge(what, options, answers(options), world.rank)
    from rbctl.plugins.eval.judges.geometry import DetectorJudge, GeometryJudge

    return DetectorJudge(kind, Path(what), device) if what else GeometryJudge()
