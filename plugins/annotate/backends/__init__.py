"""Which backends each step has, and finding one: ours by name, an installed package's, or a user's own function.

What a backend is called with and returns stands in :mod:`rbctl.plugins.annotate.steps`.
"""

from __future__ import annotations

import dataclasses
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

_XPOSE = (
    "X-Pose is under a non-commercial licence and does not come with rbctl; install a package that offers 'xpose' as "
    f"an entry point of the group {GROUP!r}, or give --backend keypoints=PACKAGE.MODULE:FUNCTION"
)


@dataclass(frozen=True)
class _Ours:
    """A backend that comes with rbctl: ``module:factory``, its model's option, and what fits it on the hub.

    ``settings`` are the options that change its result.
    """

    place: str
    option: str = "bundle"
    hub: str = ""
    settings: tuple[str, ...] = ()


_HERE = "rbctl.plugins.annotate.backends"
OURS: dict[str, dict[str, _Ours]] = {
    "boxes": {
        "oracle": _Ours(f"{_HERE}.oracle:Boxes"),
        "grounding-dino": _Ours(
            f"{_HERE}.grounding_dino:Boxes", "grounding_dino", "IDEA-Research/grounding-dino-tiny", ("box_threshold",)
        ),
        "owlv2": _Ours(f"{_HERE}.owlv2:Boxes", "owlv2", "google/owlv2-base-patch16-ensemble", ("box_threshold",)),
    },
    "masks": {
        "oracle": _Ours(f"{_HERE}.oracle:Masks"),
        "sam": _Ours(f"{_HERE}.sam:Masks", "sam", "facebook/sam-vit-huge"),
    },
    "keypoints": {
        "oracle": _Ours(f"{_HERE}.oracle:Keypoints"),
        "vitpose": _Ours(
            f"{_HERE}.vitpose:Keypoints",
            "vitpose",
            "usyd-community/vitpose-plus-base",
            ("vitpose_expert", "vitpose_order"),
        ),
    },
    "identity": {
        "oracle": _Ours(f"{_HERE}.oracle:Identity"),
        "clip": _Ours(f"{_HERE}.clip:Identity"),
    },
    "captions": {
        "llava": _Ours(f"{_HERE}.llava:Captions", "llava", "llava-hf/llava-1.5-7b-hf"),
    },
}
_DEFAULTS = {"boxes": "grounding-dino", "masks": "sam", "keypoints": "vitpose", "identity": "clip"}


@dataclass(frozen=True)
class Chosen:
    """The backend of a step: not loaded yet.

    Attributes:
        step, name: as in ``--backend STEP=NAME``.
        place: ``module:factory`` or ``module:function``.
        folder: of its model, None for another's backend.
        content: names what it would say: model files, code and settings; results are kept under it.
    """

    step: str
    name: str
    place: str
    folder: Path | None
    content: str

    def load(self, config: AnnotateConfig, device: torch.device) -> Any:
        """The callable of the step, its model loaded.

        Raises:
            InputError: the model cannot be loaded, or the user's code cannot be imported.
        """
        made = _imported(self)
        if self.folder is not None:
            return made(self.folder, config, device)
        return made() if inspect.isclass(made) else made

    def limit(self, name: str, default: float) -> float:
        """An attribute of the backend that suits its confidences."""
        return float(getattr(_imported(self), name, default))


def choose(config: AnnotateConfig, step: str, origin: str) -> Chosen | None:
    """The backend of a step; None for captions nobody asked for.

    Raises:
        InputError: there is no such backend, or its model's folder is not given or not there.
    """
    name = config.backend_of(step) or ("oracle" if origin == MINIATURE else _DEFAULTS.get(step, ""))
    if step == "captions" and config.backend_of(step) is None:
        return None
    if ours := OURS[step].get(name):
        folder = _folder(config, name, ours, origin)
        settings = {key: value for key, value in dataclasses.asdict(config).items() if key in ours.settings}
        return _named(Chosen(step, name, ours.place, folder, f"{_print(folder)} {settings}"))
    if ":" in name:
        place = name
    else:
        offered = [entry for entry in entry_points(group=GROUP) if entry.name == name]
        if not offered and name == "xpose":
            raise InputError(f"--backend {step}={name}: {_XPOSE}")
        if not offered:
            known = [*OURS[step], *(entry.name for entry in entry_points(group=GROUP))]
            hint = nearest(name, known) or f"; backends: {', '.join(known)}, or PACKAGE.MODULE:FUNCTION"
            raise InputError(f"--backend {step}={name}: no such backend{hint}")
        place = offered[0].value
    return _named(Chosen(step, name, place, None, ""))


def _named(chosen: Chosen) -> Chosen:
    """With the backend's code in its content."""
    source = inspect.getsourcefile(inspect.unwrap(_imported(chosen)))
    code = sha256(Path(source)) if source else ""
    return dataclasses.replace(chosen, content=f"{chosen.place} {code} {chosen.content}")


def _imported(chosen: Chosen) -> Any:
    module, _, attribute = chosen.place.partition(":")
    try:
        found = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"--backend {chosen.step}={chosen.name}: cannot be imported ({reason(error)})") from error
    if not callable(found):
        raise InputError(f"--backend {chosen.step}={chosen.name}: is not callable")
    return found


def _folder(config: AnnotateConfig, name: str, ours: _Ours, origin: str) -> Path:
    """Where the model of one of our backends lies."""
    from rbctl.bundle.catalogue import CATALOGUE, place

    if ours.option == "bundle":
        bundle = config.bundle or ("mini" if origin == MINIATURE else "sdxl")
        part = "oracle" if name == "oracle" else "clip_vision"
        folder = place(bundle) / part
        if not (folder / "config.json").is_file():
            pull = f", or run 'rbctl models pull {bundle}'" if bundle in CATALOGUE else ""
            raise InputError(f"{folder}: not here; choose a bundle that has {part}/ with --bundle{pull}")
        return folder
    flag = f"--{ours.option.replace('_', '-')}"
    given: Path | None = getattr(config, ours.option)
    if given is None:
        raise InputError(f"{name}: give the folder of its model with {flag}; {ours.hub} of the hub fits")
    if not (given / "config.json").is_file():
        raise InputError(f"{flag} {given}: no config.json is there; a folder as {ours.hub} of the hub is expected")
    return given


def _print(folder: Path) -> str:
    """A name for the content of a model's folder; of large files the ends stand for the whole."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".safetensors", ".txt", ".model"):
            with path.open("rb") as file:
                digest.update(f"{path.name} {path.stat().st_size} ".encode() + file.read(1 << 20))
                file.seek(max(path.stat().st_size - (1 << 20), 0))
                digest.update(file.read())
    return digest.hexdigest()
