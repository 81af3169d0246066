"""What a training step costs before any network runs: a batch drawn from what is kept, against reading its files.

The baseline reads as the official dataset does, in the training process (its default, no workers): at every step it
opens target, masks and image prompts (these twice, for the VAE and for CLIP), cuts each at random, resizes, and takes
boxes from the masks. It is spared its keypoint files, which it has in memory, and its pictures need no shrinking. What
it gives still has to pass the frozen encoders (bench_finetune.py); ours is ready for the UNet, noise and all, at
SDXL's widths. Peaks are of PyTorch's tensors: not Pillow's pictures, nor what is kept between the steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import default_collate

from rbctl.bundle.load import load
from rbctl.bundle.random_weights import write_tiny
from rbctl.image_prompt import clip_pixels
from rbctl.menagerie.triplets import draw_triplets
from rbctl.plugins.finetune import encodings
from rbctl.plugins.finetune.config import FinetuneConfig
from rbctl.plugins.finetune.samples import micro_batch, triplet_of
from rbctl.relations import load_relation
from rbctl.triplets import Triplet
from rbctl.triplets import load as load_triplets

BATCH, RESOLUTION, CLIP = 4, 512, 224
CELLS = RESOLUTION // 8  # a side of the latents, and of the official masks


def window(image: Image.Image) -> tuple[int, int, int, int]:
    """A square at random, a pixel smaller than the picture."""
    side = min(image.size) - 1
    left, top = (int(torch.randint(size - side + 1, ())) for size in image.size)
    return left, top, left + side, top + side


def resized(image: Image.Image, part: tuple[int, int, int, int], side: int) -> torch.Tensor:
    """(C, side, side) in [0, 1]."""
    pixels = np.asarray(image.crop(part).resize((side, side), Image.Resampling.BILINEAR))
    return torch.from_numpy(pixels.reshape(side, side, -1).copy()).permute(2, 0, 1).float() / 255


def official_sample(triplet: Triplet) -> dict[str, Any]:
    """One triplet as the official dataset gives it."""
    target = Image.open(triplet.target).convert("RGB")
    part = window(target)
    masks, boxes, prompts, pictures = [], [], [], []
    for entry in triplet.objects:
        assert entry.mask is not None
        mask = resized(Image.open(entry.mask).convert("L"), part, CELLS)[0] >= 0.5
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        masks.append(mask)
        boxes.append(torch.cat((columns[0], rows[0], columns[-1], rows[-1])) / CELLS)
        prompt = Image.open(entry.image).convert("RGB")
        prompts.append(resized(prompt, window(prompt), RESOLUTION) * 2 - 1)
        pictures.append(Image.open(entry.image))
    points = [entry.target_keypoints for entry in triplet.objects] + [
        entry.image_keypoints for entry in triplet.objects
    ]
    return {
        "pixels": resized(target, part, RESOLUTION) * 2 - 1,
        "prompt_pixels": torch.stack(prompts),
        "clip_pixels": clip_pixels(pictures, CLIP),
        "boxes": torch.stack(boxes),
        "object_mask": torch.stack(masks).any(0).float(),
        "keypoints": torch.from_numpy(np.stack(points)[..., :2]),
        "original_size": target.size[::-1],
        "words": (triplet.prompt, triplet.predicate, *(entry.name for entry in triplet.objects)),
    }


@pytest.fixture(scope="module")
def setting(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Sequence[Triplet], dict[str, torch.Tensor], FinetuneConfig]:
    folder = tmp_path_factory.mktemp("bench")
    write_tiny(folder / "bundle")
    draw_triplets(load_relation("hug"), BATCH, 0, folder / "hug", size=RESOLUTION)
    triplets = load_triplets(folder / "hug")
    config = FinetuneConfig(relation="hug", data=Path(folder / "hug"), resolution=RESOLUTION)
    bundle = load(str(folder / "bundle"), torch.device("cpu"), torch.float32)
    kept = encodings.encode(bundle, triplets, [], config, RESOLUTION)
    for name, width in {"prompt_embeds": 2048, "pooled_prompt_embeds": 1280, "image_tokens": 2048}.items():
        kept[name] = torch.randn(*kept[name].shape[:-1], width)
    return triplets, kept, config


def test_batch(compare: Callable[..., Any], setting: Any) -> None:
    triplets, kept, config = setting

    def ours() -> Any:
        return micro_batch(kept, None, range(BATCH), config, 1000, torch.device("cpu"))

    def official() -> Any:
        return default_collate([official_sample(triplets[triplet_of(config.seed, n, BATCH)]) for n in range(BATCH)])

    drawn, read = ours(), official()
    points = torch.cat([drawn.encoded[f"{where}_keypoints"] for where in ("target", "image")], dim=1)
    seen = drawn.encoded["visible"].repeat(1, 2, 1)
    assert seen.any()
    torch.testing.assert_close(read["keypoints"][seen], points[seen])
    torch.testing.assert_close(read["boxes"], drawn.encoded["boxes"], rtol=0, atol=2.5 / CELLS)
    assert drawn.latents.shape[-1] == CELLS
    compare(f"data, a batch of {BATCH}, drawn from what is kept / read at every step", ours, official, memory=True)
