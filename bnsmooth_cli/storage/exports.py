"""A table for other programs: as CSV for spreadsheets, as scalars for TensorBoard. No torch here."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import pandas as pd

from bnsmooth_cli import kinds
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.storage.files import atomic, check_regular, check_writable
from bnsmooth_cli.storage.tables import GROUP, read_table

# CSV


def csv_lines(path: Path | str) -> Iterator[str]:
    """The rows of a table as lines of CSV without their ends, the columns' names first.

    A number has all the digits that its double has, a null is empty, a list is its numbers with spaces between them.
    """
    return _csv_lines(read_table(path))  # now, not when the first line is asked for


def write_csv(path: Path | str, target: Path | str, force: bool = False) -> None:
    """Write the rows of a table as CSV in UTF-8. Raises InputError for a target that is there, unless `force`."""
    path, target = Path(path), Path(target)
    check_writable(target)
    check_regular(target)
    if target.exists() and path.exists() and target.samefile(path):
        raise InputError(f"{target}: is the table itself; give --csv another name")
    if os.path.lexists(target) and not force:
        raise InputError(f"{target}: is there already; --force replaces it, or give --csv another name")
    lines = csv_lines(path)
    with atomic(target) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        stream.writelines(f"{line}\n" for line in lines)


class _Echo:
    """What a CSV writer writes to, to have it back."""

    def write(self, line: str) -> str:
        return line


def _csv_lines(table: pd.DataFrame) -> Iterator[str]:
    kind = table.attrs["bnsmooth"]["kind"]
    end = "\r\n"  # or the writer would not put quotes around a text that has one of the two
    write = csv.writer(_Echo(), lineterminator=end).writerow
    yield write(list(kinds.get(kind).columns)).removesuffix(end)
    for start in range(0, len(table), GROUP):
        group = table.iloc[start : start + GROUP]
        columns = [_cells(kind, group[name]) for name in kinds.get(kind).columns]
        for row in zip(*columns, strict=True):
            yield write(row).removesuffix(end)


def _cells(kind: str, column: pd.Series[Any]) -> list[Any]:
    """Values as the CSV writer takes them: None becomes nothing, a float its `repr`."""
    known = kinds.get(kind).columns[str(column.name)]
    if known.type == "double" and not known.nullable:
        return column.tolist()
    cells = column.astype(object).where(column.notna(), None).tolist()
    if known.type == "list":
        return [cell if cell is None else " ".join(map(repr, cell.tolist())) for cell in cells]
    return cells


# TensorBoard


def check_tensorboard() -> None:
    """Find out before the work that TensorBoard's package is missing; InputError then."""
    try:
        import tensorboard.compat.proto.event_pb2
        import tensorboard.summary.writer.record_writer  # noqa: F401
    except ImportError as error:
        raise InputError("--tensorboard: needs the extra: pip install 'bnsmooth[tensorboard]'") from error


def tensorboard(table_path: Path | str) -> Path:
    """Write a table's figures as TensorBoard scalars over the steps, beside it; what was written.

    `runs/x/train.parquet` makes `runs/x/train.tfevents`; a table of several runs makes a folder,
    `both.tensorboard/<run>/ics.tfevents`, as TensorBoard tells runs apart by their folders. What is there is replaced,
    and removed where the table's runs are others now: equal tables make equal files. A TensorBoard that is open looks
    at the new one when it is started again.

    The tags are `train/loss`, `ics/fc3/cosine`; of `activations` and `theory` the medians over the units of a layer
    (of what holds or not, the share that does), of theory by statement and affine, `theory/fc3/4.1/identity/lhs`; of
    `landscape` the extremes of the line, alpha > 0, an overflow being infinite. Nulls are left out. TensorBoard's
    numbers have single precision. Raises InputError for a kind that has no course over the steps.
    """
    check_tensorboard()
    path = Path(table_path)
    table = read_table(path)
    kind = table.attrs["bnsmooth"]["kind"]
    if not kinds.get(kind).tensorboard:
        known = ", ".join(_courses())
        raise InputError(f"{path}: a table of kind {kind} has no course over the steps for TensorBoard ({known} have)")
    runs = list(dict.fromkeys(table["run"]))
    alone, folder = path.with_suffix(".tfevents"), path.with_name(f"{path.stem}.tensorboard")
    if path == alone:
        raise InputError(f"{path}: is a table by the name of TensorBoard's files; name it .parquet")
    targets = {alone: table}
    if len(runs) > 1:
        targets = {folder / _folder(path, run) / f"{kind}.tfevents": table[table["run"] == run] for run in runs}
    for target, rows in targets.items():
        events = _events(kind, _course(kind, rows))
        with atomic(target) as temporary:
            temporary.write_bytes(events)
    for file in {alone, *_in_folders(folder)} - targets.keys():
        file.unlink(missing_ok=True)
    return alone if alone in targets else folder


def _courses() -> list[str]:
    return [kind.name for kind in kinds.KINDS if kind.tensorboard]


def _in_folders(folder: Path) -> Iterator[Path]:
    """The scalars of runs in the folder of a table of several; what is linked there, or is beside a table of its own,
    is another table's."""
    places = [] if folder.is_symlink() else [place for place in folder.glob("*") if not place.is_symlink()]
    files = (place / f"{kind}.tfevents" for place in places for kind in _courses())
    return (file for file in files if file.is_file() and not file.with_suffix(".parquet").exists())


def _folder(path: Path, run: str) -> str:
    """The name of a run as one of a folder; a table may say anything."""
    if run in ("", ".", "..") or any(character in run for character in "/\\\0"):
        raise InputError(f"{path}: the run {run!r} has a name that no folder can have")
    return run


def _course(kind: str, table: pd.DataFrame) -> pd.DataFrame:
    """A row a step and place in the network, by step: `step`, `tag`, and the figures there, NaN where they are null."""
    if kind == "landscape":
        probed = table[table["alpha"] > 0].fillna({"loss": math.inf, "grad_distance": math.inf})  # NaN: an overflow
        ends = {"loss_min": ("loss", "min"), "loss_max": ("loss", "max"), "grad_distance_max": ("grad_distance", "max")}
        return probed.assign(tag=kind).groupby(["step", "tag"]).agg(**ends).reset_index()
    types = {name: column.type for name, column in kinds.get(kind).columns.items()}
    figures = {name: type_ for name, type_ in types.items() if type_ in ("double", "bool") and name not in kinds.RUN}
    rows = table.astype(dict.fromkeys(figures, "float64")).sort_values("step", kind="stable").assign(tag=kind)
    for name in ("layer_name", "statement", "affine"):
        if name in types:
            rows["tag"] += ("/" + rows[name].str.replace(" ", "-")).fillna("")
    if "unit" in types:
        middle = {name: "mean" if type_ == "bool" else "median" for name, type_ in figures.items()}
        rows = rows.groupby(["step", "tag"], sort=False).agg(middle).reset_index()
    return rows[["step", "tag", *figures]]


def _events(kind: str, course: pd.DataFrame) -> bytes:
    """A file of TensorBoard's: one event a step, the same bytes for the same figures.

    The time of an event is its step, in seconds: it was measured at no other time that a table knows, and TensorBoard,
    which sorts runs by their first time, then sorts them by name.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    stream = io.BytesIO()
    writer = RecordWriter(stream)
    # Of this version a step may be lower than the one before it, which was of another table in the folder.
    writer.write(Event(wall_time=0, file_version="brain.Event:2").SerializeToString(deterministic=True))
    columns = kinds.get(kind).columns
    figures = [
        (name, name not in columns or columns[name].nullable) for name in map(str, course.columns[2:])
    ]  # and whether NaN stands for null
    for step, rows in groupby(zip(*(course[name].tolist() for name in course), strict=True), key=itemgetter(0)):
        values = [
            Summary.Value(tag=f"{tag}/{name}", simple_value=value)
            for _, tag, *its in rows
            for (name, has_nulls), value in zip(figures, its, strict=True)
            if not (has_nulls and math.isnan(value))
        ]
        event = Event(wall_time=step, step=step, summary=Summary(value=values))
        writer.write(event.SerializeToString(deterministic=True))
    return stream.getvalue()
