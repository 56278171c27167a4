"""The theory (section 4): both sides of the statements, the size of the reductions over training, and how often the
conditions of the statements hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from bnsmooth_cli.figures import style
from bnsmooth_cli.figures.panels import Curves, Panel, layers_over_depth, say_empty, series

#: The statements whose sides are drawn. Theorem C.1 has the same dots as 4.2b, at other scales.
_DRAWN: Final = ("4.1", "4.1 at y", "4.2", "4.2b")
_WIDTH: Final = 6  # cells in a row of panels, divisible by one, two or three layers
#: Fractions of the squared gradient. Smaller ones are rounding errors, drawn on the lower edge.
_FRACTION: Final = style.Scale("log", 1e-9, 2.0)
_PERCENT: Final = style.Scale("linear", -4, 104)


@dataclass(frozen=True, eq=False)
class Sides:
    """The left side against the right side: a dot for each unit and step, and the line of equality."""

    title: str
    ylabel: str
    groups: Sequence[tuple[style.Look, pd.DataFrame]]
    height: float = 2.5

    def draw(self, axes: Axes) -> dict[str, Line2D]:
        axes.set_title(self.title)
        axes.set(xlabel="right side", ylabel=self.ylabel)
        values = [rows[["lhs", "rhs"]].to_numpy("float64").ravel() for _, rows in self.groups]
        scale = style.fit(values, headroom=np.inf)
        if scale is None:
            say_empty(axes)
            return {}
        scale.apply(axes, "x")
        scale.apply(axes, "y")
        axes.axline((scale.low, scale.low), (scale.high, scale.high), color="#888888", linewidth=0.8, zorder=1)
        entries = {}
        for look, rows in self.groups:
            axes.plot(
                rows["rhs"], rows["lhs"], ".", color=look.colour, markersize=3.5, alpha=0.6, markeredgewidth=0,
                rasterized=True,  # a vector file with each dot would have megabytes
            )  # fmt: skip
            entries[look.label] = Line2D([], [], color=look.colour, linestyle=look.dash, linewidth=1.6)
        return entries


def panels(table: pd.DataFrame) -> list[list[Panel]]:
    """Both sides for three layers over the depth, one row per statement; then values over training."""
    shown = layers_over_depth(table)
    rows: list[list[Panel]] = []
    for statement in [name for name in _DRAWN if name != "4.2b" or _has_4_2b(table)]:
        chosen = table[table["statement"] == statement]
        row: list[Panel] = []
        for layer in shown:
            name = table.loc[table["layer"] == layer, "layer_name"].iloc[0]
            label = "left side" if layer == shown[0] else ""
            row.append(Sides(f"{statement}, {name}", label, style.groups(chosen[chosen["layer"] == layer])))
        rows.append(row)
    rows += [_fractions(table), *_frequencies(table)]
    return [[panel for panel in row for _ in range(_WIDTH // len(row))] for row in rows]


def _has_4_2b(table: pd.DataFrame) -> bool:
    """Whether a table is new enough to have statement 4.2b."""
    return bool((table["statement"] == "4.2b").any())


def _fractions(table: pd.DataFrame) -> list[Panel]:
    """Sigma and the two reductions of 4.1, as medians over layers and units."""
    medians = _over_units(table[table["statement"] == "4.1"], ["sigma", "mean_fraction", "output_fraction"])
    of_gradient, mean, output = "of ‖g‖², median", series(medians, "mean_fraction"), series(medians, "output_fraction")
    return [
        Curves("deviation of the layers' outputs", "σ, median", series(medians, "sigma"), upper=True),
        Curves("reduction by the mean, ⟨1, g⟩² / m", of_gradient, mean, upper=True, scale=_FRACTION),
        Curves("reduction by ŷ, ⟨g, ŷ⟩² / m", of_gradient, output, upper=True, scale=_FRACTION),
    ]


def _frequencies(table: pd.DataFrame) -> list[list[Panel]]:
    """The shares of units for which the statements that are not proved hold, and the conditions of 4.2."""
    at_y, second, more = (
        table[table["statement"] == name].dropna(subset=["lhs"]) for name in ("4.1 at y", "4.2", "4.2b")
    )
    shares = {
        "4.1 holds with the gradient at y": (at_y, at_y["holds"]),
        "⟨g, ŷ⟩ > 0": (second, second["alignment"] > 0),
        "curvature along the step ≥ 0": (second, second["curvature"] >= 0),
        "curvature along g ≥ 0": (more, more["curvature"] >= 0),
        "H orders ∇L̂ and g as their lengths do": (more, more["condition"]),
        "4.2b holds": (more, more["holds"]),
    }
    panels: list[Panel] = []
    for title, (rows, met) in shares.items():
        share = _over_units(rows.assign(share=100.0 * met.astype("float64")), ["share"], "mean")
        panels.append(Curves(title, "units (%)", series(share, "share"), scale=_PERCENT))
    return [panels[:3], panels[3:]] if _has_4_2b(table) else [panels[:3]]


def _over_units(table: pd.DataFrame, columns: list[str], how: str = "median") -> pd.DataFrame:
    return table.groupby(["run", "norm", "lr", "step"], as_index=False, sort=False)[columns].agg(how)
