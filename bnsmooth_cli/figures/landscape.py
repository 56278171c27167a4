"""The landscape along the gradient (figures 4a-b, 9, 11b-c, 12): the loss and the gradient predictiveness, as bands
over training, or along the line if a single step was measured."""

from __future__ import annotations

import numpy as np
import pandas as pd

from bnsmooth_cli.figures import style
from bnsmooth_cli.figures.panels import Curves, Panel, series

_METRICS = {
    "loss": ("loss", "L(θ − ηg)"),
    "grad_distance": ("gradient predictiveness", "‖g(θ) − g(θ − ηg)‖"),
}


def panels(table: pd.DataFrame) -> list[list[Panel]]:
    """Figures 4a-b, 9, 11b-c, 12: loss and gradient predictiveness on the line, a row for each learning rate.

    The length of the line is proportional to the learning rate, so bands of different learning rates do not compare.
    They share a row only if each norm has one learning rate, as when each was trained at its best one.
    """
    probed = table[(table["alpha"] > 0) & np.isfinite(table["alpha"])]
    # On the line NaN is an overflow, like infinity.
    probed = probed.assign(**{name: probed[name].fillna(np.inf) for name in _METRICS})
    lrs = style.lrs_of(table)
    if table.groupby("norm")["lr"].nunique().max() == 1:
        return [_row(probed, "")]
    return [_row(probed[probed["lr"] == lr], f", {style.lr_text(lr)}") for lr in lrs]


def _row(probed: pd.DataFrame, suffix: str) -> list[Panel]:
    band = bool(probed.groupby("run")["step"].nunique().max() > 1)
    x, spread = ("step", "alpha") if band else ("alpha", None)
    steps = probed["step"].unique()
    at = f", step {steps[0]}" if len(steps) == 1 else ""
    about = f"{' range' * band} along the gradient{at}{suffix}"
    return [
        Curves(f"{title}{about}", symbol, series(probed, name, x, spread), band=band)
        for name, (title, symbol) in _METRICS.items()
    ]
