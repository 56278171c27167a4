"""Files of tensors that `torch.save` wrote. Reading one executes nothing."""

from __future__ import annotations

import io
import mmap
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, ClassVar, Final

from bnsmooth_cli.errors import DamagedError, InputError
from bnsmooth_cli.storage.files import atomic, check_regular, kind_of, read_head

#: The number that begins the files of torch before 1.6, as a pickle holds it.
_LEGACY: Final = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


def save_tensors(path: Path, content: dict[str, Any], make_folder: bool = True) -> None:
    """Write a dict of tensors and plain values with `torch.save`. Equal contents give equal bytes."""
    import torch

    # To a stream: given a path, torch stores the temporary file's name in the archive.
    with atomic(path, make_folder) as temporary, _Stream(io.FileIO(temporary, "wb")) as stream:
        try:
            torch.save(content, stream)
        except RuntimeError as error:  # torch hides the stream's own error
            raise stream.failed or error from error


class _Stream(io.BufferedWriter):
    """A file that keeps the error of a failed write."""

    failed: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.failed = error
            raise


def load_tensors(path: Path) -> dict[str, Any]:
    """Read a dict of tensors and plain values that `torch.save` wrote, in its present or legacy format, onto the CPU.

    Raises:
        InputError: If the file does not exist or does not hold a dict.
        DamagedError: If it cannot be read, its checksums do not match, it holds more than tensors and plain values, or
            it is a file of another kind, which the message names.
    """
    import torch

    check_regular(path)
    protocol = 2
    try:
        head = read_head(path)
        if head.startswith(b"PK\x03\x04"):
            protocol = _check_archive(path)
        elif _LEGACY in head[:32]:
            protocol = _check_legacy(path)
        else:
            raise _OtherFileError(_kind(head))
        # To torch as a stream: given a path, it goes by its ending.
        with warnings.catch_warnings(), path.open("rb") as stream:
            warnings.simplefilter("ignore")  # torch warns about what it finds odd in a damaged file
            content = torch.load(stream, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except _OtherFileError as error:
        raise DamagedError(f"{path}: {error}") from None
    except Exception as error:  # a damaged pickle can raise anything
        if protocol > 2:
            raise InputError(
                f"{path}: saved with pickle protocol {protocol}, which torch reads only if it may run code; save it "
                "again with torch.save's own protocol"
            ) from error
        raise DamagedError(f"{path}: not a readable file of tensors (damaged or truncated)") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, not a dict of tensors")
    return content


class _OtherFileError(Exception):
    """A file is not what it was given as. The message says what it is instead."""


def _kind(head: bytes) -> str:
    if kind := kind_of(head):
        return f"is {kind}" if ";" in kind else f"is {kind}, not a file that torch.save wrote"
    if head.startswith(b"\x80"):
        return "a pickle that torch.save did not write, which could run code; save a state dict with torch.save"
    return (
        "not a file that torch.save wrote" if head.strip(b"\0") else "not a readable file of tensors (empty or damaged)"
    )


def _check_archive(path: Path) -> int:
    """Check an archive before torch reads it, and return the pickle protocol."""
    with zipfile.ZipFile(path) as archive:
        names = [item.filename.rpartition("/")[2] for item in archive.infolist()]
        if "constants.pkl" in names:
            raise _OtherFileError(
                "is a TorchScript archive, which is a program; save its tensors: "
                "torch.save(torch.jit.load(FILE).state_dict(), NEW)"
            )
        if "data.pkl" not in names:
            numpy = all(name.endswith(".npy") for name in names)
            raise _OtherFileError(
                "holds NumPy arrays (.npz), not a state dict"
                if numpy
                else "is a zip archive that torch.save did not write"
            )
        # torch.save does not compress, so an archive that declares more than its size is damaged or a zip bomb.
        if sum(item.file_size for item in archive.infolist()) > path.stat().st_size:
            raise zipfile.BadZipFile("declares more than its size")
        if archive.testzip() is not None:  # torch.load does not compare the checksums
            raise zipfile.BadZipFile("wrong checksum")
        walks = [
            _KeyCheck(io.BytesIO(archive.read(item)), path.stat().st_size)
            for item in archive.infolist()
            if item.filename.endswith("data.pkl")
        ]
        for walk in walks:
            walk.check()
        return max(walk.proto for walk in walks)


def _check_legacy(path: Path) -> int:
    """Check a file of the legacy format, which is five pickles and the storages; return the pickle protocol."""
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        for _ in ("magic number", "version", "system"):
            _KeyCheck(mapped, mapped.size()).check()
        walk = _KeyCheck(mapped, mapped.size())
        walk.check()
        keys = _KeyCheck(mapped, mapped.size()).check()
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise pickle.UnpicklingError("the names of the storages are no strings")
        return walk.proto


class _Stub(dict[Any, Any]):
    """Stands for every object in a pickle."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


class _Storage(_Stub):
    """Stands for a type of storage, or a storage."""


class _Bag(_Stub):
    """Stands for a set or a counter, whose elements are hashed."""

    def __init__(self, elements: Any = ()) -> None:
        set(elements)


class _Pairs(_Stub):
    """Stands for a dict that is made of pairs, whose first elements are hashed."""

    def __init__(self, pairs: Any = ()) -> None:
        {pair[0] for pair in pairs}


def _list_of(count: int) -> Callable[[Any], None]:
    def load(unpickler: Any) -> None:
        unpickler.stack[-count:] = [unpickler.stack[-count:]]

    return load


#: What state dicts and training states consist of: (module, name) in a pickle -> what stands for it.
_KNOWN: Final = {
    **{("torch._utils", f"_rebuild_{name}"): _Stub for name in ("tensor", "tensor_v2", "tensor_v3", "parameter")},
    ("torch", "Size"): _Stub,
    ("torch", "device"): _Stub,
    ("_codecs", "encode"): _Stub,
    ("collections", "OrderedDict"): _Pairs,
    ("collections", "Counter"): _Bag,
    ("__builtin__", "set"): _Bag,
    ("builtins", "set"): _Bag,
}


class _KeyCheck(pickle._Unpickler):
    """Walks through a pickle of tensors and plain values, and refuses tuples as keys. Creates no objects.

    `torch.load(weights_only=True)` executes nothing, but it hashes the keys of dicts, the elements of sets and counters
    and the names of storages. A tuple of two references to a tuple of two references, and so on, takes 5 bytes per
    level and 2^levels steps to hash, in C, where Ctrl-C cannot interrupt it: a pickle of 210 bytes did not load in 15 s
    (torch 2.14). Here, tuples become lists, which cannot be keys, and unknown classes are refused by name. The storages
    may not declare more numbers than the file has bytes.
    """

    stack: list[Any]
    metastack: list[list[Any]]
    dispatch: ClassVar = {
        **pickle._Unpickler.dispatch,
        pickle.EMPTY_TUPLE[0]: pickle._Unpickler.dispatch[pickle.EMPTY_LIST[0]],
        pickle.TUPLE[0]: pickle._Unpickler.dispatch[pickle.LIST[0]],
        pickle.TUPLE1[0]: _list_of(1),
        pickle.TUPLE2[0]: _list_of(2),
        pickle.TUPLE3[0]: _list_of(3),
    }
    del dispatch[pickle.BYTEARRAY8[0]]  # allocates whatever it declares

    def __init__(self, stream: IO[bytes] | mmap.mmap, size: int) -> None:
        super().__init__(stream, encoding="utf-8")
        self.proto = 2
        self._storages: set[str] = set()
        self._room = size

    def check(self) -> Any:
        """Walk through one pickle, and return what stands for its object."""
        try:
            return self.load()
        except TypeError as error:
            if "unhashable" in str(error):
                raise _OtherFileError(
                    "has tuples as keys, which are not read because they could take for ever to compare; save the "
                    "state dict alone"
                ) from error
            raise

    def find_class(self, module: str, name: str) -> Any:
        import torch

        if module in ("torch", "torch.storage") and name.endswith("Storage"):
            return _Storage
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return _Stub()
        if module == "torch._utils":  # a sparse, quantised, or otherwise unusual tensor
            kind = name.removeprefix("_rebuild_")
            raise _OtherFileError(f"holds a tensor that is not of plain numbers ({kind}); save it as an ordinary one")
        if not any(self.metastack) and self.stack in ([], ["module"]):
            raise _OtherFileError(
                f"holds a whole object of the class {module}.{name}, which only its code can read; save its state dict "
                "instead: torch.save(model.state_dict(), NEW)"
            )
        raise _OtherFileError(
            f"holds a {module}.{name} beside tensors, which is not read because it could run code; save the state "
            "dict alone, such as torch.save(torch.load(FILE, weights_only=False)['state_dict'], NEW)"
        )

    def persistent_load(self, pid: Any) -> Any:
        match pid:
            case ["storage", storage, str(key), str(), int(numel), *view] if storage is _Storage and numel >= 0:
                if view not in ([], [None]) and not [type(part) for part in view[0]] == [str, int, int]:
                    raise pickle.UnpicklingError("a view of a storage is not as torch.save writes it")
                self._room -= 0 if key in self._storages else numel
                self._storages.add(key)
                if self._room < 0:
                    raise pickle.UnpicklingError("declares more numbers than the file can hold")
                return _Storage()
        raise pickle.UnpicklingError("a storage is not as torch.save writes it")
