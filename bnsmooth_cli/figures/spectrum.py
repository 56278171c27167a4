"""The spectrum of the Hessian: eigenvalues and trace over training, by layer, and the density at some steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from bnsmooth_cli.figures import style
from bnsmooth_cli.figures.page import Band, in_row, say_empty
from bnsmooth_cli.figures.panels import Curves, of_band, over_layers, series
from bnsmooth_cli.figures.smoothness import edge

#: Column -> its name and its formula.
_METRICS: Final = {
    "largest": ("largest eigenvalue", "λ₁"),
    "smallest": ("smallest eigenvalue", "λₙ"),
    "trace": ("trace", "Σ λᵢ"),
    "effective_rank": ("effective rank", "Σ λᵢ / λ₁"),
}
_BESIDE: Final = {"beside": ("beside the Gauss-Newton matrix", "|λ|, largest of H − G")}
_STEPS: Final = 3  # whose densities are drawn
#: A node is drawn as a Gaussian of this width, relative to the range of the nodes (after Ghorbani et al. 2019).
_WIDTH: Final = 0.01
_POINTS: Final = 501
_DEPTH: Final = 1e8  # the axis of a density reaches this many times below its top


def panels(table: pd.DataFrame) -> list[Band]:
    """The K largest eigenvalues over training, beside the largest stable one; then the smallest, the trace and the
    effective rank."""
    ranked = table[[*style.identity(table), "step", "eigenvalues"]].explode("eigenvalues")
    ranked["rank"] = ranked.groupby(["run", "step"]).cumcount()
    stable = edge(table.assign(largest=table["threshold"]), "largest")
    count = int(ranked["rank"].max()) + 1
    largest = series(ranked, "eigenvalues", spread="rank")
    title = of_band(f"the {count} largest eigenvalues", largest)
    bands = [] if count == 1 else [
        Curves(title, f"λ₁ to λ{count:d}".translate(_SUBSCRIPTS), largest, stable, band=True)
    ]  # fmt: skip
    drawn = _METRICS | (_BESIDE if "beside" in table else {})
    if bands:  # the top of the band is the largest eigenvalue
        drawn.pop("largest")
    for column, (title, formula) in drawn.items():
        values = table.assign(beside=table["beside"].abs()) if column == "beside" else table
        bands.append(Curves(title, formula, series(values, column), stable if column == "largest" else ()))
    return [in_row(*bands, most=3)]


_SUBSCRIPTS: Final = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


def by_layer(table: pd.DataFrame) -> list[Band]:
    """A panel for each metric over the layers: medians over the measured steps."""
    return [in_row(*over_layers(table, _METRICS), most=2)]


@dataclass(frozen=True, eq=False)
class Density:
    """The density of the eigenvalues of one norm at a step, on a logarithmic axis.

    Attributes:
        title: The panel's title.
        look: The look of the norm.
        rows: The nodes and weights of all runs.
    """

    title: str
    look: style.Look
    rows: pd.DataFrame
    ylabel: str = "density"
    width: float = 2.2
    height: float = 1.9

    def draw(self, axes: Axes) -> dict[str, Line2D]:
        entries = {self.look.label: Line2D([], [], color=self.look.colour, linewidth=style.scaled(1.6))}
        rows = self.rows[np.isfinite(self.rows["node"].astype("float64"))]
        if rows.empty:
            say_empty(axes)
            return entries
        low, high = float(rows["node"].min()), float(rows["node"].max())
        width = _WIDTH * (high - low) or 1.0
        xs = np.linspace(low - 4 * width, high + 4 * width, _POINTS)
        values = _smoothed(rows, xs, width)
        top = values.max()
        axes.fill_between(
            xs, top / _DEPTH, np.maximum(values, top / _DEPTH), color=self.look.colour, alpha=0.3, linewidth=0
        )
        axes.plot(xs, np.maximum(values, top / _DEPTH), color=self.look.colour, linewidth=style.scaled(1.1))
        ends = np.array([low, high])  # a single eigenvalue may be too little to see
        heights = np.maximum(_smoothed(rows, ends, width), top / _DEPTH)
        axes.plot(ends, heights, "o", color=self.look.colour, markersize=style.scaled(3))
        axes.set_yscale("log")
        axes.set(xlim=(xs[0], xs[-1]), ylim=(top / _DEPTH, 3 * top))
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.set_xlabel("eigenvalue")
        return entries


def density(table: pd.DataFrame) -> list[Band]:
    """The density of the eigenvalues, a column for each norm: at the first, a middle and the last measured step.

    Each panel has its own axis, as the ranges of two norms may differ a thousandfold.
    """
    columns = []
    for look, rows in style.groups(table):
        steps = np.unique(rows["step"])
        chosen = steps[np.unique(np.linspace(0, len(steps) - 1, _STEPS).round().astype(int))]
        columns.append([Density(f"{look.label}, step {step:,}", look, rows[rows["step"] == step]) for step in chosen])
    return [Band([columns], most=4)]


def _smoothed(rows: pd.DataFrame, xs: NDArray[np.float64], width: float) -> NDArray[np.float64]:
    """The mean density of the vectors of all runs, each node a Gaussian."""
    vectors = len(rows[["run", "vector"]].drop_duplicates())
    nodes, weights = rows["node"].to_numpy(np.float64), rows["weight"].to_numpy(np.float64)
    total = np.zeros_like(xs)
    for part in range(0, len(nodes), 4096):
        apart = (xs[:, None] - nodes[part : part + 4096]) / width
        total += np.exp(-(apart**2) / 2) @ weights[part : part + 4096]
    return total / (vectors * width * np.sqrt(2 * np.pi))
