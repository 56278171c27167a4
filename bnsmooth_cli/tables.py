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

from bnsmooth_cli._version import __version__
from bnsmooth_cli.errors import DamagedError, InputError
from bnsmooth_cli.files import atomic, check_regular, check_writable
from bnsmooth_cli.footer import declared_values

FORMAT: Final = 1
#: Values in a table of points; one of runs has a hundredth. What is repeated takes no space in a file, and all memory.
LARGEST: Final = 10**8
#: Rows that wait in memory to be written together.
GROUP: Final = 10_000
METADATA_KEY: Final = b"bnsmooth"

#: What says which run a row is of.
RUN: Final = {"run": "string", "problem": "string", "norm": "string", "lr": "double", "seed": "int64"}
_STEP: Final = {**RUN, "step": "int64"}
_LAYER: Final = {"layer": "int64", "layer_name": "string"}
_UNIT: Final = {**_LAYER, "unit": "int64"}


def _doubles(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, "double")


#: The figures of `smoothness` that `compare` summarises by their medians.
SMOOTHNESS: Final = ("loss_range", "predictiveness", "lipschitz", "beta", "curvature", "sharpness")
#: The figures of `compare` from the tables of `ics` and `activations`, medians too; `cosine` knows no ratio.
_SHIFT: Final = ("ics", "movement", "kurtosis")
#: The figures of `compare` that are also given as ratios to the `none` run of the same problem, lr and seed.
COMPARED: Final = (
    "final_loss", "best_loss", "final_test_accuracy", "best_test_accuracy", "steps_to_loss", "steps_to_accuracy",
    *SMOOTHNESS, *_SHIFT,
)  # fmt: skip
#: The figures of `compare` that are summarised over seeds.
SUMMARISED: Final = (*COMPARED, "cosine")

#: Kind of table -> column -> Arrow type, or "list" of doubles. Every double and bool may be null: not measured, or not
#: defined for the row.
SCHEMAS: Final[dict[str, dict[str, str]]] = {
    "train": {**_STEP, **_doubles("loss", "accuracy", "grad_norm", "test_loss", "test_accuracy")},
    "landscape": {
        **_STEP,
        **_doubles("alpha", "step_size", "distance", "loss", "grad_norm", "grad_distance", "grad_cosine"),
    },
    "smoothness": {
        **_STEP,
        **_doubles("loss", "grad_norm", "loss_min", "loss_max", "predictiveness_min", "predictiveness_max"),
        **_doubles("lipschitz", "beta", "curvature", "sharpness", "critical_alpha"),
    },
    "smoothness-by-layer": {**_STEP, **_LAYER, **_doubles("grad_norm", "beta", "curvature", "sharpness")},
    "surface": {**_STEP, **_doubles("x", "y", "loss", "path_step", "x_share", "y_share")},
    "ics": {
        **_STEP,
        **_LAYER,
        **_doubles("grad_norm", "grad_norm_updated", "ics", "cosine"),
    },
    "activations": {
        **_STEP,
        **_UNIT,
        **_doubles("mean", "std", "skewness", "kurtosis", "q01", "q05", "q25", "q50", "q75", "q95", "q99"),
        **_doubles("sigma", "wasserstein"),
        "quantiles": "list",
    },
    "theory": {
        **_STEP,
        "statement": "string",
        **_UNIT,
        "affine": "string",
        **_doubles("lhs", "rhs", "residual"),
        **dict.fromkeys(("holds", "condition"), "bool"),
        **_doubles("sigma", "gamma", "grad_norm", "mean_fraction", "output_fraction", "alignment", "curvature"),
        **_doubles("input_norm"),
    },
    "compare": {
        **RUN,
        "steps": "int64",
        "diverged_at": "double",
        **_doubles("initial_loss", "final_loss", "best_loss", "final_test_accuracy", "best_test_accuracy"),
        **_doubles("target_loss", "steps_to_loss", "target_accuracy", "steps_to_accuracy", *SMOOTHNESS),
        **_doubles(*_SHIFT, "cosine", *(f"ratio_{name}" for name in COMPARED)),
    },
    "compare-summary": {
        "problem": "string",
        "norm": "string",
        "lr": "double",
        "figure": "string",
        "seeds": "int64",
        "diverged": "int64",
        **_doubles("median", "low", "high", "ratio", "ratio_low", "ratio_high"),
    },
    "compare-claims": {
        "problem": "string",
        "claim": "int64",
        "title": "string",
        "verdict": "string",
        "part": "string",
        "rule": "string",
        "lr": "double",
        "seeds": "int64",
        **_doubles("median", "low", "high"),
        "part_verdict": "string",
        "command": "string",
    },
}


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
    for kind, columns in SCHEMAS.items():
        if set(columns) == set(frame.columns):
            return kind
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
    for rows in frames:
        columns = [
            pa.array(rows[field.name], type=field.type, from_pandas=nullable(kind, field.name)) for field in schema
        ]
        waiting.append(pa.Table.from_arrays(columns, schema=schema))
        if sum(map(len, waiting)) >= GROUP:
            yield pa.concat_tables(waiting)
            waiting.clear()
    if waiting:
        yield pa.concat_tables(waiting)


def _schema(kind: str) -> pa.Schema:
    return pa.schema(
        [
            pa.field(name, pa.list_(pa.float64()) if type_ == "list" else pa.type_for_alias(type_))
            for name, type_ in SCHEMAS[kind].items()
        ]
    )


def nullable(kind: str, column: str) -> bool:
    """Whether a NaN in a column stands for null; elsewhere it is what was measured, an overflow.

    >>> nullable("landscape", "loss"), nullable("smoothness", "sharpness")
    (False, True)
    """
    overflowing = ("loss", "grad_norm", "grad_distance", "grad_cosine", "grad_norm_updated", "ics")
    return kind in ("activations", "theory") or column not in overflowing


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
    if not isinstance(provenance, dict) or str(provenance.get("kind")) not in SCHEMAS:
        raise InputError(f"{path}: a Parquet file, but no table of bnsmooth's")
    if provenance.get("format") != FORMAT:
        raise InputError(f"{path}: table format {provenance.get('format')}, this bnsmooth reads {FORMAT}; upgrade it")
    if (sum_ := provenance.pop("crc", None)) is not None and sum_ != _checksum(provenance):  # older ones have none
        raise DamagedError(f"{path}: what it says of itself is damaged; make it again")
    found = provenance["kind"]
    if kind is not None and found != kind:
        raise InputError(f"{path}: a table of kind {found}; one of kind {kind} is needed here")
    if missing := [name for name in SCHEMAS[found] if name not in schema.names]:
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
        most = LARGEST // 100 if provenance["kind"].startswith("compare") else LARGEST
        if size > most:
            raise DamagedError(f"{path}: declares {size} values, a table of this kind has at most {most}")
        table = file.read(columns=schema.names).select(schema.names).cast(schema)
        table.validate(full=True)  # texts are UTF-8: 30 ms of a million rows
    columns_of_kind = SCHEMAS[provenance["kind"]]
    for name in schema.names:
        always = columns_of_kind[name] == "int64" or (name in RUN and "run" in columns_of_kind)
        if always and table.column(name).null_count:
            raise DamagedError(f"{path}: rows without a {name}")
    frame: pd.DataFrame = table.to_pandas(ignore_metadata=True)
    frame.attrs["bnsmooth"] = provenance
    return frame


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:100] if str(error) else type(error).__name__
