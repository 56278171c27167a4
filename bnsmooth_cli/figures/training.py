"""Training curves (figures 1a-b, 13 and the first panel of 3): the accuracy of a classifier, otherwise the loss."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from bnsmooth_cli.figures import style
from bnsmooth_cli.figures.page import Band, in_row
from bnsmooth_cli.figures.panels import Curves, papers, series, shared

_WINDOW = 50  # the curve of minibatch accuracies is a running mean over 1/50 of the training steps


def panels(table: pd.DataFrame, paper: pd.DataFrame | None = None) -> list[Band]:
    """Figures 1a-b, 13: training and test accuracy over the steps, or the losses of a regression.

    If the learning rate changes, it has a panel of its own.
    """
    drawn = [progress(table, paper)]
    accuracy = _classifies(table)
    column = "test_accuracy" if accuracy else "test_loss"
    if table[column].notna().any():
        unit = 100 if accuracy else 1
        shown = table.assign(**{column: unit * table[column]})
        theirs = papers(paper, table, column, unit=unit)
        drawn.append(Curves("test", drawn[0].ylabel, series(shown, column), theirs, diverged=_diverged(table)))
    varies = "step_lr" in table and table.groupby("run")["step_lr"].nunique().gt(1).any()
    return [in_row(*shared(drawn), *([_learning_rate(table)] if varies else []))]


def _learning_rate(table: pd.DataFrame) -> Curves:
    """The learning rate of each step, where a schedule or a warm-up changes it."""
    return Curves("learning rate", "learning rate", series(table, "step_lr"))


def progress(table: pd.DataFrame, paper: pd.DataFrame | None = None, lrs: Sequence[float] | None = None) -> Curves:
    """Figures 1a and 3, left: the running mean of the training accuracy, or the training loss.

    The paper's accuracies are those of single batches, as it draws them. `lrs` are the learning rates of the figure, by
    default of the table.
    """
    if not _classifies(table):
        theirs = papers(paper, table, "loss", lrs=lrs)
        return Curves("training", "loss", series(table, "loss", lrs=lrs), theirs, diverged=_diverged(table))
    shortest = table.groupby(style.APART, observed=True)["step"].max().min()
    window = max(1, (int(shortest) + 1) // _WINDOW)
    curves = series(table.assign(accuracy=100 * table["accuracy"]), "accuracy", lrs=lrs)
    gaps = np.diff(np.unique(table["step"]))
    every = int(np.median(gaps)) if len(gaps) else 1  # a thinned table has fewer rows
    window = max(every, window // every * every)
    for curve in curves:
        curve.values[:] = curve.values.apply(_running_mean, window=window // every)
    title = f"training, mean of {window} steps" if window > 1 else "training"
    theirs = papers(paper, table, "accuracy", unit=100, lrs=lrs)
    return Curves(title, "accuracy (%)", curves, theirs, diverged=_diverged(table))


def _running_mean(run: pd.Series[float], window: int) -> pd.Series[float]:
    # Trailing, not centred, so that no step shows later ones. The first few are noise and left out.
    least = max(1, min(window // 4, int(run.count())))
    mean: pd.Series[float] = run.rolling(window, min_periods=least).mean().where(run.notna())
    return mean


def _classifies(table: pd.DataFrame) -> bool:
    return bool(table["accuracy"].notna().any())


def _diverged(table: pd.DataFrame) -> frozenset[str]:
    last = table.sort_values("step").groupby("run").tail(1)
    return frozenset(last.loc[~np.isfinite(last["loss"]), "run"])
