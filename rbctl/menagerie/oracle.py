"""The oracle: what a picture of the embedded world shows, read from its pixels alone.

It is told neither prompt nor boxes nor individuals. For each of its roles it says where it is, what it looks like and
where its keypoints lie; and it says which relation holds, and where there are faces. Roles are those of the relation;
those that may change places (``Relation.orders``) it tells from left to right. Where a picture shows fewer individuals
than it has roles, the last ones are nowhere. ``oracle_scores`` makes scores of it.
"""

from __future__ import annotations

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
from rbctl.files import read_network_config, read_safetensors, write_json, write_safetensors
from rbctl.menagerie.individuals import COATS, PATTERNS, SPECIES, Individual

if TYPE_CHECKING:
    from PIL import Image

SIZE = 128  # side of the pictures it reads
MASK_SIZE = 32
KEYPOINTS = 17
ATTRIBUTES = ("species", "coat", "second", "pattern")
_VALUES = {"species": SPECIES, "coat": tuple(COATS), "second": tuple(COATS), "pattern": PATTERNS}

# The keypoints by side instead of left and right: mirrored, a picture keeps these names.
POINTS = (
    "near_eye", "far_eye", "nose", "neck", "tail",
    "near_front_root", "near_front_joint", "near_front_paw", "far_front_root", "far_front_joint", "far_front_paw",
    "near_hind_root", "near_hind_joint", "near_hind_paw", "far_hind_root", "far_hind_joint", "far_hind_paw",
)  # fmt: skip
NOSE, NECK = POINTS.index("nose"), POINTS.index("neck")
_TURNED = (1, 0, 2, 3, 4, 8, 9, 10, 5, 6, 7, 14, 15, 16, 11, 12, 13)  # AP-10K names the left limb first


def by_side(keypoints: torch.Tensor) -> torch.Tensor:
    """Keypoints in AP-10K's order -> in the order of ``POINTS``; the same again turns them back.

    An animal that faces right (its nose is right of its neck) shows its right limbs, else its left ones.

    Args:
        keypoints: (..., 17, C), x first.
    """
    right = (keypoints[..., NOSE, 0] > keypoints[..., NECK, 0])[..., None, None]
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
        roles: how many individuals it can tell.
        added_roles: the same of its extensions; () where they can tell as many.
        faces: whether it says where faces are.
        stem, width, depth, layers: channels at 32 x 32, at 16 x 16 and at 8 x 8 cells, and its transformer's layers.
    """

    relations: tuple[str, ...]
    symmetric: tuple[str, ...]
    added: tuple[str, ...] = ()
    roles: int = 2
    added_roles: tuple[int, ...] = ()
    faces: bool = False
    stem: int = 48
    width: int = 128
    depth: int = 192
    layers: int = 3
    heads: int = 6
    looks: int = 4  # attention maps per role

    def first(self, count: int) -> OracleConfig:
        """Of an oracle that was trained on the first ``count`` of the added relations too."""
        roles = (self.roles, *self.added_roles)[min(count, len(self.added_roles))]
        relations = (*self.relations, *self.added[:count])
        return dataclasses.replace(self, relations=relations, added=(), roles=roles, added_roles=())


@dataclass(frozen=True)
class Reading:
    """What the oracle says of B pictures; role r of R is the second axis.

    Attributes:
        relations: names of the columns of ``relation``.
        symmetric: names of relations without subject and object.
        relation: (B, n) log-probabilities.
        maps: (B, R, 32, 32) in [0, 1], where each role is seen.
        species, coat, second, pattern: (B, R, n) log-probabilities.
        keypoints: (B, R, 17, 3) in AP-10K's order: x, y in [0, 1], and how surely it is seen, in [0, 1].
        faces: (B, 32, 32) in [0, 1], high in the middle of every face, whosever it is; None where it tells of none.
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
    faces: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.relation)

    @property
    def roles(self) -> int:
        """R, how many individuals it can tell."""
        return int(self.maps.shape[1])

    @property
    def areas(self) -> torch.Tensor:
        """(B, R) share of the picture in which each role is seen."""
        return (self.maps > 0.5).float().mean(dim=(2, 3))

    def of_roles(self, count: int) -> Reading:
        """The same with as many roles; those that it lacks are nowhere."""

        def widened(tensor: torch.Tensor) -> torch.Tensor:
            return torch.cat((tensor, tensor.new_zeros(len(tensor), count - self.roles, *tensor.shape[2:])), dim=1)

        changed: dict[str, Any] = {name: widened(getattr(self, name)) for name in ("maps", *ATTRIBUTES, "keypoints")}
        return dataclasses.replace(self, **changed)

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Reading:
        """The same with every tensor changed."""
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in self._tensors().items()}
        return dataclasses.replace(self, **changed)

    def extended(self, taught: Reading) -> Reading:
        """With one relation more, the last of ``taught``, which also reads the pictures that show it.

        The new relation takes its probability from all others alike: their order stays as it was.
        """
        new = taught.relation[:, -1:]
        others = torch.log1p(-new.exp().clamp(max=1 - 1e-6))
        relation = torch.cat((self.relation + others, new), dim=1)
        shown = relation.argmax(1) == relation.shape[1] - 1
        changed: dict[str, Any] = {"relation": relation}
        base = self.of_roles(taught.roles)
        for name in ("maps", *ATTRIBUTES, "keypoints"):
            mine, other = getattr(base, name), getattr(taught, name)
            changed[name] = torch.where(shown.view(-1, *[1] * (mine.ndim - 1)), other, mine)
        return dataclasses.replace(self, relations=taught.relations, symmetric=taught.symmetric, **changed)

    @staticmethod
    def cat(readings: Sequence[Reading]) -> Reading:
        """Several readings as one."""
        names = readings[0]._tensors()
        joined: dict[str, Any] = {name: torch.cat([getattr(reading, name) for reading in readings]) for name in names}
        return dataclasses.replace(readings[0], **joined)

    def _tensors(self) -> dict[str, torch.Tensor]:
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}


@dataclass(frozen=True)
class RawReading:
    """What the heads give, for training: logits in place of probabilities, keypoints in the order of ``POINTS``.

    Attributes:
        relation: (B, n).
        masks: (B, R, 32, 32).
        looks: per attribute (B, R, n).
        heat: (B, R, 17, 32 * 32).
        seen: (B, R, 17).
        faces: (B, 32, 32), if it has any.
    """

    relation: torch.Tensor
    masks: torch.Tensor
    looks: dict[str, torch.Tensor]
    heat: torch.Tensor
    seen: torch.Tensor
    faces: torch.Tensor | None = None


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


class Oracle(nn.Module):
    """Reads pictures of one to ``config.roles`` individuals.

    Convolutions on 4 x 4 pixels a cell, a small transformer on 8 x 8 cells that sees the whole picture (which role is
    whose depends on the relation), and heads on 16 x 16 cells.
    """

    position: nn.Parameter

    def __init__(self, config: OracleConfig) -> None:
        super().__init__()
        self.config = config
        stem, width, depth, roles = config.stem, config.width, config.depth, config.roles
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
        self.dense = nn.Linear(width, 4 * roles * (1 + KEYPOINTS))  # masks and heat maps, 2 x 2 of a cell
        self.faces = nn.Linear(width, 4) if config.faces else None
        self.attention = nn.Linear(width, roles * config.looks)
        self.role = nn.Linear(config.looks * width, width)
        self.looks = nn.ModuleDict({name: nn.Linear(width, len(_VALUES[name])) for name in ATTRIBUTES})
        self.seen = nn.Linear(width, KEYPOINTS)
        self.summary = nn.Linear(depth + 2 * roles * KEYPOINTS, depth)
        self.relation = nn.Linear(depth, len(config.relations))
        for layer in (self.stem, self.to_cells, self.to_tokens):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        # Copies that were taught one relation more each.
        self.extensions = nn.ModuleList(Oracle(config.first(k + 1)) for k in range(len(config.added)))

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
        count = self.config.roles
        dense = _finer(self.dense(cells))
        masks, heat = dense[:, :count], dense[:, count:].flatten(2).unflatten(1, (count, KEYPOINTS))
        # Each map looks where its role is; the masks themselves learn from their own loss alone.
        there = avg_pool2d(masks.detach().float().sigmoid(), 2).flatten(2).clamp(min=1e-3).log()
        maps = self.attention(cells).mT.unflatten(1, (count, -1)) + there[:, :, None]
        pooled = maps.flatten(1, 2).softmax(-1) @ cells  # (B, roles * looks, width)
        roles = relu(self.role(pooled.unflatten(1, (count, -1)).flatten(2)))
        points = peaks(heat.detach().float()).flatten(1) * 2 - 1
        hidden = relu(self.summary(torch.cat((tokens.mean(1), points.to(tokens.dtype)), dim=-1)))
        return RawReading(
            relation=self.relation(hidden),
            masks=masks,
            looks={name: head(roles) for name, head in self.looks.items()},
            heat=heat,
            seen=self.seen(roles),
            faces=None if self.faces is None else _finer(self.faces(cells))[:, 0],
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
            faces=None if raw.faces is None else raw.faces.float().sigmoid(),
            **{name: log_softmax(logits.float(), dim=-1) for name, logits in raw.looks.items()},
        )
        for taught in self.extensions:
            reading = reading.extended(taught(pixels))
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


def grown(oracle: Oracle, config: OracleConfig) -> Oracle:
    """An oracle of more relations or roles that starts from what another one has learned.

    A new relation starts as the mean of the known ones, a new role as the last one that there is.

    Args:
        oracle: its own extensions are left behind.
        config: what the new one shall be; relations of the other one keep their weights by name.
    """
    new = Oracle(config)
    old, known = oracle.config, {name: x for name, x in oracle.state_dict().items() if "extensions." not in name}
    weights = new.state_dict()
    roles = [min(role, old.roles - 1) for role in range(config.roles)]
    points = [old.roles + role * KEYPOINTS + k for role in roles for k in range(KEYPOINTS)]
    dense = [4 * channel + part for channel in (*roles, *points) for part in range(4)]
    looks = [role * old.looks + k for role in roles for k in range(old.looks)]
    for end in ("weight", "bias"):
        known[f"dense.{end}"] = known[f"dense.{end}"][dense]
        known[f"attention.{end}"] = known[f"attention.{end}"][looks]
        rows, mean = known[f"relation.{end}"], known[f"relation.{end}"].mean(0)
        places = [old.relations.index(name) if name in old.relations else None for name in config.relations]
        known[f"relation.{end}"] = torch.stack([mean if place is None else rows[place] for place in places])
    summary = torch.zeros_like(weights["summary.weight"])  # of a new role's keypoints it knows nothing
    summary[:, : known["summary.weight"].shape[1]] = known["summary.weight"]
    new.load_state_dict({**weights, **known, "summary.weight": summary})
    return new


def _finer(cells: torch.Tensor) -> torch.Tensor:
    """(B, 256, 4 * C) -> (B, C, 32, 32)."""
    return pixel_shuffle(cells.mT.unflatten(2, (16, 16)), 2)


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
    content = read_network_config(path)
    names = {f.name for f in dataclasses.fields(OracleConfig)}
    if not {"relations", "symmetric"} <= content.keys():
        raise InputError(f"{path}: not the configuration of an oracle; make one with 'rbctl pretrain oracle'")
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in content.items() if name in names
    }
    try:
        config = OracleConfig(**values)
        tensors = {name: t.float() for name, t in read_safetensors(path.with_name(_WEIGHTS))[0].items()}
        copies = len({name.split(".")[1] for name in tensors if name.startswith("extensions.")})
        if len(config.added) != copies:  # before each is built
            raise ValueError(f"{len(config.added)} added relations, weights of {copies}")
        oracle = Oracle(config)
        oracle.load_state_dict(tensors)
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise InputError(f"{path}: does not fit its weights ({str(error).splitlines()[0]})") from error
    return oracle.requires_grad_(False).eval().to(device)


_WEIGHTS = "model.safetensors"


def save_oracle(folder: Path, oracle: Oracle) -> None:
    """Write config.json and model.safetensors (half precision)."""
    write_json(Path(folder) / "config.json", {"architectures": ["Oracle"], **dataclasses.asdict(oracle.config)})
    tensors = {name: tensor.half() for name, tensor in oracle.state_dict().items()}
    write_safetensors(Path(folder) / _WEIGHTS, tensors, {"format": "pt"})
