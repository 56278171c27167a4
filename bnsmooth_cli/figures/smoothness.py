"""Smoothness over training: effective beta (figure 4c), Lipschitz constant, sharpness and curvature; and by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from bnsmooth_cli.figures import style
from bnsmooth_cli.figures.page import Band, in_row, mark_handle
from bnsmooth_cli.figures.panels import SATURATED, Curves, along, papers, series

#: Column -> its name and its formula.
_METRICS: Final = {
    "beta": ("effective β-smoothness", "max ‖g(θ) − g(θ − ηg)‖ / ‖ηg‖"),
    "lipschitz": ("Lipschitz constant of the loss on the line", "max ‖g(θ − ηg)‖"),
    "sharpness": ("sharpness", "|λ|, largest of the Hessian"),
    "curvature": ("curvature along the gradient", "gᵀHg / gᵀg"),
}
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
        shortest = self.saturated.groupby(["lr"], as_index=False)["beta_alpha"].min()
        for value in 1 / (shortest["lr"] * shortest["beta_alpha"]):
            axes.axhline(value, zorder=1.6, **limit)
        lengths = " or ".join(f"{alpha:g}" for alpha in sorted(shortest["beta_alpha"].unique()))
        return entries | {f"{SATURATED}: 1 / ({lengths} lr)": Line2D([], [], **limit)}


def panels(table: pd.DataFrame, paper: pd.DataFrame | None = None) -> list[Band]:
    """Figure 4c, effective beta, with the largest gradient on the line and two metrics of the Hessian."""
    table = table.assign(sharpness=table["sharpness"].abs())
    saturated = table[table["saturated"].eq(True)] if "saturated" in table else None
    curves: list[Curves] = []
    for column, (title, ylabel) in _METRICS.items():
        drawn, theirs = series(table, column), papers(paper, table, column)
        if column == "beta":
            curves.append(Beta(*along(table, title, ylabel), drawn, theirs, saturated=saturated))
        else:
            curves.append(Curves(*along(table, title, ylabel), drawn, theirs))
    return [in_row(*curves, most=2)]


def by_layer(table: pd.DataFrame) -> list[Band]:
    """A panel for each metric over the layers: medians over the measured steps."""
    steps = table["step"].unique()
    of_steps = f"step {steps[0]:,}" if len(steps) == 1 else f"median over {len(steps)} measured steps"
    table = table.assign(sharpness=table["sharpness"].abs())
    by = [*style.identity(table), "layer"]
    medians = table.groupby(by, as_index=False, sort=False, observed=True)[list(_BY_LAYER)].median()
    drawn: list[Curves] = []
    for name, formula in _BY_LAYER.items():
        title = f"{_METRICS[name][0]}\n{of_steps}"
        drawn.append(Curves(title, formula, series(medians, name, x="layer"), height=2.7))
    return [in_row(*drawn)]
