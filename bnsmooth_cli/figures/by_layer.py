"""Smoothness by layer: effective beta, sharpness and curvature over the depth, as medians over the measured steps."""

from __future__ import annotations

from typing import Final

import pandas as pd

from bnsmooth_cli.figures.panels import Curves, Panel, series
from bnsmooth_cli.figures.smoothness import METRICS

#: Column -> its formula for layer i.
_FORMULAS: Final = {"beta": "max ‖Δgᵢ‖ / ‖ηgᵢ‖", "sharpness": "|λ|, largest of Hᵢᵢ", "curvature": "gᵢᵀHᵢᵢgᵢ / gᵢᵀgᵢ"}


def panels(table: pd.DataFrame) -> list[list[Panel]]:
    """A panel for each metric, over the layers."""
    steps = table["step"].unique()
    of_steps = f"step {steps[0]:,}" if len(steps) == 1 else "median over the measured steps"
    table = table.assign(sharpness=table["sharpness"].abs()).drop_duplicates(["run", "step", "layer"], keep="last")
    medians = table.groupby(["run", "norm", "lr", "layer"], as_index=False, sort=False)[list(_FORMULAS)].median()
    row: list[Panel] = []
    for name, formula in _FORMULAS.items():
        title = f"{METRICS[name][0]}\n{of_steps}"
        row.append(Curves(title, formula, series(medians, name, x="layer"), height=2.7))
    return [row]
