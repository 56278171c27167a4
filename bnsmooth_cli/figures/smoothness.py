"""Smoothness over training (figure 4c and more): effective beta, Lipschitz constant, sharpness, curvature."""

from __future__ import annotations

from typing import Final

import pandas as pd

from bnsmooth_cli.figures.panels import Curves, Panel, series

#: Column -> what it is, and its formula.
QUANTITIES: Final = {
    "beta": ("effective β-smoothness", "max ‖g(θ) − g(θ − ηg)‖ / ‖ηg‖"),
    "lipschitz": ("Lipschitz constant of the loss on the line", "max ‖g(θ − ηg)‖"),
    "sharpness": ("sharpness", "|λ|, largest of the Hessian"),
    "curvature": ("curvature along the gradient", "gᵀHg / gᵀg"),
}


def panels(table: pd.DataFrame) -> list[list[Panel]]:
    """Figure 4c, effective beta, with the line's largest gradient and two figures of the Hessian."""
    table = table.assign(sharpness=table["sharpness"].abs())
    found: list[Panel] = [
        Curves(title, ylabel, series(table, column), upper=column in ("beta", "lipschitz"))
        for column, (title, ylabel) in QUANTITIES.items()
    ]
    return [found[:2], found[2:]]
