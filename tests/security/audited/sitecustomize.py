"""Imported by every Python process of an audited command: writes down whatever leaves the folders it may work in.

RBCTL_AUDIT names the list to append to, RBCTL_AUDIT_WRITABLE the folders that may be written, RBCTL_AUDIT_DATA those
that no code may come from; folders are joined by colons.
"""

import atexit
import os
import sys

_list = os.open(os.environ["RBCTL_AUDIT"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
_writable = tuple(os.path.realpath(path) for path in os.environ["RBCTL_AUDIT_WRITABLE"].split(":"))
_data = tuple(os.path.realpath(path) for path in os.environ["RBCTL_AUDIT_DATA"].split(":"))
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {"os.remove", "os.rmdir", "os.mkdir", "os.rename", "os.link", "os.symlink", "os.truncate", "os.chmod"}
_NETWORK = {"socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"}
_PROGRAMS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile"}


def _below(path: object, folders: tuple[str, ...]) -> bool:
    real = os.path.realpath(os.fsdecode(path))  # type: ignore[arg-type]
    return any(real == folder or real.startswith(folder + os.sep) for folder in folders)


def _whole(path: object, folder: object) -> object:
    """A name in an open folder (shutil.rmtree removes so) as a whole path."""
    if isinstance(folder, int) and folder >= 0:
        return os.path.join(os.readlink(f"/proc/self/fd/{folder}"), os.fsdecode(path))  # type: ignore[arg-type]
    return path


def _tell(event: str, what: object) -> None:
    os.write(_list, f"{event}: {what}\n".encode(errors="replace"))


def _audit(event: str, arguments: tuple) -> None:
    if event == "open":
        path, _, flags = arguments
        named = isinstance(path, str | bytes | os.PathLike) and os.fsdecode(path) != os.devnull
        if named and isinstance(flags, int) and flags & _WRITES and not _below(path, _writable):
            _tell(event, path)
    elif event in _CHANGES:
        for path in arguments[:2]:
            named = isinstance(path, str | bytes | os.PathLike)
            if named and not _below(_whole(path, arguments[-1]), _writable):
                _tell(event, path)
    elif event in _NETWORK:
        _tell(event, arguments[1:])
    elif event in _PROGRAMS:
        _tell(event, list(arguments[1]) if event == "subprocess.Popen" else arguments)
    elif event == "exec":
        file = getattr(arguments[0], "co_filename", "")
        if os.path.isabs(file) and _below(file, _data):
            _tell(event, file)


def _imported() -> None:
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and os.path.isabs(file) and _below(file, _data):
            _tell("import", file)


sys.addaudithook(_audit)
atexit.register(_imported)
