"""The image tower of an open_clip model: which one, its weights, which of them train; and as the student."""

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

from rbctl.bundle.catalogue import has_local_encoder, place, resolve, survey
from rbctl.bundle.config import adapter_config
from rbctl.bundle.convert import (
    check_tensors,
    local_encoder_config,
    open_clip_text,
    read_local_config,
    read_local_encoder,
    read_sharded,
)
from rbctl.bundle.towers import ADAPTER_MAP, build_visual, clip_shapes
from rbctl.draws import generator
from rbctl.errors import InputError, nearest
from rbctl.files import atomic_write, content_hash, write_json, write_safetensors
from rbctl.image_prompt import CLIP_MEAN, CLIP_STD
from rbctl.local_encoder import dense_tokens, feature_map, pool_regions, tower_parts
from rbctl.plugins.distill.config import DistillConfig

CONFIG, WEIGHTS = "open_clip_config.json", "model.safetensors"
# As a bundle has them, as open_clip writes them for the hub, and as CLIPSelf does.
_WEIGHTS = (WEIGHTS, "open_clip_model.safetensors", "open_clip_pytorch_model.bin", "epoch_6.pt")
_LOGIT_SCALE = math.log(100)  # where CLIPs end; a bundle's text encoder does not say


@dataclass(frozen=True)
class Adapter:
    """The adapter that the encoder is for, of another width than its tower.

    Attributes:
        bundle: its folder.
        width: that it takes.
        image_size: at which the bundle's own local encoder sees pictures, in pixels.
    """

    bundle: Path
    width: int
    image_size: int


@dataclass(frozen=True)
class Tower:
    """Which image tower it is.

    Attributes:
        config: open_clip's model configuration.
        weights: where the CLIP to start from lies; None for random weights.
        crop_size: the side in pixels that it was trained for: the teacher's crops.
        patch_size: of the student's pictures, whose sides are multiples of it.
        width: of its dense features.
        adapter: where they need a linear map to it.
    """

    name: str
    config: dict[str, Any]
    weights: Path | None
    crop_size: int
    patch_size: int
    width: int
    adapter: Adapter | None = None

    def build(self) -> Any:
        """The tower on torch's current device, untrained, as open_clip builds it."""
        return build_visual(self.config, self.name)

    def build_map(self) -> nn.Module | None:
        """The linear map to the adapter's width, untrained; None where none is needed."""
        return nn.Linear(self.width, self.adapter.width, bias=False) if self.adapter else None

    def fingerprint(self) -> str:
        """Tells architectures apart."""
        return content_hash(self.config)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of its parameters, without ``visual.``."""
        with torch.device("meta"):
            return {name: tuple(tensor.shape) for name, tensor in self.build().state_dict().items()}


def find_tower(config: DistillConfig) -> Tower:
    """The tower that ``--model`` and ``--weights`` name.

    Raises:
        InputError: there is no such model, it has no dense features, or it comes without weights.
    """
    folder = _folder(config.model)
    if folder is None:
        import open_clip

        clip: dict[str, Any] = dict(open_clip.get_model_config(config.model))
        name = config.model
    else:
        clip = local_encoder_config(folder)
        # A bundle's encoder lies in its folder clipself, which names nothing.
        name = folder.parent.name if folder.name == "clipself" else folder.name
    weights = config.weights
    if weights is not None and (beside := weights.parent / CONFIG).is_file():
        read_local_config(beside)  # it may tell that these weights are used to other pictures
    if weights is None and folder is not None and not config.random_weights:
        weights = next((folder / file for file in _WEIGHTS if (folder / file).is_file()), None)
    if weights is None and not config.random_weights and not config.estimate:
        raise InputError(f"--model {config.model}: name the CLIP to start from with --weights")
    with torch.device("meta"):
        parts = tower_parts(build_visual(clip, f"--model {config.model}"))
    adapter = _adapter(config.bundle, parts.width) if config.bundle else None
    tower = Tower(name, clip, weights, parts.image_size, parts.patch_size, parts.width, adapter)
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


def _adapter(bundle: str, width: int) -> Adapter | None:
    """The adapter of a bundle, if it is of another width.

    Raises:
        InputError: there is no such bundle, or it has no local encoder whose tokens a map could learn.
    """
    folder = resolve(bundle)
    sizes = adapter_config(folder)
    if sizes.resampler.embedding_dim == width:
        return None
    if not has_local_encoder(folder):
        raise InputError(f"--bundle {bundle}: has no local encoder, whose tokens the linear map learns; import one")
    return Adapter(folder, sizes.resampler.embedding_dim, sizes.local_image_size)


def initial_map(tower: Tower, seed: int) -> dict[str, torch.Tensor]:
    """The linear map's starting weights by name; empty where none is needed."""
    if tower.adapter is None:
        return {}
    chance = generator(seed, "map")
    return {"weight": torch.randn(tower.adapter.width, tower.width, generator=chance) / math.sqrt(tower.width)}


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
    visual = {f"visual.{name}": tensor for name, tensor in tensors.items()}
    if tower.weights is None or "text_cfg" not in tower.config:
        return visual
    rest = {name: t for name, t in read_local_encoder(tower.weights).items() if not name.startswith("visual.")}
    encoder = tower.weights.parent.parent / "text_encoder_2"
    if not rest and encoder.is_dir():
        rest = {**open_clip_text(read_sharded(encoder)), "logit_scale": torch.tensor(_LOGIT_SCALE)}
    wanted = clip_shapes(tower.config, tower.name).items()
    shapes = {name: shape for name, shape in wanted if not name.startswith("visual.")}
    return visual | rest if {name: tuple(tensor.shape) for name, tensor in rest.items()} == shapes else visual


def write_weights(
    output: Path,
    clip: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    metadata: Mapping[str, str],
    adapter_map: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """Write a folder as open_clip's ``local-dir:`` reads it: weights in its naming, and its configuration.

    Args:
        clip: see ``whole_clip``.
        adapter_map: the linear map to an adapter's width, which a bundle reads beside them.
    """
    preprocess = {"mean": CLIP_MEAN, "std": CLIP_STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    write_json(output / CONFIG, {"model_cfg": dict(config), "preprocess_cfg": preprocess})
    if adapter_map:
        write_safetensors(output / ADAPTER_MAP, adapter_map, {"format": "pt", **metadata})
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
    with torch.device("meta"):
        visual = tower.build()
    layers = list(tower_parts(visual).blocks)
    if blocks > len(layers):
        raise InputError(f"--train-blocks {blocks}: {tower.name} has {len(layers)}; 0 trains the whole tower")
    trained = layers[len(layers) - blocks :] if blocks else [visual]
    parameters = {id(parameter) for module in trained for parameter in module.parameters()}
    return frozenset(name for name, parameter in visual.named_parameters() if id(parameter) in parameters)


class Student(nn.Module):
    """Pictures -> dense features, pooled where boxes are given.

    Args:
        visual: image tower of open_clip.
        to_adapter: the linear map to an adapter's width. It learns by itself: no gradient of it reaches the tower.
    """

    def __init__(self, visual: Any, to_adapter: nn.Module | None = None, gradient_checkpointing: bool = False) -> None:
        super().__init__()
        self.visual = visual
        self.to_adapter = to_adapter or nn.Identity()
        if gradient_checkpointing:
            for block in list(tower_parts(visual).blocks)[:-1]:
                block.forward = _recomputed(block.forward)

    def forward(
        self, pixels: torch.Tensor, boxes: list[torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the CLIP says, and local features as an adapter takes them, of pixels (B, 3, H, W).

        Returns:
            Twice (B, C, h, w); or (sum of K_b, C) of boxes, per picture (K_b, 4).
        """
        tokens, grid = dense_tokens(self.visual, pixels)
        projected = feature_map(tower_parts(self.visual).project(tokens), grid)
        local = feature_map(self.to_adapter(tokens.detach()), grid)
        if boxes is None:
            return projected, local
        return pool_regions(projected, boxes), pool_regions(local, boxes)

    def register_external(self) -> None:
        """Tell ZeRO-3 which parameters are used outside their own module's call; else it does not gather them."""
        from deepspeed.runtime.zero import register_external_parameter

        parts = tower_parts(self.visual)
        # Some kinds of attention take the weights of their layers without calling these.
        layers = [
            (block.attn, layer)
            for block in parts.blocks
            for name in ("out_proj", "qkv")
            if (layer := getattr(block.attn, name, None)) is not None
        ]
        pairs = itertools.chain(
            ((self, parameter) for parameter in parts.direct),
            ((attention, parameter) for attention, layer in layers for parameter in layer.parameters()),
        )
        for module, parameter in pairs:
            register_external_parameter(module, parameter)


def _recomputed(forward: Any) -> Any:
    def call(*args: Any, **others: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, **others)

    return call
