"""A bundle put together from local files."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rbctl.bundle.catalogue import MANIFEST, contents, has_local_encoder, missing_parts, record
from rbctl.bundle.config import check_objective
from rbctl.bundle.convert import (
    convert_adapter,
    convert_image_encoder,
    convert_local_encoder,
    read_local_config,
    read_open_clip_config,
    save,
)
from rbctl.bundle.single_file import SDXL, ZERO_SNR, write_base, write_vae
from rbctl.bundle.towers import ADAPTER_MAP, read_adapter_map, tower_width
from rbctl.errors import InputError
from rbctl.files import atomic_write, read_json, read_network_config, read_object, read_shapes, staging, write_json
from rbctl.pretrained import shards
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


def _place_weights(source: Path, dest: Path, stem: str, variant: str) -> None:
    """config.json and the weights of one network, whole or in shards, under the names that loaders look for.

    Args:
        variant: such as "fp16"; empty: the plain files, else the fp16 ones.
    """
    if not (source / "config.json").is_file():
        raise InputError(f"{source}: no config.json; a folder in diffusers' layout was expected")
    _place(source / "config.json", dest / "config.json")
    for mark in [f".{variant}"] if variant else ["", ".fp16"]:
        whole, index = source / f"{stem}{mark}.safetensors", source / f"{stem}.safetensors.index{mark}.json"
        if whole.is_file():
            return _place(whole, dest / f"{stem}.safetensors")
        if index.is_file():
            for name in shards(index):
                _place(source / name, dest / name)
            return _place(index, dest / f"{stem}.safetensors.index.json")
    wanted = f"{stem}.{variant}.safetensors" if variant else f"{stem}.safetensors"
    raise InputError(f"{source}: no {wanted}, whole or in shards; pickled weights (.bin) are not taken over")


def _place_base(base: Path, dest: Path, variant: str, vae: bool) -> None:
    """The networks, tokenizers and scheduler of a diffusers SDXL folder.

    Args:
        vae: take its VAE too.
    """
    if not base.is_dir():
        raise InputError(f"{base}: no such file or folder")
    for part in ("unet", "text_encoder", "text_encoder_2", *(("vae",) if vae else ())):
        stem = "diffusion_pytorch_model" if part in ("unet", "vae") else "model"
        _place_weights(base / part, dest / part, stem, variant)
    for part in ("tokenizer", "tokenizer_2", "scheduler"):
        files = [f for pattern in ("*.json", "*.txt") for f in sorted((base / part).glob(pattern))]
        if not files:
            raise InputError(f"{base / part}: empty or missing; a folder in diffusers' SDXL layout was expected")
        for file in files:
            _place(file, dest / part / file.name)
    if (base / "model_index.json").is_file():
        _place(base / "model_index.json", dest / "model_index.json")


def _place_vae(vae: Path, dest: Path, config: Path, variant: str) -> None:
    """A VAE by itself.

    Args:
        vae: a file; or a folder in diffusers' layout, of a VAE or of a whole pipeline.
        config: vae/config.json for a file, which brings none.
    """
    if vae.is_file():
        write_vae(vae, config, dest)
    elif vae.is_dir():
        _place_weights(vae / "vae" if (vae / "vae").is_dir() else vae, dest, "diffusion_pytorch_model", variant)
    else:
        raise InputError(f"{vae}: no such file or folder")


def _say(scheduler: Path, prediction_type: str | None, zero_snr: bool) -> None:
    """Write into a scheduler's configuration what the base itself does not say."""
    said = ({"prediction_type": prediction_type} if prediction_type else {}) | (ZERO_SNR if zero_snr else {})
    if said:
        write_json(scheduler, read_object(scheduler) | said)


@contextlib.contextmanager
def _staging(dest: Path) -> Iterator[Path]:
    """A folder in ``dest`` whose files move to their places when the block ends well, and vanish when it does not.

    A part of the bundle that comes anew comes whole: other files of its folder, as shards of before, go.
    """
    with staging(dest) as staged:
        yield staged
        new = contents(staged)
        for path in new:
            (dest / path).parent.mkdir(parents=True, exist_ok=True)
            (staged / path).replace(dest / path)
        parts = {Path(path).parent for path in new} - {Path()}
        for path in contents(dest):
            if Path(path).parent in parts and path not in new:
                (dest / path).unlink()


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
    local = next((path for f in folders if (path := f / "clipself/open_clip_config.json").is_file()), None)
    for name, width, mend in (
        ("clip_vision/config.json", value("clip_vision/config.json", "hidden_size"), ""),
        (
            "clipself/open_clip_config.json",
            _token_width(local) if local else None,
            "; 'rbctl distill --bundle' trains a linear map between them",
        ),
    ):
        if wanted and width and width != wanted:
            raise InputError(f"{name}: the encoder is {width} wide, the adapter takes {wanted}; they do not fit{mend}")


def _token_width(config: Path) -> Any:
    """Width of what a local encoder gives the adapter: its map's, or else its tower's."""
    if (path := config.with_name(ADAPTER_MAP)).is_file():
        return read_shapes(path)["weight"][0]
    model = read_open_clip_config(config)
    vision = model.get("vision_cfg")
    plain = vision.get("width") if isinstance(vision, dict) else None
    return plain or tower_width(model, config)


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


def with_local_encoder(base: Path, local_encoder: Path, dest: Path) -> None:
    """Make a bundle that is another's but for its local encoder; all else is linked to it.

    Args:
        base: the other bundle.
        local_encoder: as :func:`import_bundle` takes it.

    Raises:
        InputError: the encoder does not fit; or as :func:`import_bundle` does.
    """
    dest.mkdir(parents=True, exist_ok=True)
    for part in base.resolve().iterdir():
        if (
            part.name not in ("clipself", MANIFEST)
            and not part.name.startswith(".")
            and not (dest / part.name).exists()
        ):
            (dest / part.name).symlink_to(part)
    if not has_local_encoder(dest):
        import_bundle(dest, local_encoder=local_encoder)


def import_bundle(
    dest: Path,
    base: Path | None = None,
    adapter: Path | None = None,
    image_encoder: Path | None = None,
    local_encoder: Path | None = None,
    adapter_config: Path | None = None,
    local_config: Path | None = None,
    vae: Path | None = None,
    base_config: Path | None = None,
    variant: str = "",
    prediction_type: str | None = None,
    zero_snr: bool = False,
) -> list[str]:
    """Put a bundle together from local files, or add parts to one. Nothing changes in ``dest`` unless all parts fit.

    Args:
        dest: the bundle folder.
        base: SDXL in diffusers' layout, or a checkpoint of one file.
        adapter: ms_adapter.bin or .safetensors; its ms_adapter_config.json is looked for beside it.
        image_encoder: folder of CLIP bigG in transformers' layout.
        local_encoder: epoch_6.pt of CLIPSelf or .safetensors, or the folder of its model.safetensors, as
            ``rbctl distill`` writes one; its open_clip_config.json and adapter_map.safetensors lie beside it.
        adapter_config, local_config: those two configurations, where they lie elsewhere.
        vae: a VAE in place of the base's: a file, or a folder in diffusers' layout.
        base_config: folder whose configurations fit ``base`` where that is one file. [default: SDXL's]
        variant: of the base's and the VAE's files, as "fp16". [default: the plain ones, else fp16]
        prediction_type: of the base, "epsilon" or "v_prediction", where it does not say so itself.
        zero_snr: the base was trained with zero terminal SNR, and does not say so itself.

    Returns:
        names of the parts that the bundle still lacks.

    Raises:
        InputError: nothing to import, a source is missing, or parts do not fit together.
    """
    if local_encoder and local_encoder.is_dir():
        local_encoder = local_encoder / "model.safetensors"
    if not any((base, vae, adapter, image_encoder, local_encoder)):
        raise InputError(
            f"{dest}: nothing to import; name --base, --vae, --adapter, --image-encoder or --local-encoder"
        )
    if (prediction_type or zero_snr) and not base:
        raise InputError(f"{dest}: --prediction-type and --zero-snr say what the base is; name it with --base")
    origins: dict[str, dict[str, Any]] = {}
    with _claimed(dest):
        with _staging(dest) as staged:

            def note(source: Path) -> None:
                """Record where the files come from that are new in the staging folder."""
                for path in contents(staged):
                    origins.setdefault(path, {"source": source.name})

            if base and base.is_file():
                write_base(base, base_config, staged, vae=not vae)
            elif base:
                _place_base(base, staged, variant, vae=not vae)
            if base:
                _say(staged / "scheduler" / "scheduler_config.json", prediction_type, zero_snr)
                note(base)
            if vae:
                configs = [f / "vae" / "config.json" for f in (base, base_config, dest, SDXL) if f]
                _place_vae(vae, staged / "vae", next(f for f in configs if f.is_file()), variant)
                note(vae)
            if image_encoder:
                convert_image_encoder(image_encoder, staged / "clip_vision")
                note(image_encoder)
            if adapter:
                unets = [f / "unet/config.json" for f in (staged, dest) if (f / "unet/config.json").is_file()]
                if not unets:
                    raise InputError(f"{adapter}: the adapter belongs to a base; name it with --base")
                path = adapter_config or adapter.parent / "ms_adapter_config.json"
                own = read_object(path) if adapter_config or path.is_file() else None
                config = convert_adapter(adapter, staged / "ms_adapter.safetensors", read_network_config(unets[0]), own)
                write_json(staged / "ms_adapter_config.json", config)
                note(adapter)
            if local_encoder:
                path = local_config or local_encoder.parent / "open_clip_config.json"
                own = read_local_config(path) if local_config or path.is_file() else None
                config = convert_local_encoder(local_encoder, staged / "clipself" / "model.safetensors", own)
                write_json(staged / "clipself" / "open_clip_config.json", config)
                if (path := local_encoder.parent / ADAPTER_MAP).is_file():
                    tensors = read_adapter_map(path, tower_width(config, local_encoder))
                    save(staged / "clipself" / ADAPTER_MAP, tensors, path)
                note(local_encoder)
            check_widths(staged, dest)
            if base and (scheduler := staged / "scheduler" / "scheduler_config.json").is_file():
                check_objective(scheduler)
        record(dest, dest.name, origins)
    return missing_parts(dest)
