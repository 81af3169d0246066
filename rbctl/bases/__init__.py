"""What a base model must give: each family of bases is a folder here, and the stages know none by name.

Each folder has the same files: ``__init__`` (the record, without torch), ``base`` (a folder on the disk -> the loaded
base), ``sampling`` (requests -> latents), ``training`` (triplets -> encodings; noise, target and estimate of the clean
latents) and ``recipe.yaml`` (what suits it). A new family is a new folder.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rbctl.files import read_object, read_yaml

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from rbctl.embeddings import Embedding
    from rbctl.image_prompt import Injection, LocalTokens
    from rbctl.request import Request

Tensors = Mapping[str, "torch.Tensor"]
OnStep = Callable[[int, "torch.Tensor"], "torch.Tensor | None"]

INDEX = "model_index.json"
NETWORK = (("config.json",), ("*.safetensors", "*.bin"))  # files of a network's folder
RECIPE = "recipe.yaml"
# Names that encodings of a triplet's words have; all others are of one version of it, or begin with "empty_".
PER_TRIPLET = ("prompt_embeds", "pooled_prompt_embeds", "predicate_span")
_OLDEST = "sdxl"  # the family of folders that do not say theirs


@dataclass(frozen=True, kw_only=True)
class Family:
    """The record of a family of bases.

    Attributes:
        name: of its folder.
        pipelines: classes of diffusers that ``model_index.json`` names.
        parts: what a bundle must hold: part -> groups of patterns; a file must match one of each group.
        learned_on: parts that a LoRA is tuned on, which name its base.
        layers: what ``--lora-layers`` means: its value -> a pattern of the model's names of layers, the fewest first.
        only: stage -> option -> the one value that has a meaning on these bases.
        snapshot: a bundle is what its publisher has, with nothing to add.
        recipe: the file in its folder that suits a bundle.
        shares: the bundle whose parts stand for those that a bundle of it lacks; "" where there are none.
    """

    name: str
    pipelines: tuple[str, ...]
    parts: Mapping[str, tuple[tuple[str, ...], ...]]
    learned_on: tuple[str, ...]
    layers: Mapping[str, str]
    only: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    snapshot: bool = False
    recipe: Callable[[Path], str] = lambda folder: RECIPE
    shares: str = ""

    def layers_of(self, names: Collection[str]) -> str | None:
        """The value of ``--lora-layers`` that a LoRA on layers of these names has; None where there is none."""
        return next((which for which, own in self.layers.items() if all(re.fullmatch(own, n) for n in names)), None)

    def targets(self, names: Iterable[str], layers: str) -> list[str]:
        """Those of a model's names of layers that ``--lora-layers`` means."""
        return [name for name in names if re.fullmatch(self.layers[layers], name)]

    def module(self, name: str) -> Any:
        """One of its heavy modules: "base", "sampling" or "training"."""
        return importlib.import_module(f"{__name__}.{self.name}.{name}")


@dataclass(frozen=True)
class Summary:
    """What a bundle says of itself without loading a network.

    Attributes:
        resolution: side in pixels that the base was made for.
        gamma: default weight of the image branch; 1 where there is none.
        multiple: of pixels, that the sides of pictures must be.
        ordered: pictures of individuals are shown in the order of their roles, which changes what is drawn.
    """

    resolution: int
    gamma: float = 1.0
    multiple: int = 8
    ordered: bool = False


@dataclass(frozen=True, kw_only=True)
class SamplerOptions:
    """How pictures of individuals are shown to a base; each reads what it has a meaning for.

    Attributes:
        local_tokens, local_grid, local_injection, pseudo_mask_step, attention: of bases with an image branch, see
            :class:`rbctl.pipeline.RelationPipeline`.
        reference_mask: of bases with references in their sequence: "boxes" lets only the places in an individual's box
            see its picture.
    """

    local_tokens: LocalTokens = "own"
    local_grid: int | None = None
    local_injection: Injection = "concat"
    pseudo_mask_step: int = 0
    attention: str = "auto"
    reference_mask: str = "none"


class Sampler(Protocol):
    """Requests of one kind -> latents."""

    def forget(self) -> None:
        """Encode every picture anew, as after a move of the networks."""
        ...

    def check(self, request: Request) -> None:
        """Raises InputError where the base cannot do what is asked for."""
        ...

    def check_memory(self, requests: Sequence[Request]) -> None:
        """Raises InputError where a machine without GPU cannot hold the pictures, or would need hours."""
        ...

    def encode(self, requests: Sequence[Request]) -> Any:
        """What the networks read of the requests."""
        ...

    def denoise(
        self,
        requests: Sequence[Request],
        encoded: Any,
        noise: torch.Tensor,
        scheduler: Any = None,
        on_step: OnStep | None = None,
        generators: Sequence[torch.Generator | None] | None = None,
    ) -> torch.Tensor:
        """Scaled latents (B, C, h, w); arguments as of :func:`rbctl.denoising.denoise`."""
        ...


class Training(Protocol):
    """How the model of a base is trained on triplets.

    Attributes:
        shapes: the encodings that are its own, with their dimensions as of ``rbctl.plugins.finetune.encodings``.
        timesteps: how many timesteps there are to draw from.
    """

    shapes: Mapping[str, str]
    timesteps: int

    # --- what the frozen networks say, once

    def texts(self, prompt: str, predicate: str, names: Sequence[str], where: str | None) -> Any:
        """What the other calls need of a triplet's words.

        Args:
            where: names it in errors; None for a prior scene, which need not hold a predicate.
        """
        ...

    def of_triplet(self, texts: Any) -> dict[str, torch.Tensor]:
        """Encodings of a triplet's words, under names of ``PER_TRIPLET``."""
        ...

    def of_version(
        self, texts: Any, prompts: Sequence[Image.Image], squares: Sequence[Image.Image], boxes: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Encodings of one version of a triplet.

        Args:
            prompts: the individuals' pictures. squares: the same, padded to the square of training.
            boxes: (N, 4) in the target.
        """
        ...

    def padded(self, encoded: Tensors, objects: int, most: int) -> dict[str, torch.Tensor]:
        """A version's own encodings of ``objects`` individuals, with absent ones up to ``most``."""
        ...

    def even(self, rows: Sequence[dict[str, torch.Tensor]]) -> None:
        """Bring texts of several lengths to one, in place."""
        ...

    def of_nothing(self) -> dict[str, torch.Tensor]:
        """Encodings of the empty prompt, under names that begin with "empty_"."""
        ...

    # --- the loss

    def levels(self, timesteps: torch.Tensor, latent_size: tuple[int, int]) -> torch.Tensor:
        """The timesteps (B,) that the model is told, 0 to ``timesteps``, for drawn ones (B,) int64."""
        ...

    def noised(
        self, latents: torch.Tensor, noise: torch.Tensor, levels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The model's input, and what its output should be; (B, C, h, w) float32."""
        ...

    def predict(
        self, model: Any, noisy: torch.Tensor, levels: torch.Tensor, encoded: Tensors, prompt_latents: torch.Tensor
    ) -> Prediction:
        """Call the model, as accelerate prepares it.

        Args:
            encoded: all encodings of the B samples.
            prompt_latents: (B, N, C, p, p) of the individuals' squares.
        """
        ...

    def clean(self, noisy: torch.Tensor, output: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        """One-step estimate of the clean latents (B, C, h, w)."""
        ...

    def cells(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (R, C, h, w) at the finest cells that the VAE has, where keypoints are read."""
        ...

    def sample(
        self, encodings: Tensors, rows: Sequence[int], noise: torch.Tensor, steps: int, generators: Sequence[Any]
    ) -> torch.Tensor:
        """Latents of triplets as they are, for a preview.

        Args:
            encodings: of a whole set. rows: whose. noise: (B, C, h, w) unit noise.
        """
        ...


@dataclass(frozen=True)
class Prediction:
    """One call of the model.

    Attributes:
        output: (B, C, h, w) float32.
        losses: further losses (B,) that the base has, by the names of their weights.
        conditioning: what it was conditioned on.
    """

    output: torch.Tensor
    losses: Tensors = field(default_factory=dict)
    conditioning: Any = None


class Base(Protocol):
    """A loaded base: frozen networks on one device.

    Attributes:
        gamma: weight of the image branch.
        lowvram: the networks lie in main memory and come to the device when they are needed (see ``place``).
    """

    folder: Path
    device: torch.device
    dtype: torch.dtype
    lowvram: bool
    gamma: float
    tokenizer: Any
    vae: Any

    @property
    def name(self) -> str: ...

    @property
    def model(self) -> Any:
        """The network that learns: a UNet, a transformer."""
        ...

    @property
    def resolution(self) -> int:
        """The side in pixels the base was made for."""
        ...

    @property
    def latent_scale(self) -> int:
        """Pixels per latent cell."""
        ...

    @property
    def latent_channels(self) -> int: ...

    @property
    def architecture(self) -> str:
        """modelspec's name of it."""
        ...

    @property
    def adapter_hint(self) -> str:
        """What a user of a LoRA must know of the base, for the file's metadata."""
        ...

    def place(self, *parts: str) -> None:
        """Where the card is small: these networks onto the device, all others off it."""
        ...

    def drop_encoders(self) -> None:
        """Unload text and image encoders."""
        ...

    def move(self, device: torch.device, dtype: torch.dtype) -> None: ...

    def compile(self) -> None:
        """Compile the model's blocks."""
        ...

    def scheduler(self, name: str | None = None) -> Any:
        """A fresh scheduler of diffusers."""
        ...

    def set_timesteps(self, scheduler: Any, steps: int, latent_size: tuple[int, int]) -> None:
        """Make a scheduler ready for pictures of a size."""
        ...

    def encode_pictures(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pictures (B, 3, H, W) in [-1, 1] -> mean and standard deviation of their scaled latents (B, C, h, w)."""
        ...

    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Scaled latents (B, C, h, w) -> pictures (B, 3, H, W), roughly in [-1, 1]."""
        ...

    def overlong(self, prompt: str, embeddings: Sequence[Embedding] = ()) -> bool:
        """Whether the text encoders see only a part of the prompt."""
        ...

    def lora_targets(self, layers: str) -> Sequence[str]:
        """Names of the model's layers that ``--lora-layers`` means, or how they end."""
        ...

    def save_lora(self, path: Path, metadata: Mapping[str, str], alpha: float, form: Any) -> None:
        """Write the LoRA that is on the model."""
        ...


@functools.cache
def families() -> Mapping[str, Family]:
    """All families, by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.ispkg)
    return {name: importlib.import_module(f"{__name__}.{name}").FAMILY for name in names}


def family_of(folder: Path) -> Family:
    """The family of a bundle, as its ``model_index.json`` says.

    Raises:
        InputError: that file is damaged.
    """
    path = folder / INDEX
    stated = read_object(path).get("_class_name") if path.is_file() else None
    known = families()
    return next((family for family in known.values() if stated in family.pipelines), known[_OLDEST])


def recipe_of(folder: Path) -> tuple[Path, dict[str, Any]]:
    """What suits a bundle: its own ``recipe.yaml`` over that of its family; and the file that errors name.

    Raises:
        InputError: one of them is damaged.
    """
    family, own = family_of(folder), folder / RECIPE
    shipped = Path(__file__).parent / family.name / family.recipe(folder)
    content = read_yaml(shipped)
    if not own.is_file():
        return shipped, content
    for section, values in read_yaml(own).items():
        both = isinstance(values, dict) and isinstance(content.get(section), dict)
        content[section] = content[section] | values if both else values
    return own, content
