"""Options of ``rbctl annotate``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rbctl.errors import nearest
from rbctl.options import option
from rbctl.paths import FOLLOW_OUTSIDE

STEPS = ("boxes", "masks", "keypoints", "identity", "captions")


@dataclass(frozen=True, kw_only=True)
class AnnotateConfig:
    """What to annotate, with which models, and how strictly."""

    folder: Path = option(..., "Folder of raw triplets.", group="Data", argument=True)
    relation: str | None = option(
        None, "Relation of the triplets, a name or a YAML file: gives missing prompts, predicates and roles."
    )
    backend: tuple[str, ...] = option(
        (), "STEP=NAME, as keypoints=vitpose; once a step. [default: by the set's origin]", group="Models"
    )
    follow_outside: bool = option(False, FOLLOW_OUTSIDE, group="Data")
    drop_failed: bool = option(
        False, "Leave out triplets that fail a quality gate or cannot be annotated.", group="Gates"
    )
    review: bool = option(
        False, "Write review.html, where you check and correct the annotations, and stop.", group="Review"
    )
    apply: Path | None = option(None, "Apply corrections.json of the review page, and stop.")
    json: bool = option(False, "Print the report as JSON for a program to read.", group="Run")

    bundle: str | None = option(
        None,
        "Bundle whose oracle and CLIP image tower are used. [default: mini in the embedded world, else sdxl]",
        group="Models",
    )
    grounding_dino: Path | None = option(None, "Folder of Grounding DINO.")
    owlv2: Path | None = option(None, "Folder of OWLv2.")
    sam: Path | None = option(None, "Folder of SAM.")
    sam2: Path | None = option(None, "Folder of SAM 2 or 2.1.")
    vitpose: Path | None = option(None, "Folder of ViTPose or ViTPose++, or a .pth file of its authors.")
    xpose: Path | None = option(None, "Checkpoint of X-Pose. Its licence is non-commercial.")
    llava: Path | None = option(None, "Folder of LLaVA.")
    captioner: Path | None = option(None, "Folder of any image-text-to-text model of transformers.")
    vitpose_expert: int | None = option(
        None,
        "Expert of ViTPose++: 3 is AP-10K's (animals), 0 is COCO's (people). [default: by --vitpose-order]",
        min=0,
        max=100,
    )
    vitpose_order: Literal["ap10k", "coco"] | None = option(
        None, "Keypoint order of ViTPose's 17 heatmaps. [default: what its config.json says, else ap10k]"
    )

    xpose_prompt: str = option("animal", "What X-Pose looks for: kinds of animals, as cat,bear.")

    box_threshold: float = option(0.3, "Least score of a box.", group="Thresholds", min=0, max=1)
    box_overlap: float = option(0.7, "Boxes with a larger intersection over union count as one.", min=0, max=1)
    present_from: float | None = option(
        None, "Least confidence of a keypoint that is not absent. [default: the backend's]", min=0, max=1
    )
    visible_from: float | None = option(
        None, "Least confidence of a keypoint that is not occluded. [default: the backend's]", min=0, max=1
    )

    min_similarity: float | None = option(
        None,
        "Gate: least similarity of an individual to its image prompt. [default: the backend's]",
        group="Gates",
        min=-1,
        max=1,
    )
    min_margin: float = option(0.05, "Gate: least margin of the best matching over the next best.", min=0, max=1)
    min_pose_change: float = option(
        0.1, "Gate: least movement of the keypoints of at least one individual, in units of its size.", min=0, max=2
    )
    min_keypoints: int = option(
        6, "Gate: least number of visible keypoints of an individual, per picture.", min=0, max=17
    )

    batch_size: int = option(
        8, "Pictures per batch; changes speed and memory, not the result.", group="Hardware", min=1, max=4096
    )
    device: Literal["auto", "cpu", "cuda"] = option("auto", "Where to run.")

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for text in self.backend:
            step, _, name = text.partition("=")
            if step not in STEPS:
                raise ValueError(f"--backend {text}: no step {step!r}{nearest(step, STEPS)}; steps: {', '.join(STEPS)}")
            if not name:
                raise ValueError(f"--backend {text}: the form is STEP=NAME, as in keypoints=vitpose")
            if step in seen:
                raise ValueError(f"--backend {text}: a step has one backend, and {step} has one already")
            seen.add(step)
        if self.review and self.apply:
            raise ValueError("--review and --apply: one at a time")

    def backend_of(self, step: str) -> str | None:
        """The backend that was asked for, None where none was."""
        return dict(text.split("=", 1) for text in self.backend).get(step)
