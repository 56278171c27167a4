"""The log of a command (`--log FILE`): the lines that a batch job prints, each with the time, appended to a file.

It has no other module's state and imports little, so that the thread that ends a process at a signal can write it too.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Final

from bnsmooth_cli.errors import InputError

#: How a line begins.
_LINE: Final = re.compile(rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ")
_handle: int | None = None
_lost = False  # whether a line could not be written


def begin(path: Path) -> None:
    """Append to a file from now on, until `end`.

    Raises:
        InputError: If it cannot be written, or is another kind of file, such as a table.
    """
    global _handle, _lost
    end()
    _lost = False
    try:
        start = _start(path) if path.is_file() else b""
    except OSError as error:
        raise InputError(f"--log {path}: cannot be read ({error.strerror}); give another file") from error
    if start and not _LINE.match(start):
        raise InputError(f"--log {path}: is no log of bnsmooth; give another file, so that this one is not damaged")
    try:
        _handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    except (OSError, ValueError) as error:  # ValueError for a name with a null character
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"--log {path}: cannot be written ({reason}); give a file in a folder that exists") from error


def _start(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(20)


def end() -> None:
    """Close the file."""
    global _handle
    if _handle is not None:
        os.close(_handle)
    _handle = None


def begun() -> bool:
    """Whether lines are written to a file."""
    return _handle is not None


def write(text: str) -> None:
    """Append the lines of a text, if `begin` was called. Several commands may append to one file: lines stay whole.

    What cannot be written is lost, because a full disk must not end the work that is logged. A note says so once.
    """
    global _lost
    if _handle is not None:
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        lines = "".join(f"{now} {line}\n" for line in text.splitlines())
        content = lines.encode(errors="backslashreplace")
        try:
            reason = "" if os.write(_handle, content) == len(content) else "no space left"
        except OSError as error:
            reason = str(error.strerror)
        if reason and not _lost:
            _lost = True
            os.write(2, f"bnsmooth: note: --log: lines are missing, since it cannot be written ({reason})\n".encode())
