"""Image towers of open_clip, its own and timm's: built from a configuration, filled with weights, never downloaded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rbctl.errors import InputError, abridged, reason
from rbctl.files import read_safetensors

if TYPE_CHECKING:
    import torch

ADAPTER_MAP = "adapter_map.safetensors"  # beside the tower's weights: its tokens -> the adapter's width

# Weights come from our files alone, and no two passes over a picture differ.
_FIXED = {"timm_model_pretrained": False, "timm_drop": 0.0, "timm_drop_path": None}


def build_visual(config: Mapping[str, Any], where: object) -> Any:
    """The image tower of an open_clip model, untrained, on torch's current device.

    Args:
        config: open_clip's model configuration.
        where: what the configuration is of, for the error.

    Raises:
        InputError: it is garbled, names what would be downloaded, or its tower has no dense features.
    """
    from open_clip.model import CLIPVisionCfg, _build_vision_tower  # type: ignore[import-not-found,unused-ignore]

    with _building(where):
        vision = CLIPVisionCfg(**_at_hand(config, where)["vision_cfg"])
        visual = _build_vision_tower(config["embed_dim"], vision, config.get("quick_gelu", False))
    return _dense(visual, where)


def tower_width(config: Mapping[str, Any], where: object) -> int:
    """Width of the dense features of an open_clip model.

    Raises:
        InputError: as :func:`build_visual` does.
    """
    import torch

    from rbctl.local_encoder import tower_parts

    with torch.device("meta"):
        return tower_parts(build_visual(config, where)).width


def read_adapter_map(path: Path, width: int) -> dict[str, torch.Tensor]:
    """The linear map from a tower's width to an adapter's: weight (C of the adapter, C of the tower).

    Raises:
        InputError: it is no such map, or of another tower.
    """
    tensors = read_safetensors(path)[0]
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    if list(shapes) != ["weight"] or len(shapes["weight"]) != 2 or shapes["weight"][1] != width:
        raise InputError(f"{path}: holds {abridged(shapes)}, not a weight with {width} columns, as its tower is wide")
    return tensors


def clip_shapes(config: Mapping[str, Any], where: object) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all weights of an open_clip model, both towers.

    Raises:
        InputError: as :func:`build_visual` does.
    """
    import torch
    from open_clip.model import CLIP, CustomTextCLIP  # type: ignore[import-not-found,unused-ignore]

    kind = CustomTextCLIP if config.get("custom_text") else CLIP
    with _building(where), torch.device("meta"):
        at_hand = _at_hand(config, where)
        whole = kind(**{key: at_hand[key] for key in ("embed_dim", "vision_cfg", "text_cfg")})
    _dense(whole.visual, where)
    return {name: tuple(tensor.shape) for name, tensor in whole.state_dict().items()}


@contextlib.contextmanager
def _building(where: object) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # open_clip checks no value, so a garbled one can fail anywhere in it
        raise InputError(f"{where}: its open_clip configuration lacks or garbles {reason(error)}") from error


def _dense(visual: Any, where: object) -> Any:
    from rbctl.local_encoder import tower_parts

    try:
        tower_parts(visual)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error
    return visual


def _at_hand(config: Mapping[str, Any], where: object) -> dict[str, Any]:
    """The configuration as it can be built here: without downloads, and without chance."""
    vision, text = config["vision_cfg"], config.get("text_cfg") or {}
    for key, name in (("timm_model_name", vision.get("timm_model_name")), ("hf_model_name", text.get("hf_model_name"))):
        if name and (key == "hf_model_name" or ":" in str(name)):
            what = f"{key}: {abridged(name)} would be downloaded"
            raise InputError(f"{where}: {what}; take a CLIP whose towers open_clip and timm know by name")
    return {**config, "vision_cfg": {**vision, **_FIXED} if vision.get("timm_model_name") else vision}


def fill_visual(visual: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Make tensors the weights of a tower that was built on the meta device; what it computes itself is computed."""
    import torch

    visual.load_state_dict(tensors, assign=True)
    device = next(iter(tensors.values())).device
    for module in visual.modules():
        buffers = {name: buffer for name, buffer in module.named_buffers(recurse=False) if buffer.is_meta}
        for name, buffer in buffers.items():
            setattr(module, name, torch.empty_like(buffer, device=device))
        if buffers:
            module.init_non_persistent_buffers()
    return visual
