"""Journals: the points of a table that is being measured, in a file that is whole at every moment. Imports no torch."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Final

import pyarrow as pa

from bnsmooth_cli.errors import DamagedError, InputError
from bnsmooth_cli.storage.files import atomic, hidden
from bnsmooth_cli.storage.locks import locked
from bnsmooth_cli.storage.stretches import is_stretches, stretch

_MAGIC: Final = b"bnsmooth journal 1\n"
_HEAD: Final = struct.Struct("<QI")
#: A point of a table: the name of its run, and its step.
Key = tuple[str, int]


def journal_path(table: Path) -> Path:
    """Where the points of a table are kept until it is complete: a hidden file beside it.

    >>> str(journal_path(Path("run/ics.parquet")))
    'run/.ics.points'
    """
    return hidden(table, "points")


def begin_anew(table: Path, kind: str) -> None:
    """Remove the points that are kept of a table, and mark the table: it stays until it has been measured again.

    Raises:
        InputError: If another process is writing the table, or the mark cannot be written.
    """
    if table.parent.is_dir():
        with locked(table.parent, f"{kind} table", table):
            journal = journal_path(table)
            if not journal.is_dir():  # which is named when it is opened
                journal.unlink(missing_ok=True)  # before the mark, beside which its points would count
            if table.exists():
                with atomic(_mark(table)):
                    pass


def begun_anew(table: Path) -> bool:
    """Whether a table is only there until it has been measured again."""
    return _mark(table).exists()


def end_anew(table: Path) -> None:
    """Remove the mark of a table that has been measured again."""
    _mark(table).unlink(missing_ok=True)


def _mark(table: Path) -> Path:
    return hidden(table, "again")


class Journal:
    """The measured points of a table: a file of records to which each point is appended.

    A record is its length and its CRC-32, a line with a JSON object, and bytes. The object of the first record is the
    request that all points answer. That of a point names its run, its step and what computed it; the bytes are its rows
    as an Arrow stream. A record that a killed process has not completed is cut off when the journal is opened again.

    Attributes:
        path: The file.
        request: The request that its points answer.
    """

    def __init__(self, path: Path, request: dict[str, Any], schema: pa.Schema) -> None:
        """Open the journal, or begin it if there is none.

        Args:
            path: The file.
            request: Recorded if the journal is begun.
            schema: The columns of the rows.

        Raises:
            DamagedError: If the file is no journal.
            InputError: If it cannot be written.
        """
        self.path, self._schema = path, schema
        self._places: dict[Key, tuple[int, int, Any]] = {}  # where the rows of a point are, and what computed them
        if path.exists() and not path.is_file():
            raise InputError(f"{path}: is not a file; delete it, or write another table with -o")
        if not path.exists():
            with atomic(path) as temporary:
                temporary.write_bytes(_MAGIC + _record(json.dumps(request).encode()))
        try:
            self._file: IO[bytes] = path.open("r+b", buffering=0)
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror}); make it writable, or delete it") from error
        self._file.truncate(self._read())

    @classmethod
    def keys(cls, path: Path) -> set[Key]:
        """The points of the journal at a path, which is only read; none if there is no journal."""
        journal = cls.__new__(cls)
        journal.path, journal._places = path, {}
        with suppress(OSError, DamagedError), path.open("rb") as journal._file:
            journal._read()
        return {*journal._places}

    def _read(self) -> int:
        """Read the request, and where the points are. Returns the end of the last whole record."""
        whole = _exactly(self._file, len(_MAGIC)) == _MAGIC
        request = self._next() if whole else None
        if request is None:
            raise self._damaged()
        self.request = request
        end = self._file.tell()
        while (point := self._next()) is not None:
            match point:
                case {"run": str(run), "step": int(step), "length": int(length), "by": by} if (
                    0 <= length <= self._file.tell()
                    and (by is None or (isinstance(by, dict) and is_stretches([stretch(step, step, by)])))
                ):
                    self._places[run, step] = self._file.tell() - length, length, by
                case _:
                    raise self._damaged()
            end = self._file.tell()
        return end

    def _next(self) -> dict[str, Any] | None:
        """The JSON object of the next record; None if no whole record follows."""
        head = _exactly(self._file, _HEAD.size)
        if len(head) < _HEAD.size:
            return None
        length, checksum = _HEAD.unpack(head)
        if length > os.fstat(self._file.fileno()).st_size - self._file.tell():
            return None
        content = _exactly(self._file, length)
        if zlib.crc32(content) != checksum:
            return None
        try:
            value = json.loads(content.partition(b"\n")[0])
        except (ValueError, RecursionError):
            raise self._damaged() from None
        if not isinstance(value, dict):
            raise self._damaged()
        return value

    def _damaged(self) -> DamagedError:
        return DamagedError(f"{self.path}: not readable as a journal; delete it, and its points are measured again")

    def __contains__(self, key: Key) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Key]:
        return iter(self._places)

    def add(self, key: Key, rows: pa.Table, by: Any) -> None:
        """Append a point.

        Args:
            key: Its run and its step.
            rows: Its rows.
            by: What computed it, as plain values.

        Raises:
            InputError: If the disk is full. The journal is as before.
        """
        stream = pa.BufferOutputStream()
        with pa.ipc.new_stream(stream, self._schema) as writer:
            writer.write_table(rows)
        body = stream.getvalue().to_pybytes()
        head = json.dumps({"run": key[0], "step": key[1], "by": by, "length": len(body)}).encode() + b"\n"
        start = self._file.seek(0, os.SEEK_END)
        try:
            left = memoryview(_record(head + body))
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            self._file.truncate(start)
            raise InputError(f"{self.path}: not written ({error.strerror}); the points before are kept") from error
        self._places[key] = self._file.tell() - len(body), len(body), by

    def rows(self, key: Key) -> pa.Table:
        """The rows of a point. Raises DamagedError if they are none of this kind of table."""
        start, length, _ = self._places[key]
        self._file.seek(start)
        try:
            with pa.ipc.open_stream(_exactly(self._file, length)) as reader:
                if reader.schema != self._schema:
                    raise pa.ArrowInvalid("other columns")
                rows = reader.read_all()
            rows.validate(full=True)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self._damaged() from error
        return rows

    def by(self, key: Key) -> Any:
        """What computed a point."""
        return self._places[key][2]

    def sync(self) -> None:
        """Let the points survive a power cut. Raises InputError if the disk is full, which may only show now."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise InputError(f"{self.path}: not written ({error.strerror}); make room, and measure again") from error

    def remove(self) -> None:
        """Close and delete the file."""
        self.close()
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _record(content: bytes) -> bytes:
    return _HEAD.pack(len(content), zlib.crc32(content)) + content


def _exactly(file: IO[bytes], length: int) -> bytes:
    parts = []
    while length and (part := file.read(length)):
        parts.append(part)
        length -= len(part)
    return b"".join(parts)
