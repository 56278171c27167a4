"""Activations: distributions of the inputs to the non-linearities (figures 1c, 2, 8, 14), sigma^2 before the norms, how
far the distributions move between measured steps, and how the moments of one unit change (figure 7)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from bnsmooth_cli.figures import style
from bnsmooth_cli.figures.panels import Curves, Panel, Series, papers, series

_MAX_LAYERS: Final = 5
_MAX_RIDGES: Final = 12  # steps
_BINS: Final = 40
_OVERLAP: Final = 1.9  # the height of a ridge, in distances between ridges
_HEADROOM: Final = 1e9  # without norms, a deep network's sigma^2 and moments are that much smaller; all are shown
_MAX_WIDTH: Final = 6.0  # an axis shows at most this many times the range of the median run
#: Column -> its name and its formula.
_MOMENTS: Final = {
    "mean_change": ("change of the mean", "|Δμ|"),
    "var_change": ("change of the variance", "|Δσ²|"),
    "mean_drift": ("drift of the mean", "μₜ − μ₀"),
    "var_drift": ("drift of the variance", "σ²ₜ − σ²₀"),
}


@dataclass(frozen=True, eq=False)
class Ridges:
    """A unit's distribution at several steps, one histogram above the other, on axes that several panels share."""

    title: str
    ylabel: str
    colour: str
    steps: Sequence[int]
    densities: NDArray[np.float64]  # (steps, bins)
    edges: NDArray[np.float64]
    top: float  # the density that fills a ridge
    lowest: bool
    height: float = 1.65

    def draw(self, axes: Axes) -> dict[str, Line2D]:
        axes.set_title(self.title)
        axes.set_ylabel(self.ylabel)
        centres = (self.edges[1:] + self.edges[:-1]) / 2
        # From the top down: each ridge is in front of the one above.
        for place in reversed(range(len(self.steps))):
            ridge = place + np.minimum(_OVERLAP * self.densities[place] / self.top, 1.6 * _OVERLAP)  # peaks are cut
            axes.fill_between(centres, place, ridge, color=self.colour, alpha=0.45, linewidth=0)
            axes.plot(centres, ridge, color=self.colour, linewidth=0.8)
        marked = sorted({0, (len(self.steps) - 1) // 2, len(self.steps) - 1})
        axes.set_yticks(marked, [f"{self.steps[place]:,}" for place in marked] if self.ylabel else [""] * len(marked))
        axes.set(xlim=(self.edges[0], self.edges[-1]), ylim=(-0.2, len(self.steps) + 1.6 * _OVERLAP - 1))
        axes.tick_params(labelbottom=self.lowest)
        if self.lowest:
            axes.set_xlabel("input to the non-linearity")
        return {}


def panels(table: pd.DataFrame) -> list[list[Panel]]:
    """A column for each of up to five layers: distributions, one row per norm; then sigma^2 and the distances moved."""
    layers = np.unique(table["layer"])
    shown = layers[_spread(len(layers), _MAX_LAYERS)]
    columns = [_column(table[table["layer"] == layer], first=layer == shown[0]) for layer in shown]
    return [list(row) for row in zip(*columns, strict=True)]


def _column(table: pd.DataFrame, first: bool) -> list[Panel]:
    name = table["layer_name"].iloc[0]
    # The distributions are examples: the first unit of the first run of each norm. The curves below are medians.
    pictured = [(look, _thinned(_one_unit(rows))) for look, rows in style.groups(table)]
    edges = _edges([rows for _, rows in pictured])
    densities = [_densities(rows, edges) for _, rows in pictured]
    peaks = [float(np.median(density.max(axis=1))) for density in densities]
    top = min(max(peaks), 4 * min(peaks)) or 1.0
    column: list[Ridges] = []
    for (look, rows), density in zip(pictured, densities, strict=True):
        title = f"{name}, unit {rows['unit'].iloc[0]}"
        column.append(
            Ridges(
                title if not column or title != column[0].title else "",
                f"{look.label}\nstep" if first else "",
                look.colour,
                [int(step) for step in rows["step"]],
                density,
                edges,
                top,
                lowest=look is pictured[-1][0],
            )
        )
    table = table.assign(variance=table["sigma"] ** 2, moved=table["wasserstein"] / table["std"])
    medians = table.groupby(["run", "norm", "lr", "step"], as_index=False, sort=False)[["variance", "moved"]].median()
    sizes = series(medians, "variance")
    scale = style.fit([curves.values.to_numpy() for curves in sizes], headroom=_HEADROOM)
    size = Curves(name, "σ² before the norm" if first else "", sizes, upper=True, scale=scale)
    distance = Curves(name, "W₁ to the step before / std" if first else "", series(medians, "moved"))
    return [*column, size, distance]


def moments(table: pd.DataFrame, paper: pd.DataFrame | None = None) -> list[list[Panel]]:
    """Figure 7: the changes and the drifts of an activation's mean and variance, a row for each of up to five layers.

    The paper shows one activation of each layer. So does this figure: the first unit of the first run of each norm and
    learning rate. If the table has the floor, it is the dotted line under the changes.
    """
    layers = np.unique(table["layer"])
    if paper is not None:
        layers = np.intersect1d(layers, paper["layer"].dropna())
    layers = layers[_spread(len(layers), _MAX_LAYERS)]
    page: list[list[Panel]] = []
    for layer in layers:
        rows = table[table["layer"] == layer]
        pictured = pd.concat([_one_unit(group) for _, group in style.groups(rows)])
        units = ", ".join(str(unit) for unit in np.unique(pictured["unit"]))
        name = f"{rows['layer_name'].iloc[0]}, unit {units}"
        row: list[Panel] = []
        for column, (title, ylabel) in _MOMENTS.items():
            title = f"{name}\n{title}"
            ours, theirs = series(pictured, column), papers(paper, pictured, column)
            values = [curves.values.to_numpy() for curves in (*ours, *theirs)]
            # A drift changes its sign, which a logarithmic axis shows badly.
            scale = style.fit(values, np.inf if column.endswith("drift") else style.DECADES, _HEADROOM)
            thin = [*theirs, *_floors(pictured, column)]
            row.append(Curves(title, ylabel, ours, thin, upper=layer != layers[-1], scale=scale, height=1.9))
        page.append(row)
    return page


def _floors(pictured: pd.DataFrame, column: str) -> list[Series]:
    """The floor of a change, if the table has one. It does not count for the scale: BatchNorm's is of rounding."""
    floor = f"floor_{column}"
    if floor not in pictured:
        return []
    shown = pictured[pictured[floor].notna()]
    return [Series(style.floors(curves.look), curves.values) for curves in series(shown, floor)]


def _one_unit(rows: pd.DataFrame) -> pd.DataFrame:
    rows = rows[rows["run"] == rows["run"].iloc[0]].drop_duplicates(["unit", "step"], keep="last")
    return rows[rows["unit"] == rows["unit"].min()].sort_values("step")


def _thinned(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.iloc[_spread(len(rows), _MAX_RIDGES)]


def _spread(count: int, most: int) -> list[int]:
    """At most `most` evenly spread places among `count`, the first and the last one included."""
    return sorted({round(place) for place in np.linspace(0, count - 1, most)})


def _edges(pictured: Sequence[pd.DataFrame]) -> NDArray[np.float64]:
    """Bins that cover the values of all norms, unless a norm is so wide that the others would be flat."""
    ends = np.array([[rows["q01"].median(), rows["q99"].median()] for rows in pictured], dtype=np.float64)
    ends = ends[np.isfinite(ends).all(axis=1)]
    if not len(ends):
        return np.linspace(-1, 1, _BINS + 1)
    reach = _MAX_WIDTH * float(np.median(np.abs(ends).max(axis=1))) or 1.0
    low, high = max(ends[:, 0].min(), -reach), min(ends[:, 1].max(), reach)
    margin = max(0.2 * (high - low), 1e-6 * max(abs(low), abs(high))) or 1.0
    return np.linspace(low - margin, high + margin, _BINS + 1)


def _densities(rows: pd.DataFrame, edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """The share of values in each bin, from the piecewise linear distribution function through the quantiles."""
    shares: list[Any] = []
    for quantiles in rows["quantiles"]:
        values = np.asarray(quantiles, dtype=np.float64)
        probabilities = (np.arange(len(values)) + 0.5) / len(values)
        finite = bool(np.isfinite(values).all())
        shares.append(np.diff(np.interp(edges, values, probabilities, 0, 1)) if finite else np.zeros(len(edges) - 1))
    return np.array(shares)
