"""TensorBoard's event files: those of finished tables, and those that grow with a table. Imports no torch."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from bnsmooth_cli import kinds
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.storage.files import atomic
from bnsmooth_cli.storage.scalars import OVER_STEPS, label, scalars
from bnsmooth_cli.storage.tables import read_table


def check_tensorboard() -> None:
    """Check before the work that the package is installed; raise InputError if it is not."""
    try:
        import tensorboard.compat.proto.event_pb2
        import tensorboard.summary.writer.record_writer  # noqa: F401
    except ImportError as error:
        raise InputError("--tensorboard: needs the extra: pip install 'bnsmooth[tensorboard]'") from error


def tensorboard(table_path: Path | str) -> Path:
    """Write the numbers of a table as TensorBoard scalars over the steps, next to the table.

    `runs/x/train.parquet` becomes `runs/x/train.tfevents`. A table of several runs becomes a folder,
    `both.tensorboard/<run>/ics.tfevents`, because TensorBoard takes each folder for a run. Files of runs that the table
    no longer has are removed. Equal tables give equal files. A file that grew with its table (`EventFile`) is only
    continued, which an open TensorBoard follows. Any other is replaced, which TensorBoard sees when it is restarted.

    `scalars.scalars` describes the tags. TensorBoard stores single precision.

    Args:
        table_path: The table.

    Returns:
        The file or the folder.

    Raises:
        InputError: If the table cannot be read or has no training steps, or TensorBoard's package is missing.
    """
    check_tensorboard()
    path = Path(table_path)
    table = read_table(path)
    provenance = table.attrs["bnsmooth"]
    kind, options = provenance["kind"], provenance.get("options")
    if not kinds.get(kind).tensorboard:
        raise InputError(
            f"{path}: TensorBoard shows numbers over training steps, a table of kind {kind} has none "
            f"({', '.join(OVER_STEPS)} have)"
        )
    runs = dict.fromkeys(table["run"])
    targets = {event_path(path, kind, run, alone=len(runs) == 1): run for run in runs}
    for target, run in targets.items():
        of_run = options.get(run) if isinstance(options, dict) else None
        _write(target, _header() + events(scalars(kind, table[table["run"] == run], label(kind, of_run))))
    alone, folder = event_path(path, kind, "", alone=True), _folder(path)
    if not runs:
        _write(alone, _header())
    for file in {alone, *_in_folders(folder)} - {*targets, *([] if runs else [alone])}:
        file.unlink(missing_ok=True)
    return folder if len(runs) > 1 else alone


def event_path(table: Path, kind: str, run: str, *, alone: bool) -> Path:
    """The event file of a run in a table; `alone` if the table has no other run.

    Raises:
        InputError: If it would be the table itself, or lie elsewhere: a table may contain any text.

    >>> str(event_path(Path("a/both.parquet"), "ics", "x", alone=False))
    'a/both.tensorboard/x/ics.tfevents'
    """
    path = table.with_suffix(".tfevents")
    if path == table:
        raise InputError(f"{table}: a table with the suffix of TensorBoard's files; name it .parquet")
    if alone:
        return path
    if run in ("", ".", "..") or any(character in run for character in "/\\\0"):
        raise InputError(f"{table}: the run {run!r} has a name that no folder can have")
    return _folder(table) / run / f"{kind}.tfevents"


def _folder(table: Path) -> Path:
    """The folder with the event files of a table of several runs."""
    return table.with_name(f"{table.stem}.tensorboard")


def _in_folders(folder: Path) -> Iterator[Path]:
    """The scalars in the folder of a table of several runs. Links, and files next to a table of their own, belong to
    other tables."""
    places = [] if folder.is_symlink() else [place for place in folder.glob("*") if not place.is_symlink()]
    files = (place / f"{kind}.tfevents" for place in places for kind in OVER_STEPS)
    return (file for file in files if file.is_file() and not file.with_suffix(".parquet").exists())


def _write(path: Path, content: bytes) -> None:
    """Write a whole file: continue the one that is there if it is a beginning of it, and replace it otherwise."""
    if path.is_file() and not path.is_symlink() and content.startswith(path.read_bytes()):
        with EventFile(path) as file:
            file.add(content.removeprefix(_header()))
        return
    with atomic(path) as temporary:
        temporary.write_bytes(content)


class EventFile:
    """An event file that grows while its table is made, and at every moment is the beginning of the table's.

    What is added has to begin with the first step. As long as the file has the same bytes, it is left alone: a resumed
    run neither repeats nor loses a step, and an open TensorBoard can go on reading. Where the bytes differ, as in a
    record that a killed process has not completed, the rest of the file is written anew.

    Args:
        path: The file, in a folder that exists.

    Raises:
        InputError: If it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._end = path, 0
        try:
            if path.is_symlink():
                path.unlink()
            if path.exists() and not path.is_file():
                raise InputError(f"{path}: is not a file; delete it, or leave --tensorboard out")
            self._file: IO[bytes] = path.open("r+b" if path.exists() else "x+b", buffering=0)
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror}); leave --tensorboard out") from error
        self.add(_header())

    def __enter__(self) -> EventFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def add(self, content: bytes) -> None:
        """Add events.

        Raises:
            InputError: If the disk is full. The file has the events before.
        """
        try:
            self._file.seek(self._end)
            if self._file.read(len(content)) != content:
                self._file.truncate(self._end)
                self._file.seek(self._end)
                left = memoryview(content)
                while left:
                    left = left[self._file.write(left) :]
        except OSError as error:
            self._file.truncate(self._end)
            raise InputError(f"{self._path}: not written ({error.strerror}); make room, and run it again") from error
        self._end += len(content)


def events(numbers: Iterable[tuple[int, Mapping[str, float]]]) -> bytes:
    """One event of TensorBoard for each step; equal numbers give equal bytes.

    The time of an event is its step, in seconds, because a table records no times. TensorBoard sorts runs by their
    first time, and then by name.
    """
    from tensorboard.compat.proto.summary_pb2 import Summary

    return _records(
        {
            "wall_time": step,
            "step": step,
            "summary": Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]),
        }
        for step, values in numbers
    )


def _header() -> bytes:
    """How a file begins. With this version, a step may be lower than the one before it, which came from another table
    in the folder."""
    return _records([{"wall_time": 0, "file_version": "brain.Event:2"}])


def _records(contents: Iterable[Mapping[str, Any]]) -> bytes:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    stream = io.BytesIO()
    writer = RecordWriter(stream)
    for content in contents:
        writer.write(Event(**content).SerializeToString(deterministic=True))
    return stream.getvalue()
