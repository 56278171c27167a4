"""Smoothness over training: effective beta (figure 4c), Lipschitz constant, sharpness and curvature."""

from __future__ import annotations

from typing import Final

import pandas as pd

from bnsmooth_cli.figures.panels import Curves, Panel, series

#: Column -> its name and its formula.
METRICS: Final = {
    "beta": ("effective β-smoothness", "max ‖g(θ) − g(θ − ηg)‖ / ‖ηg‖"),
    "lipschitz": ("Lipschitz constant of the loss on the line", "max ‖g(θ − ηg)‖"),
    "sharpness": ("sharpness", "|λ|, largest of the Hessian"),
    "curvature": ("curvature along the gradient", "gᵀHg / gᵀg"),
}


def panels(table: pd.DataFrame) -> list[list[Panel]]:
    """Figure 4c, effective beta, with the largest gradient on the line and two metrics of the Hessian."""
    table = table.assign(sharpness=table["sharpness"].abs())
    curves: list[Panel] = [
        Curves(title, ylabel, series(table, column), upper=column in ("beta", "lipschitz"))
        for column, (title, ylabel) in METRICS.items()
    ]
    return [curves[:2], curves[2:]]
