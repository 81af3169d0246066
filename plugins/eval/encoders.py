"""Encoders that score: CLIP and DINO from a bundle or a model folder, each with the preparation that belongs to it."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from rbctl.bundle import hashes
from rbctl.bundle.catalogue import contents
from rbctl.bundle.convert import read_open_clip_config
from rbctl.errors import InputError
from rbctl.files import content_hash, read_object
from rbctl.image_prompt import CLIP_MEAN, CLIP_STD, clip_pixels
from rbctl.paths import relative
from rbctl.pretrained import from_pretrained, loading, network, refuse_code

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt")

Prepare = Callable[[Image.Image], torch.Tensor]
Preparation = tuple[str, Prepare]  # in words and as a function


@dataclass(frozen=True)
class Encoder:
    """A frozen network from pictures, and perhaps texts, to features.

    Attributes:
        name: clip, dino or dinov2.
        folder: where it was loaded from.
        hash: names weights, configuration and preparation, wherever they lie.
        preparation: what is done to a picture before, in words.
        images: (B, 3, H, W) -> (B, D).
        texts: B texts -> (B, D); None where it reads none.
    """

    name: str
    folder: Path
    hash: str
    preparation: str
    prepare: Prepare
    images: Callable[[torch.Tensor], torch.Tensor]
    texts: Callable[[Sequence[str]], torch.Tensor] | None
    device: torch.device

    def facts(self, folder: Path) -> dict[str, str]:
        """What a report in ``folder`` says of it."""
        return {"folder": relative(self.folder, folder), "hash": self.hash, "preparation": self.preparation}


def shorter_side(resize: int, crop: int, mean: Sequence[float], std: Sequence[float]) -> Preparation:
    """Shorter side to ``resize`` pixels (bicubic), the middle ``crop`` x ``crop`` of it, normalised; (3, crop, crop).

    As torchvision's Resize, CenterCrop, ToTensor and Normalize on a PIL picture, which the published scores used.
    """
    from torchvision import transforms

    steps = transforms.Compose(
        [
            transforms.Resize(resize, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(crop),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )
    return f"shorter side {resize} bicubic, centre crop {crop}", lambda image: steps(image.convert("RGB"))


def load_clip(folder: Path, device: torch.device) -> Encoder:
    """CLIP from a bundle, a folder of transformers, or one of open_clip.

    Raises:
        InputError: the folder holds none of them, or is damaged.
    """
    if (folder / "clip_vision").is_dir():
        return _bundle_clip(folder, device)
    if (folder / "open_clip_config.json").is_file():
        return _open_clip(folder, device)
    _check(folder, "CLIP")
    from transformers import AutoTokenizer, CLIPModel

    model, tokenizer = network(CLIPModel, folder, torch.float32), from_pretrained(AutoTokenizer, folder)
    _freeze(model, device)
    size, longest = model.config.vision_config.image_size, model.config.text_config.max_position_embeddings

    def images(pixels: torch.Tensor) -> Any:
        return model.visual_projection(model.vision_model(pixels).pooler_output)

    def texts(lines: Sequence[str]) -> Any:
        tokens = _tokens(tokenizer, lines, longest).to(device)
        return model.text_projection(model.text_model(**tokens).pooler_output)

    preparation, prepare = shorter_side(size, size, CLIP_MEAN, CLIP_STD)
    return Encoder("clip", folder, _hash(folder, preparation), preparation, prepare, images, texts, device)


def load_dino(folder: Path, name: str, device: torch.device) -> Encoder:
    """DINO or DINOv2 from a folder of transformers: the class token after the last norm.

    Args:
        folder: a model's own, or a bundle with a ``dino/``; the latter's pictures are prepared as its image prompts.

    Raises:
        InputError: the folder holds no such model, or is damaged.
    """
    from transformers import AutoModel

    own = (folder / "clip_vision").is_dir()
    folder = folder / "dino" if own else folder
    _check(folder, name)
    # DINO ships no pooler, and none is used here.
    config = read_object(folder / "config.json")
    extra = {"add_pooling_layer": False} if config.get("model_type") == "vit" else {}
    model = network(AutoModel, folder, torch.float32, **extra)
    _freeze(model, device)
    if not isinstance(getattr(model.config, "image_size", None), int):
        raise InputError(f"{folder}: a {config.get('model_type')!r} is no vision transformer; give DINO or DINOv2")
    # DINOv2's position embeddings are stored for 518 pixels, but it is scored at 224 as DINO is.
    size = min(int(config.get("crop_size") or model.config.image_size), 224)

    def images(pixels: torch.Tensor) -> Any:
        return model(pixels).last_hidden_state[:, 0]

    preparation, prepare = (
        _squared(size) if own else shorter_side(round(size * 256 / 224), size, IMAGENET_MEAN, IMAGENET_STD)
    )
    return Encoder(name, folder, _hash(folder, preparation), preparation, prepare, images, None, device)


def _bundle_clip(folder: Path, device: torch.device) -> Encoder:
    """A bundle's image encoder and its second text encoder: CLIP-bigG's two towers in SDXL."""
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection

    vision = network(CLIPVisionModelWithProjection, folder / "clip_vision", torch.float32)
    text = network(CLIPTextModelWithProjection, folder / "text_encoder_2", torch.float32)
    tokenizer = from_pretrained(CLIPTokenizer, folder / "tokenizer_2")
    widths = vision.config.projection_dim, text.config.projection_dim
    if widths[0] != widths[1]:
        raise InputError(f"{folder}: its encoders share no space ({widths[0]} and {widths[1]} wide); give --clip")
    for tower in (vision, text):
        _freeze(tower, device)

    def images(pixels: torch.Tensor) -> Any:
        return vision(pixels).image_embeds

    def texts(lines: Sequence[str]) -> Any:
        tokens = _tokens(tokenizer, lines, text.config.max_position_embeddings)
        return text(tokens["input_ids"].to(device)).text_embeds

    preparation, prepare = _squared(vision.config.image_size)
    digest = _hash(folder, preparation, ("clip_vision", "text_encoder_2", "tokenizer_2"))
    return Encoder("clip", folder, digest, preparation, prepare, images, texts, device)


def _open_clip(folder: Path, device: torch.device) -> Encoder:
    import open_clip

    name = f"local-dir:{folder}"
    refuse_code(folder)
    config = read_open_clip_config(folder / "open_clip_config.json")
    towers = [tower for key in ("vision_cfg", "text_cfg") if isinstance(tower := config.get(key), dict)]
    if foreign := [key for tower in towers for key in ("hf_model_name", "timm_model_name") if tower.get(key)]:
        raise InputError(f"{folder}: {foreign[0]}: would be downloaded; take a CLIP of open_clip's own towers")
    with loading(folder), _quiet():
        model: Any = open_clip.create_model(name, device=device)
        tokenizer = open_clip.get_tokenizer(name)
    _freeze(model, device)
    side = model.visual.image_size
    size = side[0] if isinstance(side, tuple | list) else side
    mean, std = (getattr(model.visual, f"image_{what}", None) for what in ("mean", "std"))

    def texts(lines: Sequence[str]) -> Any:
        return model.encode_text(tokenizer(list(lines)).to(device))

    preparation, prepare = shorter_side(size, size, mean or CLIP_MEAN, std or CLIP_STD)
    digest = _hash(folder, preparation)
    return Encoder("clip", folder, digest, preparation, prepare, model.encode_image, texts, device)


def _squared(size: int) -> Preparation:
    """A bundle's own preparation of image prompts: squeezed to a square."""
    words = f"as the bundle's image prompts: square of 512, then {size}, bicubic"
    return words, lambda image: clip_pixels([image], size)[0]


def _tokens(tokenizer: Any, lines: Sequence[str], longest: int) -> Any:
    return tokenizer(list(lines), padding="max_length", max_length=longest, truncation=True, return_tensors="pt")


def _freeze(model: Any, device: torch.device) -> None:
    model.requires_grad_(False).eval().to(device)


def _check(folder: Path, name: str) -> None:
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: no {name} here; give a model folder with config.json and its weights")
    if not any(path for pattern in _WEIGHTS for path in folder.glob(pattern)):
        raise InputError(f"{folder}: config.json without weights; put model.safetensors beside it")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """open_clip tells all that it does to the root logger."""
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.root.setLevel(level)


def _hash(folder: Path, preparation: str, parts: Sequence[str] | None = None) -> str:
    """SHA-256 over the folder's files, or those of some parts, and the preparation."""
    paths = [path for path in contents(folder) if parts is None or Path(path).parts[0] in parts]
    keep = [path for path in paths if path.endswith((".json", ".safetensors", ".bin", ".pt", ".txt", ".model"))]
    return content_hash([hashes.file_hashes(folder, keep), preparation])


def as_array(features: torch.Tensor) -> np.ndarray:
    """(B, D) as float32 on the CPU."""
    return features.detach().float().cpu().numpy()
