"""Activations: distributions of the inputs to the non-linearities (figures 1c, 2, 8, 14), sigma^2 before the norms, how
far the distributions move between measured steps, and how the moments of one unit change (figure 7)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from bnsmooth_cli.figures import scales, style
from bnsmooth_cli.figures.page import Band, Panel, draw_mark, in_row
from bnsmooth_cli.figures.panels import OFF_SCALE, Curves, Series, papers, series, shared

_MAX_LAYERS: Final = 5
_MAX_RIDGES: Final = 12  # steps
_BINS: Final = 40
_OVERLAP: Final = 1.9  # the height of a ridge, in distances between ridges
_HEADROOM: Final = 1e9  # without norms, a deep network's sigma^2 and moments are that much smaller; all are shown
_NOT_FINITE: Final = "not finite"
_MOSTLY: Final = 0.5  # a distribution of which more lies beyond the axis is marked
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
    """A unit's distribution at several steps, one histogram above the other, on axes that several panels share.

    A mark stands on the edge for a distribution most of which lies beyond it, and a cross for one that is not finite.
    """

    title: str
    ylabel: str
    colour: str
    steps: Sequence[int]
    densities: NDArray[np.float64]  # (steps, bins)
    outside: NDArray[np.float64]  # (steps,): the share beyond the bins; NaN if a quantile is not finite
    edges: NDArray[np.float64]
    top: float  # the density that fills a ridge
    width: float = 1.3
    height: float = 1.65

    def draw(self, axes: Axes) -> dict[str, Line2D]:
        centres = (self.edges[1:] + self.edges[:-1]) / 2
        entries: dict[str, Line2D] = {}
        # From the top down: each ridge is in front of the one above.
        for place in reversed(range(len(self.steps))):
            ridge = place + np.minimum(_OVERLAP * self.densities[place] / self.top, 1.6 * _OVERLAP)  # peaks are cut
            axes.fill_between(centres, place, ridge, color=self.colour, alpha=0.45, linewidth=0)
            axes.plot(centres, ridge, color=self.colour, linewidth=style.scaled(0.8))
            if np.isnan(self.outside[place]):
                entries[_NOT_FINITE] = draw_mark(axes, "x", self.edges[-1], place, self.colour)
            elif self.outside[place] > _MOSTLY:
                entries[OFF_SCALE] = draw_mark(axes, ">", self.edges[-1], place, self.colour)
        marked = sorted({0, (len(self.steps) - 1) // 2, len(self.steps) - 1})
        axes.set_yticks(marked, [f"{self.steps[place]:,}" for place in marked])
        axes.set(xlim=(self.edges[0], self.edges[-1]), ylim=(-0.2, len(self.steps) + 1.6 * _OVERLAP - 1))
        axes.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
        axes.set_xlabel("input to the non-linearity")
        return entries


def panels(table: pd.DataFrame, selected: Collection[str] = ()) -> list[Band]:
    """A column for each of up to five layers: distributions, one row per norm; then sigma^2 and the distances moved."""
    columns = [_column(rows) for rows in _shown(table, selected)]
    ridges, sizes, distances = (list(of_all) for of_all in zip(*columns, strict=True))
    rest = zip(ridges, shared(sizes, _HEADROOM), shared(distances), strict=True)
    return [Band([[[*above, size, distance] for above, size, distance in rest]])]


def _shown(table: pd.DataFrame, selected: Collection[str], among: Collection[int] | None = None) -> list[pd.DataFrame]:
    """The rows of each shown layer: up to five over the depth, or all that are selected, unit by unit if these are."""
    layers = np.unique(table["layer"]) if among is None else np.intersect1d(table["layer"], [*among])
    layers = layers if "layers" in selected else layers[_spread(len(layers), _MAX_LAYERS)]
    shown = [table[table["layer"] == layer] for layer in layers]
    if "units" in selected:
        shown = [rows[rows["unit"] == unit] for rows in shown for unit in np.unique(rows["unit"])]
    return shown


def _column(table: pd.DataFrame) -> tuple[list[Panel], Curves, Curves]:
    name = table["layer_name"].iloc[0]
    # The distributions are examples: the first unit of the first run of each norm. The curves below are medians.
    pictured = [(look, _thinned(_one_unit(rows))) for look, rows in style.groups(table)]
    edges = _edges([rows for _, rows in pictured])
    densities = [_densities(rows, edges) for _, rows in pictured]
    peaks = [float(np.median(density.max(axis=1))) for density in densities]
    # A norm whose values all lie outside of the bins has no peak.
    top = min(max(peaks), 4 * min((peak for peak in peaks if peak > 0), default=1.0)) or 1.0
    column: list[Panel] = []
    for (look, rows), density in zip(pictured, densities, strict=True):
        title = f"{name}, unit {rows['unit'].iloc[0]}"
        title = title if not column or title != column[0].title else ""
        steps, outside = [int(step) for step in rows["step"]], _outside(rows, density)
        column.append(Ridges(title, f"{look.label}\nstep", look.colour, steps, density, outside, edges, top))
    table = table.assign(variance=table["sigma"] ** 2, moved=table["wasserstein"] / table["std"])
    by = [*style.identity(table), "step"]
    medians = table.groupby(by, as_index=False, sort=False, observed=True)[["variance", "moved"]].median()
    units = table["unit"].nunique()
    title = f"{name}, median of {units} units" if units > 1 else f"{name}, unit {table['unit'].iloc[0]}"
    size = Curves(title, "σ² before the norm", series(medians, "variance"), width=1.3)
    return column, size, Curves("", "W₁ to the step before / std", series(medians, "moved"), width=1.3)


def moments(table: pd.DataFrame, paper: pd.DataFrame | None = None, selected: Collection[str] = ()) -> list[Band]:
    """Figure 7: the changes and the drifts of an activation's mean and variance, a row for each of up to five layers.

    The paper shows one activation of each layer. So does this figure: the first unit of the first run of each norm and
    learning rate. If the table has the floor, it is the dotted line under the changes.
    """
    theirs_too = None if paper is None else paper["layer"].dropna().astype("int64")
    page: list[Band] = []
    for rows in _shown(table, selected, theirs_too):
        pictured = pd.concat([_one_unit(group) for _, group in style.groups(rows)])
        units = ", ".join(str(unit) for unit in np.unique(pictured["unit"]))
        name = f"{rows['layer_name'].iloc[0]}, unit {units}"
        drawn: list[Curves] = []
        for column, (title, ylabel) in _MOMENTS.items():
            title = f"{name}\n{title}"
            ours, theirs = series(pictured, column), papers(paper, pictured, column)
            values = [curves.values.to_numpy() for curves in (*ours, *theirs)]
            # A drift changes its sign, which a logarithmic axis shows badly.
            scale = scales.fit(values, np.inf if column.endswith("drift") else scales.DECADES, _HEADROOM)
            thin = [*theirs, *_floors(pictured, column)]
            drawn.append(Curves(title, ylabel, ours, thin, scale=scale, height=1.9, width=1.75))
        page.append(in_row(*drawn))
    return page


def _floors(pictured: pd.DataFrame, column: str) -> list[Series]:
    """The floor of a change, if the table has one. It does not count for the scale: BatchNorm's is of rounding."""
    floor = f"floor_{column}"
    if floor not in pictured:
        return []
    shown = pictured[pictured[floor].notna()]
    return [Series(style.floors(curves.look), curves.values) for curves in series(shown, floor)]


def _one_unit(rows: pd.DataFrame) -> pd.DataFrame:
    rows = rows[rows["run"] == rows["run"].iloc[0]]
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


def _outside(rows: pd.DataFrame, densities: NDArray[np.float64]) -> NDArray[np.float64]:
    """The share of values beyond the bins, for each row; NaN if a quantile is not finite."""
    finite = [bool(np.isfinite(np.asarray(quantiles, dtype=np.float64)).all()) for quantiles in rows["quantiles"]]
    return np.where(finite, 1 - densities.sum(axis=1), np.nan)
