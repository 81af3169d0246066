"""Names that data gives to files: resolved inside the data's own folder, or refused. And the files that we ship.

Records name files relative to their own folder (:func:`relative`), so that both can be moved.
"""

from __future__ import annotations

import functools
import os
import unicodedata
from importlib.resources import files as package_files
from pathlib import Path, PurePosixPath, PureWindowsPath

from rbctl.errors import InputError, abridged

FOLLOW_OUTSIDE = "Also read files that the data names outside of its own folder, and follow its links."


@functools.cache  # every sentence that is read asks for all relations
def shipped_yaml(folder: str = "") -> dict[str, Path]:
    """The YAML files of ``recipes/FOLDER`` that come with rbctl, by name; none where there is no such folder."""
    place = Path(str(package_files("rbctl.recipes"))) / folder
    return {path.stem: path for path in sorted(place.glob("*.yaml"))}


def relative(path: str | Path, folder: Path) -> str:
    """How a record in ``folder`` names a path: relative to the folder, with slashes; both can then be moved together.

    A path that shares no folder with it but the root is named from there.
    """
    whole, start = _real(path), Path(folder).resolve()
    if whole.drive != start.drive or whole.parts[:2] != start.parts[:2]:
        return str(whole)
    return Path(os.path.relpath(whole, start)).as_posix()


def near(folder: Path, name: str) -> str:
    """The path of a file or folder that a record in ``folder`` names; as it stands where it is not found from there."""
    path = folder / name
    return os.path.normpath(path) if not os.path.isabs(name) and os.path.exists(path) else name


def _real(path: str | Path) -> Path:
    """A path without links on the way to it; what it leads to itself is not asked."""
    whole = Path(os.path.abspath(path))
    return whole.parent.resolve() / whole.name


_OF_SYSTEMS = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir"})


def made_by_system(name: str) -> bool:
    """Whether macOS, Windows or a file server made a file or folder of that name; hidden ones count too."""
    return name.startswith(".") or name.lower() in _OF_SYSTEMS


def flattened(name: str) -> str:
    """A relative path as one file name, in the way of JSON pointers: ``a/b`` is ``a~1b``.

    Different paths have different names. Without that care ``a/b`` and ``a-b`` would share ``a-b``.
    """
    return name.replace("~", "~0").replace("/", "~1")


def inside(folder: Path, name: str, where: str, follow_outside: bool = False) -> Path:
    """``folder / name``, where that lies in the folder, symbolic links resolved.

    Args:
        folder: the data's own; it may be a link itself.
        name: as the data has it, relative.
        where: what errors begin with: file and field.
        follow_outside: the user trusts the data (``--follow-outside``), so any name is taken.

    Returns:
        The path as named, links in it not resolved; whether there is such a file is not asked.

    Raises:
        InputError: the name is absolute, climbs out, or is a link to something outside.
    """
    if not nameable(name):
        raise InputError(f"{where}: {abridged(name)} is no file's name")
    path = Path(folder) / name
    if follow_outside:
        return _as_stored(path)
    if leaves(name):
        mend = "paths are relative to it and stay inside; --follow-outside takes it all the same"
        raise InputError(f"{where}: {abridged(name)} leaves the folder; {mend}")
    path = _as_stored(path)
    try:
        real, root = path.resolve(), _root(Path(folder).resolve())
    except (OSError, RuntimeError) as error:  # links in a circle
        raise InputError(f"{where}: {abridged(name)} cannot be followed ({error})") from error
    if not real.is_relative_to(root):
        mend = "copy the file, or take --follow-outside"
        raise InputError(f"{where}: {abridged(name)} is a link that leaves the folder; {mend}")
    return path


def _as_stored(path: Path) -> Path:
    """The path as the disk has it: macOS writes é as two characters, other systems as one."""
    forms = (path, *(path.parent / unicodedata.normalize(form, path.name) for form in ("NFC", "NFD")))
    return next((form for form in forms if os.path.exists(form)), path)


def leaves(name: str) -> bool:
    """Whether a name is absolute or climbs out of its folder, as POSIX or Windows reads it; links are not looked at."""
    forms = PurePosixPath(name), PureWindowsPath(name)
    return any(form.root or form.drive or ".." in form.parts for form in forms)


def nameable(name: str) -> bool:
    """Whether a file system could hold a file of that name."""
    try:
        parts = os.fsencode(name).split(b"/")
    except UnicodeEncodeError:  # half of a surrogate pair, that JSON can name
        return False
    return "\0" not in name and len(parts) <= 100 and all(len(part) <= 255 for part in parts)


def _root(folder: Path) -> Path:
    """Where a folder's links may lead: into itself, or in a hub cache to the blobs of the same repository."""
    for parent in folder.parents:
        if parent.name == "snapshots" and parent.parent.name.startswith(("models--", "datasets--")):
            return parent.parent
    return folder
