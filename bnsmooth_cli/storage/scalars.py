"""Numbers over the training steps, for programs that show such numbers: tags, steps and values. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import groupby
from operator import itemgetter
from typing import Any, Final

import pandas as pd

from bnsmooth_cli import kinds

#: The kinds of tables that have such numbers.
OVER_STEPS: Final = [kind.name for kind in kinds.KINDS if kind.tensorboard]


def label(kind: str, options: object) -> str:
    """What the tags of a table begin with: its kind, and the objective if it is not the step's own batch.

    Args:
        kind: The kind of table.
        options: The keyword arguments of the measurement, as the table's provenance has them by run.

    >>> label("ics", {}), label("smoothness", {"objective": "train:8"})
    ('ics', 'smoothness.train8')
    """
    objective = options.get("objective", "batch") if isinstance(options, Mapping) else "batch"
    return kind if objective == "batch" else f"{kind}.{str(objective).replace(':', '')}"


def scalars(kind: str, table: pd.DataFrame, label: str) -> Iterator[tuple[int, dict[str, float]]]:
    """The numbers of the rows of one run, in order of the steps.

    A tag is `train/loss` or `ics/fc3/cosine`. `activations` and `theory` give the medians over the units of a layer
    (shares, for columns of yes and no), `theory` for each statement and affine map: `theory/fc3/4.1/identity/lhs`.
    `landscape` gives the extremes over the line, alpha > 0, where an overflow is infinite. Nulls are left out.

    Args:
        kind: The kind of table.
        table: Its rows.
        label: What the tags begin with.

    Yields:
        A step, and its numbers by tag.
    """
    rows = _over_steps(kind, table, label)
    columns = kinds.get(kind).columns
    names = list(map(str, rows.columns[2:]))
    null_is_nan = [name not in columns or columns[name].nullable for name in names]
    values = zip(*(rows[name].tolist() for name in rows), strict=True)
    for step, rows_of_step in groupby(values, key=itemgetter(0)):
        yield (
            int(step),
            {
                f"{tag}/{name}": value
                for _, tag, *numbers in rows_of_step
                for name, skips_nan, value in zip(names, null_is_nan, numbers, strict=True)
                if not (skips_nan and math.isnan(value))
            },
        )


def _over_steps(kind: str, table: pd.DataFrame, label: str) -> pd.DataFrame:
    """One row per step and tag, in order of steps: `step`, `tag`, and the numbers, with NaN for nulls."""
    if "alpha" in kinds.get(kind).columns:
        line = table[table["alpha"] > 0].fillna({"loss": math.inf, "grad_distance": math.inf})  # NaN is an overflow
        ends: dict[str, Any] = {
            "loss_min": ("loss", "min"), "loss_max": ("loss", "max"), "grad_distance_max": ("grad_distance", "max")
        }  # fmt: skip
        return line.assign(tag=label).groupby(["step", "tag"]).agg(**ends).reset_index()
    types = {name: column.type for name, column in kinds.get(kind).columns.items()}
    numbers = {name: type_ for name, type_ in types.items() if type_ in ("double", "bool") and name not in kinds.RUN}
    rows = table.astype(dict.fromkeys(numbers, "float64")).sort_values("step", kind="stable").assign(tag=label)
    for name in ("layer_name", "statement", "affine"):
        if name in types:
            rows["tag"] += ("/" + rows[name].str.replace(" ", "-")).fillna("")
    if "unit" in types:
        middle = {name: "mean" if type_ == "bool" else "median" for name, type_ in numbers.items()}
        rows = rows.groupby(["step", "tag"], sort=False).agg(middle).reset_index()
    return rows[["step", "tag", *numbers]]
