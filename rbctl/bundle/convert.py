"""The official checkpoints as safetensors.

``ms_adapter.bin`` is a nested dict (``image_proj``, ``ms_adapter``, ``dummy_image_tokens``); ``epoch_6.pt`` of CLIPSelf
is ``{"epoch", "name", "state_dict"}``. Names and shapes are checked against what the configurations ask for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rbctl.errors import InputError, reason
from rbctl.files import atomic_write, read_object, read_safetensors, read_torch, write_json
from rbctl.kept import not_finite

if TYPE_CHECKING:
    import torch

Shape = tuple[int, ...]

# Sizes of the official adapter that its tensors do not show; what ms_adapter_config.json leaves out is so too.
OFFICIAL = {"num_patches": 4, "scale": 0.6, "clip_image_size": 224, "local_image_size": 896}
_OFFICIAL_WIDTH, _OFFICIAL_HEAD = 1280, 64
_FOURIER_FREQS = 8


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


def resampler_shapes(config: Mapping[str, int]) -> dict[str, Shape]:
    """Names and shapes of the grounding resampler, from the ``resampler`` part of ``ms_adapter_config.json``."""
    dim, inner, output = config["dim"], config["heads"] * config["dim_head"], config["output_dim"]
    grounding = config["phrase_embeddings_dim"] + 8 * config["fourier_freqs"]  # sin and cos of 4 coordinates
    shapes: dict[str, Shape] = {
        "grounding_latents": (1, config["num_queries"], dim),
        "latent_proj.0.weight": (2 * grounding, grounding),
        "latent_proj.0.bias": (2 * grounding,),
        "latent_proj.2.weight": (config["num_queries"] * dim, 2 * grounding),
        "latent_proj.2.bias": (config["num_queries"] * dim,),
        "proj_in.weight": (dim, config["embedding_dim"]),
        "proj_in.bias": (dim,),
        "proj_out.weight": (output, dim),
        "proj_out.bias": (output,),
    }
    norms = {"latent_norm": dim, "attention_norm": dim, "norm_out": output}
    for i in range(config["depth"]):
        norms |= {f"layers.{i}.0.norm1": dim, f"layers.{i}.0.norm2": dim, f"layers.{i}.1.0": dim}
        shapes[f"layers.{i}.0.to_q.weight"] = (inner, dim)
        shapes[f"layers.{i}.0.to_kv.weight"] = (2 * inner, dim)
        shapes[f"layers.{i}.0.to_out.weight"] = (dim, inner)
        shapes[f"layers.{i}.1.1.weight"] = (config["ff_mult"] * dim, dim)
        shapes[f"layers.{i}.1.3.weight"] = (dim, config["ff_mult"] * dim)
    return shapes | {f"{name}.{part}": (width,) for name, width in norms.items() for part in ("weight", "bias")}


def adapter_shapes(config: Mapping[str, Any], unet: Mapping[str, Any]) -> dict[str, Shape]:
    """Names and shapes of ``ms_adapter.safetensors``.

    Args:
        config: ``ms_adapter_config.json``.
        unet: ``unet/config.json``.
    """
    width = config["resampler"]["output_dim"]
    shapes = {f"image_proj.{name}": shape for name, shape in resampler_shapes(config["resampler"]).items()}
    for index, (name, hidden) in enumerate(attention_layers(unet)):
        if name.endswith("attn2.processor"):
            shapes[f"ms_adapter.{index}.to_k_ip.weight"] = (hidden, width)
            shapes[f"ms_adapter.{index}.to_v_ip.weight"] = (hidden, width)
    return shapes | {"dummy_image_tokens": (1, config["num_dummy_tokens"], width)}


def check_tensors(path: Path, tensors: Mapping[str, torch.Tensor], shapes: Mapping[str, Shape]) -> None:
    """Compare names and shapes with what is expected.

    Raises:
        InputError: one line naming the first few differences of each kind.
    """

    def some(names: list[str]) -> str:
        return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

    faults = []
    if missing := sorted(shapes.keys() - tensors.keys()):
        faults.append(f"missing {some(missing)}")
    if unexpected := sorted(tensors.keys() - shapes.keys()):
        faults.append(f"unexpected {some(unexpected)}")
    wrong = [
        f"{name} is {list(tensors[name].shape)}, {list(shapes[name])} expected"
        for name in sorted(shapes.keys() & tensors.keys())
        if tuple(tensors[name].shape) != shapes[name]
    ]
    if wrong:
        faults.append(some(wrong))
    if faults:
        raise InputError(f"{path}: does not fit: {'; '.join(faults)}")


def derive_adapter_config(path: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """``ms_adapter_config.json`` of an adapter that came without one, from the shapes of its tensors.

    Raises:
        InputError: a tensor needed for it is missing, or the head width cannot be told (it shows in no shape; only the
            official one, 20 heads x 64, is known).
    """

    def shape(name: str, *dimensions: int) -> list[int]:
        if name not in tensors or tensors[name].ndim <= max(dimensions):
            raise InputError(f"{path}: missing {name}; is this an MS-Diffusion adapter?")
        return [tensors[name].shape[d] for d in dimensions]

    num_queries, dim = shape("image_proj.grounding_latents", 1, 2)
    (inner,) = shape("image_proj.layers.0.0.to_q.weight", 0)
    if (dim, inner) != (_OFFICIAL_WIDTH, _OFFICIAL_WIDTH):
        raise InputError(
            f"{path}: a resampler {dim} wide is not the official one, so its dim_head is not known; "
            "put ms_adapter_config.json beside it or name it with --adapter-config"
        )
    resampler = {
        "dim": dim,
        "depth": len({name.split(".")[2] for name in tensors if name.startswith("image_proj.layers.")}),
        "dim_head": _OFFICIAL_HEAD,
        "heads": inner // _OFFICIAL_HEAD,
        "num_queries": num_queries,
        "ff_mult": shape("image_proj.layers.0.1.1.weight", 0)[0] // dim,
        "embedding_dim": shape("image_proj.proj_in.weight", 1)[0],
        "output_dim": shape("image_proj.proj_out.weight", 0)[0],
        "phrase_embeddings_dim": shape("image_proj.latent_proj.0.weight", 1)[0] - 8 * _FOURIER_FREQS,
        "fourier_freqs": _FOURIER_FREQS,
    }
    dummies = shape("dummy_image_tokens", 1)[0]
    return {"resampler": resampler, "num_dummy_tokens": dummies, "num_tokens": num_queries, **OFFICIAL}


def _save(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors straight to the disk: these files may be larger than half the memory.

    Raises:
        InputError: one holds NaN or infinite numbers, or the disk is full.
    """
    from safetensors.torch import save_file

    if name := not_finite(tensors):
        raise InputError(f"{path}: not written: {name} holds NaN or infinite numbers; bring the original again")
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
    source: Path,
    dest: Path,
    unet: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the adapter as safetensors with flat names.

    Args:
        source: the official ms_adapter.bin, or safetensors of the same names as are written.
        unet: ``unet/config.json`` of the base; where given, every projection is checked against it.
        config: ``ms_adapter_config.json``; None derives it from the tensors (official sizes only).

    Returns:
        the configuration.

    Raises:
        InputError: the file holds code, or names or shapes do not fit.
    """
    source = Path(source)
    tensors = read_adapter(source)
    config = dict(config) if config else derive_adapter_config(source, tensors)
    try:
        if unet is None:  # the layers' own widths are all there is to check the projections by
            shapes = {f"image_proj.{name}": shape for name, shape in resampler_shapes(config["resampler"]).items()}
            shapes["dummy_image_tokens"] = (1, config["num_dummy_tokens"], config["resampler"]["output_dim"])
            for name in (name for name in tensors if name.startswith("ms_adapter.")):
                twin = name.replace(".to_v_ip.", ".to_k_ip.")
                width = tensors[twin].shape[0] if twin in tensors else -1
                shapes |= dict.fromkeys((name, twin), (width, config["resampler"]["output_dim"]))
        else:
            shapes = adapter_shapes(config, unet)
            layers = enumerate(attention_layers(unet))
            config.setdefault("adapter_index_to_layer", {str(index): name for index, (name, _) in layers})
    except (KeyError, TypeError, IndexError) as error:
        raise InputError(f"{source}: its configuration lacks or garbles {error}; see ms_adapter_config.json") from error
    check_tensors(source, tensors, shapes)
    _save(Path(dest), tensors)
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
    content = read_object(path)
    config = content.get("model_cfg", content)
    if not isinstance(config, dict):
        raise InputError(f"{path}: model_cfg must be a JSON object")
    return config


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
        source: the official epoch_6.pt ({"epoch", "name", "state_dict"}, perhaps with ``module.`` prefixes), a bare
            state dict, or safetensors.
        config: open_clip's model configuration; None is ViT-bigG-14.

    Returns:
        the configuration.

    Raises:
        InputError: the file holds code, or names or shapes do not fit.
    """
    import torch
    from open_clip.model import CLIP

    source = Path(source)
    config = dict(config or default_open_clip_config())
    tensors = read_local_encoder(source)
    try:
        with torch.device("meta"):
            whole = CLIP(**{key: config[key] for key in ("embed_dim", "vision_cfg", "text_cfg")})
    except Exception as error:  # open_clip checks no value, so a garbled one can fail anywhere in it
        raise InputError(f"{source}: its open_clip configuration lacks or garbles {reason(error)}") from error
    shapes = {name: tuple(tensor.shape) for name, tensor in whole.state_dict().items()}
    # The text tower is of no use here: it may be missing and is not kept, but anything foreign is told.
    text = {name: shape for name, shape in shapes.items() if not name.startswith("visual.") and name in tensors}
    check_tensors(source, tensors, {n: s for n, s in shapes.items() if n.startswith("visual.")} | text)
    _save(Path(dest), {name: tensor for name, tensor in tensors.items() if name.startswith("visual.")})
    return config


def _read_sharded(folder: Path) -> dict[str, torch.Tensor]:
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


def convert_image_encoder(source: Path, dest: Path) -> dict[str, Any]:
    """Write the image tower of a CLIP as transformers' CLIPVisionModelWithProjection: config.json, model.safetensors.

    Args:
        source: folder of a CLIPModel or CLIPVisionModelWithProjection in transformers' layout.
        dest: folder to write.

    Returns:
        the tower's configuration.

    Raises:
        InputError: the folder holds no CLIP, or names or shapes do not fit its configuration.
    """
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    source, dest = Path(source), Path(dest)
    config = read_object(source / "config.json")
    if config.get("model_type") not in ("clip", "clip_vision_model"):
        raise InputError(f"{source}: not a CLIP in transformers' layout")
    tensors = {
        name: tensor
        for name, tensor in _read_sharded(source).items()
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
    _save(dest / "model.safetensors", tensors)
    return vision
