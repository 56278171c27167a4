"""Reading and writing files: a write is complete or absent, and reading a file never executes it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from bnsmooth_cli.errors import DamagedError, InputError
from bnsmooth_cli.stopping import undone

try:
    import fcntl
except ImportError:  # Windows, where a file that is open cannot be removed anyway
    fcntl = None  # type: ignore[assignment]

#: The largest JSON or TOML file that is read, in bytes.
MAX_TEXT: Final = 2**26


@contextmanager
def atomic(path: Path, make_folder: bool = True) -> Iterator[Path]:
    """Give a temporary file next to `path`; sync it and rename it to `path` when the block ends without an error.

    Temporary files of killed processes are removed first. A symbolic link at `path` is replaced, not followed.

    Args:
        path: The file to write.
        make_folder: Whether to create its folder. Without it, a missing folder is an error.

    Raises:
        InputError: If the folder cannot be created or written, or the disk is full. `path` is then unchanged.
    """
    temporary = path.with_name(f"{_prefix(path)}{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        # The system applies the umask to 0o666, so the file gets the mode of an ordinary one.
        handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    except OSError as error:
        raise InputError(f"{path.parent}: cannot be written ({error.strerror}); choose another folder") from error
    held = os.fdopen(handle, "r+b")
    try:
        with undone(lambda: temporary.unlink(missing_ok=True)):
            _lock(handle)
            _remove_abandoned(path, temporary)
            yield temporary
            os.fsync(handle)
            if path.is_dir():
                raise InputError(f"{path}: is a folder; choose another file name")
            if fcntl is None:
                held.close()  # Windows renames no open file
            temporary.replace(path)
            _sync_folder(path.parent)
    except OSError as error:
        old = "; the old file is unchanged" if path.exists() else ""
        raise InputError(f"{path}: not written ({error.strerror or error}){old}") from error
    finally:
        held.close()
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def hidden(path: Path, ending: str) -> Path:
    """A hidden file that belongs to `path` and lies beside it.

    >>> hidden(Path("run/ics.parquet"), "lock").name
    '.ics.lock'
    """
    if not path.name:
        raise InputError(f"{path}: is a folder; choose another file name")
    return path.with_name(f"{_prefix(path)}{ending}")


def _prefix(path: Path) -> str:
    """The prefix of the names of `path`'s hidden files. A long name is cut, so that it fits with its ending."""
    name = os.fsencode(path.stem)
    if len(name) > 100:
        name = b"%b-%08x" % (name[:91], zlib.crc32(name))
    return f".{os.fsdecode(name)}."


def _lock(handle: int) -> bool:
    """Lock an open file until it is closed or the process ends; False if another process holds it."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # locked, or on a file system without locks
        return False
    return True


def _remove_abandoned(path: Path, current: Path) -> None:
    """Remove the temporary files of `path` that no running process holds, except `current`."""
    pattern = re.compile(rf"{re.escape(_prefix(path))}[a-z0-9_]{{8}}\.tmp{re.escape(path.suffix)}")
    for other in path.parent.iterdir():
        if other != current and pattern.fullmatch(other.name):
            with suppress(OSError):  # removed or replaced in the meantime
                handle = os.open(other, os.O_RDWR)
                try:
                    if _lock(handle):
                        other.unlink()
                finally:
                    os.close(handle)


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def check_writable(path: Path) -> None:
    """Check before the work that `path` can be written. Creates nothing.

    Raises:
        InputError: If `path` is a folder, or its folder cannot be written.
    """
    if path.is_dir():
        raise InputError(f"{path}: is a folder; choose another file name")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(f"{path}: cannot be written, because {folder} is not a writable folder; choose another place")


def check_regular(path: Path) -> None:
    """Raise InputError if `path` exists and is not a regular file: reading a pipe would wait for ever."""
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: is not a file")


#: How many bytes of a file `kind_of` needs.
HEAD: Final = 512
#: What `kind_of` calls a safetensors file.
SAFETENSORS: Final = "a safetensors file, which --weights takes"
_MAX_HEADER: Final = 10**8  # bytes of a safetensors header, the library's own limit
#: Kinds of files that people give in place of others: where a mark of the kind is, the mark, and what the file is.
_KINDS: Final = (
    (0, b"version https://git-lfs", "a Git LFS pointer; fetch the file itself by `git lfs pull`"),
    (0, b"\x1f\x8b", "compressed by gzip; decompress it"),
    (0, b"BZh", "compressed by bzip2; decompress it"),
    (0, b"\xfd7zXZ\x00", "compressed by xz; decompress it"),
    (0, b"\x28\xb5\x2f\xfd", "compressed by zstd; decompress it"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it"),
    (0, b"Rar!", "a RAR archive; unpack it"),
    (257, b"ustar", "a tar archive; unpack it"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"GGUF", "a GGUF file"),
    (0, b"PAR1", "a Parquet table"),
    (0, b"MATLAB 5.0", "a MATLAB file"),
    (0, b"%PDF", "a PDF file"),
    (0, b"GIF8", "a GIF picture"),
    (0, b"II*\x00", "a TIFF picture"),
    (0, b"MM\x00*", "a TIFF picture"),
    (4, b"ftypavif", "an AVIF picture"),
    (4, b"ftyp", "a HEIC picture or a video"),
    (0, b"\x89PNG", "a PNG picture"),
    (0, b"\xff\xd8\xff", "a JPEG picture"),
)


def read_head(path: Path) -> bytes:
    """The first HEAD bytes of a file."""
    with path.open("rb") as stream:
        return stream.read(HEAD)


def kind_of(head: bytes) -> str | None:
    """What a file is, by its first HEAD bytes, with an article; None if it is of no kind that people give by mistake.

    >>> kind_of(b"<!DOCTYPE html>")
    'an HTML or XML page instead of a file, such as a page of errors'
    """
    if head[8:10] == b'{"' and int.from_bytes(head[:8], "little") <= _MAX_HEADER:
        return SAFETENSORS
    for start, mark, kind in _KINDS:
        if head[start:].startswith(mark):
            return kind
    first = head.lstrip()[:1]
    if first == b"<":
        return "an HTML or XML page instead of a file, such as a page of errors"
    return "JSON" if first in (b"{", b"[") and head.lstrip()[1:2] in b'"\n\r {[0123456789' else None


def unicode(name: str) -> str:
    """A file name with escapes for bytes that are not UTF-8, which a table could not store.

    >>> unicode("caf\\udce9")
    'caf\\\\udce9'
    """
    return name.encode("utf-8", "backslashreplace").decode()


def first_line(error: Exception) -> str:
    """The first line of an error's message, cut to 120 characters; the name of its type if it has none."""
    return str(error).splitlines()[0][:120] if str(error) else type(error).__name__


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        InputError: If it is not a regular file, or larger than MAX_TEXT.
        OSError: If it cannot be read.
        ValueError: If it is not UTF-8.
    """
    check_regular(path)
    if path.stat().st_size > MAX_TEXT:
        raise InputError(f"{path}: has {path.stat().st_size} bytes, at most {MAX_TEXT}")
    return path.read_text(encoding="utf-8")


def checksum(path: Path) -> str:
    """The first 16 hexadecimal digits of a file's SHA-256 sum."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while part := stream.read(2**20):
            digest.update(part)
    return digest.hexdigest()[:16]


def crc(content: Mapping[str, Any]) -> int:
    """A checksum of plain values, whatever their order and layout in a file."""
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def save_json(path: Path, content: dict[str, Any]) -> None:
    """Write a dict of plain values as JSON, with its checksum, in a folder that exists."""
    with atomic(path, make_folder=False) as temporary:
        summed = {**content, "crc": crc(content)}
        temporary.write_text(json.dumps(summed, indent=2) + "\n", encoding="utf-8")


def load_json(path: Path, folder_is: str, format: int, keys: Collection[str]) -> dict[str, Any]:
    """Read the JSON file that describes a folder. Early files have no checksum.

    Args:
        path: The file.
        folder_is: The type of folder that has this file, for the messages, such as "run directory".
        format: The format number that the file must have.
        keys: The other keys that it may have.

    Raises:
        InputError: If the file does not exist.
        DamagedError: If it cannot be read, has another format, or does not have its checksum.
    """
    try:
        content = json.loads(read_text(path))
        if not isinstance(content, dict):
            raise DamagedError(f"{path}: does not describe a {folder_is}")
        recorded = content.pop("crc", None)
        unchanged = recorded is None or recorded == crc(content)
    except FileNotFoundError as error:
        raise InputError(f"{path.parent}: not a {folder_is} (it has no {path.name})") from error
    except InputError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedError(f"{path}: not readable as JSON ({error})") from error
    if content.get("format") != format:
        raise DamagedError(
            f"{path}: has format {str(content.get('format'))[:20]}, this bnsmooth reads {format}; upgrade it"
        )
    if unknown := content.keys() - {"format", *keys}:  # such as a checksum under a damaged name
        raise DamagedError(f"{path}: damaged, with an unknown entry '{min(unknown)[:40]}'; restore it from a copy")
    if not unchanged:
        raise DamagedError(
            f"{path}: damaged or edited by hand, since it does not have its checksum; restore it from a copy, or take "
            'the entry "crc" out of it if every other entry is right'
        )
    return content
