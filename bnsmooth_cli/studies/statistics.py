"""Statistics over a run's steps, and over seeds: medians, with bootstrap intervals, and ratios to the plain run."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bnsmooth_cli import kinds

CONFIDENCE: Final = 0.95
RESAMPLES: Final = 9_999
_ROUNDING: Final = 1e-9  # of a share


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """The median's percentile bootstrap interval (Efron & Tibshirani 1993, chapter 13), by SciPy, the same every time.

    NaN for fewer than two values. Infinite ones (a target that is never reached) are the largest, or smallest, of all,
    and may be an end.

    >>> interval(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    (1.0, 5.0)
    """
    if len(values) < 2:
        return float("nan"), float("nan")
    if (values == values[0]).all():
        return float(values[0]), float(values[0])
    finite = values[np.isfinite(values)]
    least, most = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)
    far = 10 * (most - least) + max(
        1.0, abs(most), abs(least)
    )  # so far beyond them stands for infinity: a mean with it is beyond them too
    values = np.clip(values, least - far, most + far)
    from scipy import stats  # half a second, which no other command should wait for

    found = stats.bootstrap(
        (values,), np.median, confidence_level=CONFIDENCE, n_resamples=RESAMPLES, method="percentile",
        rng=np.random.default_rng(0), vectorized=True,
    ).confidence_interval  # fmt: skip
    low, high = (_end(float(end), least, most, far) for end in (found.low, found.high))
    return low, high


def _end(end: float, least: float, most: float, far: float) -> float:
    """An end that is beyond the finite values is infinite; one that only rounding has put there is not."""
    beyond = end - min(max(end, least), most)
    return end - beyond if abs(beyond) < far / 1e6 else math.copysign(math.inf, beyond)


def median(values: NDArray[np.float64]) -> float:
    """The median, NaN of nothing."""
    return float(np.median(values)) if len(values) else float("nan")


def over_steps(steps: pd.Series[int], values: pd.Series[float]) -> float:
    """The median over training of what was measured at some steps, several values a step or one; NaN of nothing.

    A step weighs as many training steps as lie nearer to it than to the other measured ones, the first and the last as
    many as the gap beside them: of steps at even distances it is the plain median, and a beginning that is measured
    closely does not become the whole.

    >>> over_steps(pd.Series([0, 1, 2, 3, 1000]), pd.Series([0.0, 0.0, 0.0, 0.0, 7.0]))
    7.0
    >>> over_steps(pd.Series([0, 10, 20, 30]), pd.Series([1.0, 2.0, 4.0, 8.0]))
    3.0
    """
    places = np.unique(steps.to_numpy(np.float64))
    gaps = np.diff(places) if len(places) > 1 else np.ones(1)
    widths = dict(zip(places, (np.append(gaps[:1], gaps) + np.append(gaps, gaps[-1:])) / 2, strict=False))
    known = values.notna().to_numpy()
    if not known.any():
        return float("nan")
    ordered = values[known].to_numpy(np.float64)
    order = ordered.argsort(kind="stable")
    ordered, weights = ordered[order], steps[known].map(widths).to_numpy(np.float64)[order]
    reached = weights.cumsum() / weights.sum()
    first, last = np.searchsorted(reached, 0.5 - _ROUNDING), np.searchsorted(reached, 0.5 + _ROUNDING)
    return float((ordered[first] + ordered[last]) / 2)


def summarise(comparison: pd.DataFrame) -> pd.DataFrame:
    """One row a norm, learning rate and figure of `worst_where_diverged`: the columns of a compare-summary table.

    `median`, `low`, `high` over the `seeds` that have the figure; `ratio`, `ratio_low`, `ratio_high` the same of each
    seed's ratio to the `none` run of that seed.
    """
    rows = []
    for (problem, norm, lr), runs in comparison.groupby(["problem", "norm", "lr"], sort=False):
        for metric in kinds.METRICS:
            figure = metric.name
            values = runs[figure].dropna().to_numpy(np.float64)
            if not len(values):
                continue
            row = {"problem": problem, "norm": norm, "lr": lr, "figure": figure, "seeds": len(values),
                   "diverged": int(runs["diverged_at"].notna().sum()), "median": median(values)}  # fmt: skip
            row["low"], row["high"] = interval(values)
            paired = runs[f"ratio_{figure}"] if metric.has_ratio else runs[figure].iloc[:0]
            ratios = paired.dropna().to_numpy(np.float64)
            row["ratio"], (row["ratio_low"], row["ratio_high"]) = median(ratios), interval(ratios)
            rows.append(row)
    return pd.DataFrame(rows, columns=list(kinds.get("compare-summary").columns))
