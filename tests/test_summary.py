"""The summary of a comparison over seeds."""

from __future__ import annotations

import numpy as np
import pytest
from judged_runs import (
    RIGHT,
    world,
    write_run,
)

from bnsmooth_cli.studies.outcome import conclude


def test_the_summary_has_medians_and_ratios_paired_by_seed(tmp_path):
    outcome = conclude(world(tmp_path, "vgg", RIGHT, 5, ("none", "l1"), kinds=("smoothness",), spread=0.1))
    rows = outcome.summary.set_index(["norm", "figure"])
    beta = outcome.comparison[outcome.comparison["norm"] == "l1"].sort_values("seed")["beta"].to_numpy()
    plain = outcome.comparison[outcome.comparison["norm"] == "none"].sort_values("seed")["beta"].to_numpy()
    row = rows.loc[("l1", "beta")]
    assert (row["seeds"], row["median"]) == (5, np.median(beta))
    assert (row["low"], row["high"], row["confidence"]) == (beta.min(), beta.max(), 0.9375)
    assert row["ratio_confidence"] == 0.9375
    assert rows.loc[("none", "beta"), "ratio"] == 1.0
    assert row["ratio"] == pytest.approx(np.median(beta / plain), rel=0.2)
    assert rows.loc[("none", "final_loss"), "ratio"] == 1.0


def test_a_median_counts_diverged_runs_at_the_level_of_chance(tmp_path):
    runs = world(tmp_path, "vgg", RIGHT, 2, ("none",), kinds=())
    runs += [write_run(tmp_path, "vgg", "none", 0.1, seed, RIGHT, kinds=(), diverged=20) for seed in (2, 3, 4)]
    row = conclude(runs).summary.set_index("figure")
    assert row.loc["final_loss", "median"] == np.inf
    assert row.loc["final_test_accuracy", "median"] == 0.1
    assert row.loc["final_loss", "diverged"] == 3


def test_a_diverged_run_has_no_accuracy_where_its_problem_has_none(tmp_path):
    runs = world(tmp_path, "vgg", RIGHT, 1, ("none",), kinds=())
    runs += world(tmp_path, "dln", RIGHT, 2, ("none",), kinds=(), diverged=20)
    outcome = conclude(runs)
    figures = outcome.summary.groupby("problem")["figure"].agg(set)
    assert "final_test_accuracy" in figures["vgg"]
    assert "final_test_accuracy" not in figures["dln"]
    targets = outcome.comparison.set_index("problem")["target_loss"]
    assert targets["dln"].isna().all()  # what has diverged ends nowhere
    assert np.isfinite(targets["vgg"])
