"""How files are written and tensors read: whole or not at all, and never executing what is read."""

from __future__ import annotations

import json
import os
import pickle
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bnsmooth_cli.errors import DamagedError, InputError


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that is synced and renamed over it when the block ends without an error.

    Raises InputError where the folder cannot be made or written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=f".tmp{path.suffix}")
    except OSError as error:
        raise InputError(
            f"{path.parent}: cannot be written ({error.strerror}); choose another folder with -o"
        ) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes a private file; the target is an ordinary one
        if path.is_dir():
            raise InputError(f"{path}: is a folder; a file is to be written there")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Find out before the work, not after it, that `path` cannot be written; InputError then. Makes nothing."""
    if path.is_dir():
        raise InputError(f"{path}: is a folder; a file is to be written there")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(f"{path}: cannot be written, {folder} takes no files; choose another place with -o")


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
    if not isinstance(content, dict) or content.get("format") != format:
        raise InputError(f"{path}: not of a {folder_is} of this version of bnsmooth (format {format})")
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
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise InputError(
            f"{path}: not a readable checkpoint (damaged, cut short, or not written by bnsmooth)"
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds no checkpoint")
    return content
