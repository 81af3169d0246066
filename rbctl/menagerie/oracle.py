"""The oracle: what a picture of the embedded world shows, read from its pixels alone.

It is told neither prompt nor boxes nor individuals. For each of two roles it says where it is, what it looks like and
where its keypoints lie; and it says which relation holds. In asymmetric relations role 0 is the subject and role 1 the
object; in symmetric ones role 0 is the one further to the left. Scores are pure functions of what it read.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import avg_pool2d, interpolate, log_softmax, pixel_shuffle, relu, scaled_dot_product_attention

from rbctl.errors import InputError
from rbctl.files import read_json, read_safetensors, write_json, write_safetensors
from rbctl.menagerie.drawing import render
from rbctl.menagerie.figure import TRUNK
from rbctl.menagerie.individuals import ANATOMY, COATS, PATTERNS, SPECIES, Individual, draw_individual
from rbctl.menagerie.scenes import Scene, compose, scene_rule
from rbctl.relations import Relation, load_relation

if TYPE_CHECKING:
    from PIL import Image

SIZE = 128  # side of the pictures it reads
MASK_SIZE = 32
ROLES = 2
KEYPOINTS = 17
ATTRIBUTES = ("species", "coat", "second", "pattern")
_VALUES = {"species": SPECIES, "coat": tuple(COATS), "second": tuple(COATS), "pattern": PATTERNS}

# The keypoints by side instead of left and right: mirrored, a picture keeps these names.
POINTS = (
    "near_eye", "far_eye", "nose", "neck", "tail",
    "near_front_root", "near_front_joint", "near_front_paw", "far_front_root", "far_front_joint", "far_front_paw",
    "near_hind_root", "near_hind_joint", "near_hind_paw", "far_hind_root", "far_hind_joint", "far_hind_paw",
)  # fmt: skip
_NOSE, _NECK = POINTS.index("nose"), POINTS.index("neck")
_TURNED = (1, 0, 2, 3, 4, 8, 9, 10, 5, 6, 7, 14, 15, 16, 11, 12, 13)  # AP-10K names the left limb first


def by_side(keypoints: torch.Tensor) -> torch.Tensor:
    """Keypoints in AP-10K's order -> in the order of ``POINTS``; the same again turns them back.

    An animal that faces right (its nose is right of its neck) shows its right limbs, else its left ones.

    Args:
        keypoints: (..., 17, C), x first.
    """
    right = (keypoints[..., _NOSE, 0] > keypoints[..., _NECK, 0])[..., None, None]
    return torch.where(right, keypoints[..., _TURNED, :], keypoints)


def look(individual: Individual) -> tuple[int, ...]:
    """What the oracle can tell of an individual: its value's index per attribute."""
    return tuple(_VALUES[name].index(getattr(individual, name)) for name in ATTRIBUTES)


@dataclass(frozen=True)
class OracleConfig:
    """Sizes and names of an oracle.

    Attributes:
        relations: in the order of its relation head.
        symmetric: which of them, and of the added ones, know no subject and object.
        added: relations it was extended by, in order.
        stem, width, depth, layers: channels at 32 x 32, at 16 x 16 and at 8 x 8 cells, and its transformer's layers.
    """

    relations: tuple[str, ...]
    symmetric: tuple[str, ...]
    added: tuple[str, ...] = ()
    stem: int = 48
    width: int = 128
    depth: int = 192
    layers: int = 3
    heads: int = 6
    looks: int = 4  # attention maps per role


@dataclass(frozen=True)
class Reading:
    """What the oracle says of B pictures; role r is the second axis.

    Attributes:
        relations: names of the columns of ``relation``.
        symmetric: names of relations without subject and object.
        relation: (B, R) log-probabilities.
        maps: (B, 2, 32, 32) in [0, 1], where each role is seen.
        species, coat, second, pattern: (B, 2, n) log-probabilities.
        keypoints: (B, 2, 17, 3) in AP-10K's order: x, y in [0, 1], and how surely it is seen, in [0, 1].
        features: (B, F) that relations are told by.
    """

    relations: tuple[str, ...]
    symmetric: tuple[str, ...]
    relation: torch.Tensor
    maps: torch.Tensor
    species: torch.Tensor
    coat: torch.Tensor
    second: torch.Tensor
    pattern: torch.Tensor
    keypoints: torch.Tensor
    features: torch.Tensor

    def __len__(self) -> int:
        return len(self.relation)

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Reading:
        """The same with every tensor changed."""
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in self._tensors().items()}
        return dataclasses.replace(self, **changed)

    def turned(self, which: torch.Tensor) -> Reading:
        """Roles exchanged in the pictures where ``which`` (B,) bool is set."""
        names = ("maps", *ATTRIBUTES, "keypoints")
        changed: dict[str, Any] = {}
        for name in names:
            tensor = getattr(self, name)
            mask = which.view(-1, *[1] * (tensor.ndim - 1))
            changed[name] = torch.where(mask, tensor.flip(1), tensor)
        return dataclasses.replace(self, **changed)

    @staticmethod
    def cat(readings: Sequence[Reading]) -> Reading:
        """Several readings as one."""
        names = readings[0]._tensors()
        joined: dict[str, Any] = {name: torch.cat([getattr(reading, name) for reading in readings]) for name in names}
        return dataclasses.replace(readings[0], **joined)

    def _tensors(self) -> dict[str, torch.Tensor]:
        found = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}


@dataclass(frozen=True)
class RawReading:
    """What the heads give, for training: logits in place of probabilities, keypoints in the order of ``POINTS``.

    Attributes:
        relation: (B, R).
        masks: (B, 2, 32, 32).
        looks: per attribute (B, 2, n).
        heat: (B, 2, 17, 32 * 32).
        seen: (B, 2, 17).
        features: (B, F).
    """

    relation: torch.Tensor
    masks: torch.Tensor
    looks: dict[str, torch.Tensor]
    heat: torch.Tensor
    seen: torch.Tensor
    features: torch.Tensor


class _Bottleneck(nn.Module):
    """Residual 1 x 1 - 3 x 3 - 1 x 1 without a norm; a small last layer keeps the start near the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.narrow = nn.Conv2d(width, width // 2, 1)
        self.middle = nn.Conv2d(width // 2, width // 2, 3, padding=1)
        self.wide = nn.Conv2d(width // 2, width, 1)
        nn.init.normal_(self.wide.weight, std=0.3 * (width // 2) ** -0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.wide(relu(self.middle(relu(self.narrow(relu(x))))))


class _Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm_1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(relu(self.up(self.norm_2(x))))


class Extension(nn.Module):
    """A relation that the oracle was not trained on, told by linear classifiers on its features.

    Args:
        relations: how many it tells apart, the new one last.
        features: width of the features.
    """

    mean: torch.Tensor
    scale: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    order: torch.Tensor
    order_bias: torch.Tensor

    def __init__(self, relations: int, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))
        self.register_buffer("weight", torch.zeros(relations, features))
        self.register_buffer("bias", torch.zeros(relations))
        self.register_buffer("order", torch.zeros(features))
        self.register_buffer("order_bias", torch.ones(()))

    def standard(self, features: torch.Tensor) -> torch.Tensor:
        """Features of unit spread."""
        return (features - self.mean) * self.scale

    def forward(self, reading: Reading, name: str) -> Reading:
        """The new relation takes its probability from all others alike: their order stays as it was."""
        x = self.standard(reading.features)
        new = log_softmax(x @ self.weight.T + self.bias, dim=-1)[:, -1:]
        others = torch.log1p(-new.exp().clamp(max=1 - 1e-6))
        relation = torch.cat((reading.relation + others, new), dim=1)
        extended = dataclasses.replace(reading, relations=(*reading.relations, name), relation=relation)
        changed = (x @ self.order + self.order_bias < 0) & (relation.argmax(1) == relation.shape[1] - 1)
        return extended.turned(changed)


class Oracle(nn.Module):
    """Reads pictures of two individuals.

    Convolutions on 4 x 4 pixels a cell, a small transformer on 8 x 8 cells that sees the whole picture (which role is
    whose depends on the relation), and heads on 16 x 16 cells.
    """

    position: nn.Parameter

    def __init__(self, config: OracleConfig) -> None:
        super().__init__()
        self.config = config
        stem, width, depth = config.stem, config.width, config.depth
        self.stem = nn.Conv2d(48, stem, 3, padding=1)
        self.to_cells = nn.Conv2d(stem, width, 3, stride=2, padding=1)
        self.texture = nn.Sequential(_Bottleneck(width), _Bottleneck(width))
        self.to_tokens = nn.Conv2d(width, depth, 3, stride=2, padding=1)
        self.position = nn.Parameter(0.02 * torch.randn(64, depth))
        self.blocks = nn.Sequential(*(_Block(depth, config.heads) for _ in range(config.layers)))
        self.token_norm = nn.LayerNorm(depth)
        self.to_grid = nn.Linear(depth, 4 * width)
        self.joined = _Bottleneck(width)
        self.cell_norm = nn.LayerNorm(width)
        self.dense = nn.Linear(width, 4 * ROLES * (1 + KEYPOINTS))  # masks and heat maps, 2 x 2 of a cell
        self.attention = nn.Linear(width, ROLES * config.looks)
        self.role = nn.Linear(config.looks * width, width)
        self.looks = nn.ModuleDict({name: nn.Linear(width, len(_VALUES[name])) for name in ATTRIBUTES})
        self.seen = nn.Linear(width, KEYPOINTS)
        self.summary = nn.Linear(depth + 2 * ROLES * KEYPOINTS, depth)
        self.relation = nn.Linear(depth, len(config.relations))
        for layer in (self.stem, self.to_cells, self.to_tokens):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        known = len(config.relations)
        features = depth + 2 * ROLES * KEYPOINTS
        self.extensions = nn.ModuleList(Extension(known + k + 1, features) for k in range(len(config.added)))

    @property
    def relations(self) -> tuple[str, ...]:
        """Every relation it can tell, added ones last."""
        return (*self.config.relations, *self.config.added)

    def raw(self, pixels: torch.Tensor) -> RawReading:
        """Logits of pictures (B, 3, 128, 128) in [-1, 1]."""
        x = self.stem(nn.functional.pixel_unshuffle(pixels, 4))
        fine = self.texture(self.to_cells(relu(x)))
        tokens = self.to_tokens(relu(fine)).flatten(2).mT + self.position
        tokens = self.token_norm(self.blocks(tokens))
        grid = pixel_shuffle(self.to_grid(tokens).mT.unflatten(2, (8, 8)), 2)
        cells = self.cell_norm(self.joined(fine + grid).flatten(2).mT)  # (B, 256, width)
        dense = pixel_shuffle(self.dense(cells).mT.unflatten(2, (16, 16)), 2)
        masks, heat = dense[:, :ROLES], dense[:, ROLES:].flatten(2).unflatten(1, (ROLES, KEYPOINTS))
        # Each map looks where its role is; the masks themselves learn from their own loss alone.
        there = avg_pool2d(masks.detach().float().sigmoid(), 2).flatten(2).clamp(min=1e-3).log()
        maps = self.attention(cells).mT.unflatten(1, (ROLES, -1)) + there[:, :, None]
        pooled = maps.flatten(1, 2).softmax(-1) @ cells  # (B, roles * looks, width)
        roles = relu(self.role(pooled.unflatten(1, (ROLES, -1)).flatten(2)))
        points = peaks(heat.detach().float()).flatten(1) * 2 - 1
        hidden = relu(self.summary(torch.cat((tokens.mean(1), points.to(tokens.dtype)), dim=-1)))
        return RawReading(
            relation=self.relation(hidden),
            masks=masks,
            looks={name: head(roles) for name, head in self.looks.items()},
            heat=heat,
            seen=self.seen(roles),
            features=torch.cat((hidden, points.to(hidden.dtype)), dim=-1),
        )

    def forward(self, pixels: torch.Tensor) -> Reading:
        """Read pictures (B, 3, 128, 128) in [-1, 1]."""
        raw = self.raw(pixels)
        points = torch.cat((peaks(raw.heat.float()), raw.seen.float().sigmoid()[..., None]), dim=-1)
        reading = Reading(
            relations=self.config.relations,
            symmetric=self.config.symmetric,
            relation=log_softmax(raw.relation.float(), dim=-1),
            maps=raw.masks.float().sigmoid(),
            keypoints=by_side(points),
            features=raw.features.float(),
            **{name: log_softmax(logits.float(), dim=-1) for name, logits in raw.looks.items()},
        )
        for name, extension in zip(self.config.added, self.extensions, strict=True):
            reading = extension(reading, name)
        return reading

    @torch.no_grad()
    def read(self, pictures: torch.Tensor | Sequence[Image.Image], batch: int = 64) -> Reading:
        """Read any number of pictures, a batch at a time.

        Args:
            pictures: PIL images, or (B, 3, H, W) uint8 or float in [-1, 1]; sides other than 128 are resized.
        """
        weight = self.position
        readings = []
        for first in range(0, len(pictures), batch):
            pixels = as_pixels(pictures[first : first + batch]).to(weight.device, weight.dtype)
            readings.append(self(pixels))
        return Reading.cat(readings)


def as_pixels(pictures: torch.Tensor | Sequence[Image.Image]) -> torch.Tensor:
    """Pictures as the oracle reads them: float (B, 3, 128, 128) in [-1, 1]."""
    if not isinstance(pictures, torch.Tensor):
        pictures = torch.cat([as_pixels(_tensor(image)) for image in pictures])
    pixels = pictures.float() / 127.5 - 1 if pictures.dtype == torch.uint8 else pictures.float()
    if pixels.shape[-2:] != (SIZE, SIZE):
        pixels = interpolate(pixels, (SIZE, SIZE), mode="bilinear", antialias=True)
    return pixels


def _tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1)[None]


def peaks(heat: torch.Tensor) -> torch.Tensor:
    """Where heat maps are hottest, finer than a cell: the mean over the 5 x 5 cells around the hottest one.

    Args:
        heat: (..., n * n) logits.

    Returns:
        (..., 2), x and y in [0, 1].
    """
    side = round(heat.shape[-1] ** 0.5)
    top = heat.argmax(-1, keepdim=True)
    offsets = torch.arange(-2, 3, device=heat.device)
    rows = (top // side + offsets.repeat_interleave(5)).clamp(0, side - 1)
    columns = (top % side + offsets.repeat(5)).clamp(0, side - 1)
    # Cells outside the map are clamped onto its edge; counted once only.
    inside = (top // side + offsets.repeat_interleave(5) == rows) & (top % side + offsets.repeat(5) == columns)
    weights = heat.gather(-1, rows * side + columns).masked_fill(~inside, -torch.inf).softmax(-1)
    x, y = ((weights * (line + 0.5)).sum(-1) / side for line in (columns, rows))
    return torch.stack((x, y), dim=-1)


def load_oracle(folder: Path, device: torch.device | str = "cpu") -> Oracle:
    """An oracle from its folder (config.json, model.safetensors), float32, in eval mode.

    Raises:
        InputError: it is not there, or damaged.
    """
    path = Path(folder) / "config.json"
    content = read_json(path)
    names = {f.name for f in dataclasses.fields(OracleConfig)}
    if not isinstance(content, dict) or not {"relations", "symmetric"} <= content.keys():
        raise InputError(f"{path}: not the configuration of an oracle; make one with 'rbctl pretrain oracle'")
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in content.items() if name in names
    }
    try:
        oracle = Oracle(OracleConfig(**values))
        oracle.load_state_dict({name: t.float() for name, t in read_safetensors(path.with_name(_WEIGHTS))[0].items()})
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{path}: does not fit its weights ({str(error).splitlines()[0]})") from error
    return oracle.requires_grad_(False).eval().to(device)


_WEIGHTS = "model.safetensors"


def save_oracle(folder: Path, oracle: Oracle) -> None:
    """Write config.json and model.safetensors (half precision, but for the extensions)."""
    write_json(Path(folder) / "config.json", {"architectures": ["Oracle"], **dataclasses.asdict(oracle.config)})
    tensors = {
        name: tensor if name.startswith("extensions.") else tensor.half()
        for name, tensor in oracle.state_dict().items()
    }
    write_safetensors(Path(folder) / _WEIGHTS, tensors, {"format": "pt"})


# ------------------------------------------------------------------ scores


@dataclass(frozen=True)
class RelationScore:
    """How well pictures show what they should.

    Attributes:
        relation: (B,) bool, the relation that was wanted is the likeliest.
        direction: (B,) bool, who is subject and who is object fits what was wanted; true where there is no telling
            (symmetric relations, individuals of the same look).
        slots: (B, 2), the role in which each of the two individuals was found.
        species, coat, second, pattern: (B, 2) bool, per individual in the order they were given.
        contact: (B,) distance in picture widths between what must touch; nan where nothing must.
    """

    relation: torch.Tensor
    direction: torch.Tensor
    slots: torch.Tensor
    species: torch.Tensor
    coat: torch.Tensor
    second: torch.Tensor
    pattern: torch.Tensor
    contact: torch.Tensor

    @property
    def right(self) -> torch.Tensor:
        """(B,) bool: relation and direction."""
        return self.relation & self.direction


Pairs = Sequence[Individual] | Sequence[Sequence[Individual]]


def relation_score(reading: Reading, relation: Relation | str, individuals: Pairs) -> RelationScore:
    """Score pictures against the relation and the individuals they should show.

    Args:
        individuals: (subject, object), the same in every picture or one pair per picture.

    Raises:
        InputError: the oracle does not know the relation.
    """
    wanted = load_relation(relation) if isinstance(relation, str) else relation
    pairs = _pairs(reading, individuals)
    slots = find_slots(reading, individuals)
    found = reading.relation.argmax(1) == _column(reading, wanted.name)
    straight = slots[:, 0] == 0
    correct = {}
    for at, name in enumerate(ATTRIBUTES):
        told = getattr(reading, name).argmax(-1).gather(1, slots)
        correct[name] = told == torch.tensor([[look(one)[at] for one in pair] for pair in pairs], device=told.device)
    return RelationScore(
        relation=found,
        direction=torch.ones_like(straight) if wanted.symmetric else straight,
        slots=slots,
        contact=contact_distance(reading, wanted, individuals),
        **correct,
    )


def find_slots(reading: Reading, individuals: Pairs) -> torch.Tensor:
    """The roles in which two individuals are found, (B, 2): (0, 1) or (1, 0), whichever fits their looks better."""
    pairs = _pairs(reading, individuals)
    scores = torch.stack([_log_likelihood(reading, [pair[k] for pair in pairs]) for k in range(ROLES)], dim=1)
    # scores: (B, individual, role)
    turned = scores[:, 0, 1] + scores[:, 1, 0] > scores[:, 0, 0] + scores[:, 1, 1] + 1e-6
    return torch.stack((turned.long(), 1 - turned.long()), dim=1)


def identify(
    reading: Reading, role: int | torch.Tensor, candidates: Sequence[Individual] | Sequence[Sequence[Individual]]
) -> torch.Tensor:
    """Which candidate is seen in a role, (B,) index: the one whose look is likeliest.

    Args:
        role: of every picture, or (B,) one of each. In a symmetric relation 0 is the left one; ``find_slots`` tells.
        candidates: the same for every picture, or a list per picture (of equal lengths).
    """
    rows = [candidates] * len(reading) if isinstance(candidates[0], Individual) else candidates
    roles = torch.as_tensor(role, device=reading.relation.device).expand(len(reading))
    looks = torch.tensor([[look(one) for one in row] for row in rows], device=roles.device)  # type: ignore[arg-type,union-attr]
    numbers = torch.arange(len(reading), device=roles.device)
    scores: Any = 0
    for at, name in enumerate(ATTRIBUTES):
        scores = scores + getattr(reading, name)[numbers, roles].gather(1, looks[..., at])
    return scores.argmax(1)


def contact_distance(reading: Reading, relation: Relation, individuals: Pairs | None = None) -> torch.Tensor:
    """Mean distance in picture widths between the places that the relation says must touch, (B,); nan without any.

    Where it is no matter who is who (symmetric relations), the better way round counts.

    Args:
        individuals: whose bodies they are; None takes the species that the oracle reads.
    """
    contacts = scene_rule(relation).contacts if relation.scene is not None else ()
    result = torch.full((len(reading),), torch.nan)
    if not contacts:
        return result
    points = by_side(reading.keypoints)[..., :2].cpu().numpy()
    species = reading.species.argmax(-1).cpu()
    if individuals is not None:
        pairs, slots = _pairs(reading, individuals), find_slots(reading, individuals).cpu()
        told = torch.tensor([[SPECIES.index(one.species) for one in pair] for pair in pairs])
        species = told.gather(1, slots)  # exchanging two is its own inverse
    for number in range(len(reading)):
        bodies = [(points[number, role], SPECIES[int(species[number, role])]) for role in range(ROLES)]
        ways = [bodies, bodies[::-1]] if relation.symmetric else [bodies]
        result[number] = min(_distance(way, contacts) for way in ways)
    return result


def _distance(bodies: Sequence[tuple[np.ndarray, str]], contacts: Sequence[tuple[str, str]]) -> float:
    def at(text: str) -> np.ndarray:
        role, _, name = text.partition(".")
        return place(*bodies[int(role)], name)

    return float(np.mean([np.linalg.norm(at(a) - at(b)) for a, b in contacts]))


def place(points: np.ndarray, species: str, name: str) -> np.ndarray:
    """A point of a figure as ``Figure.point`` has it, from the keypoints and the species' anatomy.

    Args:
        points: (17, 2), x and y (down), in the order of ``POINTS``.

    Returns:
        (2,), x and y down.

    Raises:
        InputError: no such point can be told from keypoints.
    """
    if name in POINTS:
        return points[POINTS.index(name)]
    known = ("hips", "shoulders", "middle", "back", "belly", "chest", "rump", "withers")
    if name not in known:
        raise InputError(f"contacts: {name!r} cannot be told from keypoints; points: {', '.join((*POINTS, *known))}")
    anatomy = ANATOMY[species]
    up_right = points * np.array([1.0, -1.0])  # y up, as figures are built
    facing = 1.0 if points[_NOSE, 0] > points[_NECK, 0] else -1.0
    front, hind = (
        (up_right[POINTS.index(f"near_{end}_root")] + up_right[POINTS.index(f"far_{end}_root")]) / 2
        for end in ("front", "hind")
    )
    # figure.build roots the limbs a little below the spine's ends, the far ones shifted forward.
    length = max(float(np.linalg.norm(front - hind)), 1e-6)
    along, unit = (front - hind) / length, length / (TRUNK - 0.06)
    up = np.array([-along[1], along[0]]) * facing
    hips = hind - along * 0.04 * unit + up * 0.35 * anatomy.chest * unit
    shoulders = hips + along * TRUNK * unit
    middle, girth = (hips + shoulders) / 2, unit * (anatomy.rump + anatomy.chest) / 2
    found = {
        "hips": hips,
        "shoulders": shoulders,
        "middle": middle,
        "back": middle + up * girth,
        "belly": middle - up * girth,
        "chest": shoulders - up * girth * 0.9,
        "rump": hips - along * unit * anatomy.rump,
        "withers": shoulders + up * girth * 0.9,
    }[name]
    return found * np.array([1.0, -1.0])


def contact_limit(
    relation: Relation, oracle: Oracle | None = None, share: float = 0.95, count: int = 64, seed: int = 0
) -> float:
    """How far apart the touching places of true scenes lie: ``share`` of ``count`` scenes are nearer. nan without any.

    A generated picture whose ``contact_distance`` is larger does not touch.

    Args:
        oracle: renders the scenes and lets it read them, so that its own error is in the limit; None measures the
            figures themselves, and renders nothing.
    """
    contacts = scene_rule(relation).contacts
    if not contacts:
        return float("nan")
    if oracle is not None:
        drawn = draw_examples([relation], count, seed)
        reading = oracle.read(drawn.pictures).map(lambda tensor: tensor.cpu())
        return float(contact_distance(reading, relation, drawn.individuals).quantile(share))
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        scene = compose(relation, [draw_individual(rng) for _ in relation.roles], rng)
        found.append(np.mean([np.linalg.norm(_point(scene, a) - _point(scene, b)) for a, b in contacts]))
    return float(np.quantile(found, share))


def _point(scene: Scene, text: str) -> np.ndarray:
    role, _, name = text.partition(".")
    return scene.figures[int(role)].point(name)


def _pairs(reading: Reading, individuals: Pairs) -> list[Sequence[Individual]]:
    rows: Any = [individuals] * len(reading) if isinstance(individuals[0], Individual) else list(individuals)
    if len(rows) != len(reading) or any(len(row) != ROLES for row in rows):
        raise ValueError(f"individuals: two for each of {len(reading)} pictures were expected")
    return rows


def _column(reading: Reading, name: str) -> int:
    if name not in reading.relations:
        known = ", ".join(reading.relations)
        raise InputError(f"relation {name!r}: the oracle does not know it; extend it first (it knows {known})")
    return reading.relations.index(name)


def _log_likelihood(reading: Reading, individuals: Sequence[Individual]) -> torch.Tensor:
    """Log-probability of one individual per picture in each role, (B, 2)."""
    looks = torch.tensor([look(one) for one in individuals], device=reading.relation.device)
    total: Any = 0
    for at, name in enumerate(ATTRIBUTES):
        values: torch.Tensor = getattr(reading, name)
        total = total + values.gather(2, looks[:, at, None, None].expand(-1, ROLES, 1))[..., 0]
    return total


# ------------------------------------------------------------------ new relations


@dataclass(frozen=True)
class Examples:
    """Fresh renders with what they show.

    Attributes:
        pictures: uint8 (n, 3, 128, 128).
        relations: n names.
        individuals: n pairs, in the order of the roles.
    """

    pictures: torch.Tensor
    relations: tuple[str, ...]
    individuals: tuple[tuple[Individual, ...], ...]


def draw_examples(
    relations: Sequence[Relation], each: int, seed: int = 0, held_out: bool = False, batch: int = 16
) -> Examples:
    """``each`` renders of every relation, of individuals drawn anew (with ``held_out``: such as no training shows)."""
    scenes, names = [], []
    for at, relation in enumerate(relations):
        rng = np.random.default_rng((seed, at))
        for _ in range(each):
            scenes.append(compose(relation, [draw_individual(rng, held_out) for _ in relation.roles], rng))
            names.append(relation.name)
    pictures = [render(scenes[first : first + batch], SIZE).pictures for first in range(0, len(scenes), batch)]
    return Examples(torch.cat(pictures), tuple(names), tuple(scene.individuals for scene in scenes))


def extend(oracle: Oracle, relation: Relation, examples: Examples | None = None, each: int = 40) -> Oracle:
    """An oracle that also tells a relation it was not trained on; what it says of the others keeps its order.

    Linear discriminants on its features tell the new relation from all others, and a ridge regression on the same
    features says in which role it sees the new relation's subject.

    Args:
        examples: renders of every relation it knows and of the new one; None draws ``each`` of them.

    Raises:
        InputError: it knows the relation already, the relation cannot be drawn, or examples are missing.
    """
    if relation.name in oracle.relations:
        raise InputError(f"relation {relation.name!r}: the oracle knows it already")
    names = (*oracle.relations, relation.name)
    if examples is None:
        known = [load_relation(name) for name in oracle.relations]
        examples = draw_examples([*known, relation], each)
    if missing := set(names) - set(examples.relations):
        raise InputError(f"examples: none of {min(missing)!r}; every relation needs some")
    reading = oracle.read(examples.pictures).map(lambda tensor: tensor.cpu())
    labels = torch.tensor([names.index(name) for name in examples.relations])
    extension = Extension(len(names), reading.features.shape[1])
    with torch.no_grad():
        within = reading.features - class_means(reading.features, labels)[labels]
        extension.mean.copy_(reading.features.mean(0))
        extension.scale.copy_(1 / within.std(0).clamp(min=1e-2))
        x = extension.standard(reading.features)
        weight, bias = discriminants(x, labels)
        extension.weight.copy_(weight)
        extension.bias.copy_(bias)
        if relation.symmetric:
            # Role 0 is the left one, as everywhere.
            mine = reading.map(lambda tensor: tensor[labels == len(names) - 1])
            left = mine.keypoints[..., 0].mean(-1)
            straight = left[:, 0] <= left[:, 1]
        else:
            pairs = [pair for pair, name in zip(examples.individuals, examples.relations, strict=True)]
            straight = find_slots(reading, pairs)[labels == len(names) - 1, 0] == 0
        order, order_bias = ridge(x[labels == len(names) - 1], torch.where(straight, 1.0, -1.0))
        extension.order.copy_(order)
        extension.order_bias.copy_(order_bias)
    symmetric = (*oracle.config.symmetric, *((relation.name,) if relation.symmetric else ()))
    config = dataclasses.replace(oracle.config, added=(*oracle.config.added, relation.name), symmetric=symmetric)
    extended = copy.deepcopy(oracle)
    extended.config = config
    extended.extensions.append(extension.to(oracle.position.device))
    return extended.requires_grad_(False).eval()


def class_means(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(classes, F) means of rows (n, F)."""
    sums = torch.zeros(int(labels.max()) + 1, x.shape[1]).index_add_(0, labels, x)
    return sums / labels.bincount()[:, None]


def discriminants(x: torch.Tensor, labels: torch.Tensor, shrinkage: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    """Linear discriminant analysis: weights (classes, F) and biases (classes,) of log-posteriors, equal priors.

    Args:
        x: (n, F).
        labels: (n,), every class from 0 on occurs.
        shrinkage: of the shared covariance towards a multiple of the identity: rows are few and features many.
    """
    means = class_means(x, labels)
    within = x - means[labels]
    covariance = within.T @ within / len(x)
    level = covariance.diagonal().mean()
    covariance = (1 - shrinkage) * covariance + shrinkage * level * torch.eye(len(covariance))
    weight = torch.linalg.solve(covariance, means.T).T
    return weight, -0.5 * (weight * means).sum(1)


def ridge(x: torch.Tensor, y: torch.Tensor, strength: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights (F,) and bias () of a ridge regression of y (n,) on x (n, F), penalised by ``strength`` * F."""
    mean = x.mean(0)
    centred = x - mean
    gram = centred @ centred.T + strength * x.shape[1] * torch.eye(len(x))
    weight = centred.T @ torch.linalg.solve(gram, y - y.mean())
    return weight, y.mean() - mean @ weight
