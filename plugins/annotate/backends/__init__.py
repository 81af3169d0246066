"""Which backends each step has, and finding one: ours by name, an installed package's, or a user's own function.

What a backend is called with and returns stands in :mod:`rbctl.plugins.annotate.steps`.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rbctl.errors import InputError, nearest, reason
from rbctl.files import sha256
from rbctl.plugins.annotate.config import AnnotateConfig

if TYPE_CHECKING:
    import torch

GROUP = "rbctl.annotate"  # entry points of other packages' backends
MINIATURE = "miniature"  # origin of sets of the embedded world


@dataclass(frozen=True)
class _Shipped:
    """A backend that comes with rbctl.

    Attributes:
        place: ``module:class`` in this package.
        option: names the folder of its model.
        hub: a model of the hub that fits.
        settings: options that change its result.
        file: its authors' file, in words; it fits too, or alone where ``hub`` is empty.
    """

    place: str
    option: str = "bundle"
    hub: str = ""
    settings: tuple[str, ...] = ()
    file: str = ""


_DINO, _OWLV2 = "IDEA-Research/grounding-dino-tiny", "google/owlv2-base-patch16-ensemble"
_VITPOSE = _Shipped(
    "vitpose:Keypoints",
    "vitpose",
    "usyd-community/vitpose-plus-base",
    ("vitpose_expert", "vitpose_order"),
    "a .pth file of ViTPose++ (github.com/ViTAE-Transformer/ViTPose)",
)
_XPOSE = _Shipped(
    "xpose:Keypoints",
    "xpose",
    settings=("xpose_prompt",),
    file="unipose_swint.pth of github.com/IDEA-Research/X-Pose (non-commercial licence)",
)
SHIPPED: dict[str, dict[str, _Shipped]] = {
    "boxes": {
        "oracle": _Shipped("oracle:Boxes"),
        "grounding-dino": _Shipped("detectors:GroundingDino", "grounding_dino", _DINO, ("box_threshold",)),
        "owlv2": _Shipped("detectors:Owlv2", "owlv2", _OWLV2, ("box_threshold",)),
    },
    "masks": {
        "oracle": _Shipped("oracle:Masks"),
        "sam": _Shipped("sam:Masks", "sam", "facebook/sam-vit-huge"),
        "sam2": _Shipped("sam:Masks2", "sam2", "facebook/sam2.1-hiera-large"),
    },
    "keypoints": {"oracle": _Shipped("oracle:Keypoints"), "vitpose": _VITPOSE, "xpose": _XPOSE},
    "identity": {"oracle": _Shipped("oracle:Identity"), "clip": _Shipped("clip:Identity")},
    "captions": {
        "llava": _Shipped("captions:Captions", "llava", "llava-hf/llava-1.5-7b-hf"),
        "image-text-to-text": _Shipped("captions:Captions", "captioner", "HuggingFaceTB/SmolVLM-Instruct"),
    },
}
_OF_PHOTOS = {"boxes": "grounding-dino", "masks": "sam", "keypoints": "vitpose", "identity": "clip"}


@dataclass(frozen=True)
class Backend:
    """The backend of a step, its model not loaded yet.

    Attributes:
        step, name: as in ``--backend STEP=NAME``.
        factory: a class of ours, or a user's class or function.
        model: folder of the model; None for a user's backend.
        fingerprint: of model files, code and settings; results are cached under it.
    """

    step: str
    name: str
    factory: Any
    model: Path | None
    fingerprint: str

    def load(self, config: AnnotateConfig, device: torch.device) -> Any:
        """The callable of the step, its model loaded.

        Raises:
            InputError: the model cannot be loaded.
        """
        if self.model is not None:
            return self.factory(self.model, config, device)
        return self.factory() if inspect.isclass(self.factory) else self.factory

    def limit(self, config: AnnotateConfig, name: str, default: float) -> float:
        """The limit that an option names, else the one that suits the backend's confidences."""
        option = getattr(config, name)
        return float(getattr(self.factory, name, default) if option is None else option)


def choose(config: AnnotateConfig, step: str, origin: str) -> Backend | None:
    """The backend of a step; None for captions nobody asked for.

    Args:
        origin: of the set, as its ``set.json`` has it.

    Raises:
        InputError: there is no such backend, its code cannot be imported, or its model's folder is missing.
    """
    name = config.backend_of(step)
    if name is None:
        if step == "captions":
            return None
        name = "oracle" if origin == MINIATURE else _OF_PHOTOS[step]
    where, model, facts = f"--backend {step}={name}", None, ""
    if shipped := SHIPPED[step].get(name):
        place = f"{__name__}.{shipped.place}"
        model = _model_folder(config, name, shipped, origin)
        facts = f"{_fingerprint(model)} { {option: getattr(config, option) for option in shipped.settings} }"
    else:
        place = name if ":" in name else _offered(step, name, where)
    factory = _imported(place, where)
    code = " ".join(map(sha256, _sources(inspect.unwrap(factory))))
    return Backend(step, name, factory, model, f"{place} {code} {facts}")


def _offered(step: str, name: str, where: str) -> str:
    """The place of a backend that an installed package offers."""
    offers = {entry.name: entry.value for entry in entry_points(group=GROUP)}
    if name in offers:
        return offers[name]
    names = [*SHIPPED[step], *offers]
    hint = nearest(name, names) or f"; backends: {', '.join(names)}, or PACKAGE.MODULE:FUNCTION"
    raise InputError(f"{where}: no such backend{hint}")


def _imported(place: str, where: str) -> Any:
    module, _, attributes = place.partition(":")
    try:
        factory: Any = importlib.import_module(module)
        for attribute in attributes.split("."):
            factory = getattr(factory, attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"{where}: cannot be imported ({reason(error)})") from error
    if not callable(factory):
        raise InputError(f"{where}: is not callable")
    return factory


def _sources(factory: Any) -> list[Path]:
    """The files of its code; of a class, those of our classes that it extends too."""
    extended = factory.__mro__[1:] if inspect.isclass(factory) else ()
    parts = [factory, *(part for part in extended if part.__module__.startswith("rbctl."))]
    return [Path(source) for source in dict.fromkeys(map(inspect.getsourcefile, parts)) if source]


def _model_folder(config: AnnotateConfig, name: str, shipped: _Shipped, origin: str) -> Path:
    """Where the model of one of our backends lies."""
    from rbctl.bundle.catalogue import CATALOGUE, place, place_of

    if shipped.option == "bundle":
        bundle = config.bundle or ("mini" if origin == MINIATURE else "sdxl")
        part = "oracle" if name == "oracle" else "clip_vision"
        folder = place_of(place(bundle), part)
        if not (folder / "config.json").is_file():
            pull = f", or run 'rbctl models pull {bundle}'" if bundle in CATALOGUE else ""
            raise InputError(f"{folder}: not here; choose a bundle that has {part}/ with --bundle{pull}")
        return folder
    flag, model = f"--{shipped.option.replace('_', '-')}", getattr(config, shipped.option)
    fits = " or ".join(filter(None, (shipped.hub and f"{shipped.hub} of the hub", shipped.file)))
    if model is None:
        kind = "folder" if shipped.hub else "file"
        raise InputError(f"{name}: give the {kind} of its model with {flag}; {fits} fits")
    if shipped.file and model.is_file():
        return Path(model)
    if not shipped.hub:
        raise InputError(f"{flag} {model}: no such file; {fits} fits")
    if not (model / "config.json").is_file():
        raise InputError(f"{flag} {model}: no config.json is there; a folder as {shipped.hub} of the hub is expected")
    return Path(model)


def _fingerprint(model: Path) -> str:
    """Digest of a model's file, or of those in its folder; of large ones the ends stand for the whole."""
    digest = hashlib.sha256()
    for path in sorted(model.iterdir()) if model.is_dir() else [model]:
        if path == model or path.suffix in (".json", ".safetensors", ".txt", ".model"):
            with path.open("rb") as file:
                digest.update(f"{path.name} {path.stat().st_size} ".encode() + file.read(1 << 20))
                file.seek(max(path.stat().st_size - (1 << 20), 0))
                digest.update(file.read())
    return digest.hexdigest()
