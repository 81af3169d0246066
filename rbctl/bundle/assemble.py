"""A bundle put together from local files."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rbctl.bundle.catalogue import contents, missing_parts, record
from rbctl.bundle.convert import convert_adapter, convert_image_encoder, convert_local_encoder, read_open_clip_config
from rbctl.errors import InputError
from rbctl.files import atomic_write, read_json, read_object, write_json
from rbctl.runs import claim


def _place(source: Path, dest: Path) -> None:
    """Put a file into the bundle: a hard link where the disk allows, else a copy."""
    dest.parent.mkdir(parents=True, exist_ok=True)
    source = source.resolve()  # a hub cache holds symbolic links
    try:
        os.link(source, dest)
    except OSError:
        with atomic_write(dest) as temporary:
            shutil.copyfile(source, temporary)


def _place_weights(source: Path, dest: Path, stem: str) -> None:
    """config.json and the weights of one network; a lone fp16 variant takes the plain name that loaders look for."""
    if not (source / "config.json").is_file():
        raise InputError(f"{source}: no config.json; a folder in diffusers' layout was expected")
    _place(source / "config.json", dest / "config.json")
    if (source / f"{stem}.safetensors").is_file():
        _place(source / f"{stem}.safetensors", dest / f"{stem}.safetensors")
    elif (source / f"{stem}.safetensors.index.json").is_file():
        for file in (source / f"{stem}.safetensors.index.json", *sorted(source.glob(f"{stem}-*.safetensors"))):
            _place(file, dest / file.name)
    elif (source / f"{stem}.fp16.safetensors").is_file():
        _place(source / f"{stem}.fp16.safetensors", dest / f"{stem}.safetensors")
    else:
        raise InputError(f"{source}: no {stem}.safetensors; pickled weights are not taken over")


def _place_base(base: Path, dest: Path) -> None:
    """The six networks and tokenizers of a diffusers SDXL folder."""
    if base.is_file():
        raise InputError(
            f"{base}: a single file; make a folder of it with diffusers' "
            "StableDiffusionXLPipeline.from_single_file(FILE).save_pretrained(FOLDER)"
        )
    if not base.is_dir():
        raise InputError(f"{base}: no such folder")
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        stem = "diffusion_pytorch_model" if part in ("unet", "vae") else "model"
        _place_weights(base / part, dest / part, stem)
    for part in ("tokenizer", "tokenizer_2", "scheduler"):
        files = [f for pattern in ("*.json", "*.txt") for f in sorted((base / part).glob(pattern))]
        if not files:
            raise InputError(f"{base / part}: empty or missing; a folder in diffusers' SDXL layout was expected")
        for file in files:
            _place(file, dest / part / file.name)
    if (base / "model_index.json").is_file():
        _place(base / "model_index.json", dest / "model_index.json")


@contextlib.contextmanager
def _staging(dest: Path) -> Iterator[Path]:
    """A folder beside ``dest`` whose files move into it when the block ends well, and vanish when it does not."""
    dest.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=dest.parent, prefix=f".{dest.name}.") as name:
        staged = Path(name)
        yield staged
        for path in contents(staged):
            (dest / path).parent.mkdir(parents=True, exist_ok=True)
            (staged / path).replace(dest / path)


def check_widths(*folders: Path) -> None:
    """Both image encoders must be as wide as the adapter takes; of each file, the first folder's that has one counts.

    Raises:
        InputError: one is not.
    """

    def value(name: str, *keys: str) -> Any:
        path = next((f / name for f in folders if (f / name).is_file()), None)
        content = read_json(path) if path else None
        for key in keys:
            content = content.get(key) if isinstance(content, dict) else None
        return content

    wanted = value("ms_adapter_config.json", "resampler", "embedding_dim")
    widths = {
        "clip_vision/config.json": value("clip_vision/config.json", "hidden_size"),
        "clipself/open_clip_config.json": value("clipself/open_clip_config.json", "vision_cfg", "width"),
    }
    for name, width in widths.items():
        if wanted and width and width != wanted:
            raise InputError(f"{name}: the encoder is {width} wide, the adapter takes {wanted}; they do not fit")


@contextlib.contextmanager
def _claimed(dest: Path) -> Iterator[None]:
    """Hold ``dest`` for writing; a folder made for this goes again if nothing comes into it."""
    new = not dest.exists()
    with claim(dest):
        try:
            yield
        finally:
            if new and [path.name for path in dest.iterdir()] == [".lock"]:
                shutil.rmtree(dest, ignore_errors=True)


def import_bundle(
    dest: Path,
    base: Path | None = None,
    adapter: Path | None = None,
    image_encoder: Path | None = None,
    local_encoder: Path | None = None,
    adapter_config: Path | None = None,
    local_config: Path | None = None,
) -> list[str]:
    """Put a bundle together from local files, or add parts to one. Nothing changes in ``dest`` unless all parts fit.

    Args:
        dest: the bundle folder.
        base: SDXL in diffusers' layout.
        adapter: ms_adapter.bin or .safetensors; its ms_adapter_config.json is looked for beside it.
        image_encoder: folder of CLIP bigG in transformers' layout.
        local_encoder: epoch_6.pt of CLIPSelf or .safetensors, or the folder of its model.safetensors, as
            ``rbctl distill`` writes one; its open_clip_config.json is looked for beside it.
        adapter_config, local_config: those two configurations, where they lie elsewhere.

    Returns:
        names of the parts that the bundle still lacks.

    Raises:
        InputError: nothing to import, a source is missing, or parts do not fit together.
    """
    if local_encoder and local_encoder.is_dir():
        local_encoder = local_encoder / "model.safetensors"
    if not any((base, adapter, image_encoder, local_encoder)):
        raise InputError(f"{dest}: nothing to import; name --base, --adapter, --image-encoder or --local-encoder")
    origins: dict[str, dict[str, Any]] = {}
    with _claimed(dest):
        with _staging(dest) as staged:

            def note(source: Path) -> None:
                """Record where the files come from that are new in the staging folder."""
                for path in contents(staged):
                    origins.setdefault(path, {"source": source.name})

            if base:
                _place_base(base, staged)
                note(base)
            if image_encoder:
                convert_image_encoder(image_encoder, staged / "clip_vision")
                note(image_encoder)
            if adapter:
                unets = [f / "unet/config.json" for f in (staged, dest) if (f / "unet/config.json").is_file()]
                if not unets:
                    raise InputError(f"{adapter}: the adapter belongs to a base; name it with --base")
                path = adapter_config or adapter.parent / "ms_adapter_config.json"
                own = read_object(path) if adapter_config or path.is_file() else None
                config = convert_adapter(adapter, staged / "ms_adapter.safetensors", read_object(unets[0]), own)
                write_json(staged / "ms_adapter_config.json", config)
                note(adapter)
            if local_encoder:
                path = local_config or local_encoder.parent / "open_clip_config.json"
                own = read_open_clip_config(path) if local_config or path.is_file() else None
                config = convert_local_encoder(local_encoder, staged / "clipself" / "model.safetensors", own)
                write_json(staged / "clipself" / "open_clip_config.json", config)
                note(local_encoder)
            check_widths(staged, dest)
        record(dest, dest.name, origins)
    return missing_parts(dest)
