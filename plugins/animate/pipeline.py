"""What is asked of an image-to-video pipeline of any class: the arguments that it takes, and its own defaults."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps

from rbctl.errors import InputError, reason
from rbctl.files import read_object, read_shapes
from rbctl.local_pipeline import INDEX, load_pipeline
from rbctl.memory import require
from rbctl.plugins.animate.config import AnimateConfig

_MULTIPLE = 32  # of both sides: LTX's, and twice those of CogVideoX and Wan
_FPS = {"CogVideoX": 8, "Wan": 16}  # of those that name no frame_rate, by the beginning of their class
_OTHER_FPS = 8
# Folders of these classes also make clips of pictures, with the class beside it.
_OF_TEXT = {"LTXPipeline": "LTXImageToVideoPipeline", "WanPipeline": "WanImageToVideoPipeline"}
_NEEDED = {"image", "prompt", "num_frames", "num_inference_steps", "width", "height", "generator", "output_type"}


@dataclass(frozen=True)
class Call:
    """What a pipeline is called with, alike for all clips, its own defaults filled in.

    Attributes:
        pipeline: its class in diffusers.
        width, height: pixels; None for the one size or the area that it is made for.
    """

    pipeline: str
    frames: int
    fps: int
    width: int | None
    height: int | None
    steps: int
    guidance_scale: float | None
    negative_prompt: str | None


def plan_call(folder: Path, config: AnimateConfig) -> Call:
    """The call, before anything is loaded.

    Args:
        folder: as :func:`rbctl.local_pipeline.pipeline_folder` gives it.

    Raises:
        InputError: the pipeline makes no clip of a picture and a prompt, or lacks an argument that is asked for.
    """
    kind = _kind(folder)
    defaults = _defaults(kind)
    for name in ("guidance_scale", "negative_prompt"):
        if getattr(config, name) is not None and name not in defaults:
            raise InputError(f"{folder}: {kind.__name__} takes no {name}; leave the option out")
    rate = defaults.get("frame_rate")
    known = next((fps for start, fps in _FPS.items() if kind.__name__.startswith(start)), _OTHER_FPS)
    guidance = defaults.get("guidance_scale") if config.guidance_scale is None else config.guidance_scale
    return Call(
        pipeline=kind.__name__,
        frames=config.frames or defaults["num_frames"],
        fps=config.fps or (rate if isinstance(rate, int) else known),
        width=config.width,
        height=config.height,
        steps=config.steps or defaults["num_inference_steps"],
        guidance_scale=guidance,
        negative_prompt=config.negative_prompt,
    )


class ImageToVideo:
    """A loaded pipeline."""

    def __init__(
        self, folder: Path, call: Call, config: AnimateConfig, device: torch.device, dtype: torch.dtype
    ) -> None:
        """Load it.

        Raises:
            InputError: it cannot be loaded, or there is not enough memory.
        """
        _check_memory(folder, config, device, dtype)
        self._call = call
        self._pipeline = load_pipeline(folder, dtype, _kind(folder))
        self._defaults = _defaults(type(self._pipeline))
        if config.lowvram or config.sequential_offload:
            tile = getattr(getattr(self._pipeline, "vae", None), "enable_tiling", None)
            if tile is not None:
                tile()
        if device.type == "cuda" and config.sequential_offload:
            self._pipeline.enable_sequential_cpu_offload(device=device)
        elif device.type == "cuda" and config.lowvram:
            self._pipeline.enable_model_cpu_offload(device=device)
        else:
            self._pipeline.to(device)

    def fitted(self, picture: Image.Image) -> Image.Image:
        """The picture as the clip begins: in the clip's size, what is beyond its shape cut off on both sides."""
        return ImageOps.fit(picture, self._size(picture), Image.Resampling.LANCZOS)

    def _size(self, picture: Image.Image) -> tuple[int, int]:
        """Width and height: as asked for, else the one size that it takes, or its area in the picture's shape."""
        if self._call.width and self._call.height:
            return self._call.width, self._call.height
        network = getattr(self._pipeline, "transformer", None)
        shape = network.config if network is not None else {}
        scale = getattr(self._pipeline, "vae_scale_factor_spatial", 8)
        width, height = (
            self._defaults[side] or shape[f"sample_{side}"] * scale  # CogVideoX: of its transformer
            for side in ("width", "height")
        )
        if shape.get("use_learned_positional_embeddings"):
            return width, height
        ratio = math.sqrt(picture.width / picture.height)
        sides = (math.sqrt(width * height) * factor for factor in (ratio, 1 / ratio))
        width, height = (max(_MULTIPLE, round(side / _MULTIPLE) * _MULTIPLE) for side in sides)
        return width, height

    def clip(self, picture: Image.Image, text: str, seed: int, after_step: Callable[[], object]) -> list[Image.Image]:
        """The frames; the first is the picture as it is given, not the pipeline's copy of it.

        Args:
            picture: as :meth:`fitted` gives it.
            after_step: called after each denoising step.

        Raises:
            InputError: the pipeline refuses the size or the number of frames.
        """

        def callback(_pipeline: Any, _step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            after_step()
            return tensors

        arguments = {
            "image": picture,
            "prompt": text,
            "negative_prompt": self._call.negative_prompt,
            "width": picture.width,
            "height": picture.height,
            "num_frames": self._call.frames,
            "frame_rate": self._call.fps,
            "num_inference_steps": self._call.steps,
            "guidance_scale": self._call.guidance_scale,
            "generator": torch.Generator().manual_seed(seed),
            "output_type": "pil",
            "callback_on_step_end": callback,
        }
        try:
            output = self._pipeline(**{name: arguments[name] for name in arguments.keys() & self._defaults.keys()})
        except (TypeError, ValueError, AttributeError) as error:
            refused = f"{self._call.pipeline}: cannot make this clip ({reason(error)})"
            raise InputError(f"{refused}; see --width, --height and --frames") from error
        (frames,) = output.frames
        return [picture, *(frame.convert("RGB") for frame in frames[1:])]


def _kind(folder: Path) -> Any:
    """The class of diffusers that makes clips with a folder."""
    import diffusers

    index = read_object(folder / INDEX)
    name = index["_class_name"]
    # Of Wan's folders, those that expand the timesteps are made for pictures too (TI2V).
    if name in _OF_TEXT and (name != "WanPipeline" or index.get("expand_timesteps")):
        name = _OF_TEXT[name]
    kind = getattr(diffusers, name, None)
    if (
        not (isinstance(kind, type) and issubclass(kind, diffusers.DiffusionPipeline))
        or not _defaults(kind).keys() >= _NEEDED
    ):
        raise InputError(
            f"{folder / INDEX}: {name} makes no clip of a picture and a prompt; "
            "choose another --model: CogVideoX-5b-I2V, Wan or LTX"
        )
    return kind


def _defaults(kind: type) -> Mapping[str, Any]:
    """The arguments of a pipeline's call, each with its default."""
    parameters = inspect.signature(kind.__call__).parameters
    return {name: parameter.default for name, parameter in parameters.items()}


def _check_memory(folder: Path, config: AnimateConfig, device: torch.device, dtype: torch.dtype) -> None:
    """Raises InputError where the weights alone, or with --lowvram those of the largest network, do not fit."""
    sizes = [_numbers(part) * dtype.itemsize for part in folder.iterdir() if part.is_dir()]
    if device.type == "cpu":
        require(sum(sizes), device, str(folder), "take a smaller pipeline, --precision bf16, or a GPU")
    elif config.lowvram and not config.sequential_offload:
        require(max(sizes, default=0), device, str(folder), "take --sequential-offload, or a smaller pipeline")
    elif not config.sequential_offload:
        require(sum(sizes), device, str(folder), "take --lowvram, or a smaller pipeline")


def _numbers(part: Path) -> int:
    """How many numbers the weights of a network hold, by the headers of its files."""
    files = (path for path in part.glob("*.safetensors") if ".fp16." not in path.name)  # which is a second copy
    return sum(math.prod(shape) for path in files for shape in read_shapes(path).values())
