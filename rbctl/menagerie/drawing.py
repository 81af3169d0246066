"""Draw scenes: signed distance fields, batched, on any device and at any size.

Every figure is painted layer by layer (``figure.LAYERS``). A layer is the smooth union of at most four tapered
capsules, with an outline, a rim that darkens towards its edge and the coat's pattern in the body's own frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rbctl.menagerie.figure import LAYERS, PARTS, Figure, face, keypoints, shapes
from rbctl.menagerie.individuals import COATS, PATTERNS
from rbctl.menagerie.scenes import STUDIO, Scene

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NOWHERE = (9.0, 9.0, 9.0, 9.0, -5.0, -5.0)  # a part that covers nothing
_OUTLINE = 0.045  # width, in trunk lengths
_PUPIL = (0.06, 0.06, 0.08)
_SNOUT = {"pig": (0.98, 0.66, 0.72)}
_NOSE = (0.13, 0.10, 0.12)
# zenith, horizon, ground near the horizon, ground at the bottom, sun or moon
_PLACES: dict[str, tuple[tuple[float, float, float], ...]] = {
    "day": ((0.45, 0.76, 0.95), (0.82, 0.93, 0.99), (0.56, 0.79, 0.42), (0.42, 0.68, 0.33), (1.0, 0.95, 0.66)),
    "night": ((0.10, 0.11, 0.27), (0.25, 0.25, 0.46), (0.16, 0.30, 0.32), (0.12, 0.23, 0.25), (0.95, 0.94, 0.80)),
    "sand": ((0.58, 0.83, 0.93), (0.97, 0.95, 0.86), (0.94, 0.84, 0.60), (0.87, 0.73, 0.46), (1.0, 0.93, 0.55)),
    "snow": ((0.66, 0.75, 0.88), (0.87, 0.90, 0.96), (0.96, 0.97, 1.0), (0.84, 0.89, 0.96), (1.0, 0.98, 0.88)),
    "sunset": ((0.52, 0.33, 0.55), (0.98, 0.69, 0.45), (0.60, 0.42, 0.36), (0.45, 0.30, 0.28), (1.0, 0.88, 0.52)),
    STUDIO: ((0.93, 0.93, 0.92), (0.93, 0.93, 0.92), (0.93, 0.93, 0.92), (0.93, 0.93, 0.92), (0.93, 0.93, 0.92)),
}


@dataclass
class Rendering:
    """Pictures and all that is known about them.

    Attributes:
        pictures: uint8 (B, 3, H, W).
        visible, full: bool (B, N, H, W), what is seen of each individual, and its whole silhouette.
        boxes: float (B, N, 4), relative xyxy of the silhouettes, inside the frame.
        keypoints: float (B, N, 17, 3): x, y relative (y down), visibility 0 outside the frame, 1 hidden, 2 seen.
    """

    pictures: torch.Tensor
    visible: torch.Tensor
    full: torch.Tensor
    boxes: torch.Tensor
    keypoints: torch.Tensor


def _packed(figure: Figure) -> tuple[NDArray[Any], NDArray[Any]]:
    """All numbers that drawing needs: parts (layers, PARTS, 6), traits (53,)."""
    layers = shapes(figure)
    parts = np.tile(np.array(_NOWHERE, dtype=np.float32), (len(LAYERS), PARTS, 1))
    for row, name in enumerate(LAYERS):
        for k, (a, b, ra, rb) in enumerate(layers[name]):
            parts[row, k] = (a[0], 1 - a[1], b[0], 1 - b[1], ra, rb)
    hips, shoulders = figure.points["hips"], figure.points["shoulders"]
    along = (shoulders - hips) / max(float(np.linalg.norm(shoulders - hips)), 1e-6)
    head, up = figure.points["head"], figure.points["up"] - figure.points["head"]
    up = up / max(float(np.linalg.norm(up)), 1e-6)
    one = figure.individual
    traits = [
        *COATS[one.coat],
        *COATS[one.second],
        *(float(one.pattern == name) for name in PATTERNS[1:]),
        figure.scale,
        hips[0], 1 - hips[1], along[0], -along[1], float(figure.facing),
        head[0], 1 - head[1], up[0], -up[1],
        *_SNOUT.get(one.species, _NOSE),
        float(figure.anatomy.mane),
        figure.anatomy.head * figure.scale,
    ]  # fmt: skip
    discs = [number for centre, radius in face(figure) for number in (centre[0], 1 - centre[1], radius)]
    floor = [figure.points["hips"][0] / 2 + figure.points["shoulders"][0] / 2]
    return parts, np.array([*traits, *discs, *floor], dtype=np.float32)


def _mix(base: torch.Tensor, over: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    return base + (over - base) * alpha


def _union(parts: torch.Tensor, x: torch.Tensor, y: torch.Tensor, smooth: torch.Tensor, count: int) -> torch.Tensor:
    """Signed distance (B, H, W) to the smooth union of capsules, parts (B, PARTS, 6)."""
    distance: torch.Tensor | None = None
    for k in range(count):
        ax, ay, bx, by, ra, rb = (v[:, None, None] for v in parts[:, k].unbind(-1))
        dx, dy = bx - ax, by - ay
        px, py = x - ax, y - ay
        h = ((px * dx + py * dy) / (dx * dx + dy * dy + 1e-9)).clamp(0, 1)
        part = torch.sqrt((px - h * dx) ** 2 + (py - h * dy) ** 2 + 1e-12) - (ra + (rb - ra) * h)
        if distance is None:
            distance = part
        else:
            blend = (smooth - (distance - part).abs()).clamp(min=0) / smooth
            distance = torch.minimum(distance, part) - blend * blend * smooth * 0.25
    assert distance is not None
    return distance


_COUNTS = {"far": 4, "tail": 2, "body": 2, "hind": 3, "crown": 3, "head": 4, "front": 2}


def _program(count: int) -> list[tuple[int, str, str]]:
    """What is painted after what: (figure from back to front, layer, only where the flag is set / not set).

    See Scene.straddle and Scene.embrace for the flags.
    """
    last = count - 1
    steps = [(0, "far", ""), *((k, "far", "straddle") for k in range(1, count))]
    for k in range(count):
        if k > 0:
            steps.append((k, "far", "no straddle"))
        steps += [(k, name, "") for name in LAYERS if name not in ("far", "front")]
        if k < last:
            steps.append((k, "front", "no embrace"))
    return [*steps, *((k, "front", "embrace") for k in range(last)), (last, "front", "")]


def paint(
    parts: torch.Tensor, traits: torch.Tensor, flags: torch.Tensor, ground: torch.Tensor, size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Paint packed scenes; a pure function of tensors, so that it can be compiled.

    Args:
        parts: (B, N, layers, PARTS, 6), figures from back to front.
        traits: (B, N, K) as ``_packed`` makes them.
        flags: (B, 2), straddle and embrace.
        ground: (B, 22): five colours, horizon, hills, sun.

    Returns:
        Pictures (B, 3, H, W) in [0, 1], owner (B, H, W) (0 nobody, else 1 + 2 * figure + (1 where a far limb is seen)),
        silhouettes (B, N, H, W) as coverage in [0, 1].
    """
    b, n = parts.shape[:2]
    steps = (torch.arange(size, device=parts.device, dtype=torch.float32) + 0.5) / size
    x, y = steps[None, None, :], steps[None, :, None]
    pixel = 1.0 / size
    rgb = _background(ground, x, y, pixel)
    owner = torch.zeros(b, size, size, device=parts.device)
    full = [torch.zeros(b, size, size, device=parts.device) for _ in range(n)]

    for k in range(n):  # soft shadows on the ground, under everything
        middle, scale = traits[:, k, -1, None, None], traits[:, k, 9, None, None]
        feet = parts[:, k, (0, 3)].flatten(1, 2)
        low = torch.where(feet[..., 4] > 0, torch.maximum(feet[..., 1] + feet[..., 4], feet[..., 3] + feet[..., 5]), 0)
        # In a studio there is no ground but under the feet.
        floor = torch.where(ground[:, 21] > 0, ground[:, 20], low.amax(1))[:, None, None]
        spread = ((x - middle) / (scale * 0.85)) ** 2 + ((y - floor) / (scale * 0.13)) ** 2
        shade = 0.28 * (1.3 - spread).clamp(0, 1)
        rgb = [c * (1 - shade) for c in rgb]

    for k, layer, when in _program(n):
        t = [v[:, None, None] for v in traits[:, k].unbind(-1)]
        scale = t[9]
        smooth = scale * (0.30 if layer == "body" else 0.06 if layer == "crown" else 0.10)
        distance = _union(parts[:, k, LAYERS.index(layer)], x, y, smooth, _COUNTS[layer])
        if when:
            flag = flags[:, 0 if "straddle" in when else 1][:, None, None]
            distance = distance + 9 * (flag if when.startswith("no") else 1 - flag)
        full[k] = torch.maximum(full[k], (0.5 - distance / pixel).clamp(0, 1))
        alpha = (0.5 - (distance - 0.5 * _OUTLINE * scale) / pixel).clamp(0, 1)
        inside = (0.5 - (distance + 0.5 * _OUTLINE * scale) / pixel).clamp(0, 1)
        second = _pattern(layer, t, x, y, pixel)
        # A rim that darkens over a quarter of a trunk, and light from above.
        rim = (1 + distance / (0.22 * scale)).clamp(0, 1)
        light = 1.06 - 0.26 * rim * rim - 0.10 * ((y - t[11]) / scale).clamp(-1, 1)
        if layer == "far":
            light = light * 0.80
        if layer == "crown":
            light = light * (0.94 - 0.36 * t[22])
        for c in range(3):
            coat = _mix(t[c], t[3 + c], second)
            line = t[c] * 0.30
            colour = _mix(line, (coat * light).clamp(0, 1), inside)
            rgb[c] = _mix(rgb[c], colour, alpha)
        owner = torch.where(alpha > 0.5, 1.0 + 2 * k + (1 if layer == "far" else 0), owner)
        if layer == "head":
            rgb = _face(rgb, t, x, y, pixel)
    return torch.stack(rgb, 1).clamp(0, 1), owner, torch.stack(full, 1)


def _background(ground: torch.Tensor, x: torch.Tensor, y: torch.Tensor, pixel: float) -> list[torch.Tensor]:
    g = [v[:, None, None] for v in ground.unbind(-1)]
    wave = 0.022 * torch.sin(5.0 * x + g[16]) + 0.012 * torch.sin(11.0 * x + g[17])
    horizon = g[15] + wave
    below = ((y - horizon) / pixel + 0.5).clamp(0, 1)
    depth = ((y - horizon) / (1 - horizon)).clamp(0, 1)
    height = (y / horizon).clamp(0, 1)
    disc = (0.5 - (torch.sqrt((x - g[18]) ** 2 + (y - g[19]) ** 2) - 0.055) / pixel).clamp(0, 1) * g[21]
    rgb = []
    for c in range(3):
        sky = _mix(_mix(g[c], g[3 + c], height), g[12 + c], disc)
        rgb.append(_mix(sky, _mix(g[6 + c], g[9 + c], depth), below))
    return rgb


def _pattern(layer: str, t: list[torch.Tensor], x: torch.Tensor, y: torch.Tensor, pixel: float) -> torch.Tensor:
    """Coverage in [0, 1] of the second coat, in the trunk's frame (the head's for the head)."""
    scale = t[9]
    edge = pixel / scale
    if layer in ("head", "crown"):
        px, py = (x - t[15]) / scale, (y - t[16]) / scale
        up = px * t[17] + py * t[18]
        # On the head: stripes and spots stay off the face; patches colour its top and the ears.
        cap = ((up - 0.10) / edge + 0.5).clamp(0, 1)
        if layer == "crown":
            return cap * t[8] * (1 - t[22]) + t[22] * (t[6] + t[7] + t[8])  # a mane takes the second coat
        return cap * t[8]
    px, py = (x - t[10]) / scale, (y - t[11]) / scale
    u = px * t[12] + py * t[13]  # 0 at the hips, 1 at the shoulders
    v = (-px * t[13] + py * t[12]) * t[14]  # > 0 towards the belly
    if layer == "tail":
        bands = ((0.10 - (torch.remainder(px.abs() + py.abs(), 0.36) - 0.18).abs()) / edge + 0.5).clamp(0, 1)
        return bands * t[7] + t[8]
    stripes = ((0.085 - (torch.remainder(u + 0.22, 0.34) - 0.17).abs()) / edge + 0.5).clamp(0, 1)
    if layer in ("far", "hind", "front"):
        stripes = ((0.075 - (torch.remainder(v + 0.1, 0.30) - 0.15).abs()) / edge + 0.5).clamp(0, 1)
        socks = ((v - 0.46) / edge + 0.5).clamp(0, 1)
        return stripes * t[7] + socks * t[8]
    row = torch.floor(v / 0.29)
    du = torch.remainder(u + 0.17 * row, 0.34) - 0.17
    dv = torch.remainder(v, 0.29) - 0.145
    spots = ((0.105 - torch.sqrt(du * du + dv * dv + 1e-12)) / edge + 0.5).clamp(0, 1)
    saddle = ((0.27 - (u - 0.32).abs()) / edge + 0.5).clamp(0, 1) * ((0.12 - v) / edge + 0.5).clamp(0, 1)
    return spots * t[6] + stripes * t[7] + saddle * t[8]


def _face(
    rgb: list[torch.Tensor], t: list[torch.Tensor], x: torch.Tensor, y: torch.Tensor, pixel: float
) -> list[torch.Tensor]:
    discs = t[24:39]
    for k in range(5):
        cx, cy, radius = discs[3 * k : 3 * k + 3]
        distance = torch.sqrt((x - cx) ** 2 + (y - cy) ** 2) - radius
        alpha = (0.5 - distance / pixel).clamp(0, 1)
        colour: Sequence[Any] = ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0), _PUPIL, _PUPIL, t[19:22])[k]
        if k < 2:  # a thin dark ring round the white of an eye, which white animals need
            ring = (0.5 - (distance - 0.018 * t[9]) / pixel).clamp(0, 1)
            rgb = [c + (_PUPIL[i] - c) * ring * 0.8 for i, c in enumerate(rgb)]
        rgb = [c + (colour[i] - c) * alpha for i, c in enumerate(rgb)]
    return rgb


def pack(scenes: Sequence[Scene]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scenes of equally many individuals as the tensors that ``paint`` reads."""
    rows = []
    for scene in scenes:
        packed = [_packed(scene.figures[k]) for k in scene.order]
        place = [c for colour in _PLACES[scene.background] for c in colour]
        floor = min(figure.lowest() for figure in scene.figures) - scene.air
        if scene.background == STUDIO:
            rest = [2.0, 0.0, 0.0, 0.5, 0.5, 1 - floor, 0.0]
        else:
            rest = [1 - scene.horizon, *scene.hills, scene.sun[0], 1 - scene.sun[1], 1 - floor, 1.0]
        flags = [float(scene.straddle), float(scene.embrace)]
        rows.append((np.stack([p for p, _ in packed]), np.stack([q for _, q in packed]), flags, [*place, *rest]))
    parts, traits, flags_, ground = (np.array(column, dtype=np.float32) for column in zip(*rows, strict=True))
    return torch.from_numpy(parts), torch.from_numpy(traits), torch.from_numpy(flags_), torch.from_numpy(ground)


def render(
    scenes: Sequence[Scene], size: int = 128, device: str | torch.device = "cpu", painter: Any = paint
) -> Rendering:
    """Draw scenes of equally many individuals.

    Args:
        size: side in pixels.
        painter: ``paint``, or a compiled form of it.
    """
    packed = [tensor.to(device) for tensor in pack(scenes)]
    with torch.no_grad():
        rgb, owner, coverage = painter(*packed, size)
    n = len(scenes[0].individuals)
    # Back to roles: figure k of the painting order is role order[k].
    order = torch.tensor([scene.order for scene in scenes], device=owner.device)
    place = order.argsort(1)  # role -> position in the painting order
    full = coverage.gather(1, place[:, :, None, None].expand(-1, -1, size, size)) > 0.5
    mine = ((owner.long() - 1) // 2)[:, None] == place[:, :, None, None]
    visible = mine & (owner > 0)[:, None]
    points = torch.tensor(np.stack([scene.keypoints() for scene in scenes]), dtype=torch.float32, device=owner.device)
    far = torch.tensor(np.stack([[keypoints(f)[1] for f in s.figures] for s in scenes]), device=owner.device)
    inside = ((points >= 0) & (points < 1)).all(-1)
    cells = (points.clamp(0, 1 - 1e-6) * size).long()
    index = (cells[..., 1] * size + cells[..., 0]).flatten(1)
    seen = owner.flatten(1).gather(1, index).unflatten(1, (n, -1)).long()
    is_mine = ((seen - 1) // 2 == place[..., None]) & (seen > 0)
    hidden = ~is_mine | (far & ((seen - 1) % 2 == 0))
    visibility = torch.where(inside, torch.where(hidden, 1.0, 2.0), torch.zeros_like(points[..., 0]))
    return Rendering(
        pictures=(rgb * 255 + 0.5).clamp(0, 255).to(torch.uint8),
        visible=visible,
        full=full,
        boxes=_boxes(full),
        keypoints=torch.cat((points, visibility[..., None]), dim=-1),
    )


def _boxes(masks: torch.Tensor) -> torch.Tensor:
    """(B, N, H, W) bool -> (B, N, 4) relative xyxy; zeros for an empty mask."""
    size = masks.shape[-1]
    steps = torch.arange(size, device=masks.device)
    ends = []
    for line in (masks.any(2), masks.any(3)):  # columns, rows
        low = torch.where(line, steps, size).amin(-1)
        high = torch.where(line, steps + 1, 0).amax(-1)
        ends.append((low.clamp(max=size - 1) * (high > 0), high))
    (x0, x1), (y0, y1) = ends
    return torch.stack((x0, y0, x1, y1), dim=-1).float() / size
