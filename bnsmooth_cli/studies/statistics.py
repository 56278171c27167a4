"""Statistics: exact tests and intervals of a median over seeds, their power, and medians over the steps of a run."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bnsmooth_cli import kinds

#: The least coverage of an interval, where the number of seeds allows it: 1 - 2 / 2^n reaches it from n = 6 on.
CONFIDENCE: Final = 0.95
#: The level of a one-sided test. All of n seeds agree by chance with probability 1 / 2^n, so that n = 5 reaches it.
LEVEL: Final = 0.05
#: The smallest number of seeds whose test can reach LEVEL.
SEEDS: Final = math.ceil(-math.log2(LEVEL))
#: The power that a plan asks for.
POWER: Final = 0.8
MAX_SEEDS: Final = 1_000  # of a plan
_ROUNDING: Final = 1e-9  # of a share


class Interval(NamedTuple):
    """An interval of a median: its ends, which may be infinite, and the probability that it covers the median."""

    low: float
    high: float
    confidence: float


def interval(values: NDArray[np.float64]) -> Interval:
    r"""The exact interval of the median between two order statistics.

    With the sorted values $x_{(1)} \le \dots \le x_{(n)}$, $[x_{(k)}, x_{(n + 1 - k)}]$ covers the median of any
    distribution with probability at least $1 - 2 P(B < k)$, where B is binomial with n trials and probability 1/2
    (Thompson 1936; Conover 1999, section 3.2). k is the largest one whose coverage is at least CONFIDENCE. For n < 6
    there is none; the interval is then the range of the values, and `confidence` is less than CONFIDENCE.

    Args:
        values: One value per seed. Infinite values, such as the steps to a target never reached, exceed all others. NaN
            is a value that could be anything: it widens the interval at both ends.

    Returns:
        The interval; NaN for fewer than two values, or where every value is NaN.

    >>> interval(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    Interval(low=1.0, high=5.0, confidence=0.9375)
    >>> interval(np.arange(8.0))
    Interval(low=0.0, high=7.0, confidence=0.9921875)
    >>> interval(np.arange(9.0))
    Interval(low=1.0, high=7.0, confidence=0.9609375)
    """
    n, unknown = len(values), np.isnan(values)
    if n < 2 or unknown.all():
        return Interval(math.nan, math.nan, math.nan)
    k = max((k for k in range(1, n // 2 + 1) if _coverage(n, k) >= CONFIDENCE), default=1)
    low = np.sort(np.where(unknown, -np.inf, values))[k - 1]
    high = np.sort(np.where(unknown, np.inf, values))[n - k]
    return Interval(float(low), float(high), _coverage(n, k))


def _coverage(n: int, k: int) -> float:
    return 1 - 2 * at_least(n, n - k + 1)


@functools.cache
def at_least(n: int, k: int, probability: float = 0.5) -> float:
    """The probability of k or more successes in n independent trials.

    >>> at_least(5, 5), at_least(5, 0)
    (0.03125, 1.0)
    """
    if probability == 0.5:
        return sum(math.comb(n, i) for i in range(max(k, 0), n + 1)) / 2**n
    return math.fsum(math.comb(n, i) * probability**i * (1 - probability) ** (n - i) for i in range(max(k, 0), n + 1))


def sign_test(values: NDArray[np.float64], bound: float, side: str) -> float:
    r"""The p-value of the one-sided sign test that the median lies beyond a bound.

    If the median is at the bound or on its other side, at least as many of n values lie strictly beyond it as did with
    probability at most $P(B \ge k)$, B binomial with n trials and probability 1/2 (Conover 1999, section 3.4). The
    test assumes nothing of the distribution. A value at the bound and NaN lie on neither side.

    Args:
        values: One value per seed.
        bound: The bound.
        side: ">" tests that the median is above it, "<" that it is below.

    >>> sign_test(np.array([0.5, 0.6, 0.7, 0.8, 0.9]), 1.0, "<")
    0.03125
    >>> sign_test(np.array([0.5, 0.6, 0.7, 0.8, np.nan]), 1.0, "<")
    0.1875
    """
    return at_least(len(values), int((values > bound).sum() if side == ">" else (values < bound).sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of tests adjusted for their number (Holm 1979): one at or below LEVEL is significant.

    Among true null hypotheses, one or more are rejected with probability at most LEVEL, whatever their dependence.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


@functools.cache
def power(seeds: int, effect: float, tests: int = 1) -> float:
    r"""The probability that a sign test at level LEVEL / tests rejects.

    Args:
        seeds: The number of seeds.
        effect: How far the median lies beyond the bound, in standard deviations of a normal distribution over seeds.
        tests: By how many tests the level is divided (Bonferroni 1936), as Holm's first step does.

    >>> round(power(5, 1.0), 2), round(power(5, 1.0) ** 7, 3), power(4, 1.0)
    (0.42, 0.002, 0.0)
    """
    least = critical(seeds, LEVEL / tests)
    return at_least(seeds, least, NormalDist().cdf(effect))


@functools.cache
def critical(n: int, level: float) -> int:
    """The smallest number of n values beyond the bound at which the sign test rejects; n + 1 if it never does.

    >>> critical(5, 0.05), critical(8, 0.05), critical(5, 0.01)
    (5, 7, 6)
    """
    ways, k = 1, n + 1
    while ways <= level * 2**n:
        k -= 1
        ways += math.comb(n, k - 1)
    return k


def seeds_for(effects: Sequence[float], tests: int = 1) -> int | None:
    """The smallest number of seeds with which independent tests all reject with probability POWER.

    Args:
        effects: The effect that each test is to find, as in `power`.
        tests: By how many tests the level is divided.

    Returns:
        The number; None if MAX_SEEDS are not enough.

    >>> seeds_for([1.0]), seeds_for([1.0] * 7), seeds_for([0.0])
    (13, 23, None)
    """
    if min(effects) <= 0:
        return None
    numbers = range(SEEDS, MAX_SEEDS + 1)
    return next((n for n in numbers if math.prod(power(n, effect, tests) for effect in effects) >= POWER), None)


def median(values: NDArray[np.float64]) -> float:
    """The median of the values that are not NaN; NaN if there are none, or if it lies between both infinities."""
    known = values[~np.isnan(values)]
    with np.errstate(invalid="ignore"):
        return float(np.median(known)) if len(known) else math.nan


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


def mean_over_steps(steps: pd.Series[int], values: pd.Series[Any]) -> float:
    """The mean over training, each measured step weighted as in `over_steps`; NaN without values.

    Of booleans, it is the share of the run in which something holds.

    >>> mean_over_steps(pd.Series([0, 1, 2, 1000]), pd.Series([True, True, None, False]))
    0.002
    """
    known, weights = _weighted(steps, values)
    return float(np.average(known, weights=weights)) if len(known) else math.nan


def _weighted(steps: pd.Series[int], values: pd.Series[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The values that are not null, and their weights."""
    places, position = np.unique(steps.to_numpy(np.float64), return_inverse=True)
    gaps = np.diff(places) if len(places) > 1 else np.ones(1)
    widths = (np.append(gaps[:1], gaps) + np.append(gaps, gaps[-1:])) / 2
    known = values.notna().to_numpy()
    return values[known].to_numpy(np.float64), widths[position][known]


def summarise(comparison: pd.DataFrame) -> pd.DataFrame:
    """Summarise a comparison over seeds: one row per norm, learning rate and metric of each setting.

    `median`, `low`, `high` and `confidence` describe the seeds that have the metric. `ratio`, `ratio_low`, `ratio_high`
    and `ratio_confidence` describe the ratios to the `none` run of the same seed. A ratio of two infinite values, as of
    two runs that diverge, could be anything; with half of them or more, `ratio` is null.

    Args:
        comparison: A comparison as `worst_where_diverged` returns it.

    Returns:
        The columns of a table of kind `compare-summary`.
    """
    rows = []
    keys = ["problem", "settings", "norm", "lr"]
    for (problem, settings, norm, lr), runs in comparison.groupby(keys, sort=False):
        for metric in kinds.METRICS:
            values = runs[metric.name].dropna().to_numpy(np.float64)
            if not len(values):
                continue
            row = {"problem": problem, "norm": norm, "lr": lr, "settings": settings, "figure": metric.name,
                   "seeds": len(values), "diverged": int(runs["diverged_at"].notna().sum()),
                   "median": median(values)}  # fmt: skip
            if metric.name.startswith("steps_to"):
                row["never"] = int(np.isinf(values).sum())
            row["low"], row["high"], row["confidence"] = interval(values)
            paired = _ratios(runs, metric) if metric.has_ratio else np.empty(0)
            row["ratio"] = median(paired) if 2 * np.isnan(paired).sum() < len(paired) else math.nan
            row["ratio_low"], row["ratio_high"], row["ratio_confidence"] = interval(paired)
            rows.append(row)
    return pd.DataFrame(rows, columns=list(kinds.get("compare-summary").columns))


def _ratios(runs: pd.DataFrame, metric: kinds.Metric) -> NDArray[np.float64]:
    """The ratios of a metric over seeds, with NaN where both values are infinite or both are zero."""
    ratios, own = (runs[name].astype("float64") for name in (f"ratio_{metric.name}", metric.name))
    undefined = ratios.isna() & (own.eq(0) | np.isinf(own))
    return ratios[ratios.notna() | undefined].to_numpy(np.float64)
