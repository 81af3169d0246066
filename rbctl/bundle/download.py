"""Fetch a bundle of the catalogue from the hub, and check one against what was recorded.

huggingface_hub finds, authorises and streams; what it declares of each file (size, SHA-256 of large files, git's object
id of small ones) is checked here. Its own hf_hub_download starts over after an interruption (from version 2 on), so the
partial file is kept here and handed back to its ``http_get``, which asks for the rest only. HF_ENDPOINT and HF_TOKEN
are read when a pull starts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from rbctl.bundle.assemble import check_widths
from rbctl.bundle.catalogue import (
    MANIFEST,
    BundleSpec,
    Component,
    Release,
    contents,
    missing_parts,
    read_manifest,
    record,
    size_text,
)
from rbctl.bundle.convert import convert_adapter, convert_image_encoder, convert_local_encoder
from rbctl.errors import NO_ROOM, InputError, reason
from rbctl.files import read_network_config, sha256, write_json
from rbctl.paths import leaves
from rbctl.progress import progress
from rbctl.runs import claim

_STAGING = ".pull"
_DATA = (".json", ".safetensors", ".txt", ".jinja")  # files of networks, tokenizers and schedulers
_PROGRAMS = (".py", ".sh", ".bat", ".exe", ".dll", ".so")  # a release is data


@dataclass(frozen=True)
class _Remote:
    """One file as the hub declares it; ``sha256`` is None for small files, which git's object id covers."""

    repo_id: str
    commit: str
    path: str
    size: int
    sha256: str | None
    git_id: str | None
    kind: Literal["model", "dataset"] = "model"

    @property
    def place(self) -> str:
        """Where its repository stands in the staging folder: files of two commits never mix."""
        return f"{self.commit[:12]}/{self.repo_id}"


def _endpoint() -> str:
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


@contextlib.contextmanager
def _hub_errors(what: str) -> Iterator[None]:
    """Everything that can go wrong on the way to the hub, as one line."""
    from huggingface_hub import errors

    where = _endpoint()
    try:
        yield
    except errors.GatedRepoError as error:
        raise InputError(f"{what}: its licence must be accepted at {where} first; then set HF_TOKEN") from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(f"{what}: not found at {where}, or not for you; a private one needs HF_TOKEN") from error
    except (errors.RevisionNotFoundError, errors.EntryNotFoundError) as error:
        raise InputError(f"{what}: no such file or revision at {where}") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "an error"
        if status in (401, 403):
            raise InputError(f"{what}: {where} refuses ({status}); set HF_TOKEN to a token that may read it") from error
        raise InputError(f"{what}: {where} answered {status}; run the same command again later") from error
    # errors.HTTPError is the HTTP library's own base class, whichever library this version of the hub builds on.
    except (errors.HTTPError, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            raise InputError(f"{what}: no space left on the disk; free some and run the same command again") from error
        what += f": {where} cannot be reached ({reason(error)})"
        raise InputError(f"{what}; the same command goes on from here") from error


def _declared(
    repo_id: str, revision: str, kind: Literal["model", "dataset"] = "model"
) -> tuple[dict[str, _Remote], str | None]:
    """What the hub declares of a repository's files at the commit that ``revision`` is now, and its licence."""
    from huggingface_hub import HfApi

    with _hub_errors(f"{repo_id}@{revision}"):
        info = HfApi(endpoint=_endpoint()).repo_info(repo_id, revision=revision, repo_type=kind, files_metadata=True)
    remotes = {}
    for file in info.siblings or ():
        if file.size is not None and info.sha is not None and not leaves(file.rfilename):
            digest = file.lfs.sha256 if file.lfs else None
            remotes[file.rfilename] = _Remote(repo_id, info.sha, file.rfilename, file.size, digest, file.blob_id, kind)
    licence = info.card_data.get("license") if info.card_data else None
    return remotes, licence if isinstance(licence, str) else None


def _listing(component: Component, revision: str) -> list[_Remote]:
    """The files of a component on the hub; of one that may not be there, none."""
    assert component.repo_id is not None
    try:
        there, _ = _declared(component.repo_id, revision)
    except InputError as error:
        if not component.find:
            raise
        print(f"{component.target}: left out, {error}", file=sys.stderr)
        return []
    if component.find:
        return [remote for path, remote in there.items() if PurePosixPath(path).name == component.find][:1]
    for path in component.files:
        if path not in there:
            raise InputError(f"{component.repo_id}@{revision}: the hub declares no file {path}")
    return [there[path] for path in component.files]


def _with_files(component: Component, folder: Path, entries: Mapping[str, Mapping[str, Any]]) -> Component:
    """A component of whole folders with the names of its files: as recorded, where all is there, else the hub's."""
    if not component.folders or component.repo_id is None:
        return component
    own = {path: entry for path, entry in entries.items() if entry.get("repo") == component.repo_id}
    begun = next((str(entry["commit"]) for entry in own.values()), component.revision)
    names: Iterable[str] = own
    if missing_parts(folder) or not all((folder / path).is_file() for path in own):
        names, _ = _declared(component.repo_id, begun)
    taken = [p for p in names if PurePosixPath(p).suffix in _DATA and p.partition("/")[0] in component.folders]
    return dataclasses.replace(component, files={path: path for path in taken if path.count("/") <= 1})


def _git_id(path: Path) -> str:
    """Git's object id of a file: how the hub names small files."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _check(path: Path, remote: _Remote) -> str:
    """SHA-256 of a fetched file; a file that is not what the hub declared is removed.

    Raises:
        InputError: size or hash differ.
    """
    size, digest = path.stat().st_size, sha256(path)
    fault = ""
    if size != remote.size:
        fault = f"{size} bytes came, {remote.size} were declared"
    elif remote.sha256 and digest != remote.sha256:
        fault = f"its SHA-256 is {digest}, {remote.sha256} was declared"
    elif not remote.sha256 and remote.git_id and _git_id(path) != remote.git_id:
        fault = f"its content is not object {remote.git_id}, which was declared"
    if fault:
        path.unlink()
        raise InputError(f"{remote.repo_id}/{remote.path}: damaged, {fault}; removed, run the same command again")
    return digest


def _fetch(remote: _Remote, staging: Path) -> str:
    """Download one file, going on from a partial one; returns the SHA-256 of the file, checked."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    path = staging / remote.place / remote.path
    if path.is_file():  # fetched before, the run ended before its component was whole
        return _check(path, remote)
    partial = path.with_name(f"{path.name}.part")
    partial.parent.mkdir(parents=True, exist_ok=True)
    if partial.is_file() and partial.stat().st_size > remote.size:
        partial.unlink()
    url = hf_hub_url(remote.repo_id, remote.path, repo_type=remote.kind, revision=remote.commit, endpoint=_endpoint())
    with _hub_errors(f"{remote.repo_id}/{remote.path}"), partial.open("ab") as file:
        http_get(
            url,
            file,
            resume_size=file.tell(),
            headers=build_hf_headers(library_name="rbctl"),
            expected_size=remote.size,
            displayed_filename=remote.path,
        )
    digest = _check(partial, remote)
    partial.replace(path)
    return digest


def _have(folder: Path, component: Component, entries: dict[str, dict[str, Any]], place: str) -> bool:
    """A file of the bundle is there as recorded, from this component's source."""
    entry = entries.get(place, {})
    path = folder / place
    same = entry.get("repo") == component.repo_id and (not component.pinned or entry["commit"] == component.revision)
    return same and path.is_file() and path.stat().st_size == entry["size"]


def _convert(component: Component, fetched: Path, paths: Sequence[str], folder: Path) -> None:
    """Make the bundle's files of a component's originals, the ``paths`` in ``fetched``, the repository's folder."""
    if component.convert == "adapter":
        unet = read_network_config(folder / "unet" / "config.json")
        config = convert_adapter(fetched / paths[0], folder / "ms_adapter.safetensors", unet)
        write_json(folder / "ms_adapter_config.json", config)
    elif component.convert == "local_encoder":
        config = convert_local_encoder(fetched / paths[0], folder / "clipself" / "model.safetensors")
        write_json(folder / "clipself" / "open_clip_config.json", config)
    elif component.convert == "image_encoder":
        convert_image_encoder(fetched, folder / component.target)
    else:
        raise ValueError(f"convert={component.convert!r} of {component.target} is no known conversion")


def _check_room(folder: Path, size: int) -> None:
    """Raises InputError where files of ``size`` bytes, less what is fetched already, do not fit on the disk."""
    needed = size - sum(path.stat().st_size for path in (folder / _STAGING).rglob("*") if path.is_file())
    free = shutil.disk_usage(folder).free
    if needed > free:
        sizes = f"{size_text(needed)} needed, {size_text(free)} free"
        raise InputError(f"{folder}: {sizes}; free some or choose another --output")


def pull_release(release: Release, folder: Path) -> str:
    """Bring ``folder`` to hold all files of a repository but programs. The same call again goes on where it stopped.

    ``bundle.json`` records of each file what it does for a bundle.

    Returns:
        The licence, as the hub states it, else as the catalogue does.

    Raises:
        InputError: as :func:`pull`.
    """
    with claim(folder):
        staging, entries = folder / _STAGING, read_manifest(folder)
        declared, licence = _declared(release.repo_id, release.revision, release.kind)
        licence = licence or release.licence
        remotes = [
            r
            for path, r in declared.items()
            if PurePosixPath(path).suffix not in _PROGRAMS and path[0] != "." and path != MANIFEST
        ]
        lacking = [remote for remote in remotes if not _same(folder, remote, entries)]
        _check_room(folder, sum(remote.size for remote in lacking))
        got: dict[str, str] = {}
        for number, remote in enumerate(lacking, 1):
            place = f"{remote.repo_id}/{remote.path} {size_text(remote.size)}"
            print(f"[{number}/{len(lacking)}] {place}", file=sys.stderr)
            got[remote.path] = _fetch(remote, staging)
        for remote in lacking:
            (folder / remote.path).parent.mkdir(parents=True, exist_ok=True)
            (staging / remote.place / remote.path).replace(folder / remote.path)
        record(
            folder,
            release.name,
            {
                r.path: {"repo": r.repo_id, "commit": r.commit, "licence": licence, "sha256": got[r.path]}
                for r in lacking
            },
        )
        shutil.rmtree(staging, ignore_errors=True)
        return licence


def _same(folder: Path, remote: _Remote, entries: Mapping[str, Mapping[str, Any]]) -> bool:
    """A file of a release is there as it was recorded, and is the one that the hub has now."""
    entry, path = entries.get(remote.path), folder / remote.path
    if entry is None or not path.is_file() or path.stat().st_size != entry["size"] or entry["size"] != remote.size:
        return False
    return entry["sha256"] == remote.sha256 if remote.sha256 else entry.get("commit") == remote.commit


def pull(spec: BundleSpec, folder: Path) -> None:
    """Bring ``folder`` to hold every component that has a public source. The same call again goes on where it stopped.

    ``bundle.json`` records of each file: SHA-256, size, repository, commit and licence.

    Raises:
        InputError: the hub cannot be reached or refuses, a file is damaged, the disk is too small, or another pull
            writes here.
    """
    with claim(folder):
        staging = folder / _STAGING
        todo: list[tuple[Component, list[tuple[_Remote, str]]]] = []
        entries = read_manifest(folder)
        for listed in spec.components:
            component = _with_files(listed, folder, entries)
            lacks = [place for place in component.results if not _have(folder, component, entries, place)]
            if component.repo_id is None or not lacks:
                continue
            # a component begun from a branch is finished from the same commit
            begun = next((entries[p]["commit"] for p in component.results if p not in lacks), component.revision)
            remotes = _listing(component, begun)
            if component.find and not remotes:
                continue
            offered = zip(remotes, component.files.values() or ("",), strict=True)
            todo.append((component, [(r, place) for r, place in offered if component.convert or place in lacks]))
        converted = max((sum(r.size for r, _ in files) for c, files in todo if c.convert), default=0)
        _check_room(folder, sum(r.size for _, files in todo for r, _ in files) + converted)
        count, total = 0, sum(len(files) for _, files in todo)
        for component, files in todo:
            got: dict[str, str] = {}
            for remote, _ in files:
                count += 1
                print(f"[{count}/{total}] {remote.repo_id}/{remote.path} {size_text(remote.size)}", file=sys.stderr)
                got[remote.path] = _fetch(remote, staging)
            first = files[0][0]
            origin = {"repo": first.repo_id, "commit": first.commit, "licence": component.licence}
            if component.convert:
                _convert(component, staging / first.place, list(got), folder)
                record(folder, spec.name, {p: {**origin, "made_from": got} for p in component.results})
                shutil.rmtree(staging / first.place)
                continue
            for remote, place in files:
                (folder / place).parent.mkdir(parents=True, exist_ok=True)
                (staging / remote.place / remote.path).replace(folder / place)
            record(folder, spec.name, {p: {**origin, "path": r.path, "sha256": got[r.path]} for r, p in files})
        shutil.rmtree(staging, ignore_errors=True)
        check_widths(folder)


def verify(folder: Path) -> list[str]:
    """Hash every file of a bundle again; returns one line per problem, none where all is as recorded.

    Raises:
        InputError: there is no record to compare with.
    """
    entries = read_manifest(folder)
    if not entries:
        raise InputError(f"{folder}: no bundle.json to compare with; it was neither pulled nor imported by rbctl")
    problems = []
    with progress(len(entries), "verify", unit="file") as bar:
        for place, entry in sorted(entries.items()):
            path = folder / place
            if not path.is_file():
                problems.append(f"{place}: missing")
            elif path.stat().st_size != entry["size"]:
                problems.append(f"{place}: {path.stat().st_size} bytes, {entry['size']} recorded")
            elif sha256(path) != entry["sha256"]:
                problems.append(f"{place}: changed, its SHA-256 is not the recorded one")
            bar.update(1)
    problems += [f"{place}: not part of the bundle as recorded" for place in contents(folder) if place not in entries]
    return problems
