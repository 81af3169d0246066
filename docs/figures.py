"""Draws the figures of docs/: ``python docs/figures.py [NAME ...]``. A minute on one core.

Each is what our own functions compute: of the drawn world, or of random tensors. No picture is sampled.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from rbctl import losses
from rbctl.bundle.load import load as load_bundle
from rbctl.conditioning import box_cells, box_mask, latent_grids
from rbctl.denoising import to_pictures
from rbctl.image_prompt import clip_pixels
from rbctl.kernels import parallel_cross_attention
from rbctl.layout import LayoutPrior, boxes_for
from rbctl.local_encoder import dense_features, local_grid
from rbctl.menagerie import SPECIES, compose, draw_individual, portrait
from rbctl.menagerie.triplets import draw_group, draw_triplets, pictures
from rbctl.pictures import COLOURS, grid, write_tags
from rbctl.plugins.distill.grid import cells, crop, fit, random_grid
from rbctl.relations import Relation, load_relation
from rbctl.roles import place
from rbctl.shortcuts import QUALITIES, Shortcuts
from rbctl.triplets import Triplet, geometry, load
from rbctl.triplets.contact_sheet import contact_sheet
from rbctl.triplets.keypoints import ABSENT, SKELETON

FOLDER = Path(__file__).parent / "pictures"
SIZE = 200  # pixels of a panel
GREY, INK = (226, 228, 232), (40, 44, 52)
LAYOUTS = ("ride", "hug", "carry", "lean_on", "high_five", "chase")
Colour = tuple[int, int, int]


@cache
def triplets(name: str = "ride", count: int = 6, seed: int = 0) -> list[Triplet]:
    """Triplets of a relation, drawn large into a folder that lives as long as this program."""
    folder = Path(tempfile.mkdtemp(prefix="rbctl-figures-"))
    draw_triplets(load_relation(name), count, seed, folder, size=384)
    return list(load(folder))


@cache
def mini() -> Any:
    return load_bundle("mini", torch.device("cpu"), torch.float32)


def panel(image: Image.Image, width: int = SIZE, height: int = SIZE) -> Image.Image:
    return image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)


def blank(width: int = SIZE, height: int = SIZE, colour: Colour = (255, 255, 255)) -> Image.Image:
    return Image.new("RGB", (width, height), colour)


def write(image: Image.Image, at: tuple[float, float], text: str, colour: Colour = INK, size: int = 14) -> None:
    ImageDraw.Draw(image).text(at, text, fill=colour, font=ImageFont.load_default(size), anchor="mm")


def outline(image: Image.Image, box: Sequence[float], colour: Colour, width: int = 3) -> None:
    """A relative box."""
    w, h = image.size
    corners = (box[0] * w, box[1] * h, box[2] * w - 1, box[3] * h - 1)
    ImageDraw.Draw(image).rectangle(corners, outline=colour, width=width)


def lattice(image: Image.Image, columns: int, rows: int, colour: Colour = (255, 255, 255), width: int = 1) -> None:
    pen = ImageDraw.Draw(image)
    for k in range(1, columns):
        pen.line((k * image.width / columns, 0, k * image.width / columns, image.height), fill=colour, width=width)
    for k in range(1, rows):
        pen.line((0, k * image.height / rows, image.width, k * image.height / rows), fill=colour, width=width)


def heat(values: torch.Tensor, low: float | None = None, high: float | None = None) -> Image.Image:
    """(h, w) numbers from white over orange to dark red, a cell a square."""
    low = float(values.min()) if low is None else low
    high = float(values.max()) if high is None else high
    share = ((values.float() - low) / max(high - low, 1e-9)).clamp(0, 1).numpy()
    stops = np.array([[255, 255, 255], [253, 186, 116], [153, 27, 27]], float)
    colours = np.stack([np.interp(share, (0, 0.5, 1), stops[:, k]) for k in range(3)], axis=-1)
    return Image.fromarray(colours.round().astype(np.uint8)).resize((SIZE, SIZE), Image.Resampling.NEAREST)


def triplet() -> Image.Image:
    one = triplets()[0]
    images = [Image.open(path, formats=["PNG"]) for path in (one.target, *(o.image for o in one.objects))]
    captions = [f"target: {one.prompt}", *(f"image prompt of the {o.role}: {o.name}" for o in one.objects)]
    return grid([panel(image) for image in images], 3, captions)


def triplet_set() -> Image.Image:
    names = ("ride", "hug", "shake_hands", "chase", "carry", "high_five")
    rows = [triplets(name, 1, seed)[0] for seed, name in enumerate(names)]
    return grid([panel(Image.open(t.target, formats=["PNG"])) for t in rows], 3, [t.prompt for t in rows])


def annotations() -> Image.Image:
    with tempfile.TemporaryDirectory() as folder:
        (path,) = contact_sheet(triplets()[:1], Path(folder) / "sheet.png")
        sheet = Image.open(path, formats=["PNG"])
        return sheet.resize((900, round(sheet.height * 900 / sheet.width)), Image.Resampling.LANCZOS)


def moved_together() -> Image.Image:
    """What flip, crop and resize do to a target with its masks and keypoints."""
    whole = geometry.resize(geometry.target(triplets()[0]), 384, 384)
    changed = {
        "as it is": whole,
        "flip: the points stay on their pixels": geometry.flip(whole),
        "cover with zoom 1.5: boxes tighten": geometry.cover(whole, 384, 384, 1.5, (0.4, 0.5)),
    }
    return grid([_annotated(a) for a in changed.values()], 3, list(changed))


def _annotated(a: geometry.Annotated) -> Image.Image:
    image = a.image.copy()
    for mask, box, points, colour in zip(a.masks, a.boxes, a.keypoints, COLOURS, strict=False):
        veil = Image.fromarray(mask.astype(np.uint8) * 70)
        image = Image.composite(blank(*image.size, colour), image, veil)
        outline(image, box, colour, 5)
        bones(image, points, colour)
    return panel(image)


def bones(image: Image.Image, points: np.ndarray, colour: Colour, width: int = 4) -> None:
    """(17, 3) relative keypoints."""
    pen = ImageDraw.Draw(image)
    xy = points[:, :2] * image.size
    for start, end in SKELETON:
        if points[start, 2] != ABSENT and points[end, 2] != ABSENT:
            pen.line((*xy[start], *xy[end]), fill=colour, width=width)
    for point, known in zip(xy, points[:, 2] != ABSENT, strict=True):
        if known:
            pen.circle(tuple(point), width * 1.5, fill=(255, 255, 255), outline=colour, width=width // 2)


def individuals() -> Image.Image:
    """One of each species."""
    rng = np.random.default_rng(1)
    of_species: dict[str, Any] = {}
    while len(of_species) < len(SPECIES):
        one = draw_individual(rng)
        of_species.setdefault(one.species, one)
    chosen = list(of_species.values())
    drawn = pictures([portrait(one, rng) for one in chosen], 160)
    return grid(drawn, 5, [one.description for one in chosen])


def relations() -> Image.Image:
    names = ("ride", "hug", "carry", "dance_with", "shake_hands", "lean_on", "jump_over", "huddle", "tug_at", "pyramid")
    drawn = []
    for name in names:
        relation, rng = load_relation(name), np.random.default_rng(3)
        drawn += pictures([compose(relation, draw_group(relation, rng), rng)], 160)
    return grid(drawn, 5, [name.replace("_", " ") for name in names])


def local_cells() -> Image.Image:
    """The order of the 16 local tokens, and where the official code reads them."""
    one = triplets()[0]
    first, second = (panel(Image.open(o.image, formats=["PNG"])) for o in one.objects)

    def numbered(image: Image.Image) -> Image.Image:
        image = image.copy()
        lattice(image, 4, 4, (90, 90, 90))
        for number, (x0, y0, x1, y1) in enumerate(local_grid(4).tolist(), 1):
            middle = ((x0 + x1) / 2 * SIZE, (y0 + y1) / 2 * SIZE)
            ImageDraw.Draw(image).circle(middle, 11, fill=(255, 255, 255))
            write(image, middle, str(number), size=14)
        return image

    captions = ["tokens of the first: 16 cells, column by column", "tokens of the second", "in the official code"]
    return grid([numbered(first), numbered(second), numbered(first)], 3, captions)


def dense_map() -> Image.Image:
    """Cosine of every cell of an image prompt to one cell, in CLIP and in the encoder distilled from it."""
    bundle = mini()
    image = Image.open(triplets()[0].objects[0].image, formats=["PNG"])
    encoder = bundle.image_prompt_encoder.local_encoder
    with torch.no_grad():
        pixels = clip_pixels([image], encoder.picture_size(bundle.local_image_size))
        features = dense_features(encoder.visual, pixels, project=False)[0]  # (C, h, w)
    h, w = features.shape[1:]
    x, y = (triplets()[0].objects[0].image_keypoints[2, :2] * (w, h)).astype(int)  # the nose
    back_x, back_y = (triplets()[0].objects[0].image_keypoints[4, :2] * (w, h)).astype(int)  # the root of the tail
    panels, captions = [panel(image)], ["an image prompt"]
    for name, column, row in (("nose", x, y), ("root of the tail", back_x, back_y)):
        cosines = torch.einsum("chw,c->hw", features, features[:, row, column])
        shown = heat(cosines, 0, 1)
        outline(shown, (column / w, row / h, (column + 1) / w, (row + 1) / h), COLOURS[0], 3)
        panels.append(shown)
        captions.append(f"cosine of each cell to that of the {name}")
    return grid(panels, 3, captions)


def crops() -> Image.Image:
    """A random grid of CLIPSelf: the regions that the student pools, and the crops that the teacher sees."""
    image = panel(Image.open(triplets("hug", 1)[0].target, formats=["PNG"]))
    rows, columns, kept = random_grid(0, 5, 6, 20)
    boxes = cells(rows, columns)
    student = image.copy()
    lattice(student, columns, rows, width=2)
    outline(student, boxes[kept[0]], COLOURS[1], 4)
    seen = fit(crop(image, boxes[kept[0]]), SIZE, centred=True)
    teacher = Image.fromarray(seen.permute(1, 2, 0).numpy())
    captions = [
        f"student: the whole picture, pooled over {rows} x {columns} cells",
        "teacher: one cell as a picture of its own, padded",
    ]
    return grid([student, teacher], 2, captions)


def regions() -> Image.Image:
    """Which cells of each grid see whose tokens."""
    one = triplets()[0]
    boxes = torch.tensor([o.box for o in one.objects])
    panels, captions = [], []
    target = panel(Image.open(one.target, formats=["PNG"]))
    for o, colour in zip(one.objects, COLOURS, strict=False):
        outline(target, o.box, colour)
    panels, captions = [target], ["boxes of the two objects"]
    for h, w in latent_grids((32, 32), 3):
        inside = box_cells(boxes, (h, w)).unflatten(1, (h, w)).numpy()
        shown = np.full((h, w, 3), GREY, np.uint8)
        shown[inside[0] & ~inside[1]], shown[inside[1] & ~inside[0]] = COLOURS[0], COLOURS[1]
        shown[inside[0] & inside[1]] = COLOURS[3]
        image = Image.fromarray(shown).resize((SIZE, SIZE), Image.Resampling.NEAREST)
        if w < 32:
            lattice(image, w, h)
        panels.append(image)
        captions.append(f"{h} x {w} queries")
    return grid([panel(p, 180, 180) for p in panels], 4, captions)


def attention() -> Image.Image:
    """The norm of what each branch adds, of random queries, keys and values."""
    generator = torch.Generator().manual_seed(0)
    boxes = torch.tensor([[o.box for o in triplets()[0].objects]])
    side, heads, width = 32, 4, 64

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(1, heads, *shape, generator=generator)

    q, k_text, v_text, k_image, v_image = (random(n, width) for n in (side * side, 77, 77, 32, 32))
    mask = box_mask(boxes, (side, side), 16, 0)
    text = parallel_cross_attention(q, k_text, v_text, k_image, 0 * v_image, mask, "eager")
    both = parallel_cross_attention(q, k_text, v_text, k_image, 0.6 * v_image, mask, "eager")
    norms = [
        (x[0].transpose(0, 1).flatten(1).norm(dim=1)).unflatten(0, (side, side)) for x in (text, both - text, both)
    ]
    captions = ["text branch", "image branch, times 0.6: zero outside of the boxes", "their sum"]
    return grid([heat(values, 0, float(norms[2].max())) for values in norms], 3, captions)


def noise() -> Image.Image:
    """Noised latents, decoded, and the estimate of the clean ones for a wrong prediction of a known size."""
    bundle = mini()
    image = triplets()[0].target
    pixels = _pixels([panel(Image.open(image, formats=["PNG"]), 128, 128)])
    latents, _ = bundle.encode_pictures(pixels)
    alphas, kind = bundle.training_schedule()
    generator = torch.Generator().manual_seed(1)
    eps, wrong = (torch.randn(latents.shape, generator=generator) for _ in range(2))
    above, below, captions = [], [], []
    for t in (100, 300, 500, 900):
        noisy, target = losses.noised(latents, eps, alphas[[t]], kind)
        estimate = losses.pred_original_sample(noisy, target + 0.3 * wrong, alphas[[t]], kind)
        above.append(to_pictures(bundle.decode_latents(noisy))[0])
        below.append(to_pictures(bundle.decode_latents(estimate))[0])
        captions.append(f"z_t at t = {t}")
    sheet = [panel(p, 128, 128) for p in (*above, *below)]
    return grid(sheet, 4, captions + ["its estimate" for _ in captions])


def _pixels(images: Sequence[Image.Image]) -> torch.Tensor:
    """Pictures -> (B, 3, H, W) in [-1, 1]."""
    stacked = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 127.5 - 1


def keypoint_pairs() -> Image.Image:
    """The pairs that KML compares: the same keypoint in image prompt and target."""
    return _pairs(as_code=False)


def keypoint_pairs_as_code() -> Image.Image:
    """The same, as the official code reads the image prompt."""
    return _pairs(as_code=True)


def _pairs(as_code: bool) -> Image.Image:
    one = triplets()[0]
    side, gap, size = 32, 40, 320
    sheet = blank(2 * size + gap, size)
    prompt, target = (
        panel(Image.open(path, formats=["PNG"]), size, size) for path in (one.objects[0].image, one.target)
    )
    sheet.paste(prompt, (0, 0))
    sheet.paste(target, (size + gap, 0))
    pen = ImageDraw.Draw(sheet)
    pairs = zip(one.objects[0].image_keypoints, one.objects[0].target_keypoints, strict=True)
    visible = [(a, b) for a, b in pairs if a[2] != ABSENT and b[2] != ABSENT]
    for number, (a, b) in enumerate(visible):
        colour = COLOURS[number % len(COLOURS)]
        cell_a = np.floor(a[:2] * (4 if as_code else side))  # the official code scales by 4, the channels of the latent
        cell_b = np.floor(b[:2] * side)
        start, end = (cell_a + 0.5) / side * size, (cell_b + 0.5) / side * size + (size + gap, 0)
        pen.line((*start, *end), fill=colour, width=2)
        for point in (start, end):
            pen.rectangle((*(point - 6), *(point + 6)), outline=colour, width=3)
    return sheet


def keypoint_errors() -> Image.Image:
    """KML on true latents: at the individual's own keypoints, at shuffled ones, and as the official code reads."""
    bundle = mini()
    own, shuffled, as_code = [], [], []
    for one in triplets("hug") + triplets():
        images = [
            panel(Image.open(p, formats=["PNG"]), 128, 128) for p in (one.target, *(o.image for o in one.objects))
        ]
        latents, _ = bundle.encode_pictures(_pixels(images))
        at_target, at_prompt = (
            torch.from_numpy(np.stack([getattr(o, name) for o in one.objects]))[None]
            for name in ("target_keypoints", "image_keypoints")
        )
        visible = (at_target[..., 2] != ABSENT) & (at_prompt[..., 2] != ABSENT)
        order = torch.randperm(17, generator=torch.Generator().manual_seed(0))
        arguments = (latents[:1], latents[None, 1:], at_target[..., :2])
        own.append(losses.keypoint_matching(*arguments, at_prompt[..., :2], visible))
        shuffled.append(losses.keypoint_matching(*arguments, at_prompt[:, :, order, :2], visible & visible[..., order]))
        as_code.append(losses.keypoint_matching(*arguments, at_prompt[..., :2], visible, as_code=True))
    bars = {
        "the same keypoint": float(torch.cat(own).mean()),
        "another keypoint": float(torch.cat(shuffled).mean()),
        "as the official code reads": float(torch.cat(as_code).mean()),
    }
    return _bars(bars, "mean squared difference of latents, 12 true targets")


def _bars(values: dict[str, float], title: str) -> Image.Image:
    image = blank(700, 60 + 50 * len(values))
    write(image, (350, 20), title)
    pen = ImageDraw.Draw(image)
    for number, (name, value) in enumerate(values.items()):
        top = 50 + 50 * number
        length = 380 * value / max(values.values())
        pen.rectangle((220, top, 220 + length, top + 30), fill=COLOURS[number])
        pen.text((210, top + 15), name, fill=INK, font=ImageFont.load_default(14), anchor="rm")
        pen.text((230 + length, top + 15), f"{value:.2f}", fill=INK, font=ImageFont.load_default(14), anchor="lm")
    return image


def _prior(relation: Relation) -> tuple[LayoutPrior, list[list[tuple[float, ...]]]]:
    boxes = [[tuple(o.box) for o in one.objects] for one in triplets(relation.name)]
    return LayoutPrior.from_boxes(boxes, [role.name for role in relation.roles], relation.orders()), boxes


def layout_prior() -> Image.Image:
    """Boxes of six triplets as they are, and what the prior makes of them."""
    relation = load_relation("ride")
    prior, boxes = _prior(relation)
    every, result = blank(colour=GREY), blank(colour=GREY)
    for rows in boxes:
        for box, colour in zip(rows, COLOURS, strict=False):
            outline(every, box, colour, 1)
    pen = ImageDraw.Draw(result)
    for box, (x, y, *_), (sx, sy, *_), colour in zip(prior.boxes(), prior.mean, prior.spread, COLOURS, strict=False):
        outline(result, box, colour, 4)
        pen.ellipse([SIZE * v for v in (x - sx, y - sy, x + sx, y + sy)], outline=colour, width=2)
    write_tags(result, list(prior.roles), prior.boxes(), COLOURS[:2])
    alone = panel(Image.open(triplets()[0].target, formats=["PNG"]))
    for o, colour in zip(triplets()[0].objects, COLOURS, strict=False):
        outline(alone, o.box, colour)
    captions = ["boxes of one triplet", "boxes of all six", "the prior: mean boxes; ellipses are the spread of centres"]
    return grid([alone, every, result], 3, captions)


def layout_priors() -> Image.Image:
    panels = []
    for name in LAYOUTS:
        relation = load_relation(name)
        prior, _ = _prior(relation)
        image = blank(150, 150, GREY)
        for box, colour in zip(prior.boxes(), COLOURS, strict=False):
            outline(image, box, colour, 3)
        write_tags(image, list(prior.roles), prior.boxes(), COLOURS[: len(prior.roles)])
        panels.append(image)
    return grid(panels, 6, [name.replace("_", " ") for name in LAYOUTS])


def roles() -> Image.Image:
    """The same words in two voices: the boxes follow the roles, not the order."""
    relation = load_relation("ride")
    texts = {
        "A cat is riding a bear.": ("cat", "bear"),
        "A cat is being ridden by a bear.": ("cat", "bear"),
        "The bear, on whose back the cat rides.": ("bear", "cat"),
    }
    panels = []
    for text, names in texts.items():
        image = blank(colour=GREY)
        boxes = place(text, names, relation, None).boxes
        for box, colour in zip(boxes, COLOURS, strict=False):
            outline(image, box, colour, 3)
        write_tags(image, list(names), boxes, COLOURS[:2])
        panels.append(image)
    return grid(panels, 3, list(texts))


def any_number() -> Image.Image:
    """The layouts that stand where there is neither a prior nor a relation."""
    panels = []
    for count in (1, 2, 3, 4):
        image = blank(150, 150, GREY)
        for box, colour in zip(boxes_for(count, None, None)[0], COLOURS, strict=False):
            outline(image, box, colour, 3)
        panels.append(image)
    return grid(panels, 4, [f"side by side, {count}" for count in (1, 2, 3, 4)])


def shortcuts() -> Image.Image:
    """Which parts of 30 steps each quality computes."""
    steps, left, wide = 30, 130, 18
    image = blank(left + wide * steps + 20, 30 + 60 * len(QUALITIES))
    pen = ImageDraw.Draw(image)
    write(image, (left + wide * steps / 2, 12), "step 1 to 30; above: with the prompt, below: without (guidance)")
    for row, (name, options) in enumerate(reversed(QUALITIES.items())):
        shortcut = Shortcuts(**options)
        top, computed = 30 + 60 * row, 0.0
        write(image, (60, top + 20), name)
        for step in range(steps):
            share = step / steps
            shallow = shortcut.cache_span > 0 and share >= shortcut.cache_start
            shallow = shallow and share - computed <= shortcut.cache_span - 1e-6
            computed = computed if shallow else share
            for line, present in enumerate((True, shortcut.guided(share))):
                if present:
                    x, y = left + step * wide, top + line * 22
                    pen.rectangle((x, y + (12 if shallow else 0), x + wide - 3, y + 18), fill=COLOURS[line])
    return image


def tokens() -> Image.Image:
    """How many tokens stand where, in SDXL."""
    image = blank(860, 210)
    pen = ImageDraw.Draw(image)

    def row(x: int, y: int, count: int, width: int, colour: Colour, text: str) -> None:
        for k in range(count):
            pen.rectangle((x + k * width, y, x + (k + 1) * width - (1 if width > 2 else 0), y + 24), fill=colour)
        write(image, (x + count * width / 2, y + 40), text, size=13)

    row(10, 10, 257, 1, COLOURS[0], "257 of CLIP")
    row(275, 10, 16, 6, COLOURS[1], "16 local")
    row(10, 110, 257, 1, COLOURS[0], "257 of CLIP")
    row(275, 110, 16, 6, COLOURS[1], "16 local")
    write(image, (420, 70), "resampler", size=15)
    for y in (22, 122):
        pen.line((380, y, 460, y), fill=INK, width=2)
        pen.polygon((460, y - 5, 460, y + 5, 470, y), fill=INK)
    row(500, 10, 16, 8, COLOURS[2], "16 adapter tokens, first")
    row(500, 110, 16, 8, COLOURS[2], "16 adapter tokens, second")
    row(700, 60, 4, 8, (150, 150, 150), "4 dummies")
    return image


FIGURES: dict[str, Callable[[], Image.Image]] = {
    "triplet": triplet,
    "triplets": triplet_set,
    "annotations": annotations,
    "moved-together": moved_together,
    "individuals": individuals,
    "relations": relations,
    "tokens": tokens,
    "local-cells": local_cells,
    "dense-map": dense_map,
    "clipself-crops": crops,
    "regions": regions,
    "attention": attention,
    "noise": noise,
    "keypoint-pairs": keypoint_pairs,
    "keypoint-pairs-as-code": keypoint_pairs_as_code,
    "keypoint-errors": keypoint_errors,
    "layout-prior": layout_prior,
    "layout-priors": layout_priors,
    "roles": roles,
    "side-by-side": any_number,
    "shortcuts": shortcuts,
}


if __name__ == "__main__":
    for name in sys.argv[1:] or FIGURES:
        path = FOLDER / f"{name}.jpg"
        FIGURES[name]().save(path, quality=60, optimize=True, progressive=True)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")
