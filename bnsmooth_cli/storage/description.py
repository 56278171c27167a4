"""Descriptions of tables: provenance, a summary of each column, the first and last rows. Imports no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from bnsmooth_cli import kinds
from bnsmooth_cli.config import FIELDS
from bnsmooth_cli.storage.stretches import history, is_stretches
from bnsmooth_cli.storage.tables import read_table

#: How many rows a description has from each end of the table.
ENDS: Final = 4
#: The most characters of a fact and of a cell: a file may contain any text.
MAX_FACT: Final = 2_000
MAX_CELL: Final = 32
_MAX_LISTED: Final = 8  # values that are listed in full
_MAX_TEXTS: Final = 46  # characters of a column's texts: with the column's name and counts, a line of 80


@dataclass(frozen=True)
class Description:
    """What a table contains.

    Attributes:
        facts: Pairs of a label and a text.
        runs: The settings that differ between the runs, one row per run; empty for a single run.
        numbers: A summary of each column of numbers that varies.
        others: A summary of each other column that varies.
        rows: The table's first and last rows, of the columns that vary.
        count: The number of rows of the table.
    """

    facts: list[tuple[str, str]]
    runs: pd.DataFrame
    numbers: pd.DataFrame
    others: pd.DataFrame
    rows: pd.DataFrame
    count: int


def describe(path: Path | str) -> Description:
    """Describe the table at a path. Raises InputError as `tables.read_table` does."""
    table = read_table(path)
    provenance = table.attrs["bnsmooth"]
    kind = provenance["kind"]
    columns = kinds.get(kind).columns
    types = {name: column.type for name, column in columns.items()}
    run_facts, runs = _runs(provenance)
    empty = [name for name in types if len(table) and columns[name].nullable and table[name].isna().all()]
    several = [name for name in types if len(table) > 1 and types[name] != "list"]
    constant = [name for name in several if table[name].notna().all() and table[name].nunique() == 1]
    labels = {kinds.SETTINGS, *(kinds.RUN if "run" in types else ())} if "runs" in provenance else set()
    varying = [name for name in types if name not in {*empty, *constant}]
    measured = [name for name in varying if name not in labels]
    numbers = [name for name in measured if types[name] in ("int64", "double")]
    of_every_row = [f"{name} {_listed(table[name].iloc[:1].tolist())}" for name in constant if name not in labels]
    facts = [
        ("kind", kind),
        ("rows", _extent(table)),
        ("made by", _makers(provenance)),
        *run_facts,
        *([("outcome", _outcome(provenance, len(table)))] if kind == "train" and "runs" in provenance else []),
        *((key, "no limit" if (key, value) == ("budget", None) else _text(value)) for key, value in provenance.items()
          if key not in _KNOWN and not _is_by_run(provenance, key)),
        ("every row", ", ".join(of_every_row)),
        ("no value", ", ".join(empty)),
    ]  # fmt: skip
    ends = table if len(table) <= 2 * ENDS else pd.concat([table.head(ENDS), table.tail(ENDS)])
    shown = [name for name in varying if types[name] != "list" and (name == "run" or name not in labels)]
    if "layer_name" in shown:
        shown = [name for name in shown if name != "layer"]
    return Description(
        facts=[(label, _cut(text, MAX_FACT)) for label, text in facts if text],
        runs=runs,
        numbers=pd.DataFrame([_summarise_numbers(table[name], columns[name].nullable) for name in numbers]),
        others=pd.DataFrame([_summarise_others(table[name]) for name in measured if name not in numbers]),
        rows=pd.DataFrame({name: _cells(ends[name], types[name]) for name in shown}),
        count=len(table),
    )


_MADE_BY: Final = {"bnsmooth": "version", "torch": "torch"}
#: The parts of the provenance that have their own facts, or none. `next` has commands, which a stranger's file must not
#: suggest.
_KNOWN: Final = ("kind", "format", *_MADE_BY.values(), "stretches", "runs", "last_step", "diverged_at", "next")


def _makers(provenance: Mapping[str, Any]) -> str:
    """What computed the table, with the steps if that changed. Tables of several runs tell it by run, in `_of_run`."""
    stretches = provenance.get("stretches")
    if is_stretches(stretches) and stretches:
        return history(stretches)
    if stretches and _is_by_run(provenance, "stretches"):
        return ""
    return ", ".join(f"{name} {_text(provenance[key])}" for name, key in _MADE_BY.items() if key in provenance)


def _extent(table: pd.DataFrame) -> str:
    """The number of rows and the range of their steps."""
    text = f"{len(table):,}"
    if "step" in table and len(table):
        steps = table["step"]
        first, last, many = steps.min(), steps.max(), steps.nunique()
        text += f", of step {first}" if many == 1 else f", of {many:,} steps from {first} to {last}"
    return text


def _outcome(provenance: Mapping[str, Any], rows: int) -> str:
    """How a training run ended."""
    if provenance.get("diverged_at") is not None:
        return f"diverged at step {_text(provenance['diverged_at'])}: the loss of the last row is not finite"
    if provenance.get("last_step") is not None:
        return f"finished at step {_text(provenance['last_step'])}"
    totals = [_mapping(config).get("steps") for config in _mapping(provenance.get("runs")).values()]
    of_total = f" of {_text(totals[0])}" if len(totals) == 1 else ""
    return f"unfinished: {rows:,}{of_total} steps are recorded; the same train command resumes it"


# The provenance of each run


def _runs(provenance: Mapping[str, Any]) -> tuple[list[tuple[str, str]], pd.DataFrame]:
    """Facts that all runs share, and one row per run with the settings that differ; no rows for a single run."""
    settings: dict[str, dict[tuple[str, str], str]] = {}
    for run, config in _mapping(provenance.get("runs")).items():
        config = _mapping(config)
        ordered = dict.fromkeys(key for key in (*FIELDS, *config) if key in config)
        settings[run] = {("settings", key): _text(config[key]) for key in ordered}
        for key in dict.fromkeys([*_FIRST, *provenance]):
            if key in provenance and key not in _LEFT_OUT and _is_by_run(provenance, key):
                settings[run] |= _of_run(key, provenance[key][run])
    names = list(dict.fromkeys(name for values in settings.values() for name in values))
    first = next(iter(settings.values()), {})
    shared = {name: text for name, text in first.items() if all(of.get(name) == text for of in settings.values())}
    texts: dict[str, list[str]] = {}
    for (label, name), text in shared.items():
        texts.setdefault(label, []).append(f"{name} {text}".strip())
    facts = [(label, ", ".join(parts)) for label, parts in texts.items()]
    if len(settings) < 2:
        return [*(("run", run) for run in settings), *facts], pd.DataFrame()
    differing = [name for name in names if name not in shared]
    rows = [
        {"run": run, **{key or label: _cut(of.get((label, key), "-"), MAX_CELL) for label, key in differing}}
        for run, of in settings.items()
    ]
    return [("runs", f"{len(settings):,}"), *facts], pd.DataFrame(rows)


#: Parts of the provenance with a value for each run that are shown elsewhere, or of no use (in earlier tables).
_LEFT_OUT: Final = ("runs", "trained_forward_from")
#: The parts that come first.
_FIRST: Final = ("stretches", "steps", "options")


def _is_by_run(provenance: Mapping[str, Any], key: str) -> bool:
    """Whether a part of the provenance has a value for each run."""
    runs = _mapping(provenance.get("runs"))
    return bool(runs) and _mapping(provenance[key]).keys() == runs.keys()


def _of_run(key: str, value: Any) -> dict[tuple[str, str], str]:
    """A part of the provenance for one run, as texts by label and name."""
    if key == "stretches" and is_stretches(value):
        return {("made by", ""): history(value)}
    if key == "steps" and isinstance(value, list):
        steps = f"{len(value):,} steps: {_listed(value)}" if len(value) > 1 else f"step {_listed(value)}"
        return {("measured", ""): steps}
    if isinstance(value, dict):
        return {(key, str(name)): _text(part) for name, part in value.items()}
    return {(key, ""): _text(value)}


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


# Values as texts


def _text(value: object) -> str:
    """A value as words.

    >>> [_text(value) for value in (None, True, 0.0, 1e-6, [0.5, 4.294285714], "l1")]
    ['default', 'yes', '0', '1e-06', '0.5, 4.294', 'l1']
    """
    if value is None:
        return "default"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return repr(float(value)).removesuffix(".0")
    if isinstance(value, list):
        return _listed(value)
    return _cut(json.dumps(value) if isinstance(value, dict) else str(value), MAX_FACT)


def _listed(values: Sequence[object]) -> str:
    """A few values in full, or the first and the last of many; numbers with four digits.

    >>> _listed(range(0, 1050, 50))
    '0, 50, 100, ..., 1000'
    """
    few = len(values) <= _MAX_LISTED
    texts = [
        f"{value:.4g}" if isinstance(value, float) else _cut(_text(value), MAX_CELL)
        for value in (values if few else [*values[:3], values[-1]])
    ]
    return ", ".join(texts if few else [*texts[:3], "...", texts[3]])


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


# Summaries of columns


def _summarise_numbers(column: pd.Series[Any], nullable: bool) -> dict[str, object]:
    numbers = column.dropna().astype("float64")
    values = len(numbers) if nullable else len(column)  # NaN is null, or an overflow
    integers = column.dtype.kind == "i"
    with np.errstate(all="ignore"):  # the median of infinities
        median = numbers.quantile(0.5, "lower") if integers else numbers.median()
    ends = {"min": numbers.min(), "median": median, "max": numbers.max()}
    return {"column": column.name, "values": values, **ends, "overflows": values - len(numbers)}


def _summarise_others(column: pd.Series[Any]) -> dict[str, object]:
    values = column.dropna().astype(object)
    row = {"column": column.name, "values": len(values)}
    types = {type(value) for value in values}
    if not types <= {str, bool}:
        return {**row, "different": math.nan, "which": f"lists of {_listed(sorted({*map(len, values)}))} numbers"}
    counts = values.value_counts(sort=False)
    texts = [
        f"{_text(value)} {count:,}" if types == {bool} else _cut(_text(value), MAX_CELL)
        for value, count in counts.head(_MAX_TEXTS).items()
    ]
    shown = len(texts)
    while len(which := ", ".join(texts[:shown] + ["..."] * (shown < len(counts)))) > _MAX_TEXTS and shown > 1:
        shown -= 1
    return {**row, "different": float(len(counts)), "which": which}


def _cells(column: pd.Series[Any], type_: str) -> pd.Series[Any]:
    """Values as a terminal shows them: texts cut, numbers unchanged."""
    if type_ not in ("string", "bool"):
        return column
    texts = ["-" if value is None or value != value else _cut(_text(value), MAX_CELL) for value in column.tolist()]
    return pd.Series(texts, column.index, dtype=object)
