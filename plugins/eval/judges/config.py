"""Options of judges and of the models that they need, shared by the commands that ask them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from rbctl.options import option

JudgeKind = Literal["vlm", "server", "grounding-dino", "owlv2", "boxes", "oracle", "clip"]
_NEEDS = {"vlm": "FOLDER", "server": "MODEL", "grounding-dino": "FOLDER", "owlv2": "FOLDER"}

_MOST_DOLLARS = 10_000.0
_ALONE = {"boxes": "those of the pictures' own list", "clip": "the CLIP of --clip, else the bundle's"}


@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """Which judges, and what they need."""

    judge: tuple[str, ...] = option(
        (),
        "Who answers questions of every picture: vlm=FOLDER, server=MODEL, grounding-dino=FOLDER, owlv2=FOLDER, boxes, "
        "oracle[=FOLDER], clip; repeatable.",
        group="Judges",
    )
    answers: Path | None = option(None, "Where answers of judges are kept. [default: runs/eval/answers]")
    judge_price: str | None = option(
        None, "IN,OUT: dollars that a server's model takes for a million tokens. [default: 0,0 on your own network]"
    )
    judge_budget: float = option(
        5.0,
        "Dollars that servers' answers may cost in all; all runs with the same --answers count.",
        min=0,
        max=1_000_000,
    )
    judge_samples: int = option(
        1, "Answers asked of a server that gives no probabilities; the share of yes replaces them.", min=1, max=100
    )
    bundle: str = option("mini", "Bundle to sample and score with: a name or a folder.", group="Encoders")
    clip: Path | None = option(None, "CLIP that scores: folder of transformers or open_clip. [default: the bundle's]")
    oracle: Path | None = option(None, "Oracle of the embedded world. [default: the bundle's, else that of mini]")
    batch_size: int = option(
        16,
        "Pictures encoded, or questions asked, at once; changes nothing but speed and memory.",
        group="Hardware",
        min=1,
        max=4096,
    )
    device: Literal["auto", "cpu", "cuda"] = option("auto", "Where to run.")

    def __post_init__(self) -> None:
        self.prices()
        for spec in self.judge:
            read_spec(spec)
        if len(set(self.judge)) < len(self.judge):
            raise ValueError(f"--judge {' '.join(self.judge)}: one stands there twice")

    def prices(self) -> tuple[float, float] | None:
        """Dollars of a million tokens that are asked and answered; None where none are given.

        Raises:
            ValueError: they are no two numbers.
        """
        if self.judge_price is None:
            return None
        try:
            asked, answered = (float(part) for part in self.judge_price.split(","))
        except ValueError:
            asked = answered = -1.0
        if not (0 <= asked <= _MOST_DOLLARS and 0 <= answered <= _MOST_DOLLARS):
            raise ValueError(f"--judge-price {self.judge_price}: write IN,OUT in dollars of a million tokens, 2.5,10")
        return asked, answered


def read_spec(spec: str) -> tuple[JudgeKind, str]:
    """The kind of judge and what stands behind the ``=``, "" for nothing.

    Raises:
        ValueError: there is no such kind, or it needs a folder or a model that is not given.
    """
    name, equals, what = spec.partition("=")
    for kind in get_args(JudgeKind):
        if name == kind:
            if kind in _NEEDS and not what:
                raise ValueError(f"--judge {spec}: write {kind}={_NEEDS[kind]}")
            if kind in _ALONE and equals:
                raise ValueError(f"--judge {spec}: write {kind} alone; it takes {_ALONE[kind]}")
            return kind, what
    raise ValueError(f"--judge {spec}: no such judge; one of {', '.join(get_args(JudgeKind))}")
