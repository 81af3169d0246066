"""The layout prior: where each role of a relation usually lies, learned from the triplets a LoRA was tuned on."""

from __future__ import annotations

import dataclasses
import itertools
import json
import statistics
from collections.abc import Iterable, Sequence
from typing import Annotated

from annotated_types import Interval

from rbctl import formats
from rbctl.errors import InputError, reason
from rbctl.parsing import parse_json
from rbctl.relations import Box, Relation

_Length = Annotated[float, Interval(ge=-10, le=10)]  # of a picture's side
Four = tuple[_Length, _Length, _Length, _Length]

_SMALLEST = 1 / 16  # a box narrower than this would hold hardly a cell of the coarsest latent grid
_MARGIN = 0.05
_LIMIT = 1 << 16  # characters of a prior's JSON
_SAME = 0.5  # IoU above which two boxes hardly say whose place is where
_CUT = 0.25  # of what two others share; docs/mini.md, "Boxes that share less"


@dataclasses.dataclass(frozen=True)
class LayoutPrior:
    """Mean and spread of each role's box over the triplets, as (centre x, centre y, width, height).

    Centre and size, not corners, so that the spread tells moving about from growing.

    Attributes:
        roles: N names, in the order of the objects.
        mean: (N, 4) in [0, 1].
        spread: (N, 4) population standard deviation; 0 for a single triplet.
    """

    roles: tuple[str, ...]
    mean: tuple[Four, ...]
    spread: tuple[Four, ...]

    def __post_init__(self) -> None:
        if not self.roles or not len(self.roles) == len(self.mean) == len(self.spread):
            raise ValueError("roles, mean and spread must be of the same length, one or more")

    @classmethod
    def from_boxes(
        cls,
        boxes: Sequence[Sequence[Sequence[float]]],
        roles: Sequence[str],
        orders: Sequence[Sequence[int]] = (),
        mirror: bool = True,
    ) -> LayoutPrior:
        """The prior of some triplets.

        A relation says who is above or before whom, not who is on the left: triplets are mirrored where that brings
        their boxes nearer to the mean of the ones before, else a set with both would average to boxes in the middle.
        Likewise roles that may change places take the order that is nearest. All boxes of a triplet move together.

        Args:
            boxes: per triplet N boxes, relative xyxy, in the order of ``roles``.
            roles: N names.
            orders: ways in which the roles may change places (``Relation.orders``); () for none.
            mirror: whether triplets may be mirrored; False where all look to one side already.

        Raises:
            ValueError: no triplet, or one with another number of boxes than roles.
        """
        if not boxes or any(len(row) != len(roles) for row in boxes):
            raise ValueError(f"boxes: one or more triplets of {len(roles)} boxes were expected")
        aligned: list[list[Four]] = []
        for triplet in boxes:
            layouts = _layouts([_centred(box) for box in triplet], orders, mirror)
            aligned.append(min(layouts, key=lambda layout: _distance(layout, aligned)))
        mean, spread = [], []
        for role in range(len(roles)):
            columns = list(zip(*(rows[role] for rows in aligned), strict=True))
            mean.append(_four(statistics.fmean(c) for c in columns))
            spread.append(_four(statistics.pstdev(c) for c in columns))
        return cls(tuple(roles), tuple(mean), tuple(spread))

    def boxes(self, cut: float = _CUT) -> tuple[Box, ...]:
        """N boxes, relative xyxy, inside [0, 1] and of some area; those of two share less than their means.

        What lies in two boxes is painted as both: one body of two colours. Boxes that are nearly the same, with an IoU
        above 0.5, end at the middle of each other.

        Args:
            cut: share in [0, 1] of what the boxes of two individuals have in common, which both give up a half of.
                Three or more keep all of it: they gained nothing.
        """
        boxes = [_inside(row) for row in self.mean]
        for k, j in itertools.combinations(range(len(boxes)), 2):
            boxes[k], boxes[j] = _separated(boxes[k], boxes[j], cut if len(boxes) == 2 else 0.0)
        return tuple(boxes)

    def overlap(self) -> float:
        """The largest IoU in [0, 1] of two roles' mean boxes; 0 for a single role."""
        pairs = itertools.combinations([_inside(row) for row in self.mean], 2)
        return max((_iou(a, b) for a, b in pairs), default=0.0)

    def near(self, boxes: Sequence[Sequence[float]], orders: Sequence[Sequence[int]] = ()) -> tuple[Box, ...]:
        """``boxes()`` where a picture has its individuals: mirrored, in another order and moved, as is nearest.

        Args:
            boxes: N, relative xyxy, in the order of ``roles``.
            orders: as of ``from_boxes``.

        Returns:
            N boxes inside [0, 1].
        """
        own, mean = [_centred(box) for box in boxes], [_centred(box) for box in self.boxes()]
        layout = min(_layouts(mean, orders), key=lambda rows: _distance(rows, [own]))
        aside, down = (statistics.fmean(a[k] - b[k] for a, b in zip(own, layout, strict=True)) for k in (0, 1))
        return tuple(_inside((cx + aside, cy + down, w, h)) for cx, cy, w, h in layout)

    def to_json(self) -> str:
        """One line for a file's metadata; the same prior gives the same text."""
        mean, spread = ([[round(v, 5) for v in row] for row in rows] for rows in (self.mean, self.spread))
        return json.dumps({"roles": self.roles, "mean": mean, "spread": spread}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str, where: str = "layout prior") -> LayoutPrior:
        """What ``to_json`` wrote.

        Args:
            where: the file it stands in, for the error.

        Raises:
            InputError: the text is something else.
        """
        try:
            return formats.read(cls, parse_json(text, "its JSON", limit=_LIMIT), "its JSON")
        except InputError as error:
            mend = "write the file again with rbctl finetune"
            raise InputError(f"{where}: not a layout prior ({reason(error)}); {mend}") from error


def side_by_side(count: int) -> tuple[Box, ...]:
    """``count`` boxes of equal width in one row, with margins: the layout that favours no relation."""
    gap = _MARGIN / max(count, 1)
    width = (1 - 2 * _MARGIN - (count - 1) * gap) / max(count, 1)
    lefts = [_MARGIN + k * (width + gap) for k in range(count)]
    return tuple((round(x, 4), 0.15, round(x + width, 4), 0.9) for x in lefts)


def boxes_for(count: int, prior: LayoutPrior | None, relation: Relation | None) -> tuple[tuple[Box, ...], str]:
    """Boxes for ``count`` objects that were given none, and whence they come.

    The source is "layout prior", else "relation" (each only with as many roles as objects), else "side by side".
    """
    if prior and len(prior.roles) == count:
        return prior.boxes(), "layout prior"
    if relation and len(relation.roles) == count:
        return tuple(role.box for role in relation.roles), "relation"
    return side_by_side(count), "side by side"


def _four(values: Iterable[float]) -> Four:
    a, b, c, d = values
    return a, b, c, d


def _centred(box: Sequence[float]) -> Four:
    x0, y0, x1, y1 = box
    return (x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0


def _layouts(rows: Sequence[Four], orders: Sequence[Sequence[int]], mirror: bool = True) -> list[list[Four]]:
    """A layout in all its orders, each as it is and mirrored."""
    sides = [rows, [(1 - cx, cy, w, h) for cx, cy, w, h in rows]][: 1 + mirror]
    return [[side[k] for k in order] for order in orders or [range(len(rows))] for side in sides]


def _distance(rows: Sequence[Four], others: Sequence[Sequence[Four]]) -> float:
    """Squared distance of a layout to the mean of others; 0 where there are none.

    Where in the picture the whole of it stands, further left or right, is no matter: two that hug left of the middle
    would else be mirrored to two that hug right of it, whoever is on which side of whom.
    """
    if not others:
        return 0.0
    means = [[statistics.fmean(column) for column in zip(*role, strict=True)] for role in zip(*others, strict=True)]
    gaps = [[a - b for a, b in zip(row, mean, strict=True)] for row, mean in zip(rows, means, strict=True)]
    aside = statistics.fmean(gap[0] for gap in gaps)
    return sum((gap[0] - aside) ** 2 + sum(g**2 for g in gap[1:]) for gap in gaps)


def _iou(a: Box, b: Box) -> float:
    wide, high = (max(0.0, min(a[k + 2], b[k + 2]) - max(a[k], b[k])) for k in (0, 1))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return wide * high / (sum(areas) - wide * high)


def _separated(a: Box, b: Box, cut: float) -> tuple[Box, Box]:
    """Boxes that share less, by ``cut``, along the axis on which their middles are further apart."""
    iou = _iou(a, b)
    middles = [((box[0] + box[2]) / 2, (box[1] + box[3]) / 2) for box in (a, b)]
    axis = max((0, 1), key=lambda k: abs(middles[0][k] - middles[1][k]))
    rows = [list(a), list(b)]
    first, last = sorted((0, 1), key=lambda k: middles[k][axis])
    start, end = rows[last][axis], rows[first][axis + 2]  # of what they share
    if iou > _SAME:
        rows[first][axis + 2] = min(end, middles[last][axis])
        rows[last][axis] = max(start, middles[first][axis])
    elif iou > 0 and rows[first][axis] < start and end < rows[last][axis + 2]:  # neither holds the other's side
        rows[first][axis + 2] = end - cut / 2 * (end - start)
        rows[last][axis] = start + cut / 2 * (end - start)
    return _four(rows[0]), _four(rows[1])


def _inside(row: Four) -> Box:
    """(cx, cy, w, h) as an xyxy box: parts outside the picture are cut off, what is too thin is widened."""
    (x0, x1), (y0, y1) = (_span(centre, size) for centre, size in zip(row[:2], row[2:], strict=True))
    return x0, y0, x1, y1


def _span(centre: float, size: float) -> tuple[float, float]:
    low, high = max(centre - size / 2, 0.0), min(centre + size / 2, 1.0)
    if high - low < _SMALLEST:
        middle = min(max((low + high) / 2, _SMALLEST / 2), 1 - _SMALLEST / 2)
        low, high = middle - _SMALLEST / 2, middle + _SMALLEST / 2
    return max(low, 0.0), min(high, 1.0)
