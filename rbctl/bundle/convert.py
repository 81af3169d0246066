"""The official checkpoints as safetensors.

``ms_adapter.bin`` is a nested dict (``image_proj``, ``ms_adapter``, ``dummy_image_tokens``); ``epoch_6.pt`` of CLIPSelf
is ``{"epoch", "name", "state_dict"}``. Names and shapes are checked against what the configurations ask for.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rbctl import formats
from rbctl.bundle.towers import clip_shapes
from rbctl.errors import InputError, abridged, reason
from rbctl.files import atomic_write, read_network_config, read_safetensors, read_torch, write_json
from rbctl.kept import not_finite

if TYPE_CHECKING:
    import torch

Shape = tuple[int, ...]

_OPEN_CLIP_TEXT = (
    ("text_model.encoder.layers.", "transformer.resblocks."),
    ("layer_norm1", "ln_1"),
    ("layer_norm2", "ln_2"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
    ("self_attn.out_proj", "attn.out_proj"),
    ("text_model.final_layer_norm", "ln_final"),
    ("text_model.embeddings.token_embedding", "token_embedding"),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
)


def _per_block(value: Any, blocks: int) -> list[Any]:
    return [value] * blocks if isinstance(value, int) else list(value)


def attention_layers(unet: Mapping[str, Any]) -> list[tuple[str, int]]:
    """(name, width) of every attention processor in the order the adapter counts them: down blocks, up blocks, middle.

    Args:
        unet: the configuration of a UNet2DConditionModel (``unet/config.json``).
    """
    widths = list(unet["block_out_channels"])
    layers = _per_block(unet.get("layers_per_block", 2), len(widths))
    depths = _per_block(unet.get("transformer_layers_per_block", 1), len(widths))

    def blocks() -> Iterator[tuple[str, int, int, int]]:  # prefix, attentions, transformer layers in each, width
        for i, kind in enumerate(unet["down_block_types"]):
            if "CrossAttn" in kind:
                yield f"down_blocks.{i}", layers[i], depths[i], widths[i]
        for i, kind in enumerate(unet["up_block_types"]):
            if "CrossAttn" in kind:
                yield f"up_blocks.{i}", layers[-1 - i] + 1, depths[-1 - i], widths[-1 - i]
        yield "mid_block", 1, depths[-1], widths[-1]

    return [
        (f"{prefix}.attentions.{a}.transformer_blocks.{t}.attn{n}.processor", width)
        for prefix, attentions, depth, width in blocks()
        for a in range(attentions)
        for t in range(depth)
        for n in (1, 2)
    ]


def adapter_shapes(config: Mapping[str, Any], unet: Mapping[str, Any]) -> dict[str, Shape]:
    """Names and shapes of ``ms_adapter.safetensors``.

    Args:
        config: ``ms_adapter_config.json``.
        unet: ``unet/config.json``.
    """
    import torch

    from rbctl.bundle.config import AdapterConfig
    from rbctl.conditioning import DUMMY_TOKENS
    from rbctl.resampler import Resampler

    sizes = formats.read(AdapterConfig, config, "ms_adapter_config.json", ignore_others=True).resampler
    with torch.device("meta"):
        resampler = Resampler(sizes).state_dict()
    shapes = {f"image_proj.{name}": tuple(tensor.shape) for name, tensor in resampler.items()}
    for index, (name, hidden) in enumerate(attention_layers(unet)):
        if name.endswith("attn2.processor"):
            shapes |= dict.fromkeys(
                (f"ms_adapter.{index}.to_{part}_ip.weight" for part in "kv"), (hidden, sizes.output_dim)
            )
    return shapes | {"dummy_image_tokens": (1, DUMMY_TOKENS, sizes.output_dim)}


def check_tensors(path: Path, tensors: Mapping[str, torch.Tensor], shapes: Mapping[str, Shape]) -> None:
    """Compare names and shapes with what is expected.

    Raises:
        InputError: one line naming the first few differences of each kind.
    """
    wrong = [
        f"{name} is {list(tensors[name].shape)}, {list(shapes[name])} expected"
        for name in shapes.keys() & tensors.keys()
        if tuple(tensors[name].shape) != shapes[name]
    ]
    faults = []
    for kind, names in (
        ("missing ", shapes.keys() - tensors.keys()),
        ("unexpected ", tensors.keys() - shapes.keys()),
        ("", wrong),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            faults.append(f"{kind}{', '.join(sorted(names)[:3])}{more}")
    if faults:
        raise InputError(f"{path}: does not fit: {'; '.join(faults)}")


def default_adapter_config() -> dict[str, Any]:
    """``ms_adapter_config.json`` of the official adapter for SDXL."""
    from rbctl.bundle.config import AdapterConfig
    from rbctl.conditioning import DUMMY_TOKENS

    config = dataclasses.asdict(AdapterConfig())
    return {**config, "num_dummy_tokens": DUMMY_TOKENS, "num_tokens": config["resampler"]["num_queries"]}


def official_adapter_config(path: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """``ms_adapter_config.json`` of the official adapter, which comes without one.

    Raises:
        InputError: it is another adapter: its head width shows in no shape.
    """
    latents = tensors.get("image_proj.grounding_latents")
    if latents is None:
        raise InputError(f"{path}: missing image_proj.grounding_latents; is this an MS-Diffusion adapter?")
    config = default_adapter_config()
    resampler = config["resampler"]
    if latents.shape != (1, resampler["num_queries"], resampler["dim"]):
        raise InputError(
            f"{path}: its resampler is not the official one, so its dim_head is not known; "
            "put ms_adapter_config.json beside it or name it with --adapter-config"
        )
    return config


def save(path: Path, tensors: Mapping[str, torch.Tensor], source: Path) -> None:
    """Write tensors straight to the disk: these files may be larger than half the memory.

    Args:
        source: what they were read from, for the error.

    Raises:
        InputError: one holds NaN or infinite numbers, or the disk is full.
    """
    from safetensors.torch import save_file

    if (name := not_finite(tensors)) is not None:
        raise InputError(f"{source}: {name} holds NaN or infinite numbers; bring the original again")
    with atomic_write(path) as temporary:
        save_file({name: t.contiguous() for name, t in tensors.items()}, temporary, {"format": "pt"})


def _is_tensors(content: Any) -> bool:
    import torch

    return isinstance(content, dict) and all(isinstance(k, str) and torch.is_tensor(v) for k, v in content.items())


def read_adapter(source: Path) -> dict[str, torch.Tensor]:
    """An adapter with flat names, from safetensors or the official nested file.

    Raises:
        InputError: the file holds code, or something else than an adapter.
    """
    import torch

    if source.suffix == ".safetensors":
        return read_safetensors(source)[0]
    content = read_torch(source)
    parts = {"image_proj", "ms_adapter", "dummy_image_tokens"}
    if not isinstance(content, dict) or set(content) != parts:
        got = ", ".join(sorted(map(str, content))[:5]) if isinstance(content, dict) else type(content).__name__
        raise InputError(f"{source}: not an MS-Diffusion adapter (holds {got}; expected {', '.join(sorted(parts))})")
    if not all(torch.is_tensor(part) or _is_tensors(part) for part in content.values()):
        raise InputError(f"{source}: not an MS-Diffusion adapter (its parts must be dicts of tensors)")
    flat: dict[str, torch.Tensor] = {}
    for key, part in content.items():
        flat |= {key: part} if torch.is_tensor(part) else {f"{key}.{name}": tensor for name, tensor in part.items()}
    return flat


def convert_adapter(
    source: Path, dest: Path, unet: Mapping[str, Any], config: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Write the adapter as safetensors with flat names; returns its configuration.

    Args:
        source: the official ms_adapter.bin, or safetensors of the same names as are written.
        unet: ``unet/config.json`` of the base.
        config: ``ms_adapter_config.json``; None for the official adapter.

    Raises:
        InputError: the file holds code, or names or shapes do not fit.
    """
    tensors = read_adapter(source)
    config = dict(config or official_adapter_config(source, tensors))
    try:
        shapes = adapter_shapes(config, unet)
        layers = enumerate(attention_layers(unet))
        config.setdefault("adapter_index_to_layer", {str(index): name for index, (name, _) in layers})
    except (KeyError, TypeError, IndexError) as error:
        raise InputError(f"{source}: the configuration of its UNet lacks or garbles {error}") from error
    check_tensors(source, tensors, shapes)
    save(dest, tensors, source)
    return config


def default_open_clip_config() -> dict[str, Any]:
    """ViT-bigG-14, the local encoder that goes with SDXL's adapter."""
    import open_clip

    return dict(open_clip.get_model_config("ViT-bigG-14"))


def read_open_clip_config(path: Path) -> dict[str, Any]:
    """open_clip's model configuration, bare or as the ``model_cfg`` of a larger file.

    Raises:
        InputError: the file is missing or no JSON object.
    """
    content = read_network_config(path)
    config = content.get("model_cfg", content)
    if not isinstance(config, dict):
        raise InputError(f"{path}: model_cfg must be a JSON object")
    return config


def read_local_config(path: Path) -> dict[str, Any]:
    """open_clip's model configuration of a CLIP that sees pictures as local encoders are shown them.

    Raises:
        InputError: it was trained on pictures that are normalised otherwise; or as ``read_open_clip_config`` does.
    """
    from rbctl.image_prompt import CLIP_MEAN, CLIP_STD

    preprocess = read_network_config(path).get("preprocess_cfg")
    said = preprocess if isinstance(preprocess, dict) else {}
    for name, own in (("mean", CLIP_MEAN), ("std", CLIP_STD)):
        if (given := said.get(name)) not in (None, list(own)):
            what = f"{abridged(given)}, local encoders are shown pictures with {list(own)}"
            raise InputError(f"{path}: preprocess_cfg: {name}: {what}; take a CLIP that was trained so")
    return read_open_clip_config(path)


def local_encoder_config(folder: Path) -> dict[str, Any]:
    """open_clip's model configuration of a local encoder's folder; ViT-bigG-14's where it brings none."""
    path = folder / "open_clip_config.json"
    return read_local_config(path) if path.is_file() else default_open_clip_config()


def read_local_encoder(source: Path) -> dict[str, torch.Tensor]:
    """Tensors of a CLIPSelf checkpoint in open_clip naming, without the ``module.`` prefix of its training.

    Raises:
        InputError: the file holds code, or something else than a state dict.
    """
    content = read_safetensors(source)[0] if source.suffix == ".safetensors" else read_torch(source)
    state: Any = content.get("state_dict", content) if isinstance(content, dict) else None
    if not _is_tensors(state):
        raise InputError(f"{source}: not a CLIPSelf checkpoint (a state_dict of tensors was expected)")
    return {key.removeprefix("module."): value for key, value in state.items()}


def convert_local_encoder(source: Path, dest: Path, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Write the visual tower of a CLIPSelf checkpoint as safetensors in open_clip naming.

    Args:
        source: the official epoch_6.pt, a bare state dict, or safetensors.
        config: open_clip's model configuration, which is returned; None is ViT-bigG-14.

    Raises:
        InputError: the file holds code, or names or shapes do not fit.
    """
    config = dict(config or default_open_clip_config())
    tensors = read_local_encoder(source)
    shapes = clip_shapes(config, source)
    # The text tower is of no use here: it may be missing and is not kept, but anything foreign is told.
    text = {name: shape for name, shape in shapes.items() if not name.startswith("visual.") and name in tensors}
    check_tensors(source, tensors, {n: s for n, s in shapes.items() if n.startswith("visual.")} | text)
    save(dest, {name: tensor for name, tensor in tensors.items() if name.startswith("visual.")}, source)
    return config


def open_clip_text(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state of a transformers ``CLIPTextModelWithProjection`` as open_clip names it."""
    import torch

    named: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if name == "text_projection.weight":
            named["text_projection"] = tensor.T.contiguous()
        elif match := re.fullmatch(r"text_model\.encoder\.layers\.(\d+)\.self_attn\.q_proj\.(weight|bias)", name):
            rows = [tensors[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            named[f"transformer.resblocks.{match[1]}.attn.in_proj_{match[2]}"] = torch.cat(rows)
        elif not re.search(r"\.[kv]_proj\.", name):
            for theirs, ours in _OPEN_CLIP_TEXT:
                name = name.replace(theirs, ours)
            named[name] = tensor
    return named


def read_sharded(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a transformers model folder: one file or shards, safetensors before pickles."""
    for pattern in ("model*.safetensors", "pytorch_model*.bin"):
        files = sorted(f for f in folder.glob(pattern) if ".fp16" not in f.name)
        tensors: dict[str, torch.Tensor] = {}
        for file in files:
            content = read_safetensors(file)[0] if file.suffix == ".safetensors" else read_torch(file)
            if not _is_tensors(content):
                raise InputError(f"{file}: a state dict of tensors was expected")
            tensors |= content
        if files:
            return tensors
    raise InputError(f"{folder}: no model.safetensors or pytorch_model.bin in it")


def convert_image_encoder(source: Path, dest: Path) -> None:
    """Write the image tower of a CLIP as transformers' CLIPVisionModelWithProjection: config.json, model.safetensors.

    Args:
        source: folder of a CLIPModel or CLIPVisionModelWithProjection in transformers' layout.

    Raises:
        InputError: the folder holds no CLIP, or names or shapes do not fit its configuration.
    """
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = read_network_config(source / "config.json")
    if config.get("model_type") not in ("clip", "clip_vision_model"):
        raise InputError(f"{source}: not a CLIP in transformers' layout")
    tensors = {
        name: tensor
        for name, tensor in read_sharded(source).items()
        if name.startswith(("vision_model.", "visual_projection.")) and not name.endswith(".position_ids")
    }
    projection = tensors.get("visual_projection.weight")
    if projection is None:
        raise InputError(f"{source}: missing visual_projection.weight; is this a CLIP image encoder?")
    tower = config.get("vision_config", config)
    vision = {
        **(tower if isinstance(tower, dict) else {}),
        "model_type": "clip_vision_model",
        "architectures": ["CLIPVisionModelWithProjection"],
        "projection_dim": projection.shape[0],  # old configurations of whole CLIPs name it at the top only
    }
    try:
        with torch.device("meta"):
            expected = CLIPVisionModelWithProjection(CLIPVisionConfig(**vision)).state_dict()
    except Exception as error:  # transformers checks few values, so a garbled one can fail anywhere in it
        raise InputError(f"{source / 'config.json'}: not a CLIP configuration ({reason(error)})") from error
    check_tensors(source, tensors, {name: tuple(tensor.shape) for name, tensor in expected.items()})
    write_json(dest / "config.json", vision)
    save(dest / "model.safetensors", tensors, source)
