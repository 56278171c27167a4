"""Smoothness over training (figure 4c and more): effective beta, Lipschitz constant, sharpness, curvature."""

from __future__ import annotations

import pandas as pd

from bnsmooth_cli.figures.panels import Curves, Panel, series


def panels(table: pd.DataFrame) -> list[list[Panel]]:
    """Figure 4c, effective beta, with the line's largest gradient and two figures of the Hessian."""
    table = table.assign(sharpness=table["sharpness"].abs())

    def panel(column: str, title: str, ylabel: str, upper: bool = False) -> Panel:
        return Curves(title, ylabel, series(table, column), upper=upper)

    return [
        [
            panel("beta", "effective β-smoothness", "max ‖g(θ) − g(θ − ηg)‖ / ‖ηg‖", upper=True),
            panel("lipschitz", "Lipschitz constant of the loss on the line", "max ‖g(θ − ηg)‖", upper=True),
        ],
        [
            panel("sharpness", "sharpness", "|λ|, largest of the Hessian"),
            panel("curvature", "curvature along the gradient", "gᵀHg / gᵀg"),
        ],
    ]
