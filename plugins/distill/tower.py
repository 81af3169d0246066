"""The image tower of an open_clip ViT: which one, its weights, which of them train; and as the student."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from rbctl.bundle.catalogue import has_local_encoder, place, survey
from rbctl.bundle.convert import (
    check_tensors,
    default_open_clip_config,
    open_clip_text,
    read_local_encoder,
    read_open_clip_config,
    read_sharded,
)
from rbctl.errors import InputError, nearest, reason
from rbctl.files import atomic_write, content_hash, write_json, write_safetensors
from rbctl.image_prompt import CLIP_MEAN, CLIP_STD
from rbctl.local_encoder import dense_features, pool_regions
from rbctl.plugins.distill.config import DistillConfig

CONFIG, WEIGHTS, OFFICIAL = "open_clip_config.json", "model.safetensors", "epoch_6.pt"
_LOGIT_SCALE = math.log(100)  # where CLIPs end; a bundle's text encoder does not say


@dataclass(frozen=True)
class Tower:
    """Which ViT it is.

    Attributes:
        config: open_clip's model configuration.
        weights: where the CLIP to start from lies; None for random weights.
        crop_size: the side in pixels that it was trained for: the teacher's crops.
        patch_size: of the student's pictures, whose sides are multiples of it.
    """

    name: str
    config: dict[str, Any]
    weights: Path | None
    crop_size: int
    patch_size: int

    def build(self) -> Any:
        """The tower on torch's current device, untrained; a VisionTransformer of open_clip."""
        from open_clip.model import CLIPVisionCfg, _build_vision_tower  # type: ignore[import-not-found,unused-ignore]

        vision = CLIPVisionCfg(**self.config["vision_cfg"])
        return _build_vision_tower(self.config["embed_dim"], vision, self.config.get("quick_gelu", False))

    def fingerprint(self) -> str:
        """Tells architectures apart."""
        return content_hash(self.config)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of its parameters, without ``visual.``."""
        with torch.device("meta"):
            return {name: tuple(tensor.shape) for name, tensor in self.build().state_dict().items()}


def find_tower(config: DistillConfig) -> Tower:
    """The ViT that ``--model`` and ``--weights`` name.

    Raises:
        InputError: there is no such model, it is no plain ViT, or it comes without weights.
    """
    folder = _folder(config.model)
    if folder is None:
        import open_clip

        vit: dict[str, Any] = dict(open_clip.get_model_config(config.model))
        name = config.model
    else:
        path = folder / CONFIG
        vit = read_open_clip_config(path) if path.is_file() else default_open_clip_config()
        # A bundle's encoder lies in its folder clipself, which names nothing.
        name = folder.parent.name if folder.name == "clipself" else folder.name
    weights = config.weights
    if weights is None and folder is not None and not config.random_weights:
        weights = next((folder / file for file in (WEIGHTS, OFFICIAL) if (folder / file).is_file()), None)
    if weights is None and not config.random_weights and not config.estimate:
        raise InputError(f"--model {config.model}: name the CLIP to start from with --weights")
    sides = _check_plain(config.model, vit)
    tower = Tower(name, vit, weights, *sides)
    for size in (config.image_size, *config.multiscale_sizes):
        if size % tower.patch_size:
            raise InputError(f"--image-size {size}: {name} needs a multiple of its patches' {tower.patch_size} pixels")
    return tower


def _folder(model: str) -> Path | None:
    """The folder of a model, or None for one that open_clip knows by name.

    Raises:
        InputError: neither; the nearest name is told.
    """
    if (Path(model) / CONFIG).is_file():
        return Path(model)
    import open_clip

    if model in open_clip.list_models():
        return None
    if has_local_encoder(place(model)):
        return place(model) / "clipself"
    names = [*open_clip.list_models(), *(name for name, _ in survey())]
    raise InputError(
        f"--model {model}: no such model of open_clip, bundle with a local encoder, or folder with {CONFIG}"
        f"{nearest(model, names)}"
    )


def _check_plain(name: str, config: Mapping[str, Any]) -> tuple[int, int]:
    """Sides of crops and patches of a ViT that has dense features as CLIPSelf takes them.

    Raises:
        InputError: it is built otherwise.
    """
    from open_clip.transformer import VisionTransformer  # type: ignore[import-not-found,unused-ignore]

    try:
        with torch.device("meta"):
            visual = Tower(name, dict(config), None, 0, 0).build()
    except Exception as error:  # open_clip checks no value, so a garbled one can fail anywhere in it
        raise InputError(f"--model {name}: its open_clip configuration lacks or garbles {reason(error)}") from error
    plain = isinstance(visual, VisionTransformer) and visual.attn_pool is None and visual.pool_type == "tok"
    if not plain or not all(isinstance(getattr(b, "attn", None), nn.MultiheadAttention) for b in _blocks(visual)):
        raise InputError(f"--model {name}: a plain ViT with a class token is needed, as ViT-B-32 or ViT-bigG-14")
    return int(visual.image_size[0]), int(visual.patch_size[0])


def _blocks(visual: Any) -> Any:
    return visual.transformer.resblocks


def read_weights(tower: Tower, seed: int) -> dict[str, torch.Tensor]:
    """The tower's starting weights by name, without ``visual.``, float32 on the CPU.

    Raises:
        InputError: the file is of another architecture, or no checkpoint.
    """
    if tower.weights is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return dict(tower.build().state_dict())
    tensors = {
        name.removeprefix("visual."): tensor
        for name, tensor in read_local_encoder(tower.weights).items()
        if name.startswith("visual.")
    }
    check_tensors(tower.weights, tensors, tower.shapes())
    return {name: tensor.float() for name, tensor in tensors.items()}


def whole_clip(tower: Tower, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The distilled CLIP as open_clip names it: with the text tower of the CLIP it started from, where there is one.

    A bundle's local encoder has no text tower of its own; its ``text_encoder_2`` is that of the same CLIP.

    Args:
        tensors: of the image tower by name, without ``visual.``.
    """
    from open_clip.model import CLIP

    visual = {f"visual.{name}": tensor for name, tensor in tensors.items()}
    if tower.weights is None or "text_cfg" not in tower.config:
        return visual
    rest = {name: t for name, t in read_local_encoder(tower.weights).items() if not name.startswith("visual.")}
    encoder = tower.weights.parent.parent / "text_encoder_2"
    if not rest and encoder.is_dir():
        rest = {**open_clip_text(read_sharded(encoder)), "logit_scale": torch.tensor(_LOGIT_SCALE)}
    with torch.device("meta"):
        wanted = CLIP(**{key: tower.config[key] for key in ("embed_dim", "vision_cfg", "text_cfg")}).state_dict()
    shapes = {name: tensor.shape for name, tensor in wanted.items() if not name.startswith("visual.")}
    return visual | rest if {name: tensor.shape for name, tensor in rest.items()} == shapes else visual


def write_weights(
    output: Path, clip: Mapping[str, torch.Tensor], config: Mapping[str, Any], metadata: Mapping[str, str]
) -> Path:
    """Write a folder as open_clip's ``local-dir:`` reads it: weights in its naming, and its configuration.

    Args:
        clip: see ``whole_clip``.
    """
    preprocess = {"mean": CLIP_MEAN, "std": CLIP_STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    write_json(output / CONFIG, {"model_cfg": dict(config), "preprocess_cfg": preprocess})
    write_safetensors(output / WEIGHTS, clip, {"format": "pt", **metadata})
    return output


def write_official(path: Path, clip: Mapping[str, torch.Tensor], name: str, epoch: int) -> None:
    """Write ``epoch_N.pt`` as CLIPSelf's own training does: {"epoch", "name", "state_dict"}."""
    # Into an open file: given a path, torch writes the temporary name into the file.
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        torch.save({"epoch": epoch, "name": name, "state_dict": dict(clip)}, file)


def trained_names(tower: Tower, blocks: int) -> frozenset[str]:
    """Parameters that train: those of the last ``blocks`` blocks, or all for 0.

    Raises:
        InputError: the tower has fewer blocks.
    """
    names, count = tower.shapes(), tower.config["vision_cfg"]["layers"]
    if blocks > count:
        raise InputError(f"--train-blocks {blocks}: {tower.name} has {count}; 0 trains the whole tower")
    prefixes = tuple(f"transformer.resblocks.{index}." for index in range(count - blocks, count)) if blocks else ("",)
    return frozenset(name for name in names if name.startswith(prefixes))


class Student(nn.Module):
    """Pictures -> dense features, pooled where boxes are given.

    Args:
        visual: open_clip ``VisionTransformer``.
    """

    def __init__(self, visual: Any, gradient_checkpointing: bool = False) -> None:
        super().__init__()
        self.visual = visual
        if gradient_checkpointing:
            for block in list(_blocks(visual))[:-1]:
                block.forward = _recomputed(block.forward)

    def forward(
        self, pixels: torch.Tensor, boxes: list[torch.Tensor] | None = None, project: bool = True
    ) -> torch.Tensor:
        """Features (B, C, h, w) of pixels (B, 3, H, W), or (sum of K_b, C) of boxes, per picture (K_b, 4)."""
        features = dense_features(self.visual, pixels, project)
        return features if boxes is None else pool_regions(features, boxes)

    def register_external(self) -> None:
        """Tell ZeRO-3 which parameters are used outside their own module's call; else it does not gather them."""
        from deepspeed.runtime.zero import register_external_parameter

        visual, blocks = self.visual, list(_blocks(self.visual))
        last = blocks[-1].attn
        own = (visual.class_embedding, visual.positional_embedding, visual.proj, last.in_proj_weight, last.in_proj_bias)
        pairs = itertools.chain(
            ((self, parameter) for parameter in own),
            ((block.attn, parameter) for block in blocks for parameter in block.attn.out_proj.parameters()),
        )
        for module, parameter in pairs:
            register_external_parameter(module, parameter)


def _recomputed(forward: Any) -> Any:
    def call(*args: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False)

    return call
