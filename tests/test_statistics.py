"""The metrics of one run, and the statistics over seeds: intervals, tests and their power."""

from __future__ import annotations

import dataclasses
import itertools
import math
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from helpers import SCHEMAS
from hypothesis import given, settings
from hypothesis import strategies as st
from judged_runs import (
    RIGHT,
    record,
)
from scipy import stats

from bnsmooth_cli.studies.metrics import of_measurements
from bnsmooth_cli.studies.statistics import (
    CONFIDENCE,
    LEVEL,
    POWER,
    at_least,
    holm,
    interval,
    mean_over_steps,
    over_steps,
    power,
    seeds_for,
    sign_test,
)

# Metrics of one run.


@pytest.mark.parametrize("seed", range(20))
def test_a_metric_of_a_run_is_the_median_weighted_by_the_steps_between_measurements(seed):
    random = np.random.default_rng(seed)
    steps = np.sort(random.choice(60, size=random.integers(1, 9), replace=False))
    rows = pd.DataFrame({"step": np.repeat(steps, 3), "value": random.normal(size=3 * len(steps))})
    rows.loc[rows.index[random.random(len(rows)) < 0.2], "value"] = np.nan
    repeated = []
    for row in rows.dropna().itertuples():
        gaps = [row.step - max(steps[steps < row.step])] if row.step > steps[0] else []
        gaps += [min(steps[steps > row.step]) - row.step] if row.step < steps[-1] else []
        repeated += [row.value] * (sum(gaps) * 2 // len(gaps) if gaps else 1)
    expected = np.median(repeated) if repeated else np.nan
    assert over_steps(rows["step"], rows["value"]) == pytest.approx(expected, nan_ok=True)
    mean = np.mean(repeated) if repeated else np.nan
    assert mean_over_steps(rows["step"], rows["value"]) == pytest.approx(mean, nan_ok=True)


def test_a_metric_of_evenly_spaced_steps_is_the_plain_median_infinities_included():
    steps, values = pd.Series([0, 50, 100, 150]), pd.Series([3.0, np.inf, 1.0, np.inf])
    assert over_steps(steps, values) == np.inf
    assert over_steps(steps[:3], values[:3]) == 3.0
    assert over_steps(steps[:2], values[:2].replace(np.inf, 5.0)) == 4.0
    assert np.isnan(over_steps(steps[:0], values[:0]))


def of_line(**columns):
    """The metrics of a run whose only table is one of smoothness, with nulls in its other columns."""
    line = pd.DataFrame(columns)

    def read(kind, chosen=None):
        return (line if kind == "smoothness" else line.iloc[:0]).reindex(columns=list(chosen or SCHEMAS[kind]))

    run = dataclasses.replace(record("vgg", "none", 0.1, 0, RIGHT, ()), read=read, _rows={})
    return of_measurements(run.rows)


def test_beta_at_points_that_are_not_saturated():
    found = of_line(step=[0, 10, 20, 30], beta=[4.0, 20.0, np.inf, 20.0], saturated=[False, True, None, True])
    assert found["beta"] == 20.0
    assert found["beta_unsaturated"] == np.inf  # the median of 4 and an overflow
    assert found["saturated"] == pytest.approx(2 / 3)  # an overflow is neither
    assert np.isnan(found["random_loss_range"])
    found = of_line(step=[0, 1, 2, 1000], beta=[20.0, 20.0, 20.0, 3.0], saturated=[True, True, True, False])
    assert found["saturated"] < 0.4  # each point weighs as the steps that it stands for
    assert found["beta_unsaturated"] == 3.0
    old = of_line(step=[0, 10], beta=[4.0, 20.0])
    assert np.isnan([old["beta_unsaturated"], old["saturated"], old["scaled_beta"]]).all()


# Intervals, tests and power.


@pytest.mark.parametrize("n", range(2, 21))
def test_the_coverage_of_an_interval_is_exact(n):
    """By enumeration of the number of values below the median, of which each has the probability of its coin tosses."""
    total = Fraction(0)
    for below in range(n + 1):
        low, high, confidence = interval(np.concatenate([-np.arange(1.0, below + 1), np.arange(1.0, n - below + 1)]))
        total += Fraction(math.comb(n, below), 2**n) * (low <= 0 <= high)
    assert confidence == float(total)
    assert confidence >= CONFIDENCE if n >= 6 else confidence == 1 - 2.0 ** (1 - n)


@pytest.mark.parametrize("n", [5, 9, 17])
def test_no_shorter_interval_between_order_statistics_has_the_coverage(n):
    low, high, confidence = interval(np.arange(float(n)))
    assert (low + high) == n - 1  # symmetric
    if low > 0 or confidence >= CONFIDENCE:
        inner = stats.binom.cdf(n - low - 2, n, 0.5) - stats.binom.cdf(low + 1, n, 0.5)
        assert inner < CONFIDENCE


def test_five_seeds_state_a_coverage_of_93_75_percent():
    assert interval(np.array([3.0, 1.0, 2.0, 5.0, 4.0])) == (1.0, 5.0, 0.9375)


def test_a_skewed_distribution_is_covered_as_stated():
    random = np.random.default_rng(1)
    for n in (5, 7, 12):
        values = random.lognormal(sigma=2, size=(4000, n))
        covered = np.mean([low <= 1 <= high for low, high, _ in map(interval, values)])
        assert covered == pytest.approx(interval(values[0]).confidence, abs=0.012)


def test_intervals_with_infinite_and_unknown_values():
    inf, nan = math.inf, math.nan
    assert interval(np.array([1.0, inf, inf, inf, 2.0]))[:2] == (1.0, inf)
    assert interval(np.array([inf] * 5))[:2] == (inf, inf)
    assert interval(np.array([-inf, 1.0, 2.0, -inf, -inf]))[:2] == (-inf, 2.0)
    assert interval(np.array([1.0, 2.0, 3.0, 4.0, nan]))[:2] == (-inf, inf)
    assert interval(np.append(np.arange(20.0), nan))[:2] == (
        interval(np.arange(21.0))[0] - 1,
        interval(np.arange(21.0))[1],
    )
    for few in ([], [1.0], [nan, nan, nan]):
        assert np.isnan(interval(np.array(few))).all()


@given(st.lists(st.floats(-5, 5) | st.just(math.nan), min_size=1, max_size=25), st.floats(-5, 5), st.sampled_from("<>"))
@settings(max_examples=200, deadline=None)
def test_the_sign_test_is_scipys_binomial_test(values, bound, side):
    array = np.array(values)
    beyond = int((array > bound).sum() if side == ">" else (array < bound).sum())
    expected = stats.binomtest(beyond, len(values), alternative="greater").pvalue
    assert sign_test(array, bound, side) == pytest.approx(expected, rel=1e-12)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=7))
@settings(max_examples=200, deadline=None)
def test_holms_correction_is_that_of_closed_testing(p_values):
    """A hypothesis is rejected if every intersection that contains it is, by Bonferroni's test."""
    places = range(len(p_values))
    subsets = [s for size in range(1, len(p_values) + 1) for s in itertools.combinations(places, size)]
    expected = [max(min(1.0, len(s) * min(p_values[j] for j in s)) for s in subsets if i in s) for i in places]
    assert holm(p_values) == pytest.approx(expected, rel=1e-12)
    assert holm([]) == []


@pytest.mark.parametrize(("n", "successes", "chance"), [(5, 3, 0.5), (12, 9, 0.84), (7, 0, 0.3), (7, 8, 0.3)])
def test_the_probability_of_so_many_successes(n, successes, chance):
    assert at_least(n, successes, chance) == pytest.approx(stats.binom.sf(successes - 1, n, chance), rel=1e-12)


@pytest.mark.parametrize(
    ("seeds", "effect", "tests"), [(5, 1.0, 1), (8, 0.5, 1), (8, 1.0, 8), (20, 1.0, 7), (4, 9.0, 1)]
)
def test_the_power_is_that_of_simulated_tests(seeds, effect, tests):
    values = np.random.default_rng(seeds).normal(effect, 1.0, size=(20_000, seeds))
    p_values = np.array([sign_test(row, 0.0, ">") for row in values])
    assert power(seeds, effect, tests) == pytest.approx((p_values <= LEVEL / tests).mean(), abs=0.012)


@pytest.mark.parametrize(("effects", "tests"), [([1.0], 1), ([0.5], 1), ([1.0] * 7, 1), ([2.0, 1.0], 1), ([1.0], 8)])
def test_a_plan_names_the_smallest_number_of_seeds(effects, tests):
    found = seeds_for(effects, tests)
    reached = [math.prod(power(n, effect, tests) for effect in effects) >= POWER for n in range(1, found + 1)]
    assert reached.index(True) == found - 1
    assert seeds_for([*effects, 0.0], tests) is None
