"""Training curves (figures 1a-b, 13 and the first panel of 3): accuracy where there is one, else the loss."""

from __future__ import annotations

import numpy as np
import pandas as pd

from bnsmooth_cli.figures.panels import Curves, Panel, series

_WINDOW = 50  # a minibatch curve is the mean of the last 1/50 of the training steps


def panels(table: pd.DataFrame) -> list[list[Panel]]:
    """Figures 1a-b, 13: training and test accuracy over the steps, or losses of a regression (the DLN)."""
    row: list[Panel] = [progress(table)]
    accuracy = _classifies(table)
    column = "test_accuracy" if accuracy else "test_loss"
    if table[column].notna().any():
        shown = table.assign(**{column: table[column] * (100 if accuracy else 1)})
        ylabel = "test accuracy (%)" if accuracy else "test loss"
        row.append(Curves("test", ylabel, series(shown, column), diverged=_diverged(table)))
    return [row]


def progress(table: pd.DataFrame) -> Curves:
    """Figures 1a and 3, left: the training accuracy, a running mean (minibatches are noisy), or the loss."""
    if not _classifies(table):
        return Curves("training", "training loss", series(table, "loss"), diverged=_diverged(table))
    window = max(1, (int(table["step"].max()) + 1) // _WINDOW)
    curves = series(table.assign(accuracy=100 * table["accuracy"]), "accuracy")
    for one in curves:
        one.values[:] = one.values.apply(_running_mean, window=window)
    title = f"training, mean of {window} steps" if window > 1 else "training"
    return Curves(title, "training accuracy (%)", curves, diverged=_diverged(table))


def _running_mean(run: pd.Series[float], window: int) -> pd.Series[float]:
    # Trailing, not centred: no step shows what comes after it. The first few, all noise, are left out.
    least = max(1, min(window // 4, int(run.count())))
    mean: pd.Series[float] = run.rolling(window, min_periods=least).mean().where(run.notna())
    return mean


def _classifies(table: pd.DataFrame) -> bool:
    return bool(table["accuracy"].notna().any())


def _diverged(table: pd.DataFrame) -> frozenset[str]:
    last = table.sort_values("step").groupby("run").tail(1)
    return frozenset(last.loc[~np.isfinite(last["loss"]), "run"])
