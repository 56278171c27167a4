"""How files are written, and read: whole or not at all, and never executing what is read."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import re
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, Final

from bnsmooth_cli.errors import DamagedError, InputError

try:
    import fcntl
except ImportError:  # Windows, where a file that is being written cannot be removed anyway
    fcntl = None  # type: ignore[assignment]


@contextmanager
def atomic(path: Path, make_folder: bool = True) -> Iterator[Path]:
    """A temporary file beside `path` that is synced and renamed over it when the block ends without an error.

    What killed processes were writing there is removed first. A link at `path` is replaced and not followed. Raises
    InputError where the folder cannot be made or written, or has no space left; without `make_folder`, where it is
    gone.
    """
    try:
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=_prefix(path), suffix=f".tmp{path.suffix}")
    except OSError as error:
        raise InputError(f"{path.parent}: cannot be written ({error.strerror}); choose another folder") from error
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


def _prefix(path: Path) -> str:
    """What the names of its temporary files begin with; shorter than a long name, which they are still to fit."""
    return f".{os.fsdecode(os.fsencode(path.stem)[:100])}."


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
    ours = re.compile(rf"{re.escape(_prefix(path))}[a-z0-9_]{{8}}\.tmp{re.escape(path.suffix)}")  # as mkstemp has them
    for other in path.parent.iterdir():
        if other != mine and ours.fullmatch(other.name):
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
        raise InputError(f"{path}: cannot be written, {folder} takes no files; choose another place")


def unicode(name: str) -> str:
    """A name with escapes for the bytes that were no UTF-8: no table could hold it as it is.

    >>> unicode("caf\\udce9")
    'caf\\\\udce9'
    """
    return name.encode("utf-8", "backslashreplace").decode()


def check_regular(path: Path) -> None:
    """Raise InputError for what is there and is no file: to read a pipe is to wait for ever."""
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: is no file")


LONGEST: Final = 2**26  # bytes of a text that describes a run or a study


def read_text(path: Path) -> str:
    """The text of a file. Raises InputError for what is no file, or too long, and OSError and ValueError as reading
    does."""
    check_regular(path)
    if path.stat().st_size > LONGEST:
        raise InputError(f"{path}: has {path.stat().st_size} bytes, at most {LONGEST}")
    return path.read_text(encoding="utf-8")


def checksum(path: Path) -> str:
    """What tells one content of a file from another."""
    found = hashlib.sha256()
    with path.open("rb") as stream:
        while part := stream.read(2**20):
            found.update(part)
    return found.hexdigest()[:16]


def save_json(path: Path, content: dict[str, Any]) -> None:
    """Write a dict of plain values."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load_json(path: Path, folder_is: str, format: int) -> dict[str, Any]:
    """Read the file that makes a folder a `folder_is`; InputError where it is none, DamagedError where unreadable."""
    try:
        content = json.loads(read_text(path))
    except FileNotFoundError as error:
        raise InputError(f"{path.parent}: not a {folder_is} (it has no {path.name})") from error
    except InputError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(content, dict):
        raise DamagedError(f"{path}: not of a {folder_is}")
    if content.get("format") != format:
        raise DamagedError(
            f"{path}: of format {str(content.get('format'))[:20]}, this bnsmooth reads {format}; upgrade it"
        )
    return content


def save_tensors(path: Path, content: dict[str, Any], make_folder: bool = True) -> None:
    """Write a dict of tensors and plain values in torch's format."""
    import torch

    # Into a stream: given a path, torch writes the temporary name into the file, and equal states differ.
    with atomic(path, make_folder) as temporary, _Stream(io.FileIO(temporary, "wb")) as stream:
        try:
            torch.save(content, stream)
        except RuntimeError as error:  # torch's own words for whatever the stream raised
            raise stream.failed or error from error


class _Stream(io.BufferedWriter):
    """A file that remembers why it could not be written."""

    failed: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.failed = error
            raise


class PlainUnpickler(pickle._Unpickler):
    """Reads pickles of plain values: dicts whose keys are strings or numbers, lists, tuples; no sets, and no objects
    but those that a subclass makes in `find_class`.

    In Python: the unpickler in C allocates whatever a damaged file declares. A key that is a tuple of tuples of one
    tuple takes for ever to hash.
    """

    dispatch: ClassVar = {
        code: load
        for code, load in pickle._Unpickler.dispatch.items()
        if code not in {
            refused[0]
            for refused in (
                pickle.INST, pickle.OBJ, pickle.NEWOBJ, pickle.NEWOBJ_EX, pickle.EXT1, pickle.EXT2, pickle.EXT4,
                pickle.PERSID, pickle.NEXT_BUFFER, pickle.DICT, pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET,
            )
        }
    }  # fmt: skip
    stack: list[Any]

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._put([key, value])

    def _set_items(self) -> None:
        self._put(self.pop_mark())  # type: ignore[attr-defined]

    def _put(self, items: list[Any]) -> None:
        target = self.stack[-1]
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(target, dict) or type(key) not in (str, bytes, int):
                raise pickle.UnpicklingError(f"a key that is a {type(key).__name__}, of a {type(target).__name__}")
            target[key] = value

    dispatch[pickle.SETITEM[0]] = _set_item  # type: ignore[assignment]
    dispatch[pickle.SETITEMS[0]] = _set_items  # type: ignore[assignment]


_REBUILT: Final = (("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_parameter"))


class _Stub(dict[Any, Any]):
    """What stands in for every object of a torch file while its structure is looked at."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


class _StructureUnpickler(PlainUnpickler):
    """Of the pickle in a torch file, which torch is to read: finds out whether it is made as state dicts are."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return _empty
        tensors = module == "torch" and name.endswith("Storage")
        if not tensors and (module, name) not in _REBUILT:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which files of tensors do not")
        return _Stub

    def persistent_load(self, pid: Any) -> Any:
        return _Stub()


def _empty() -> _Stub:
    """An OrderedDict that is given its items one by one, and takes none when it is made."""
    return _Stub()


def load_tensors(path: Path) -> dict[str, Any]:
    """Read what `save_tensors` wrote, onto the CPU; InputError for anything else."""
    import torch

    check_regular(path)
    try:
        with zipfile.ZipFile(path) as archive:  # ours is not compressed: whatever it declares is there, byte for byte
            if sum(item.file_size for item in archive.infolist()) > path.stat().st_size:
                raise zipfile.BadZipFile("declares more than its size")
            if archive.testzip() is not None:  # torch checks no sums
                raise zipfile.BadZipFile("another checksum than the one in it")
            for item in archive.infolist():
                if item.filename.endswith("data.pkl"):
                    _StructureUnpickler(io.BytesIO(archive.read(item))).load()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is strange in a damaged file
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except Exception as error:  # a damaged file raises whatever its bytes happen to spell
        raise DamagedError(
            f"{path}: not a readable file of tensors (damaged, cut short, or not what torch.save makes of a state dict)"
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds no checkpoint")
    return content
