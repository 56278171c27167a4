"""A table for a reader: what it is, what it says of itself, a row a column, its first and last rows. No torch here."""

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
from bnsmooth_cli.storage.tables import read_table

#: Rows that a description has of a table, the first and the last ones.
ENDS: Final = 4
#: Characters of a fact, and of a cell: a table may hold whole books.
LONGEST: Final = 1_000
LONGEST_CELL: Final = 32
_FEW: Final = 8  # values that are all listed
_WIDE: Final = 46  # characters of a list of words: beside their number they fill 80


@dataclass(frozen=True)
class Description:
    """What a table is and holds.

    `facts` are pairs of a label and a text; `runs` has a row a run, of the settings that they do not share; `numbers`
    and `words` have a row a column that varies; `rows` are the table's first and last ones, of the columns that vary,
    of `count` in all.
    """

    facts: list[tuple[str, str]]
    runs: pd.DataFrame
    numbers: pd.DataFrame
    words: pd.DataFrame
    rows: pd.DataFrame
    count: int


def describe(path: Path | str) -> Description:
    """Describe the table at a path. Raises InputError as `tables.read_table` does."""
    table = read_table(path)
    said = table.attrs["bnsmooth"]
    kind = said["kind"]
    its_runs, runs = _runs(said)
    columns = kinds.get(kind).columns
    types = {name: column.type for name, column in columns.items()}
    empty = [name for name in types if len(table) and columns[name].nullable and table[name].isna().all()]
    constant = [name for name in types if _constant(table[name], types[name])]
    labels = set(kinds.RUN) if "run" in types and "runs" in said else set()
    varying = [name for name in types if name not in {*empty, *constant}]
    measured = [name for name in varying if name not in labels]
    told = [f"{name} {_listed(table[name].iloc[:1].tolist())}" for name in constant if name not in labels]
    facts = [
        ("kind", kind),
        ("rows", _extent(table)),
        ("made by", ", ".join(f"{name} {_text(said[key])}" for name, key in _MADE_BY.items() if key in said)),
        *its_runs,
        *([("outcome", _outcome(said, len(table)))] if kind == "train" and "runs" in said else []),
        *((key, _text(value)) for key, value in said.items() if key not in _KNOWN and not _by_run(said, key)),
        ("every row", ", ".join(told)),
        ("no value", ", ".join(empty)),
    ]
    ends = table if len(table) <= 2 * ENDS else pd.concat([table.head(ENDS), table.tail(ENDS)])
    shown = [name for name in varying if types[name] != "list" and (name == "run" or name not in labels)]
    if "layer_name" in shown:
        shown = [name for name in shown if name != "layer"]
    return Description(
        facts=[(label, _cut(text, LONGEST)) for label, text in facts if text],
        runs=runs,
        numbers=pd.DataFrame([_number(kind, table[name]) for name in measured if types[name] in ("int64", "double")]),
        words=pd.DataFrame([_word(table[name]) for name in measured if types[name] not in ("int64", "double")]),
        rows=pd.DataFrame({name: _readable(ends[name], types[name]) for name in shown}),
        count=len(table),
    )


_MADE_BY: Final = {"bnsmooth": "version", "torch": "torch"}
_KNOWN: Final = ("kind", "format", *_MADE_BY.values(), "runs", "last_step", "diverged_at", "next")


def _constant(column: pd.Series[Any], type_: str) -> bool:
    return len(column) > 1 and type_ != "list" and bool(column.notna().all()) and column.nunique() == 1


def _extent(table: pd.DataFrame) -> str:
    text = f"{len(table):,}"
    if "step" in table and len(table):
        steps = table["step"]
        first, last, many = steps.min(), steps.max(), steps.nunique()
        text += f", of step {first}" if many == 1 else f", of {many:,} steps from {first} to {last}"
    return text


def _outcome(said: Mapping[str, Any], rows: int) -> str:
    """How a training run ended, or that it did not."""
    if said.get("diverged_at") is not None:
        return f"diverged at step {_text(said['diverged_at'])}: the loss of the last row is not finite"
    if said.get("last_step") is not None:
        return f"finished at step {_text(said['last_step'])}"
    asked = [_mapping(config).get("steps") for config in _mapping(said.get("runs")).values()]
    steps = f" of {_text(asked[0])}" if len(asked) == 1 else ""
    return f"unfinished: {rows:,}{steps} steps are recorded; the same train command goes on"


# What a table says of its runs


def _runs(said: Mapping[str, Any]) -> tuple[list[tuple[str, str]], pd.DataFrame]:
    """Facts of what all runs share; a row a run of what they do not, of one run none."""
    settings: dict[str, dict[tuple[str, str], str]] = {}
    for run, config in _mapping(said.get("runs")).items():
        settings[run] = {("settings", key): _text(value) for key, value in _ordered(_mapping(config))}
        for key in dict.fromkeys([*_FIRST, *said]):
            if key in said and key != "runs" and _by_run(said, key):
                settings[run] |= _of_run(key, said[key][run])
    names = list(dict.fromkeys(name for values in settings.values() for name in values))
    shared = {
        name: text
        for name, text in next(iter(settings.values()), {}).items()
        if all(values.get(name) == text for values in settings.values())
    }
    told: dict[str, list[str]] = {}
    for (label, name), text in shared.items():
        told.setdefault(label, []).append(f"{name} {text}".strip())
    facts = [(label, ", ".join(texts)) for label, texts in told.items()]
    if len(settings) < 2:
        return [*(("run", run) for run in settings), *facts], pd.DataFrame()
    rows = [
        {
            "run": run,
            **{
                key or label: _cut(of.get((label, key), "-"), LONGEST_CELL)
                for label, key in names
                if (label, key) not in shared
            },
        }
        for run, of in settings.items()
    ]
    return [("runs", f"{len(settings):,}"), *facts], pd.DataFrame(rows)


#: Of what a table says run by run, what is told first.
_FIRST: Final = ("steps", "trained_forward_from", "options")


def _by_run(said: Mapping[str, Any], key: str) -> bool:
    """Whether what a table says under a key, it says of each of its runs."""
    runs = _mapping(said.get("runs"))
    return bool(runs) and _mapping(said[key]).keys() == runs.keys()


def _of_run(key: str, value: Any) -> dict[tuple[str, str], str]:
    """What stands under a key for one run, as texts by label and name."""
    if key == "steps" and isinstance(value, list):
        return {
            ("measured", ""): f"{len(value):,} steps: {_listed(value)}" if len(value) > 1 else f"step {_listed(value)}"
        }
    if key == "trained_forward_from" and isinstance(value, dict):
        return {("reached", ""): _reached(value)}
    if isinstance(value, dict):
        return {(key, str(name)): _text(one) for name, one in value.items()}
    return {(key, ""): _text(value)}


def _reached(nearest: Mapping[str, Any]) -> str:
    """How the steps were come to, each from the checkpoint before it.

    >>> _reached({"0": 0, "1": 0, "2": 2})
    '2 of 3 at their checkpoints; trained forward: 1 from 0'
    """
    steps = sorted(nearest, key=lambda step: (len(step), step))  # as numbers
    forward = [f"{step} from {_text(nearest[step])}" for step in steps if step != str(nearest[step])]
    if not forward:
        return "all at their checkpoints"
    there = len(nearest) - len(forward)
    return f"{there} of {len(nearest)} at their checkpoints; trained forward: {_listed(forward)}"


def _ordered(config: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Settings in the order of configurations, others last."""
    known = list(FIELDS)
    return sorted(config.items(), key=lambda item: known.index(item[0]) if item[0] in known else len(known))


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


# Values as texts


def _text(value: object) -> str:
    """A value of a table's own account as words.

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
    return _cut(json.dumps(value) if isinstance(value, dict) else str(value), LONGEST)


def _listed(values: Sequence[object]) -> str:
    """All of a few values, the first and last of many, numbers to four digits.

    >>> _listed(range(0, 1050, 50))
    '0, 50, 100, ..., 1000'
    """
    few = len(values) <= _FEW
    texts = [
        f"{value:.4g}" if isinstance(value, float) else _cut(_text(value), LONGEST_CELL)
        for value in (values if few else [*values[:3], values[-1]])
    ]
    return ", ".join(texts if few else [*texts[:3], "...", texts[3]])


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


# A row a column


def _number(kind: str, column: pd.Series[Any]) -> dict[str, object]:
    values = column.dropna().astype("float64")
    given = len(values) if kinds.get(kind).columns[str(column.name)].nullable else len(column)
    whole = column.dtype.kind == "i"  # of two steps in the middle, one that there is
    with np.errstate(all="ignore"):  # the middle of two infinities, or of numbers at the edge
        middle = values.quantile(0.5, "lower") if whole else values.median()
    ends = {"min": values.min(), "median": middle, "max": values.max()}
    return {"column": column.name, "values": given, **ends, "overflows": given - len(values)}


def _word(column: pd.Series[Any]) -> dict[str, object]:
    values = column.dropna().astype(object)
    row = {"column": column.name, "values": len(values)}
    kinds = {type(value) for value in values}
    if not kinds <= {str, bool}:
        return {**row, "different": math.nan, "which": f"lists of {_listed(sorted({*map(len, values)}))} numbers"}
    counts = values.value_counts(sort=False)
    texts = [
        f"{_text(value)} {count:,}" if kinds == {bool} else _cut(_text(value), LONGEST_CELL)
        for value, count in counts.head(_WIDE).items()
    ]
    most = len(texts)
    while len(which := ", ".join(texts[:most] + ["..."] * (most < len(counts)))) > _WIDE and most > 1:
        most -= 1
    return {**row, "different": float(len(counts)), "which": which}


def _readable(column: pd.Series[Any], type_: str) -> pd.Series[Any]:
    """Values as a terminal shows them: texts cut, numbers as they are."""
    if type_ not in ("string", "bool"):
        return column
    texts = ["-" if value is None or value != value else _cut(_text(value), LONGEST_CELL) for value in column.tolist()]
    return pd.Series(texts, column.index, dtype=object)
