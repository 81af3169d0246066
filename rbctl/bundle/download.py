"""Fetch a bundle of the catalogue from the hub, and check one against what was recorded.

huggingface_hub finds, authorises and streams; what it declares of each file (size, SHA-256 of large files, git's object
id of small ones) is checked here. Its own hf_hub_download starts over after an interruption (from version 2 on), so the
partial file is kept here and handed back to its ``http_get``, which asks for the rest only. HF_ENDPOINT and HF_TOKEN
are read when a pull starts.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rbctl.bundle.assemble import check_widths
from rbctl.bundle.catalogue import BundleSpec, Component, contents, read_manifest, record, size_text
from rbctl.bundle.convert import convert_adapter, convert_image_encoder
from rbctl.errors import NO_ROOM, InputError, reason
from rbctl.files import read_object, sha256, write_json
from rbctl.progress import progress
from rbctl.runs import claim

_STAGING = ".pull"


@dataclass(frozen=True)
class _Remote:
    """One file as the hub declares it; ``sha256`` is None for small files, which git's object id covers."""

    repo_id: str
    commit: str
    path: str
    size: int
    sha256: str | None
    git_id: str | None

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


def _listing(component: Component, revision: str) -> list[_Remote]:
    """What the hub declares of a component's files at the commit that ``revision`` is now."""
    from huggingface_hub import HfApi

    assert component.repo_id is not None
    with _hub_errors(f"{component.repo_id}@{revision}"):
        info = HfApi(endpoint=_endpoint()).model_info(component.repo_id, revision=revision, files_metadata=True)
    there = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    remotes = []
    for path in component.files:
        file = there.get(path)
        if file is None or file.size is None or info.sha is None:
            raise InputError(f"{component.repo_id}@{revision}: the hub declares no file {path}")
        digest = file.lfs.sha256 if file.lfs else None
        remotes.append(_Remote(component.repo_id, info.sha, path, file.size, digest, file.blob_id))
    return remotes


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
    url = hf_hub_url(remote.repo_id, remote.path, revision=remote.commit, endpoint=_endpoint())
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


def _convert(component: Component, fetched: Path, folder: Path) -> None:
    """Make the bundle's files of a component's originals in ``fetched``, the repository's folder."""
    if component.convert == "adapter":
        unet = read_object(folder / "unet" / "config.json")
        config = convert_adapter(fetched / next(iter(component.files)), folder / "ms_adapter.safetensors", unet)
        write_json(folder / "ms_adapter_config.json", config)
    elif component.convert == "image_encoder":
        convert_image_encoder(fetched, folder / component.target)
    else:
        raise ValueError(f"convert={component.convert!r} of {component.target} is no known conversion")


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
        for component in spec.components:
            lacks = [place for place in component.results if not _have(folder, component, entries, place)]
            if component.repo_id is None or not lacks:
                continue
            # a component begun from a branch is finished from the same commit
            begun = next((entries[p]["commit"] for p in component.results if p not in lacks), component.revision)
            offered = zip(_listing(component, begun), component.files.values(), strict=True)
            todo.append((component, [(r, place) for r, place in offered if component.convert or place in lacks]))
        held = sum(path.stat().st_size for path in staging.rglob("*") if path.is_file()) if staging.is_dir() else 0
        converted = max((sum(r.size for r, _ in files) for c, files in todo if c.convert), default=0)
        needed = sum(r.size for _, files in todo for r, _ in files) - held + converted
        free = shutil.disk_usage(folder).free
        if needed > free:
            sizes = f"{size_text(needed)} needed, {size_text(free)} free"
            raise InputError(f"{folder}: {sizes}; free some or choose another --output")
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
                _convert(component, staging / first.place, folder)
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
