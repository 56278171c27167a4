"""Statistics: medians over the steps of a run, and medians over seeds with bootstrap intervals."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bnsmooth_cli import kinds

CONFIDENCE: Final = 0.95
RESAMPLES: Final = 9_999
_ROUNDING: Final = 1e-9  # of a share


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """The percentile bootstrap interval of the median (Efron & Tibshirani 1993, chapter 13), with a fixed seed.

    Args:
        values: One value per seed. Infinite values, such as the steps to a target never reached, exceed all others.

    Returns:
        The ends of the interval, which may be infinite; NaN for fewer than two values.

    >>> interval(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    (1.0, 5.0)
    """
    if len(values) < 2:
        return math.nan, math.nan
    if (values == values[0]).all():  # SciPy warns of such data, and returns NaN for infinite ones
        return float(values[0]), float(values[0])
    # SciPy interpolates between the medians of resamples, which gives NaN between infinite ones. Finite numbers far
    # beyond the others stand for the infinite ones, and an end that is pulled towards them is infinite.
    finite = values[np.isfinite(values)]
    least, most = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)
    far = 10 * (most - least) + max(1.0, abs(most), abs(least))
    from scipy import stats  # takes half a second, which no other command should wait for

    ends = stats.bootstrap(
        (np.clip(values, least - far, most + far),), np.median, confidence_level=CONFIDENCE, n_resamples=RESAMPLES,
        method="percentile", rng=np.random.default_rng(0), vectorized=True,
    ).confidence_interval  # fmt: skip

    def end(value: float) -> float:
        inside = min(max(value, least), most)
        beyond = value - inside  # a rounding error, or a good part of `far`
        return inside if abs(beyond) < far / 1e6 else math.copysign(math.inf, beyond)

    return end(float(ends.low)), end(float(ends.high))


def median(values: NDArray[np.float64]) -> float:
    """The median; NaN if there are no values."""
    return float(np.median(values)) if len(values) else math.nan


def over_steps(steps: pd.Series[int], values: pd.Series[float]) -> float:
    """The median over training of values that were measured at some steps; NaN without values.

    Each measured step is weighted by the number of training steps that are nearest to it; the first and the last step
    are weighted by the gap beside them. At evenly spaced steps this is the plain median, and densely measured first
    steps do not dominate a run.

    Args:
        steps: The steps; several rows may share a step.
        values: Their values, NaN where there is none.

    >>> over_steps(pd.Series([0, 1, 2, 3, 1000]), pd.Series([0.0, 0.0, 0.0, 0.0, 7.0]))
    7.0
    >>> over_steps(pd.Series([0, 10, 20, 30]), pd.Series([1.0, 2.0, 4.0, 8.0]))
    3.0
    """
    known, weights = _weighted(steps, values)
    if not len(known):
        return math.nan
    order = known.argsort(kind="stable")
    ordered, weights = known[order], weights[order]
    reached = weights.cumsum() / weights.sum()
    first, last = np.searchsorted(reached, 0.5 - _ROUNDING), np.searchsorted(reached, 0.5 + _ROUNDING)
    return float((ordered[first] + ordered[last]) / 2)


def share_over_steps(steps: pd.Series[int], values: pd.Series[Any]) -> float:
    """The share of a run in which something holds, each measured step weighted as in `over_steps`; NaN without values.

    >>> share_over_steps(pd.Series([0, 1, 2, 1000]), pd.Series([True, True, None, False]))
    0.002
    """
    known, weights = _weighted(steps, values)
    return float(np.average(known, weights=weights)) if len(known) else math.nan


def _weighted(steps: pd.Series[int], values: pd.Series[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The values that are not null, and their weights."""
    places = np.unique(steps.to_numpy(np.float64))
    gaps = np.diff(places) if len(places) > 1 else np.ones(1)
    widths = dict(zip(places, (np.append(gaps[:1], gaps) + np.append(gaps, gaps[-1:])) / 2, strict=False))
    known = values.notna().to_numpy()
    return values[known].to_numpy(np.float64), steps[known].map(widths).to_numpy(np.float64)


def summarise(comparison: pd.DataFrame) -> pd.DataFrame:
    """Summarise a comparison over seeds: one row per norm, learning rate and metric.

    `median`, `low` and `high` describe the seeds that have the metric. `ratio`, `ratio_low` and `ratio_high` describe
    the ratios to the `none` run of the same seed.

    Args:
        comparison: A comparison as `worst_where_diverged` returns it.

    Returns:
        The columns of a table of kind `compare-summary`.
    """
    rows = []
    for (problem, norm, lr), runs in comparison.groupby(["problem", "norm", "lr"], sort=False):
        for metric in kinds.METRICS:
            values = runs[metric.name].dropna().to_numpy(np.float64)
            if not len(values):
                continue
            row = {"problem": problem, "norm": norm, "lr": lr, "figure": metric.name, "seeds": len(values),
                   "diverged": int(runs["diverged_at"].notna().sum()), "median": median(values)}  # fmt: skip
            row["low"], row["high"] = interval(values)
            ratios = runs[f"ratio_{metric.name}"] if metric.has_ratio else pd.Series(dtype="float64")
            paired = ratios.dropna().to_numpy(np.float64)
            row["ratio"], (row["ratio_low"], row["ratio_high"]) = median(paired), interval(paired)
            rows.append(row)
    return pd.DataFrame(rows, columns=list(kinds.get("compare-summary").columns))
