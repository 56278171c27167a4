"""How files are written and tensors read: whole or not at all, and never executing what is read."""

from __future__ import annotations

import json
import os
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bnsmooth_cli.errors import DamagedError, InputError

try:
    import fcntl
except ImportError:  # Windows, where a file that is being written cannot be removed anyway
    fcntl = None  # type: ignore[assignment]


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that is synced and renamed over it when the block ends without an error.

    What killed processes were writing there is removed first. Raises InputError where the folder cannot be made or
    written, or has no space left.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=f".tmp{path.suffix}")
    except OSError as error:
        raise InputError(
            f"{path.parent}: cannot be written ({error.strerror}); choose another folder with -o"
        ) from error
    temporary = Path(name)
    try:
        _lock(handle)
        _remove_abandoned(path, temporary)
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes a private file; the target is an ordinary one
        if path.is_dir():
            raise InputError(f"{path}: is a folder; a file is to be written there")
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise InputError(
            f"{path}: not written ({error.strerror or error}); what was there before is as it was"
        ) from error
    finally:
        os.close(handle)
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _lock(handle: int) -> bool:
    """Hold an open file, until it is closed or the process ends; whether nobody else does."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held, or on a file system without locks
        return False
    return True


def _remove_abandoned(path: Path, mine: Path) -> None:
    """Remove the temporary files of `path` that no living process holds."""
    for other in path.parent.iterdir():
        if other != mine and other.name.startswith(f".{path.stem}.") and other.name.endswith(f".tmp{path.suffix}"):
            with suppress(OSError):  # gone, or replaced, this moment
                handle = os.open(other, os.O_RDWR)
                try:
                    if _lock(handle):
                        other.unlink()
                finally:
                    os.close(handle)


def _sync_folder(folder: Path) -> None:
    """Let a renaming outlive a power cut."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def check_writable(path: Path) -> None:
    """Find out before the work, not after it, that `path` cannot be written; InputError then. Makes nothing."""
    if path.is_dir():
        raise InputError(f"{path}: is a folder; a file is to be written there")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(f"{path}: cannot be written, {folder} takes no files; choose another place with -o")


def unicode(name: str) -> str:
    """A name with escapes for the bytes that were no UTF-8: no table could hold it as it is.

    >>> unicode("caf\\udce9")
    'caf\\\\udce9'
    """
    return name.encode("utf-8", "backslashreplace").decode()


def save_json(path: Path, content: dict[str, Any]) -> None:
    """Write a dict of plain values."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def load_json(path: Path, folder_is: str, format: int) -> dict[str, Any]:
    """Read the file that makes a folder a `folder_is`; InputError where it is none, DamagedError where unreadable."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise InputError(f"{path.parent}: not a {folder_is} (it has no {path.name})") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(content, dict):
        raise DamagedError(f"{path}: not of a {folder_is}")
    if content.get("format") != format:
        raise InputError(
            f"{path}: of format {str(content.get('format'))[:20]}, this bnsmooth reads {format}; upgrade it"
        )
    return content


def save_tensors(path: Path, content: dict[str, Any]) -> None:
    """Write a dict of tensors and plain values in torch's format."""
    import torch

    # Into a stream: given a path, torch writes the temporary name into the file, and equal states differ.
    with atomic(path) as temporary, temporary.open("wb") as stream:
        torch.save(content, stream)


def load_tensors(path: Path) -> dict[str, Any]:
    """Read what `save_tensors` wrote, onto the CPU; InputError for anything else."""
    import torch

    try:
        with zipfile.ZipFile(path) as archive:  # ours is not compressed: whatever it declares is there, byte for byte
            if sum(item.file_size for item in archive.infolist()) > path.stat().st_size:
                raise zipfile.BadZipFile("declares more than its size")
            if archive.testzip() is not None:  # torch checks no sums
                raise zipfile.BadZipFile("another checksum than the one in it")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is strange in a damaged file
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except Exception as error:  # a damaged file raises whatever its bytes happen to spell
        raise DamagedError(
            f"{path}: not a readable checkpoint (damaged, cut short, or not written by bnsmooth)"
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds no checkpoint")
    return content
