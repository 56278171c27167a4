"""The theory (section 4): both sides of the statements, the size of the reductions over training, and how often the
conditions of the statements hold."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from bnsmooth_cli.figures import scales, style
from bnsmooth_cli.figures.page import Band, in_row, say_empty
from bnsmooth_cli.figures.panels import Curves, layers_over_depth, series

#: The statements whose sides are drawn, in words. Theorem C.1 has the same dots as 4.2b, at other scales.
_DRAWN: Final = {
    "4.1": "theorem 4.1, gradient",
    "4.1 at y": "theorem 4.1, g taken at y",
    "4.2": "theorem 4.2, curvature",
    "4.2b": "theorem 4.2, second part",
}
_WIDTH: Final = 1.3  # of a panel
#: Fractions of the squared gradient. Smaller ones are rounding errors, marked at the lower edge.
_FRACTION: Final = scales.Scale("log", 1e-9, 2.0)
_PERCENT: Final = scales.Scale("linear", -4, 104)


@dataclass(frozen=True, eq=False)
class Sides:
    """The left side against the right side: a dot for each unit and step, and the line of equality."""

    title: str
    ylabel: str
    groups: Sequence[tuple[style.Look, pd.DataFrame]]
    scale: scales.Scale | None
    width: float = _WIDTH
    height: float = 2.5

    def draw(self, axes: Axes) -> dict[str, Line2D]:
        axes.set_xlabel("right side")
        if self.scale is None or not self.groups:
            say_empty(axes)
            return {}
        self.scale.apply(axes, "x")
        self.scale.apply(axes, "y")
        low, high = self.scale.low, self.scale.high
        axes.axline((low, low), (high, high), color=style.grey(), linewidth=style.scaled(0.8), zorder=1)
        entries, lost, every = {}, 0, 0
        for look, rows in self.groups:
            finite = rows[np.isfinite(rows[["lhs", "rhs"]]).all(axis=1)]
            lost, every = lost + len(rows) - len(finite), every + len(rows)
            sides = finite[["rhs", "lhs"]].clip(low, high)
            axes.plot(
                sides["rhs"], sides["lhs"], ".", color=look.colour, markersize=style.scaled(3.5), alpha=0.6,
                markeredgewidth=0, rasterized=True,  # a vector file with each dot would have megabytes
            )  # fmt: skip
            entries[look.label] = Line2D([], [], color=look.colour, linestyle=look.dash, linewidth=style.scaled(1.6))
        if lost:
            text = f"{lost:,} of {every:,}\nnot finite"
            axes.text(
                0.97, 0.03, text, transform=axes.transAxes, ha="right", va="bottom", fontsize=style.small(),
                color=style.grey(),
            )  # fmt: skip
        return entries


def panels(table: pd.DataFrame, selected: Collection[str] = ()) -> list[Band]:
    """Both sides for three layers over the depth, one row per statement; then values over training."""
    layers = layers_over_depth(table, every="layers" in selected)
    names = table.drop_duplicates("layer").set_index("layer")["layer_name"]
    bands: list[Band] = []
    for statement in [name for name in _DRAWN if name != "4.2b" or _has_4_2b(table)]:
        chosen = table[table["statement"] == statement].dropna(subset=["lhs", "rhs"], how="all")
        values = [rows[["lhs", "rhs"]].to_numpy("float64").ravel() for _, rows in style.groups(chosen)]
        scale = scales.fit(values, headroom=np.inf)
        label = f"{_DRAWN[statement]}\nleft side"
        sides = [
            Sides("" if bands else names[layer], label, style.groups(chosen[chosen["layer"] == layer]), scale)
            for layer in layers
        ]
        bands.append(in_row(*sides, stretched=True))
    return [*bands, *(in_row(*curves, stretched=True) for curves in (_fractions(table), *_frequencies(table)))]


def _has_4_2b(table: pd.DataFrame) -> bool:
    """Whether a table is new enough to have statement 4.2b."""
    return bool((table["statement"] == "4.2b").any())


def _fractions(table: pd.DataFrame) -> list[Curves]:
    """Sigma and the two reductions of 4.1, as medians over layers and units."""
    medians = _over_units(table[table["statement"] == "4.1"], ["sigma", "mean_fraction", "output_fraction"])
    of_gradient, mean, output = "of ‖g‖², median", series(medians, "mean_fraction"), series(medians, "output_fraction")
    return [
        Curves("deviation of the layers' outputs", "σ, median", series(medians, "sigma"), width=_WIDTH),
        Curves("reduction by the mean, ⟨1, g⟩² / m", of_gradient, mean, scale=_FRACTION, width=_WIDTH),
        Curves("reduction by ŷ, ⟨g, ŷ⟩² / m", of_gradient, output, scale=_FRACTION, width=_WIDTH),
    ]


def _frequencies(table: pd.DataFrame) -> list[list[Curves]]:
    """The shares of units for which the statements that are not proved hold, and the conditions of 4.2."""
    at_y, second, more = (
        table[table["statement"] == name].dropna(subset=["lhs"]) for name in ("4.1 at y", "4.2", "4.2b")
    )
    shares = {
        "theorem 4.1 holds with g taken at y": (at_y, at_y["holds"]),
        "⟨g, ŷ⟩ > 0": (second, second["alignment"] > 0),
        "curvature along the step ≥ 0": (second, second["curvature"] >= 0),
        "curvature along g ≥ 0": (more, more["curvature"] >= 0),
        "H orders ∇L̂ and g as their lengths do": (more, more["condition"]),
        "the second part of theorem 4.2 holds": (more, more["holds"]),
    }
    panels: list[Curves] = []
    for title, (rows, met) in shares.items():
        share = _over_units(rows.assign(share=100.0 * met.astype("float64")), ["share"], "mean")
        panels.append(Curves(title, "units (%)", series(share, "share"), scale=_PERCENT, width=_WIDTH))
    return [panels[:3], panels[3:]] if _has_4_2b(table) else [panels[:3]]


def _over_units(table: pd.DataFrame, columns: list[str], how: str = "median") -> pd.DataFrame:
    by = [*style.identity(table), "step"]
    return table.groupby(by, as_index=False, sort=False, observed=True)[columns].agg(how)
