"""The curves of the paper that belong beside a table, and how far the table is from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import pandas as pd

from bnsmooth_cli import kinds
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.paper import Axis, PaperFigure, find, read

#: What identifies a curve of a figure, as far as the figure has it.
_CURVE: Final = ("problem", "norm", "lr", "layer")
#: An edge of a band -> how it is computed from the rows of a landscape.
_EDGES: Final = {
    "loss_min": ("loss", "min"),
    "loss_max": ("loss", "max"),
    "predictiveness_min": ("grad_distance", "min"),
    "predictiveness_max": ("grad_distance", "max"),
}


def select(names: str, kind: str, tables: Mapping[str, pd.DataFrame], drawing: str | None = None) -> list[PaperFigure]:
    """The figures of the paper to draw beside tables.

    Args:
        names: Figures of the paper, separated by commas. The number of a figure with several parts stands for those
            parts that can be drawn from these tables.
        kind: The kind of table that is drawn.
        tables: The rows by kind; with "ics" perhaps also "train", for the first panel.
        drawing: The figure of the kind that is drawn; any by default.

    Raises:
        InputError: If there is no such figure, it is not drawn from these tables, or it shows none of their runs.
    """
    chosen: list[PaperFigure] = []
    for name in (part.strip() for part in names.split(",")):
        parts = find(name)
        drawn = [
            part for part in parts if part.table in tables and (part.table != kind or drawing in (None, part.drawing))
        ]
        if not drawn:
            needed = " or ".join(dict.fromkeys(_source(part.table, part.drawing) for part in parts))
            given = _source(kind, drawing)
            raise InputError(f"--paper {name}: this figure is drawn from tables of kind {needed}, not {given}")
        matching = [part for part in drawn if len(curves([part], tables))]
        if not matching:
            shown = "; ".join(dict.fromkeys(_runs(read(part.name)) for part in drawn))
            given = "; ".join(_runs(table) for table in tables.values())
            raise InputError(f"--paper {name}: this figure shows {shown}; the table has only {given}")
        chosen += matching
    if len(drawings := {part.drawing for part in chosen if part.table == kind}) > 1:
        several = " and ".join(f"--figure {drawing}" for drawing in sorted(drawings))
        raise InputError(f"--paper {names}: these are drawn in several figures, {several}; give those of one")
    return chosen


def _source(kind: str, drawing: str | None) -> str:
    """A kind of table, with the option that selects a drawing if the kind has several."""
    return f"{kind} --figure {drawing}" if drawing and kinds.get(kind).figures[1:] else kind


def _runs(table: pd.DataFrame) -> str:
    """The problems, norms, learning rates and layers of some rows, in words."""
    texts = []
    for problem, rows in table.groupby("problem", sort=False):
        lrs = ", ".join(f"{lr:g}" for lr in sorted(rows["lr"].unique(), reverse=True))
        layers = f", layers {', '.join(map(str, sorted(rows['layer'].unique())))}" if "layer" in rows else ""
        texts.append(f"{problem} with {', '.join(rows['norm'].unique())} at lr {lrs}{layers}")
    return "; ".join(texts)


def curves(figures: Sequence[PaperFigure], tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The rows of figures whose problem, norm, learning rate and layer a table has.

    Args:
        figures: The figures.
        tables: The tables that they are drawn from, by kind.

    Returns:
        The columns of the figures, with `figure` for the name. A column that a row's figure does not show is NaN.
    """
    matching = []
    for figure in figures:
        rows = read(figure.name)
        keys = [key for key in _CURVE if key in rows]
        matching.append(rows.merge(tables[figure.table][keys].drop_duplicates(), on=keys).assign(figure=figure.name))
    return pd.concat(matching, ignore_index=True)


def distances(figures: Sequence[PaperFigure], tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    r"""How far tables are from the paper's curves: one number for each curve or band of a figure.

    With $y$ the median of our runs over seeds (of activations, also over units) and $y'$ the paper's value, the
    distance is the median over the steps that both have measured, of $|\log_{10} y - \log_{10} y'|$ in decades where
    the paper's axis is logarithmic, and of $|y - y'|$ in units of the axis where it is linear (accuracies in percentage
    points). A band counts with its lower and its upper edge, and figure 10 with every step length that both have. Our
    band is the range over the table's own step lengths. An overflow is infinitely far away. The change of the gradient
    is compared twice if the table has both lengths: as the norm of the whole change, and summed over parameter tensors
    as the paper's figures appear to be (docs/paper.md).

    Args:
        figures: Figures that `select` chose.
        tables: The tables that they are drawn from, by kind.

    Returns:
        Columns `figure`, `quantity`, `problem`, `norm`, `lr`, `layer` (NaN where the figure has none), `steps` (the
        number of common steps), `distance` (NaN without any) and `unit`.

    >>> from bnsmooth_cli import paper
    >>> ours = paper.read("4c").assign(beta=lambda rows: rows.beta + 2)
    >>> distances(paper.find("4c"), {"smoothness": ours})[["norm", "steps", "distance", "unit"]].values.tolist()
    [['none', 151, 2.0, 'units'], ['batch', 151, 2.0, 'units']]
    """
    rows: list[dict[str, object]] = []
    for figure in figures:
        theirs, table = curves([figure], tables), tables[figure.table]
        rows += _apart_by_curve(figure, theirs, table)
        if figure.shows_lengths and "grad_distance_summed" in table and table["grad_distance_summed"].notna().any():
            summed = table.assign(grad_distance=table["grad_distance_summed"])
            rows += _apart_by_curve(figure, theirs, summed, ", summed")
    columns = ["figure", "quantity", *_CURVE, "steps", "distance", "unit"]
    return pd.DataFrame(rows, columns=columns).astype({"layer": "float64"})


def _apart_by_curve(
    figure: PaperFigure, theirs: pd.DataFrame, table: pd.DataFrame, version: str = ""
) -> list[dict[str, object]]:
    """The rows of `distances` for a figure, from the paper's curves and a table; `version` ends the quantity's name."""
    rows: list[dict[str, object]] = []
    ours = _ours(figure, table, [*_CURVE, "step", "alpha"])
    keys = [key for key in (*_CURVE, "step", "alpha") if key in theirs]
    both = theirs.merge(ours, on=keys, how="left", suffixes=("", "_ours"))
    curve = [key for key in _CURVE if key in theirs]
    for axis in figure.axes:
        for key, pairs in both.groupby(curve, sort=False):
            measured = pairs.dropna(subset=[f"{column}_ours" for column in axis.columns])
            rows.append(
                {"figure": figure.name, "quantity": f"{axis.quantity}{version}", "layer": np.nan}
                | dict(zip(curve, key, strict=True))
                | {"steps": measured["step"].nunique(), "distance": _apart(axis, measured)}
                | {"unit": "decades" if axis.log else axis.unit}
            )
    return rows


def _ours(figure: PaperFigure, table: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """The columns of a figure from a table: medians over seeds and units."""
    columns = figure.columns()
    if figure.table != figure.kind:  # the edges of a band, from the rows of a landscape; on the line NaN is an overflow
        line = table[table["alpha"] > 0].fillna({source: np.inf for source, _ in _EDGES.values()})
        groups = line.groupby(["run", *(key for key in keys if key in line and key != "alpha")], sort=False)
        table = groups.agg(**{column: _EDGES[column] for column in columns}).reset_index()
    by = [key for key in keys if key in table]
    medians = table.groupby(by, sort=False)[columns].median()
    return medians.reset_index()


def _apart(axis: Axis, pairs: pd.DataFrame) -> float:
    if pairs.empty:
        return np.nan
    theirs, ours = (
        np.column_stack([pairs[f"{column}{suffix}"].to_numpy("float64") for column in axis.columns])
        for suffix in ("", "_ours")
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = np.abs(np.log10(ours) - np.log10(theirs)) if axis.log else np.abs(ours - theirs) * axis.per_column
    return float(np.median(np.where(np.isnan(apart), np.inf, apart)))
