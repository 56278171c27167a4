r"""What the tables of the reproduction show beyond the paper: the statistics of docs/findings.md, and their rules.

History. The rules were written on 2026-11-26, and changed once on that day after a review. By then, the tables of the
linear network with eight seeds, the first 1,000 steps of VGG (one seed), and the first seed of the plain network with
parts of the noise were known. No run of VGG over 15,000 steps was. Where a rule is applied to tables that were known,
the page describes them and tests nothing.

- **The edge.** The *batch sharpness* is the expectation, over batches, of the curvature $g^T H g / g^T g$ of a batch's
  loss along its own gradient g. Stochastic gradient descent is at the edge of stochastic stability where it is $2 / lr$
  (Andreyev & Beneventano 2024, arXiv 2412.20553). Here it is the mean over the measured steps of the second half of a
  run, each with its own batch: an average over steps in place of one over batches. The loss includes the penalty. The
  linear network trains on all samples, so that the same number is the curvature of gradient descent. The interval over
  seeds is *at 2 / lr* if it lies within 10% of it, and *below* or *above* if it lies outside of that range.
- **Equal loss.** The measured steps of two runs of a seed are sorted into bins of the training loss without the
  penalty, each a factor of `BIN` wide. A bin counts if both runs have at least `FEWEST` measured steps in it, and a
  seed counts if at least `SHARED` bins do. Its ratio is the geometric mean, over these bins, of the ratios of medians.
  The largest change of the gradient (figure 4b) of VGG at learning rate 0.1 decides: BatchNorm is *smoother* if the
  interval over seeds lies below 1 / `SIMILAR`, and *rougher* if it lies above `SIMILAR`. All else is description.
- **Noise.** A seed *trains* if its last test accuracy (the mean of the evaluations in the last third of the run)
  exceeds the best constant answer's by more than `ABOVE_CHANCE`. The runs are 1,000 steps long, so that a network which
  trains later counts as one that does not. Which part of BatchNorm protects a network from the noise was asked when the
  first seed had shown which part of the noise stops the plain one. The prediction, before any of its runs:
  `noisy_centre`, which subtracts the batch's mean before the noise and does not divide, trains in every seed, and
  `noisy_scale`, which divides and subtracts nothing, in none. It is tested only if `Centre` and `scale`, without noise,
  train in every seed.
- **Width.** The medians of one seed at full width, over the measured steps, stand beside the range of the seeds at a
  quarter of the widths, over the same steps.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import pandas as pd

from bnsmooth_cli.studies.claims import ABOVE_CHANCE, SIMILAR
from bnsmooth_cli.studies.comparison import worst_where_diverged
from bnsmooth_cli.studies.metrics import prepared
from bnsmooth_cli.studies.statistics import SEEDS, Interval, interval, median

#: The metrics that are compared at equal loss and at both widths, and their names on the page.
METRICS: Final = {
    "predictiveness": "largest change of the gradient",
    "loss_range": "range of the loss on the line",
    "relative_predictiveness": "largest change relative to the gradient",
    "eigenvalue": "largest eigenvalue in size",
}
#: The metric that decides at equal loss.
PRIMARY: Final = "predictiveness"
BIN: Final = 1.25
FEWEST: Final = 3
SHARED: Final = 3
#: How far from 2 / lr a batch sharpness may be.
NEAR: Final = 0.1
_RUN: Final = ["norm", "lr", "seed"]


def of_line(smoothness: pd.DataFrame) -> pd.DataFrame:
    """Rows of kind `smoothness` with the columns of METRICS."""
    rows = prepared(lambda kind, columns: smoothness, "smoothness")
    return rows.assign(eigenvalue=rows["sharpness"].abs())


def edge(smoothness: pd.DataFrame) -> pd.DataFrame:
    """The batch sharpness and the largest eigenvalue of each run, in units of 1 / lr, over the second half of the run.

    Args:
        smoothness: Rows of kind `smoothness`. A curvature of NaN is an overflow.

    Returns:
        A row for each run: norm, lr, seed, `batch_sharpness` (a mean) and `eigenvalue` (a median).
    """
    later = smoothness[smoothness["step"] > smoothness["step"].max() / 2]
    curvature = later["curvature"].fillna(np.inf)
    times_lr = later.assign(
        batch_sharpness=curvature * later["lr"], eigenvalue=later["sharpness"].fillna(np.inf).abs() * later["lr"]
    )
    grouped = times_lr.groupby(_RUN, observed=True)
    found = pd.concat([grouped["batch_sharpness"].mean(), grouped["eigenvalue"].median()], axis=1)
    runs = pd.MultiIndex.from_frame(smoothness[_RUN].drop_duplicates())
    return found.reindex(runs, fill_value=np.inf).reset_index()  # a run that has ended earlier has diverged


def at_the_edge(values: Interval) -> str:
    """Where an interval of batch sharpness times lr lies, by the rule of the module; empty without an interval.

    >>> at_the_edge(Interval(1.9, 2.1, 0.94)), at_the_edge(Interval(0.2, 0.4, 0.94)), at_the_edge(Interval(1, 2, 0.94))
    ('at 2 / lr', 'below', 'not decided')
    """
    low, high = 2 * (1 - NEAR), 2 * (1 + NEAR)
    if np.isnan(values.low):
        return ""
    if low <= values.low and values.high <= high:
        return "at 2 / lr"
    return "below" if values.high < low else "above" if values.low > high else "not decided"


def with_loss(smoothness: pd.DataFrame, train: pd.DataFrame) -> pd.DataFrame:
    """The rows of `of_line` with the training loss without the penalty as `data_loss`.

    Args:
        smoothness: Rows of kind `smoothness`.
        train: Rows of kind `train` at these steps, whose losses and penalties are running means of minibatches.
    """
    losses = train.assign(data_loss=train["loss"] - train["penalty"].fillna(0.0))
    return of_line(smoothness).merge(losses[[*_RUN, "step", "data_loss"]], on=[*_RUN, "step"])


def binned(rows: pd.DataFrame) -> pd.DataFrame:
    """The medians of METRICS in bins of the loss, for each run, without the bins of fewer than FEWEST measured steps.

    Args:
        rows: The rows of `with_loss`.

    Returns:
        A row for each run and bin, with the middle of the bin as `data_loss`.
    """
    place = np.floor(np.log(rows["data_loss"].where(rows["data_loss"] > 0)) / np.log(BIN))
    known = rows.assign(data_loss=BIN ** (place + 0.5)).dropna(subset=["data_loss"])
    grouped = known.groupby([*_RUN, "run", "data_loss"], observed=True)
    return grouped[[*METRICS]].median()[grouped.size() >= FEWEST].reset_index()


def at_equal_loss(rows: pd.DataFrame, norm: str, other: str) -> pd.DataFrame:
    """The metrics of one norm's runs over those of another's at equal loss, by the rule of the module.

    Args:
        rows: The rows of `with_loss`, at one learning rate.
        norm: A norm.
        other: The norm that it is compared with.

    Returns:
        A row for each seed that both have: a column for each metric, and `bins`, the number of shared bins; NaN where
        they are fewer than SHARED.
    """
    parts = {name: binned(rows[rows["norm"] == name]) for name in (norm, other)}
    ratios = {}
    for seed in _common_seeds(rows, norm, other):
        first, second = (part[part["seed"] == seed].set_index("data_loss")[[*METRICS]] for part in parts.values())
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.log((first / second).dropna(how="all"))
        enough = len(logs) >= SHARED
        ratios[seed] = {**(np.exp(logs.mean(skipna=False)) if enough else {}), "bins": len(logs)}
    return pd.DataFrame.from_dict(ratios, orient="index", columns=[*METRICS, "bins"]).astype("float64")


def at_equal_step(rows: pd.DataFrame, norm: str, other: str) -> pd.DataFrame:
    """The medians, over the common measured steps, of the ratios at equal steps: a row for each seed that both have.

    The ratios of a seed are NaN if its runs have fewer than half of the measured steps in common: one has diverged. The
    arguments are those of `at_equal_loss`.
    """
    ratios, steps = {}, rows["step"].nunique()
    for seed in _common_seeds(rows, norm, other):
        first, second = (
            rows[(rows["norm"] == name) & (rows["seed"] == seed)].set_index("step")[[*METRICS]]
            for name in (norm, other)
        )
        common = first.index.intersection(second.index)
        ratios[seed] = (first / second).median() if 2 * len(common) >= steps else {}
    return pd.DataFrame.from_dict(ratios, orient="index", columns=[*METRICS]).astype("float64")


def _common_seeds(rows: pd.DataFrame, norm: str, other: str) -> list[int]:
    first, second = (set(rows.loc[rows["norm"] == name, "seed"]) for name in (norm, other))
    return sorted(first & second)


def smoother(ratios: pd.Series[float]) -> str:
    """The verdict on the ratios of seeds at equal loss, by the rule of the module.

    >>> smoother(pd.Series([0.3, 0.4, 0.2, 0.3, 0.5])), smoother(pd.Series([0.3, 0.4, 0.2, 0.3, 1.0]))
    ('smoother', 'not decided')
    """
    _, values = described(ratios)
    if len(ratios) < SEEDS:
        return "not decided"
    return "smoother" if values.high < 1 / SIMILAR else "rougher" if values.low > SIMILAR else "not decided"


def trained(comparison: pd.DataFrame) -> pd.DataFrame:
    """How many seeds of each norm train, by the rule of the module.

    Args:
        comparison: Rows of kind `compare`.

    Returns:
        A row for each norm: `seeds`, `trained`, and the `accuracies` of the seeds.
    """
    runs = worst_where_diverged(comparison)
    above = runs["final_test_accuracy"] > runs["baseline_accuracy"] + ABOVE_CHANCE
    grouped = runs.assign(above=above).groupby("norm", sort=False)
    return grouped.agg(seeds=("seed", "nunique"), trained=("above", "sum"), accuracies=("final_test_accuracy", list))


def protection(runs: pd.DataFrame) -> str:
    """The outcome of the prediction about the parts of BatchNorm and the noise, by the rule of the module.

    Args:
        runs: The rows of `trained`, by the names of `scales.NETWORKS`.

    Returns:
        "confirmed" or "refuted"; "not tested" if a part alone, without noise, does not train in every seed; empty if a
        network is missing.

    >>> networks = ["centre only", "division only", "centre only, with the noise", "division only, with the noise"]
    >>> protection(pd.DataFrame({"seeds": 3, "trained": [3, 3, 3, 0]}, index=networks))
    'confirmed'
    """
    parts = ["centre only", "division only"]
    noisy = [f"{part}, with the noise" for part in parts]
    if not {*parts, *noisy} <= {*runs.index}:
        return ""
    every = runs["trained"] == runs["seeds"]
    if not every[parts].all():
        return "not tested"
    return "confirmed" if every[noisy[0]] and not runs["trained"][noisy[1]] else "refuted"


def widths(narrow: pd.DataFrame, wide: pd.DataFrame) -> pd.DataFrame:
    """The medians of METRICS over the measured steps that both widths have.

    Args:
        narrow: Rows of kind `smoothness` of some seeds.
        wide: Those of one seed of the wider network, at the same learning rate.

    Returns:
        A row for each norm and metric: `wide`, and `low`, `median` and `high` of the narrow network's seeds.
    """
    shared = set(narrow["step"]) & set(wide["step"])
    first, second = (of_line(rows[rows["step"].isin(shared)]) for rows in (narrow, wide))
    of_seeds = first.groupby(["norm", "seed"])[[*METRICS]].median()
    found = []
    for norm, medians in second.groupby("norm", sort=False)[[*METRICS]].median().iterrows():
        if norm in of_seeds.index.get_level_values("norm"):
            seeds = of_seeds.loc[[norm]]
            found += [{"norm": norm, "metric": name, "wide": medians[name], "low": seeds[name].min(),
                       "median": seeds[name].median(), "high": seeds[name].max()} for name in METRICS]  # fmt: skip
    return pd.DataFrame(found)


def described(values: pd.Series[float]) -> tuple[float, Interval]:
    """The median over seeds and its interval."""
    known = values.to_numpy(np.float64)
    return median(known), interval(known)
