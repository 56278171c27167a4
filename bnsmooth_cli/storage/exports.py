"""Tables as CSV. Imports no torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from bnsmooth_cli.errors import InputError
from bnsmooth_cli.storage.files import atomic, check_regular, check_writable
from bnsmooth_cli.storage.tables import GROUP, read_table, to_arrow


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
