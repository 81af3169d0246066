"""Which bundles there are, where each part comes from, and what a bundle folder on this machine holds.

The catalogue itself is ``catalogue.json``. SDXL's VAE is taken in full precision in both bundles: it overflows in half.
Nothing here touches the network or imports torch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge

from rbctl import formats
from rbctl.bases import family_of
from rbctl.bundle import hashes
from rbctl.errors import InputError, abridged, nearest, shortened
from rbctl.files import read_object, sha256, write_json
from rbctl.paths import leaves, nameable

MANIFEST = "bundle.json"
_DEPTH = 2  # folders in folders of a bundle


@dataclass(frozen=True, kw_only=True)
class Component:
    """One part of a bundle and its public source.

    Attributes:
        target: folder or file in the bundle that it becomes.
        repo_id: repository on the hub; None: no public source is known, each user brings the file.
        revision: commit (pinned), or a branch whose commit at the time of the pull is recorded.
        files: {path in the repository: path in the bundle}; where ``convert`` is set the second is unused.
        folders: in place of ``files``: the repository's folders that are taken whole, data files alone, as they stand.
        find: name of the part's one file, wherever it lies in the repository; where none is there, the bundle does
            without the part.
        convert: what is made of the files: ``adapter``, ``image_encoder`` or ``local_encoder`` (see convert.py); empty:
            taken as they are.
        produces: paths in the bundle after a conversion.
        licence: of the weights, as their publisher states it.
        bytes: approximate size of the download.
        note: what a user should know.
    """

    target: str
    repo_id: str | None
    revision: str = "main"
    files: Mapping[str, str] = field(default_factory=dict)
    folders: Sequence[str] = ()
    find: str = ""
    convert: str = ""
    produces: Sequence[str] = ()
    licence: str
    bytes: int
    note: str = ""

    @property
    def pinned(self) -> bool:
        """The revision is a commit, so everyone gets the same bytes."""
        return bool(re.fullmatch(r"[0-9a-f]{40}", self.revision))

    @property
    def results(self) -> tuple[str, ...]:
        """Paths in the bundle once this part is there."""
        return tuple(self.produces or self.files.values())


@dataclass(frozen=True, kw_only=True)
class BundleSpec:
    """A bundle of the catalogue; ``resolution`` is the side in pixels its base was made for.

    Attributes:
        packaged: the folder inside this package that holds it; None: it is pulled.
    """

    name: str
    description: str
    resolution: int
    components: tuple[Component, ...]
    packaged: Path | None = None

    @property
    def bytes(self) -> int:
        """Approximate size of the download, without parts that may not be there."""
        return sum(c.bytes for c in self.components if c.repo_id and not c.find)


def _catalogue() -> dict[str, BundleSpec]:
    here = Path(__file__).parent
    return {
        name: BundleSpec(
            name=name,
            description=spec["description"],
            resolution=spec["resolution"],
            components=tuple(Component(**part) for part in spec["components"]),
            packaged=here / name if spec["packaged"] else None,
        )
        for name, spec in read_object(here / "catalogue.json").items()
    }


CATALOGUE = _catalogue()


@dataclass(frozen=True, kw_only=True)
class Release:
    """A repository of the hub that is taken as it is: LoRAs, data.

    Attributes:
        kind: ``model`` or ``dataset``, as the hub parts them.
        licence: as far as its publisher states one; what the hub says at the pull comes before it.
    """

    name: str
    description: str
    kind: Literal["model", "dataset"]
    repo_id: str
    revision: str = "main"
    licence: str


RELEASES = {
    name: Release(name=name, **release)
    for name, release in read_object(Path(__file__).with_name("releases.json")).items()
}


def size_text(count: float) -> str:
    """Bytes as people read them: ``14.9 GB``."""
    unit = "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if count < 1000:
            break
        count, unit = count / 1000, larger
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def bundles_root() -> Path:
    """Where bundles lie: $RBCTL_BUNDLES; else ./bundles where there is one; else ~/.cache/rbctl/bundles."""
    here, at_home = Path("bundles"), Path.home() / ".cache" / "rbctl" / "bundles"
    return Path(os.environ.get("RBCTL_BUNDLES") or (here if here.is_dir() else at_home))


def contents(folder: Path) -> list[str]:
    """Paths of the files of a bundle, sorted, without hidden ones and the manifest."""
    files: list[str] = []
    for place, folders, names in os.walk(folder, followlinks=True):  # a part may be a link to a folder elsewhere
        deep = len(Path(place).relative_to(folder).parts) >= _DEPTH  # a link may lead to the whole disk, or to itself
        folders[:] = [] if deep else [name for name in folders if not name.startswith(".")]
        paths = (Path(place, name) for name in names if not name.startswith(".") and name != MANIFEST)
        files += [path.relative_to(folder).as_posix() for path in paths if path.is_file()]
    return sorted(files)


def missing_parts(folder: Path) -> list[str]:
    """Names of the parts that a bundle needs and ``folder`` lacks; the local encoder is not needed."""

    def has(part: str, patterns: tuple[str, ...]) -> bool:
        return any(next((folder / part).glob(pattern), None) for pattern in patterns)

    gaps = [
        part for part, groups in family_of(folder).parts.items() if not all(has(part, patterns) for patterns in groups)
    ]
    return ["ms_adapter" if part == "." else part for part in gaps]


def has_local_encoder(folder: Path) -> bool:
    """The bundle holds the CLIPSelf encoder, so local tokens can be had."""
    return any((folder / "clipself" / file).is_file() for file in ("model.safetensors", "epoch_6.pt"))


@dataclass(frozen=True)
class _Recorded:
    sha256: str
    size: Annotated[int, Ge(0)]


@dataclass(frozen=True)
class _Manifest:
    files: Mapping[str, _Recorded]

    def __post_init__(self) -> None:
        for name in self.files:
            if leaves(name) or not nameable(name):
                raise ValueError(f"files: {abridged(name)} leaves the bundle, or is no file's name")


def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """What ``bundle.json`` says of each file, {path: {sha256, size, ...}}; empty where there is none.

    Raises:
        InputError: it is damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return {}
    content = read_object(path)
    try:
        formats.read(_Manifest, content, str(path), ignore_others=True)
    except InputError as error:
        raise InputError(f"{error}; delete it, and pull or import the bundle again") from error
    files: dict[str, dict[str, Any]] = content["files"]
    return files


def is_release(folder: Path) -> bool:
    """What a folder's ``bundle.json`` records is a release, not a bundle."""
    path = folder / MANIFEST
    return path.is_file() and read_object(path).get("bundle") in RELEASES


def record(folder: Path, name: str, entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Add files to ``bundle.json``; what it says of others goes where their folder came anew without them.

    Args:
        name: of the bundle.
        entries: {path: where it comes from}; size and SHA-256 are taken from the file unless given.
    """
    anew = {Path(path).parent for path in entries}
    kept = read_manifest(folder).items()
    files = {path: entry for path, entry in kept if Path(path).parent not in anew or (folder / path).is_file()}
    for path, origin in entries.items():
        digest = origin.get("sha256") or sha256(folder / path)
        files[path] = {**origin, "size": (folder / path).stat().st_size, "sha256": digest}
    write_json(folder / MANIFEST, {"bundle": name, "files": dict(sorted(files.items()))})
    hashes.remember(folder, {path: files[path]["sha256"] for path in entries})


def place(name_or_folder: str | Path) -> Path:
    """Where a bundle is or would be: inside this package, else a folder that exists, else a bare name under
    ``bundles_root()``, else the path."""
    spec, folder = CATALOGUE.get(str(name_or_folder)), Path(name_or_folder)
    if spec and spec.packaged:
        return spec.packaged
    return folder if os.path.isdir(folder) or folder.name != str(name_or_folder) else bundles_root() / folder


def resolve(name_or_folder: str | Path) -> Path:
    """The folder of a bundle, by its path or by a name under ``bundles_root()``.

    Raises:
        InputError: it is not there (the command that gets it and its size are told), or parts of it are missing.
    """
    name, root, folder = str(name_or_folder), bundles_root(), place(name_or_folder)
    known = CATALOGUE.get(name)
    is_there = os.path.isdir(folder)  # pathlib's own raises for a name that is too long
    if known and known.packaged and (not is_there or missing_parts(folder)):
        raise InputError(f"bundle {name!r} is not whole in this installation; {_mend(known)}")
    if known and not is_there:
        size = size_text(known.bytes)
        raise InputError(f"bundle {name!r} is not here; get it with 'rbctl models pull {name}' ({size})")
    if not is_there:
        here = [f.name for f in root.iterdir() if f.is_dir()] if root.is_dir() else []
        hint = nearest(name, [*CATALOGUE, *here]) or "; 'rbctl models list' shows what there is"
        raise InputError(f"{shortened(name, 200)}: no such bundle or folder{hint}")
    if gaps := missing_parts(folder):
        mend = f"'rbctl models pull {name}' goes on" if known else _import(folder)
        raise InputError(f"{folder}: not a whole bundle ({', '.join(gaps)} missing); {mend}")
    return folder


def place_of(folder: Path, part: str) -> Path:
    """Where a part of a bundle lies: in its folder, or in the bundle that its family shares parts with."""
    shares = family_of(folder).shares
    return folder / part if not shares or (folder / part).is_dir() else resolve(shares) / part


def _import(folder: Path) -> str:
    """What adds parts to a bundle that is not of the catalogue."""
    whole = family_of(folder).snapshot
    return "get its snapshot again" if whole else "'rbctl models import' adds parts"


def _mend(spec: BundleSpec) -> str:
    """What gets a bundle that is not here."""
    if spec.packaged:
        return "install rbctl again, or make it with 'rbctl pretrain --recipe mini'"
    return f"'rbctl models pull {spec.name}' ({size_text(spec.bytes)})"


def lacks_local_encoder(folder: Path) -> bool:
    """The bundle could have a CLIPSelf encoder, and has none."""
    has_place = family_of(folder).only.get("sample", {}).get("local_tokens") != "none"
    return has_place and not has_local_encoder(folder)


def state(folder: Path) -> str:
    """One line on a bundle folder: whole or which parts are missing, size, place."""
    try:
        gaps = ", ".join(missing_parts(folder))
    except InputError as error:
        return str(error)
    local = ", no local encoder" if lacks_local_encoder(folder) else ""
    size = size_text(sum((folder / path).stat().st_size for path in contents(folder)))
    return f"{f'{gaps} missing' if gaps else 'complete'}{local}, {size}, {folder}"


def survey() -> list[tuple[str, str]]:
    """(name, state) of every bundle of the catalogue and of every other one under ``bundles_root()``."""
    root = bundles_root()
    here = {f.name: f for f in sorted(root.iterdir()) if f.is_dir()} if root.is_dir() else {}
    here |= {name: spec.packaged for name, spec in CATALOGUE.items() if spec.packaged}
    states = {name: f"not here; {_mend(spec)}" for name, spec in CATALOGUE.items()}
    return list({**states, **{name: state(folder) for name, folder in here.items() if contents(folder)}}.items())
