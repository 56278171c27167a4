"""Tables for other programs: as CSV, and as scalars for TensorBoard. Imports no torch."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import IO, Final

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from bnsmooth_cli import kinds
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.storage.files import atomic, check_regular, check_writable
from bnsmooth_cli.storage.tables import GROUP, read_table, to_arrow

# CSV


def write_csv(path: Path | str, target: Path | str, force: bool = False) -> None:
    """Write the rows of a table as CSV in UTF-8; `stream_csv` describes the format.

    Args:
        path: The table.
        target: The CSV file.
        force: Whether to replace a file.

    Raises:
        InputError: If the table cannot be read, or `target` exists (unless `force`) or cannot be written.
    """
    path, target = Path(path), Path(target)
    check_writable(target)
    check_regular(target)
    if target.exists() and path.exists() and target.samefile(path):
        raise InputError(f"{target}: is the table itself; give --csv another name")
    if os.path.lexists(target) and not force:
        raise InputError(f"{target}: already exists; replace it with --force, or give --csv another name")
    table = read_table(path)
    with atomic(target) as temporary, temporary.open("wb") as stream:
        _write_rows(table, stream)


def stream_csv(path: Path | str, stream: IO[bytes]) -> None:
    """Write the rows of a table as CSV to a stream.

    The first line has the columns' names. Texts stand in quotes. A number has as many digits as it takes to read the
    same double back; an overflow is `inf`, `-inf` or `nan`. A null is an empty cell. A list is written as
    numbers separated by spaces.
    """
    _write_rows(read_table(path), stream)


def _write_rows(table: pd.DataFrame, stream: IO[bytes]) -> None:
    kind = table.attrs["bnsmooth"]["kind"]
    for start in range(0, max(len(table), 1), GROUP):
        rows = to_arrow(kind, table.iloc[start : start + GROUP])
        for i, field in enumerate(rows.schema):
            if pa.types.is_list(field.type):
                texts = pc.cast(rows.column(i), pa.list_(pa.string()))
                rows = rows.set_column(i, field.name, pc.binary_join(texts, " "))
        csv.write_csv(rows, stream, csv.WriteOptions(include_header=start == 0))


# TensorBoard


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
    `both.tensorboard/<run>/ics.tfevents`, because TensorBoard takes each folder for a run. Existing files are replaced,
    and removed if the table no longer has their runs. Equal tables give equal files. Restart an open TensorBoard to see
    the new file.

    A tag is `train/loss` or `ics/fc3/cosine`. `activations` and `theory` give the medians over the units of a layer
    (shares, for columns of yes and no), `theory` for each statement and affine map: `theory/fc3/4.1/identity/lhs`.
    `landscape` gives the extremes over the line, alpha > 0, where an overflow is infinite. Nulls are left out.
    TensorBoard stores single precision.

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
    kind = table.attrs["bnsmooth"]["kind"]
    if not kinds.get(kind).tensorboard:
        raise InputError(
            f"{path}: TensorBoard shows numbers over training steps, a table of kind {kind} has none "
            f"({', '.join(_OVER_STEPS)} have)"
        )
    runs = list(dict.fromkeys(table["run"]))
    alone, folder = path.with_suffix(".tfevents"), path.with_name(f"{path.stem}.tensorboard")
    if path == alone:
        raise InputError(f"{path}: a table with the suffix of TensorBoard's files; name it .parquet")
    targets = {alone: table}
    if len(runs) > 1:
        targets = {folder / _folder(path, run) / f"{kind}.tfevents": table[table["run"] == run] for run in runs}
    for target, rows in targets.items():
        events = _events(kind, _over_steps(kind, rows))
        with atomic(target) as temporary:
            temporary.write_bytes(events)
    for file in {alone, *_in_folders(folder)} - targets.keys():
        file.unlink(missing_ok=True)
    return alone if alone in targets else folder


_OVER_STEPS: Final = [kind.name for kind in kinds.KINDS if kind.tensorboard]


def _in_folders(folder: Path) -> Iterator[Path]:
    """The scalars in the folder of a table of several runs. Links, and files next to a table of their own, belong to
    other tables."""
    places = [] if folder.is_symlink() else [place for place in folder.glob("*") if not place.is_symlink()]
    files = (place / f"{kind}.tfevents" for place in places for kind in _OVER_STEPS)
    return (file for file in files if file.is_file() and not file.with_suffix(".parquet").exists())


def _folder(path: Path, run: str) -> str:
    """The name of a run, checked: a table may contain any text."""
    if run in ("", ".", "..") or any(character in run for character in "/\\\0"):
        raise InputError(f"{path}: the run {run!r} has a name that no folder can have")
    return run


def _over_steps(kind: str, table: pd.DataFrame) -> pd.DataFrame:
    """One row per step and tag, in order of steps: `step`, `tag`, and the numbers, with NaN for nulls."""
    if "alpha" in kinds.get(kind).columns:
        line = table[table["alpha"] > 0].fillna({"loss": math.inf, "grad_distance": math.inf})  # NaN is an overflow
        ends = {"loss_min": ("loss", "min"), "loss_max": ("loss", "max"), "grad_distance_max": ("grad_distance", "max")}
        return line.assign(tag=kind).groupby(["step", "tag"]).agg(**ends).reset_index()
    types = {name: column.type for name, column in kinds.get(kind).columns.items()}
    numbers = {name: type_ for name, type_ in types.items() if type_ in ("double", "bool") and name not in kinds.RUN}
    rows = table.astype(dict.fromkeys(numbers, "float64")).sort_values("step", kind="stable").assign(tag=kind)
    for name in ("layer_name", "statement", "affine"):
        if name in types:
            rows["tag"] += ("/" + rows[name].str.replace(" ", "-")).fillna("")
    if "unit" in types:
        middle = {name: "mean" if type_ == "bool" else "median" for name, type_ in numbers.items()}
        rows = rows.groupby(["step", "tag"], sort=False).agg(middle).reset_index()
    return rows[["step", "tag", *numbers]]


def _events(kind: str, over_steps: pd.DataFrame) -> bytes:
    """A file of TensorBoard with one event per step; equal numbers give equal bytes.

    The time of an event is its step, in seconds, because a table records no times. TensorBoard sorts runs by their
    first time, and then by name.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    stream = io.BytesIO()
    writer = RecordWriter(stream)
    # With this version a step may be lower than the one before it, which came from another table in the folder.
    writer.write(Event(wall_time=0, file_version="brain.Event:2").SerializeToString(deterministic=True))
    columns = kinds.get(kind).columns
    names = list(map(str, over_steps.columns[2:]))
    null_is_nan = [name not in columns or columns[name].nullable for name in names]
    rows = zip(*(over_steps[name].tolist() for name in over_steps), strict=True)
    for step, rows_of_step in groupby(rows, key=itemgetter(0)):
        values = [
            Summary.Value(tag=f"{tag}/{name}", simple_value=value)
            for _, tag, *numbers in rows_of_step
            for name, skips_nan, value in zip(names, null_is_nan, numbers, strict=True)
            if not (skips_nan and math.isnan(value))
        ]
        event = Event(wall_time=step, step=step, summary=Summary(value=values))
        writer.write(event.SerializeToString(deterministic=True))
    return stream.getvalue()
