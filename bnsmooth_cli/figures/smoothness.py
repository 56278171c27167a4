"""Smoothness over training: effective beta (figure 4c), other metrics with the edge of stability; and by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from bnsmooth_cli.figures import style
from bnsmooth_cli.figures.page import Band, in_row, mark_handle
from bnsmooth_cli.figures.panels import SATURATED, Curves, Series, along, over_layers, papers, series

#: Column -> its name and its formula.
_METRICS: Final = {
    "beta": ("effective β-smoothness", "max ‖g(θ) − g(θ − ηg)‖ / ‖ηg‖"),
    "lipschitz": ("Lipschitz constant of the loss on the line", "max ‖g(θ − ηg)‖"),
    "sharpness": ("sharpness", "|λ|, largest of the Hessian"),
    "curvature": ("curvature along the gradient", "gᵀHg / gᵀg"),
}
#: The same of columns that are drawn if the table has values of them.
_MEASURED: Final = {
    "preconditioned": ("preconditioned sharpness", "largest λ of P⁻¹H"),
    "batch_sharpness": ("batch sharpness", "mean of gᵀHg / gᵀg"),
    "critical_lr": ("critical learning rate", "η at which L(θ − ηg) rises"),
}
#: The columns that have an edge of stability.
_STABLE: Final = ("sharpness", *_MEASURED)
#: The legend's label of the lines that separate stable from unstable values.
EDGE: Final = "edge of stability"
_EDGE_DASH: Final = (0, (5, 1.5, 1, 1.5))
#: Column -> its formula for layer i.
_BY_LAYER: Final = {"beta": "max ‖Δgᵢ‖ / ‖ηgᵢ‖", "sharpness": "|λ|, largest of Hᵢᵢ", "curvature": "gᵢᵀHᵢᵢgᵢ / gᵢᵀgᵢ"}


@dataclass(frozen=True, eq=False)
class Beta(Curves):
    """Effective beta, with a hollow mark at each point where the probe and not the network sets it.

    Attributes:
        saturated: The rows of these points. A line is drawn at 1 / (alpha_min lr), the value that they are near, with
            alpha_min the step length at which their beta is attained.
    """

    saturated: pd.DataFrame | None = None

    def draw(self, axes: Axes) -> dict[str, Line2D]:
        entries = super().draw(axes)
        if self.saturated is None or self.saturated.empty:
            return entries
        low, high = axes.get_ylim()
        for look, rows in style.groups(self.saturated):
            axes.plot(
                rows["step"], rows["beta"].clip(low, high), "o", markersize=style.scaled(5.5), markerfacecolor="none",
                markeredgecolor=look.colour, markeredgewidth=style.scaled(0.7), zorder=4,
            )  # fmt: skip
            entries[SATURATED] = mark_handle("o", markerfacecolor="none")
        limit: dict[str, Any] = {
            "color": style.ink("#C00000"),
            "linewidth": style.scaled(0.9),
            "linestyle": (0, (1, 1.5)),
        }
        rates = self.saturated.get("step_lr", self.saturated["lr"]).fillna(self.saturated["lr"])
        updates = self.saturated.get("direction", pd.Series(dtype=object)).eq("update").any()
        if updates or (rates.groupby(self.saturated["lr"]).nunique() > 1).any():
            return entries  # the value differs from step to step
        shortest = self.saturated.assign(lr=rates).groupby(["lr"], as_index=False)["beta_alpha"].min()
        for value in 1 / (shortest["lr"] * shortest["beta_alpha"]):
            axes.axhline(value, zorder=1.6, **limit)
        lengths = " or ".join(f"{alpha:g}" for alpha in sorted(shortest["beta_alpha"].unique()))
        return entries | {f"{SATURATED}: 1 / ({lengths} lr)": Line2D([], [], **limit)}


def panels(table: pd.DataFrame, paper: pd.DataFrame | None = None) -> list[Band]:
    """Figure 4c, effective beta, with the largest gradient on the line, the metrics of the Hessian, and the critical
    learning rate. Beside each sharpness is the threshold of the optimiser, beside the critical learning rate the
    learning rate."""
    table = table.assign(sharpness=table["sharpness"].abs())
    saturated = table[table["saturated"].eq(True)] if "saturated" in table else None
    curves: list[Curves] = []
    bounds = _edges(table)
    more = {column: words for column, words in _MEASURED.items() if column in table and table[column].notna().any()}
    for column, (title, ylabel) in (_METRICS | more).items():
        drawn, theirs = (
            series(table, column),
            papers(paper, table, column) + (edge(bounds, column) if column in _STABLE else []),
        )
        if column == "beta":
            curves.append(Beta(*along(table, title, ylabel), drawn, theirs, saturated=saturated))
        else:
            curves.append(Curves(*along(table, title, ylabel), drawn, theirs))
    return [in_row(*curves, most=2)]


def _edges(table: pd.DataFrame) -> pd.DataFrame:
    """The rows with the edge of stability of each sharpness in the sharpness's column; NaN where there is none.

    A threshold is that of the preconditioned sharpness in runs that have one. Batch sharpness has the edge 2 / lr if
    training is gradient descent without momentum (Andreyev & Beneventano 2024). The critical learning rate has the
    edge lr if the line is that of training's own step: the update, or the gradient in such a run.
    """
    nothing = pd.Series(np.nan, table.index)
    threshold, lr = (table[name].astype("float64") if name in table else nothing for name in ("threshold", "step_lr"))
    has_divisor = pd.Series(False, table.index)
    if "preconditioned" in table:
        has_divisor = table["preconditioned"].notna().groupby(table["run"]).transform("any")
    plain = threshold.where(~has_divisor)
    descent = np.isclose(plain * lr, 2)
    own_step = table["direction"].eq("update") if "direction" in table else descent
    edges = {
        "sharpness": plain,
        "preconditioned": threshold.where(has_divisor),
        "batch_sharpness": plain.where(descent),
        "critical_lr": lr.where(own_step),
    }
    return table.assign(**edges)


def edge(bounds: pd.DataFrame, column: str) -> list[Series]:
    """The edge of stability of a column, as one line if it is the same for all runs; nothing if it is unknown.

    If it is the same for all runs of each learning rate, as 2 / lr is, there is a line for each learning rate.

    Args:
        bounds: The rows with the edge in the place of the column's values.
        column: The column.
    """
    known = bounds[bounds[column].notna()]
    if known.empty:
        return []
    red, lrs = style.ink("#C00000"), style.lrs_of(bounds)
    parts = [(style.Look(EDGE, red, _EDGE_DASH, ""), known)]
    if not _are_shared(parts, column):
        parts = [
            (style.Look(f"{EDGE}, {style.lr_text(lr)}", red, _EDGE_DASH, style.marker(place)), rows)
            for place, lr in enumerate(lrs) if len(rows := known[known["lr"] == lr])
        ]  # fmt: skip
    if not _are_shared(parts, column):
        parts = [
            (style.Look(f"{EDGE}, {look.label}", look.colour, _EDGE_DASH, look.marker), rows)
            for look, rows in style.groups(known, lrs)
        ]
    return [Series(look, rows.groupby("step")[[column]].median()) for look, rows in parts]


def _are_shared(parts: Sequence[tuple[style.Look, pd.DataFrame]], column: str) -> bool:
    """Whether all runs of each part have the same value of a column at each step, up to rounding."""
    steps = [rows.groupby("step")[column] for _, rows in parts]
    return all((of_part.agg(np.ptp) <= 1e-9 * of_part.max()).all() for of_part in steps)


def by_layer(table: pd.DataFrame) -> list[Band]:
    """A panel for each metric over the layers: medians over the measured steps."""
    table = table.assign(sharpness=table["sharpness"].abs())
    return [in_row(*over_layers(table, {name: (_METRICS[name][0], formula) for name, formula in _BY_LAYER.items()}))]
