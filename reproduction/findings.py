r"""What the tables of the reproduction show beyond the paper: the statistics of docs/findings.md, and their rules.

The statistics and rules below were written before the runs of VGG at 15,000 steps were looked at.

- **The edge.** Stochastic gradient descent is at the edge of stochastic stability (Andreyev & Beneventano 2024, arXiv
  2412.20553) where the *batch sharpness*, the expected curvature $g^T H g / g^T g$ of a batch's loss along its own
  gradient, is $2 / lr$. The expectation is taken over the measured steps of the second half of a run, each with its own
  batch. A network is *at the edge* if the interval over seeds lies within 10% of 2 / lr, *below* or *above* if it lies
  below or above that, and otherwise *not decided*.
- **Equal loss.** The measured steps of two runs of a seed are sorted into bins of the training loss without the penalty
  (`BIN` apart by a factor). In each bin where both have at least `FEWEST` measured steps, the medians of a metric are
  compared; the ratio of a seed is the geometric mean over these bins. The network is *smoother* if the interval over
  seeds lies below 0.95, *rougher* above 1.05, and otherwise it is *not decided*.
- **Noise.** A network *trains* if its last test accuracy exceeds the best constant answer's by more than 0.1 in every
  seed, and is *stopped* if it does in none (the bar of claim 3).
  Which part of BatchNorm protects a network from the noise was asked after the first seed of the plain network had
  shown that the shift that all samples of a step share stops it. The prediction, before the runs: a norm that subtracts
  the batch's mean and does not divide (`Centre`) trains with the noise, and one that divides and subtracts nothing
  (`scale`) is stopped.
- **Width.** Of two widths, the medians over the same measured steps are compared. They *agree* if they differ by a
  factor of less than 1.25.

With fewer than five seeds, the first two are *not decided*.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import pandas as pd

from bnsmooth_cli.studies.metrics import logarithm
from bnsmooth_cli.studies.statistics import SEEDS, Interval, interval, median

#: The metrics of the landscape that are compared: columns of `_of_line`, and what they are.
METRICS: Final = {
    "loss_range": "range of the loss on the line",
    "predictiveness": "largest change of the gradient",
    "relative": "largest change relative to the gradient",
    "curvature": "curvature along the gradient",
    "sharpness": "sharpness",
}
#: The factor between the edges of a bin of losses, and the fewest measured steps that a bin is compared with.
BIN: Final = 1.5
FEWEST: Final = 3
#: The factor up to which two widths agree.
ALIKE: Final = 1.25
_KEYS: Final = ["norm", "lr", "seed"]


def of_line(smoothness: pd.DataFrame) -> pd.DataFrame:
    """Rows of kind `smoothness` with the columns of METRICS."""
    return smoothness.assign(
        loss_range=smoothness["loss_max"] - smoothness["loss_min"],
        predictiveness=smoothness["predictiveness_max"],
        relative=smoothness["predictiveness_max"] / smoothness["grad_norm"],
        sharpness=smoothness["sharpness"].abs(),
    )


def edge(smoothness: pd.DataFrame) -> pd.DataFrame:
    """Batch sharpness and sharpness, in units of 1 / lr, over the second half of each run.

    Args:
        smoothness: Rows of kind `smoothness`.

    Returns:
        A row for each run: norm, lr, seed, `batch_sharpness` (a mean) and `sharpness` (a median).
    """
    later = smoothness[smoothness["step"] > smoothness["step"].max() / 2]
    times_lr = later.assign(
        batch_sharpness=later["curvature"] * later["lr"], sharpness=later["sharpness"].abs() * later["lr"]
    )
    grouped = times_lr.groupby(_KEYS, observed=True)
    return pd.concat([grouped["batch_sharpness"].mean(), grouped["sharpness"].median()], axis=1).reset_index()


def at_the_edge(values: Interval, seeds: int) -> str:
    """The verdict on batch sharpness times lr, by the rule of the module.

    >>> at_the_edge(Interval(1.9, 2.1, 0.94), 5), at_the_edge(Interval(0.2, 0.4, 0.94), 5)
    ('at the edge', 'below')
    """
    if seeds < SEEDS:
        return "not decided"
    if values.low >= 1.8 and values.high <= 2.2:
        return "at the edge"
    return "below" if values.high < 1.8 else "above" if values.low > 2.2 else "not decided"


def with_loss(smoothness: pd.DataFrame, train: pd.DataFrame) -> pd.DataFrame:
    """The rows of `of_line` with `data_loss`: the training loss without the penalty, of the last kept step there.

    Args:
        smoothness: Rows of kind `smoothness`.
        train: Rows of kind `train`, whose minibatch losses are running means.
    """
    losses = train.assign(data_loss=train["loss"] - train["penalty"].fillna(0.0))
    left = of_line(smoothness).sort_values("step")
    right = losses[[*_KEYS, "step", "data_loss"]].sort_values("step")
    return pd.merge_asof(left, right, on="step", by=_KEYS)


def binned(rows: pd.DataFrame) -> pd.DataFrame:
    """The medians of METRICS in bins of the loss, for each run; NaN in bins with fewer than `FEWEST` measured steps.

    Args:
        rows: The rows of `with_loss`.

    Returns:
        A row for each run and bin, with the middle of the bin as `data_loss`.
    """
    place = np.floor(logarithm(rows["data_loss"]) / np.log(BIN))
    known = rows.assign(data_loss=BIN ** (place + 0.5)).dropna(subset=["data_loss"])
    grouped = known.groupby([*_KEYS, "run", "data_loss"], observed=True)[[*METRICS]]
    return grouped.median().where(grouped.count() >= FEWEST).reset_index()


def at_equal_loss(rows: pd.DataFrame, norm: str, other: str) -> pd.DataFrame:
    """The metrics of one norm's runs over those of another's, at equal loss.

    Args:
        rows: The rows of `with_loss`, at one learning rate.
        norm: A norm.
        other: The norm that it is compared with.

    Returns:
        A row for each seed that both have, and a column for each metric; NaN where the runs share no bin.
    """
    wide = binned(rows[rows["norm"].isin([norm, other])]).pivot(index=["seed", "data_loss"], columns="norm")
    ratios = {metric: wide[metric][norm] / wide[metric][other] for metric in METRICS}
    positive = pd.DataFrame(ratios).where(lambda ratio: ratio > 0)
    return np.exp(np.log(positive).groupby("seed").mean())


def at_equal_step(rows: pd.DataFrame, norm: str, other: str) -> pd.DataFrame:
    """The same at equal steps: the median over steps of the ratio. The arguments and the result are as before."""
    wide = rows[rows["norm"].isin([norm, other])].pivot(index=["seed", "step"], columns="norm", values=[*METRICS])
    ratios = {metric: (wide[metric][norm] / wide[metric][other]).groupby("seed").median() for metric in METRICS}
    return pd.DataFrame(ratios).dropna(how="all")


def smoother(values: Interval, seeds: int) -> str:
    """The verdict on a ratio, by the rule of the module.

    >>> smoother(Interval(0.2, 0.4, 0.94), 5), smoother(Interval(0.2, 1.4, 0.94), 5)
    ('smoother', 'not decided')
    """
    if seeds < SEEDS:
        return "not decided"
    return "smoother" if values.high < 0.95 else "rougher" if values.low > 1.05 else "not decided"


def trains(accuracies: pd.Series[float], constant: float) -> str:
    """Whether a network trains, by the rule of the module.

    Args:
        accuracies: The last test accuracy of each seed.
        constant: The accuracy of the best constant answer.

    >>> trains(pd.Series([0.4, 0.5]), 0.1), trains(pd.Series([0.1, 0.12]), 0.1), trains(pd.Series([0.1, 0.4]), 0.1)
    ('trains', 'stopped', 'some seeds train')
    """
    above = accuracies > constant + 0.1
    return "trains" if above.all() else "some seeds train" if above.any() else "stopped"


def widths(narrow: pd.DataFrame, wide: pd.DataFrame) -> Iterator[tuple[str, str, float, float]]:
    """The medians of METRICS over the measured steps that both widths have, by norm.

    Args:
        narrow: Rows of kind `smoothness` of some seeds.
        wide: Those of the wider network, at the same learning rate.

    Yields:
        The norm, the metric, and its two medians.
    """
    shared = set(narrow["step"]) & set(wide["step"])
    parts = [of_line(rows[rows["step"].isin(shared)]).groupby("norm")[[*METRICS]].median() for rows in (narrow, wide)]
    for norm in wide["norm"].unique():
        for metric in METRICS:
            first, second = (float(medians.loc[norm, metric]) for medians in parts)
            yield str(norm), metric, first, second


def described(values: pd.Series[float]) -> tuple[float, Interval]:
    """The median over seeds and its interval."""
    known = values.to_numpy(np.float64)
    return median(known), interval(known)
