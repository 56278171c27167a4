"""The tables: their columns, their provenance, and how they are read and written. No torch here."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Final

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from bnsmooth_cli import __version__, kinds
from bnsmooth_cli.errors import DamagedError, InputError
from bnsmooth_cli.storage.files import atomic, check_regular, check_writable
from bnsmooth_cli.storage.footer import declared_values

FORMAT: Final = 1
#: Values in a table of points; one of runs has a hundredth. What is repeated takes no space in a file, and all memory.
LARGEST: Final = 10**8
#: Rows that wait in memory to be written together.
GROUP: Final = 10_000
METADATA_KEY: Final = b"bnsmooth"


def check_target(path: Path, kind: str, force: bool) -> None:
    """Refuse, before the work, a path that cannot be written, or that holds anything but a table of this kind."""
    check_writable(path)
    if path.exists() and not force:
        read_provenance(path, kind)


def write_table(
    path: Path, kind: str, frames: Iterable[pd.DataFrame], provenance: dict[str, Any], make_folder: bool = True
) -> None:
    """Write the rows of a kind as they come, zstd-compressed, with `provenance` beside kind and version in the schema's
    metadata; memory holds GROUP rows and a frame."""
    said = json.loads(json.dumps({"kind": kind, "format": FORMAT, **provenance}))
    metadata = {METADATA_KEY: json.dumps({**said, "crc": _checksum(said)}, sort_keys=True)}
    schema = _schema(kind).with_metadata(metadata)
    groups = _groups(kind, frames, schema)
    first = next(groups)  # most tables have no other: there is no file before the rows are made
    with (
        atomic(path, make_folder) as temporary,
        temporary.open("wb") as stream,  # a name may be no Unicode, which Arrow's have to be
        pq.ParquetWriter(stream, schema, compression="zstd", write_page_checksum=True) as writer,
    ):
        for group in chain([first], groups):
            writer.write_table(group)


def kind_of(frame: pd.DataFrame) -> str:
    """The kind of table that rows are of, by their columns; InputError where they are of none."""
    for kind in kinds.KINDS:
        if set(kind.columns) == set(frame.columns):
            return kind.name
    raise InputError(f"rows with the columns {', '.join(map(str, frame.columns))[:200]}: of no kind of table")


def save_table(rows: pd.DataFrame, path: Path | str) -> None:
    """Write rows that a measurement gave, or several concatenated, as a table that the command line reads.

    Raises InputError for other rows, and for a path that cannot be written.

    >>> import tempfile, bnsmooth_cli as bns
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = bns.train("dln", "batch", steps=5, samples=20, output=f"{folder}/run")
    ...     bns.save_table(bns.ics(bns.load_point(run)), f"{folder}/ics.parquet")
    ...     len(bns.read_table(f"{folder}/ics.parquet", "ics"))
    25
    """
    write_table(Path(path), kind_of(rows), [rows], {"version": __version__})


def _checksum(said: dict[str, Any]) -> int:
    """Of what a table says of itself: the format has checksums of its pages alone."""
    return zlib.crc32(json.dumps(said, sort_keys=True).encode())


def _groups(kind: str, frames: Iterable[pd.DataFrame], schema: pa.Schema) -> Iterator[pa.Table]:
    waiting: list[pa.Table] = []
    columns = kinds.get(kind).columns
    for rows in frames:
        arrays = [
            pa.array(rows[field.name], type=field.type, from_pandas=columns[field.name].nullable) for field in schema
        ]
        waiting.append(pa.Table.from_arrays(arrays, schema=schema))
        if sum(map(len, waiting)) >= GROUP:
            yield pa.concat_tables(waiting)
            waiting.clear()
    if waiting:
        yield pa.concat_tables(waiting)


def _schema(kind: str) -> pa.Schema:
    return pa.schema(
        [
            pa.field(name, pa.list_(pa.float64()) if column.type == "list" else pa.type_for_alias(column.type))
            for name, column in kinds.get(kind).columns.items()
        ]
    )


def read_provenance(path: Path, kind: str | None = None) -> dict[str, Any]:
    """What a table says of itself, without reading its rows. Raises InputError as `read_table` does."""
    with _opened(path) as (file, _):
        return _provenance(path, file, kind)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[pq.ParquetFile, int]]:
    """The file, and how many values it declares."""
    if path.is_dir():
        found = ", ".join(sorted(file.name for file in path.glob("*.parquet")))
        raise InputError(f"{path}: is a folder; name a table" + (f" in it: {found}" if found else ""))
    check_regular(path)
    if not path.is_file():
        raise InputError(f"{path}: no such table")
    try:
        with path.open("rb") as stream:
            declared = declared_values(stream)
            with pq.ParquetFile(stream, page_checksum_verification=True) as file:
                yield file, declared
    except InputError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, RecursionError) as error:
        raise DamagedError(f"{path}: not a readable Parquet file ({_first_line(error)})") from error


def _provenance(path: Path, file: pq.ParquetFile, kind: str | None) -> dict[str, Any]:
    schema = file.schema_arrow
    provenance = json.loads((schema.metadata or {}).get(METADATA_KEY, b"null"))
    if not isinstance(provenance, dict) or provenance.get("kind") not in kinds.names():
        raise InputError(f"{path}: a Parquet file, but no table of bnsmooth's")
    if provenance.get("format") != FORMAT:
        raise InputError(f"{path}: table format {provenance.get('format')}, this bnsmooth reads {FORMAT}; upgrade it")
    if (sum_ := provenance.pop("crc", None)) is not None and sum_ != _checksum(provenance):  # older ones have none
        raise DamagedError(f"{path}: what it says of itself is damaged; make it again")
    found = provenance["kind"]
    if kind is not None and found != kind:
        raise InputError(f"{path}: a table of kind {found}; one of kind {kind} is needed here")
    if missing := [name for name in kinds.get(found).columns if name not in schema.names]:
        raise InputError(f"{path}: the column '{missing[0]}' of a table of kind {found} is missing")
    return provenance


def read_table(path: Path | str, kind: str | None = None, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """A table's rows; its provenance is in `.attrs["bnsmooth"]`. With `kind`, a table of another kind is refused.

    `columns` are those to read, by default all.

    Raises InputError for a file that is missing, damaged, no table of bnsmooth's, or of a newer format.
    """
    path = Path(path)
    with _opened(path) as (file, size):
        provenance = _provenance(path, file, kind)
        schema = _schema(provenance["kind"])
        if columns is not None:
            schema = pa.schema([schema.field(name) for name in columns])
        most = LARGEST // 100 if kinds.get(provenance["kind"]).compared else LARGEST
        if size > most:
            raise DamagedError(f"{path}: declares {size} values, a table of this kind has at most {most}")
        table = file.read(columns=schema.names).select(schema.names).cast(schema)
        table.validate(full=True)  # texts are UTF-8: 30 ms of a million rows
    for name in schema.names:
        if not kinds.get(provenance["kind"]).columns[name].nullable and table.column(name).null_count:
            raise DamagedError(f"{path}: rows without a {name}")
    frame: pd.DataFrame = table.to_pandas(ignore_metadata=True)
    frame.attrs["bnsmooth"] = provenance
    return frame


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:100] if str(error) else type(error).__name__
