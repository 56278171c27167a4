"""The summary of a comparison over seeds."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import legend
from judged_runs import (
    RIGHT,
    world,
    write_run,
)

import bnsmooth_cli as bns
from bnsmooth_cli.figures import render
from bnsmooth_cli.storage import tables
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


def test_means_over_the_run_go_on_at_the_best_constant_answer_after_a_divergence(tmp_path):
    (whole,) = world(tmp_path / "whole", "vgg", RIGHT, 1, ("none",), kinds=())
    run = write_run(tmp_path, "vgg", "none", 0.1, 1, RIGHT, kinds=(), diverged=900, spread=0.0)
    outcome = conclude([whole, run])
    ended, diverged = (outcome.comparison[outcome.comparison["seed"] == seed].iloc[0] for seed in (0, 1))
    rows = bns.read_table(run.train_path)
    before = rows.loc[rows["step"] < 900, "accuracy"].mean()
    assert diverged["mean_accuracy"] == pytest.approx(0.3 * before + 0.7 * 0.1, rel=1e-3)
    assert np.isinf(diverged["mean_log_loss"])  # the loss of the best constant answer is not recorded
    assert np.isfinite(ended["final_test_accuracy"])
    assert np.isnan(diverged["final_test_accuracy"])  # that before its divergence is not its last one


def test_means_of_a_regression_that_diverges_are_of_its_best_constant_loss(tmp_path):
    run = write_run(tmp_path, "dln", "none", 1e-6, 0, RIGHT, kinds=(), diverged=1500)
    rows = bns.read_table(run.train_path)
    before = np.log(rows.loc[rows["step"] < 1500, "loss"]).mean()
    row = conclude([run]).comparison.iloc[0]
    assert row["mean_log_loss"] == pytest.approx(0.5 * before + 0.5 * np.log(100.0), rel=1e-3)


def test_a_minibatch_run_that_overflows_has_no_finite_last_loss(tmp_path):
    run = write_run(tmp_path, "vgg", "none", 0.1, 0, RIGHT, kinds=(), diverged=20)
    rows = bns.read_table(run.train_path, "train")
    rows.loc[rows.index[-1], "loss"] = np.inf
    tables.write_table(run.train_path, "train", [rows], rows.attrs["bnsmooth"])
    outcome = conclude([run, write_run(tmp_path, "vgg", "none", 0.1, 1, RIGHT, kinds=())])
    row = outcome.comparison[outcome.comparison["seed"] == 0].iloc[0]
    assert np.isinf(row["final_loss"])
    figure = render("compare", outcome.comparison)
    assert legend(figure) == ["diverged"]
    assert [text.get_text() for text in figure.axes[0].texts] == ["1 of 2"]


def test_a_ratio_of_two_runs_that_diverge_could_be_anything(tmp_path):
    runs = world(tmp_path, "vgg", RIGHT, 5, ("none",), kinds=(), diverged=20)
    runs += world(tmp_path, "vgg", RIGHT, 1, ("batch",), kinds=())
    runs += [write_run(tmp_path, "vgg", "batch", 0.1, seed, RIGHT, kinds=(), diverged=20) for seed in (1, 2, 3, 4)]
    row = conclude(runs).summary.set_index(["norm", "figure"]).loc[("batch", "final_loss")]
    assert row["median"] == np.inf
    assert np.isnan(row["ratio"])  # and not 0, the ratio of the one that did not


def test_one_undefined_ratio_widens_the_interval(tmp_path):
    runs = [write_run(tmp_path, "vgg", norm, 0.1, 0, RIGHT, kinds=(), diverged=20) for norm in ("none", "batch")]
    runs += [write_run(tmp_path, "vgg", norm, 0.1, seed, RIGHT, kinds=())
             for norm in ("none", "batch") for seed in (1, 2, 3, 4)]  # fmt: skip
    row = conclude(runs).summary.set_index(["norm", "figure"]).loc[("batch", "final_loss")]
    assert row["ratio"] == pytest.approx(2 / 60, rel=0.1)
    assert (row["ratio_low"], row["ratio_high"]) == (-np.inf, np.inf)
