"""Parquet tables: how their rows and their provenance are written, read and checked. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Final

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from bnsmooth_cli import __version__, kinds
from bnsmooth_cli.errors import DamagedError, InputError
from bnsmooth_cli.identity import settings_of_problems, settings_of_runs
from bnsmooth_cli.storage.files import atomic, check_regular, check_writable, crc, first_line

FORMAT: Final = 1
#: The largest number of values in a table of points; tables of runs may have a hundredth of it. Repeated values take no
#: space in a file, but full memory when they are read.
MAX_VALUES: Final = 10**8
#: The length of a list, for the bound: the number of quantiles in `activations`.
_LIST_LENGTH: Final = 100
#: The number of rows that are buffered and written together.
GROUP: Final = 10_000
METADATA_KEY: Final = b"bnsmooth"
_LIST: Final = pa.list_(pa.float64())


def without_settings(rows: pa.Table) -> pa.Table:
    """Rows as journals hold them: the column `settings` is added when the table is written."""
    return rows.drop_columns([kinds.SETTINGS])


def with_settings(rows: pa.Table, kind: str, text: str) -> pa.Table:
    """Rows of a journal with the column `settings` of their run."""
    place = schema_of(kind).get_field_index(kinds.SETTINGS)
    return rows.add_column(place, kinds.SETTINGS, pa.array([text] * len(rows), pa.string()))


def check_target(path: Path, kind: str, force: bool) -> None:
    """Check before the work that a table can be written to `path`.

    Raises:
        InputError: If it cannot be written, or holds something other than a table of this kind and `force` is false.
    """
    check_writable(path)
    if path.exists() and not force:
        read_provenance(path, kind)


def write_table(
    path: Path,
    kind: str,
    frames: Iterable[pd.DataFrame | pa.Table],
    provenance: dict[str, Any],
    make_folder: bool = True,
) -> None:
    """Write a table, compressed by zstd, as its rows are made. Memory holds GROUP rows and one frame at a time.

    Args:
        path: The file.
        kind: The kind of table.
        frames: The rows, in any number of frames that have the kind's columns, or of Arrow tables of its `schema_of`.
        provenance: What the table records about itself, stored as JSON in the schema's metadata.
        make_folder: Whether to create the file's folder.

    Raises:
        InputError: If the file cannot be written.
    """
    recorded = json.loads(json.dumps({"kind": kind, "format": FORMAT, **provenance}))
    metadata = {METADATA_KEY: json.dumps({**recorded, "crc": crc(recorded)}, sort_keys=True)}
    schema = schema_of(kind).with_metadata(metadata)
    # Split into bytes of equal significance, measured numbers take two thirds of the space that plain ones do.
    doubles = [field.name for field in schema if pa.types.is_float64(field.type)]
    others = [field.name for field in schema if not pa.types.is_float64(field.type)]
    groups = _groups(kind, frames, schema)
    first = next(groups)  # before the file is created: most tables have one group
    with (
        atomic(path, make_folder) as temporary,
        temporary.open("wb") as stream,  # Arrow takes only paths that are Unicode
        pq.ParquetWriter(
            stream,
            schema,
            compression="zstd",
            write_page_checksum=True,
            use_byte_stream_split=doubles,
            use_dictionary=others,
        ) as writer,  # fmt: skip
    ):
        for group in chain([first], groups):
            writer.write_table(group)


def kind_of(frame: pd.DataFrame) -> str:
    """The kind of table that has these columns. Raises InputError if none has."""
    if not isinstance(frame, pd.DataFrame):
        raise InputError(
            f"rows: are a {type(frame).__name__}; give a DataFrame of a measurement (bns.read_table reads one)"
        )
    names = set(frame.columns)
    directions = {*frame["direction"]} if "direction" in names else {""}
    for kind in kinds.KINDS:
        if directions <= {kind.direction} and names.issuperset(_written(kind)) and names <= set(kind.columns):
            return kind.name
    raise InputError(f"no kind of table has the columns {', '.join(map(str, frame.columns))[:200]}")


def save_table(rows: pd.DataFrame, path: Path | str) -> None:
    """Write the rows of a measurement as a table that the command line reads.

    Args:
        rows: The rows of one measurement, or several results of it concatenated.
        path: The Parquet file.

    Raises:
        InputError: If no kind of table has these columns, a value is of another type, or the file cannot be written.

    >>> import tempfile, bnsmooth_cli as bns
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = bns.train("dln", "batch", steps=5, samples=20, output=f"{folder}/run")
    ...     bns.save_table(bns.ics(bns.load_point(run)), f"{folder}/ics.parquet")
    ...     len(bns.read_table(f"{folder}/ics.parquet", "ics"))
    25
    """
    if (suffix := Path(path).suffix) not in ("", ".parquet"):
        raise InputError(f"{path}: a table is a Parquet file, not {suffix}; give another name, or rows.to_csv(...)")
    try:
        write_table(Path(path), kind_of(rows), [rows], {"version": __version__})
    except pa.ArrowException as error:
        raise InputError(f"{path}: a column has values of another type ({first_line(error)})") from error


def _groups(kind: str, frames: Iterable[pd.DataFrame | pa.Table], schema: pa.Schema) -> Iterator[pa.Table]:
    waiting: list[pa.Table] = []
    for rows in frames:
        waiting.append((rows if isinstance(rows, pa.Table) else to_arrow(kind, rows)).cast(schema))
        if sum(map(len, waiting)) >= GROUP:
            yield pa.concat_tables(waiting)
            waiting.clear()
    if waiting:
        yield pa.concat_tables(waiting)


def to_arrow(kind: str, rows: pd.DataFrame) -> pa.Table:
    """Rows as an Arrow table; NaN becomes null in the columns where it stands for null."""
    schema, columns = schema_of(kind), kinds.get(kind).columns
    arrays = [
        _missing(field, len(rows))
        if columns[field.name].added and field.name not in rows
        else pa.array(rows[field.name], field.type, from_pandas=columns[field.name].nullable)
        for field in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def _missing(field: pa.Field, length: int) -> pa.Array:
    """A column that rows lack: null, or unknown settings."""
    return pa.array([""] * length) if field.name == kinds.SETTINGS else pa.nulls(length, field.type)


def _written(kind: kinds.Kind) -> list[str]:
    """The columns that tables of every version have."""
    return [name for name, column in kind.columns.items() if not column.added]


def schema_of(kind: str, columns: Sequence[str] | None = None) -> pa.Schema:
    """The columns of a kind of table: all of them, or some in their order."""
    types = {name: column.type for name, column in kinds.get(kind).columns.items()}
    return pa.schema([(name, _LIST if types[name] == "list" else types[name]) for name in columns or types])


def read_provenance(path: Path, kind: str | None = None) -> dict[str, Any]:
    """What a table records about itself, without reading its rows. Raises InputError as `read_table` does."""
    with _opened(path) as file:
        return _provenance(path, file, kind)


def after_the_first(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of kind `ics` without those of the first layer, before which nothing moves: its shift is 0 by definition.

    It is layer 1, or the first one of those that the user has chosen.

    >>> shift = pd.DataFrame({"step": [0, 0, 0, 0], "layer": [1, 2, 3, 4], "ics": [0.0, 0.5, 0.0, 0.2]})
    >>> after_the_first(shift)["layer"].tolist(), after_the_first(shift[2:])["layer"].tolist()
    ([2, 3, 4], [4])
    """
    first = rows.groupby([key for key in ("run", "step") if key in rows], sort=False).cumcount() == 0
    return rows[(rows["layer"] > 1) & ~(first & (rows["ics"] == 0))]


def steps_in(written: Mapping[str, Any], run: str) -> set[int]:
    """The measured steps of a run, given the provenance that is written with them."""
    steps = written.get("steps")
    of_run = steps.get(run) if isinstance(steps, dict) else None
    return {step for step in of_run if isinstance(step, int)} if isinstance(of_run, list) else set()


def lacking(path: Path) -> list[str]:
    """The columns of its kind that a table of an earlier version lacks, and that only measuring it again would fill.

    Raises:
        InputError: As `read_table` does.
    """
    with _opened(path) as file:
        kind = _provenance(path, file, None)["kind"]
        return [name for name in measured_columns(kind) if name not in file.schema_arrow.names]


def measured_columns(kind: str) -> list[str]:
    """The columns of a kind of table that journals hold: without `settings`, which follows from the run."""
    return [name for name in kinds.get(kind).columns if name != kinds.SETTINGS]


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    if path.is_dir():
        names = ", ".join(sorted(file.name for file in path.glob("*.parquet")))
        raise InputError(f"{path}: is a folder; name a table" + (f" in it: {names}" if names else ""))
    check_regular(path)
    if not path.is_file():
        raise InputError(f"{path}: no such table")
    try:
        with path.open("rb") as stream, pq.ParquetFile(stream, page_checksum_verification=True) as file:
            yield file
    except InputError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, RecursionError) as error:
        raise DamagedError(f"{path}: not a readable Parquet file ({first_line(error)})") from error


def _provenance(path: Path, file: pq.ParquetFile, expected: str | None) -> dict[str, Any]:
    schema = file.schema_arrow
    provenance = json.loads((schema.metadata or {}).get(METADATA_KEY, b"null"))
    if not isinstance(provenance, dict) or provenance.get("kind") not in kinds.names():
        raise InputError(f"{path}: a Parquet file, but not a table of bnsmooth")
    if provenance.get("format") != FORMAT:
        raise InputError(f"{path}: table format {provenance.get('format')}, this bnsmooth reads {FORMAT}; upgrade it")
    summed = provenance.pop("crc", None)  # Parquet itself has checksums of the pages only; early tables have none
    if summed is not None and summed != crc(provenance):
        raise DamagedError(f"{path}: its metadata is damaged; make it again")
    kind = provenance["kind"]
    if expected is not None and kind != expected:
        raise InputError(f"{path}: a table of kind {kind}; one of kind {expected} is needed here")
    if missing := [name for name in _written(kinds.get(kind)) if name not in schema.names]:
        raise InputError(f"{path}: the column '{missing[0]}' of a table of kind {kind} is missing")
    return provenance


def read_table(path: Path | str, kind: str | None = None, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Read a table.

    Args:
        path: The Parquet file.
        kind: The required kind; any kind by default.
        columns: The columns to read; all by default.

    Returns:
        The rows, with the table's provenance in `.attrs["bnsmooth"]`.

    Raises:
        InputError: If the file is missing, damaged, not a table of bnsmooth, of another kind or of a newer format.
    """
    path = Path(path)
    with _opened(path) as file:
        provenance = _provenance(path, file, kind)
        entry = kinds.get(provenance["kind"])
        # Counted by rows. `metadata.row_group(i).column(j).num_values` would be exact, but it aborts the process if the
        # footer is damaged: pyarrow 26 did after 49 of 8,825 single flipped bits. Reading the table never did.
        values = file.metadata.num_rows * sum(
            _LIST_LENGTH if column.type == "list" else 1 for column in entry.columns.values()
        )
        most = MAX_VALUES // 100 if entry.compared else MAX_VALUES
        if values > most:
            raise DamagedError(f"{path}: declares {values} values, a table of this kind has at most {most}")
        schema = schema_of(entry.name, columns)
        labels = [name for name in ("run", "problem") if name in entry.columns]
        table = file.read(columns=[*dict.fromkeys([*schema.names, *labels])])
        for name in set(schema.names) - set(table.column_names):  # written before the kind had the column
            values = (
                _settings(table, provenance) if name == kinds.SETTINGS else _missing(schema.field(name), len(table))
            )
            table = table.append_column(schema.field(name), values)
        table = table.select(schema.names).cast(schema)
        table.validate(full=True)  # checks that texts are UTF-8: 30 ms for a million rows
    for name in schema.names:
        if not entry.columns[name].nullable and table.column(name).null_count:
            raise DamagedError(f"{path}: rows without a {name}")
    frame: pd.DataFrame = table.to_pandas(ignore_metadata=True)
    frame.attrs["bnsmooth"] = provenance
    return frame


def _settings(table: pa.Table, provenance: dict[str, Any]) -> pa.Array:
    """The column `settings` of a table that was written without it, from the configurations in its provenance.

    Rows that are of several runs have it if these agree.
    """
    of_runs = "run" in table.column_names
    known = (settings_of_runs if of_runs else settings_of_problems)(provenance.get("runs"))
    label = "run" if of_runs else "problem"
    names = table.column(label).combine_chunks().dictionary_encode()
    return pa.array([known.get(name, "") for name in names.dictionary.to_pylist()], pa.string()).take(names.indices)
