"""Locks of folders and tables: one process writes at a time. File systems that cannot lock are named."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from filelock import FileLock, Timeout

from bnsmooth_cli.errors import InputError, remark
from bnsmooth_cli.storage.files import hidden, unicode

try:
    import fcntl
except ImportError:  # Windows, whose locks work on every file system
    fcntl = None  # type: ignore[assignment]

_MOUNTS: Final = Path("/proc/mounts")
#: What a file system without locks answers.
_WITHOUT: Final = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
#: The options with which a network file system locks only among the processes of one machine.
_LOCAL: Final = {
    "nfs": ("nolock", "local_lock=all", "local_lock=flock"),
    "nfs4": ("local_lock=all", "local_lock=flock"),
    "lustre": ("localflock",),
    "cifs": ("nobrl",),
}


@contextmanager
def locked(path: Path, protected: str, file: Path | None = None) -> Iterator[None]:
    """Hold the lock of a folder, or of a file. The system releases it if the process dies.

    On a file system without locks, a `Remark` says so and nothing is held.

    Args:
        path: The folder.
        protected: What the lock protects, for the message.
        file: The file in it, if the folder has several locks.

    Raises:
        InputError: If another process holds it, or the folder cannot be written.
    """
    lock = FileLock(path / ".lock" if file is None else hidden(file, "lock"))
    try:
        if _can_lock(path):
            lock.acquire(blocking=False)
    except Timeout:
        monitor = "" if file is None else ", close the monitor that does"
        raise InputError(
            f"{path}: another process is writing this {protected}; wait for it{monitor}, or choose another place with "
            "-o"
        ) from None
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); choose another folder with -o") from error
    try:
        yield
    finally:
        lock.release()


def _can_lock(folder: Path) -> bool:
    """Whether files in a folder can be locked. A `Remark` names a file system that does not lock, or not for others.

    Raises:
        OSError: If no file can be made there.
    """
    if fcntl is None:
        return True
    mount = _mount(folder)
    try:
        with tempfile.TemporaryFile(dir=folder, prefix=".lock") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _WITHOUT:
            raise
        _remark(mount, f"has no locks ({mount.type}: {os.strerror(error.errno)})")
        return False
    for option in _LOCAL.get(mount.type, ()):
        if option in mount.options:
            _remark(mount, f"locks files for one machine alone ({mount.type}, mounted with {option})")
            break
    return True


class _Mount(NamedTuple):
    folder: str
    type: str
    options: list[str]


def _mount(folder: Path) -> _Mount:
    """The file system of a folder, as far as the system tells: the last one that is mounted there or above."""
    place, depth, found = folder.resolve(), "", _Mount(unicode(str(folder)), "of unknown type", [])
    with suppress(OSError):
        for line in _MOUNTS.read_text(errors="surrogateescape").splitlines():
            fields = line.split(" ")
            if len(fields) >= 4:
                above = Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), fields[1]))
                if place.is_relative_to(above) and len(str(above)) >= len(depth):
                    found, depth = _Mount(unicode(str(above)), fields[2], fields[3].split(",")), str(above)
    return found


def _remark(mount: _Mount, what: str) -> None:
    advice = "do not let two commands write to one run, table or study there at the same time"
    remark(f"{mount.folder}: the file system {what}; {advice}")
