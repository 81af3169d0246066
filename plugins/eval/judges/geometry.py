"""Geometry as a judge: what boxes and masks tell of who is there, who touches whom and who is above.

They know nothing of looks, poses and verbs: whatever they cannot tell is not known.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from scipy.special import expit, logit
from torchvision.ops import box_iou, nms

from rbctl.bundle.hashes import file_hashes
from rbctl.detectors import GroundingDino, Owlv2
from rbctl.files import content_hash, read_image
from rbctl.plugins.eval.case import Part, Picture
from rbctl.plugins.eval.judges.judge import Answer, Item
from rbctl.plugins.eval.judges.questions import Question, cast, relation_of
from rbctl.relations import Box, Relation
from rbctl.roles import roles_by_height
from rbctl.triplets.masks import box_of, read_mask

_SCORE = 0.3  # of a detector, as likely as not: annotate's --box-threshold
_ONE = 0.7  # intersection over union: two boxes with a larger one are one individual, as in annotate
_ONE_SCALE = 0.05
_GAP, _GAP_SCALE = 0.05, 0.02  # as likely as not a touch; in sizes of the smaller one
_HEIGHT, _HEIGHT_SCALE = 0.02, 0.005  # of roles_by_height: 0.03 was always right, 0.008 sometimes wrong
_TELLS = 0.03
_CONSTANTS = (_SCORE, _ONE, _ONE_SCALE, _GAP, _GAP_SCALE, _HEIGHT, _HEIGHT_SCALE, _TELLS)


@dataclass(frozen=True, eq=False)
class Place:
    """Where an individual is: its box, relative xyxy, and (H, W) bool where it is known."""

    box: Box
    mask: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Layout:
    """What is known of a picture.

    Attributes:
        places: per individual of the case; None for one that is not there.
        sure: by name, how surely each of the places that fit it shows one, the surest first. None where nobody looked
            for more than one.
    """

    places: tuple[Place | None, ...]
    sure: Mapping[str, Sequence[float]] | None = None


class GeometryJudge:
    """Answers from a picture's own boxes or masks, where its list says that they were found."""

    name, paid, hash = "boxes", False, content_hash(["boxes", *_CONSTANTS])

    def __call__(self, items: Sequence[Item]) -> Iterator[Answer]:
        """One answer an item."""
        layouts: dict[tuple[Path, str], Layout | None] = {}
        for picture, question in items:
            key = picture.path, picture.case.id
            if key not in layouts:
                layouts[key] = self.layout(picture)
            layout = layouts[key]
            yield Answer(None if layout is None else answer(question, layout, picture))

    def layout(self, picture: Picture) -> Layout | None:
        """Who is where; None where nobody knows."""
        if picture.boxes is None or not picture.detected:
            return None
        return Layout(tuple(None if part is None else _place(part) for part in picture.boxes))


class DetectorJudge(GeometryJudge):
    """Answers from the boxes that a detector finds.

    Args:
        name: "grounding-dino" or "owlv2".
        folder: the detector's.
    """

    def __init__(self, name: str, folder: Path, device: torch.device) -> None:
        self.name = name
        detector: type[GroundingDino | Owlv2] = GroundingDino if name == "grounding-dino" else Owlv2
        self._detector = detector(folder, _SCORE / 2, device)
        files = sorted(path.name for path in folder.iterdir() if path.is_file())
        self.hash = content_hash([name, *_CONSTANTS, sorted(file_hashes(folder, files).items())])

    def layout(self, picture: Picture) -> Layout | None:
        """Two individuals of one name get the two surest boxes, whoever is who."""
        names = [individual.name for individual in picture.case.objects]
        if not all(names):
            return None
        listed = list(dict.fromkeys(names))
        (found,) = self._detector([read_image(picture.path)], [listed])
        sure, boxes = dict[str, list[float]](), dict[str, list[Box]]()
        for k, name in enumerate(listed):
            own = found.names == k
            tensors = torch.from_numpy(found.boxes[own]), torch.from_numpy(found.scores[own].astype(float))
            kept = nms(*tensors, _ONE).numpy()
            x0, y0, x1, y1 = found.boxes[own][kept].T
            kept = kept[(x0 < x1) & (y0 < y1)]
            sure[name] = [likelihood(float(score)) for score in found.scores[own][kept]]
            boxes[name] = [(float(a), float(b), float(c), float(d)) for a, b, c, d in found.boxes[own][kept]]
        places: list[Place | None] = []
        for k, name in enumerate(names):
            number = names[:k].count(name)
            there = number < len(sure[name]) and sure[name][number] >= 0.5
            places.append(Place(boxes[name][number]) if there else None)
        return Layout(tuple(places), sure)


def likelihood(score: float) -> float:
    """How likely a detector's box shows what it looks for: the odds of its score over those of ``_SCORE``."""
    return float(expit(logit(min(max(score, 1e-6), 1 - 1e-6)) - logit(_SCORE)))


def answer(question: Question, layout: Layout, picture: Picture) -> float | None:
    """Probability of yes; None for what geometry cannot know."""
    places = [layout.places[k] for k in question.individuals]
    names = [individual.name for individual in picture.case.objects]
    here = [place for place in places if place is not None]
    missing = len(here) < len(places)
    match question.kind:
        case "present":
            if layout.sure is None:
                return float(not missing)
            return max(layout.sure[names[question.individuals[0]]], default=0.0)
        case "once":
            if layout.sure is None:
                return None
            wanted = len(question.individuals)
            sure = [*layout.sure[names[question.individuals[0]]], *[0.0] * (wanted + 1)]
            return min(sure[wanted - 1], 1 - sure[wanted])
        case "contact":
            return 0.0 if missing else contact(*here)
        case "bodies":
            return None if missing else min(apart(a, b) for k, a in enumerate(here) for b in here[:k])
        case "relation" | "exchanged":
            relation = relation_of(picture.case)
            if relation is None or not tells(relation) or (layout.sure and len(set(names)) < len(names)):
                return None
            if None in layout.places or len(layout.places) != len(relation.roles):
                return 0.0
            first, second = (layout.places[k] for k in cast(picture.case, relation))
            assert first is not None
            assert second is not None
            if question.kind == "exchanged":
                first, second = second, first
            touches = contact(first, second) if (relation.scene or {}).get("contacts") else 1.0
            return min(in_roles((first.box, second.box), relation), touches)
        case _:
            return None


def tells(relation: Relation) -> bool:
    """Whether the layout of a relation's roles tells one from the other: where one is above or behind the other."""
    boxes = [role.box for role in relation.roles]
    return len(boxes) == 2 and not relation.symmetric and roles_by_height(boxes, relation) >= _TELLS


def in_roles(boxes: tuple[Box, Box], relation: Relation) -> float:
    """Probability that two individuals are in the roles of a relation that tells, in their order, by their heights."""
    return float(expit((roles_by_height(boxes, relation) - _HEIGHT) / _HEIGHT_SCALE))


def contact(a: Place, b: Place) -> float:
    """Probability that two touch, by the gap between their masks, else their boxes, in sizes of the smaller one."""
    size = min(((x1 - x0) * (y1 - y0)) ** 0.5 for x0, y0, x1, y1 in (a.box, b.box))
    return float(expit((_GAP - _gap(a, b) / size) / _GAP_SCALE))


def apart(a: Place, b: Place) -> float:
    """Probability that two have a body each, by how nearly their boxes are the same."""
    overlap = float(box_iou(torch.tensor([a.box]), torch.tensor([b.box])))
    return float(expit((_ONE - overlap) / _ONE_SCALE))


def _gap(a: Place, b: Place) -> float:
    """Shortest way between two, in sides of the picture; of boxes that overlap, by how much, negative."""
    if a.mask is not None and b.mask is not None and a.mask.shape == b.mask.shape:
        height, width = a.mask.shape
        return float(distance_transform_edt(~a.mask, sampling=(1 / height, 1 / width))[b.mask].min())
    across, down = (max(a.box[k], b.box[k]) - min(a.box[k + 2], b.box[k + 2]) for k in (0, 1))
    return float(np.hypot(across, down)) if min(across, down) > 0 else max(across, down)


def _place(part: Part) -> Place | None:
    if not isinstance(part, Path):
        return Place(part)
    mask = read_mask(part)
    return Place(box_of(mask), mask) if mask.any() else None
