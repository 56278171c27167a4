"""Smoothness over training: effective beta (figure 4c), Lipschitz constant, sharpness and curvature; and by layer."""

from __future__ import annotations

from typing import Final

import pandas as pd

from bnsmooth_cli.figures.panels import Curves, Panel, series

#: Column -> its name and its formula.
_METRICS: Final = {
    "beta": ("effective β-smoothness", "max ‖g(θ) − g(θ − ηg)‖ / ‖ηg‖"),
    "lipschitz": ("Lipschitz constant of the loss on the line", "max ‖g(θ − ηg)‖"),
    "sharpness": ("sharpness", "|λ|, largest of the Hessian"),
    "curvature": ("curvature along the gradient", "gᵀHg / gᵀg"),
}
#: Column -> its formula for layer i.
_BY_LAYER: Final = {"beta": "max ‖Δgᵢ‖ / ‖ηgᵢ‖", "sharpness": "|λ|, largest of Hᵢᵢ", "curvature": "gᵢᵀHᵢᵢgᵢ / gᵢᵀgᵢ"}


def panels(table: pd.DataFrame) -> list[list[Panel]]:
    """Figure 4c, effective beta, with the largest gradient on the line and two metrics of the Hessian."""
    table = table.assign(sharpness=table["sharpness"].abs())
    curves: list[Panel] = [
        Curves(title, ylabel, series(table, column), upper=column in ("beta", "lipschitz"))
        for column, (title, ylabel) in _METRICS.items()
    ]
    return [curves[:2], curves[2:]]


def by_layer(table: pd.DataFrame) -> list[list[Panel]]:
    """A panel for each metric over the layers: medians over the measured steps."""
    steps = table["step"].unique()
    of_steps = f"step {steps[0]:,}" if len(steps) == 1 else "median over the measured steps"
    table = table.assign(sharpness=table["sharpness"].abs()).drop_duplicates(["run", "step", "layer"], keep="last")
    medians = table.groupby(["run", "norm", "lr", "layer"], as_index=False, sort=False)[list(_BY_LAYER)].median()
    row: list[Panel] = []
    for name, formula in _BY_LAYER.items():
        title = f"{_METRICS[name][0]}\n{of_steps}"
        row.append(Curves(title, formula, series(medians, name, x="layer"), height=2.7))
    return [row]
