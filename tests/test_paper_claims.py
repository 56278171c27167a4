"""The claims' rules and statistics on the paper's own figures."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from judged_runs import (
    LRS,
    RIGHT,
    STEPS,
    grid,
    judge,
    part_of,
    parts_of,
    verdicts_of,
    world,
)

from bnsmooth_cli import paper
from bnsmooth_cli.studies import verdicts
from bnsmooth_cli.studies.claims import CLAIMS, EXISTS
from bnsmooth_cli.studies.evidence import published
from bnsmooth_cli.studies.folder import Study
from bnsmooth_cli.studies.grid import Grid
from bnsmooth_cli.studies.statistics import (
    mean_over_steps,
    over_steps,
)
from bnsmooth_cli.studies.verdicts import (
    INCONCLUSIVE,
    NOT_APPLICABLE,
    NOT_MEASURED,
    NOT_REPRODUCED,
    REPRODUCED,
)


def shown_parts():
    """Every part with a rule, with the learning rates at which the paper's figures have its statistic."""
    for problem in ("vgg", "dln"):
        for lr in sorted({shown.lr for shown in published(problem)}):
            for claim, part in ((about, part) for about in CLAIMS for part in about.parts):
                if part.rule is None or not (part.applies(problem, problem == "vgg") and part.at(lr)):
                    continue
                value = verdicts.shown(part, problem, lr)
                if not math.isnan(value):
                    yield problem, lr, claim.number, part, value


def test_the_papers_figures_obey_each_rule_that_decides_and_part_from_each_that_does_not():
    shown = list(shown_parts())
    assert {number for _, _, number, _, _ in shown} == {1, 2, 3, 4, 5, 6, 7, 8, 16}
    for problem, lr, number, part, value in shown:
        side, bound = part.rule
        obeys = value > bound if side == ">" else value < bound
        if part.judged == EXISTS:
            assert obeys == (problem == "vgg" and lr == 0.5)
        else:
            assert obeys == part.decides(problem, lr), (problem, lr, number, part.text, value)
    every = {(number, part.text, problem, at) for problem, lr, number, part, _ in shown for name, at in part.parted
             if name == problem and at in (None, lr)}  # fmt: skip
    assert every == {(claim.number, part.text, name, at)
                     for claim in CLAIMS for part in claim.parts for name, at in part.parted}  # fmt: skip


@pytest.mark.parametrize("problem", ["vgg", "dln"])
@pytest.mark.fast(1)
def test_the_papers_own_runs_refute_nothing_however_often_they_are_repeated(problem):
    runs = [dataclasses.replace(run, seed=seed) for run in published(problem) for seed in range(10)]
    rows = judge(runs)
    assert NOT_REPRODUCED not in set(rows["part_verdict"][rows["decides"].eq(True)])
    main = verdicts_of(judge([run for run in runs if run.lr == LRS[problem]], 1, 4, 5, 6))
    assert {number for number, verdict in main.items() if verdict == REPRODUCED} >= {1, 4, 5, 6}
    single = verdicts_of(judge([run for run in runs if run.seed == 0]))
    assert set(single.values()) <= {INCONCLUSIVE, NOT_MEASURED, NOT_APPLICABLE}


def test_the_papers_own_figures_stand_beside_the_answers():
    rows = judge(grid("vgg", RIGHT, 2, lrs=(0.1, 0.2), kinds=("smoothness", "activations", "theory")))
    assert part_of(rows, 7, "at all steps", 0.1)["paper"] == pytest.approx(0.997, abs=5e-3)
    found = parts_of(rows, 3, "mean between measured steps, noisy-batch / none", 0.1)["paper"]
    assert found.iloc[0] == pytest.approx(10.29, rel=0.3)
    assert part_of(rows, 3, "noisy-none", 0.1).isna()["paper"]  # no figure has noise without BatchNorm
    assert rows[rows["claim"].isin([10, 15])]["paper"].isna().all()
    assert rows[np.isclose(rows["lr"], 0.2)]["paper"].isna().all()  # no figure shows this learning rate
    assert published("my:problem") == ()


def test_the_statistics_of_the_papers_curves_are_those_that_it_was_read_to_have():
    """The expected numbers were read from the curves by other code."""
    upper = {norm: paper.rows("smoothness", "vgg", norm, 0.1) for norm in ("none", "batch")}
    for first, last, expected in ((0, 999, (52.6, 29.1)), (1_000, 5_000, (72.6, 25.1)), (5_001, 15_000, (32.3, 17.3))):
        for norm, value in zip(("none", "batch"), expected, strict=True):
            rows = upper[norm][upper[norm]["step"].between(first, last)]
            assert over_steps(rows["step"], rows["predictiveness_max"]) == pytest.approx(value, abs=0.06)
    for norm, share in (("batch", 0.91), ("none", 0.69)):
        late = upper[norm][upper[norm]["step"] > 5_000]
        near = (late["beta"] - 20).abs() <= 0.02 * 20
        assert mean_over_steps(late["step"], near) == pytest.approx(share, abs=0.01)
    moments = {
        2: {"none": 0.032, "batch": 0.0017, "noisy-batch": 0.27},
        9: {"none": 0.065, "batch": 0.0005, "noisy-batch": 0.27},
        13: {"none": 0.013, "batch": 0.00003, "noisy-batch": 0.35},
    }
    for layer, norms in moments.items():
        for norm, value in norms.items():
            rows = paper.rows("activations", "vgg", norm, 0.1)
            rows = rows[rows["layer"] == layer]
            assert over_steps(rows["step"], rows["mean_change"]) == pytest.approx(value, rel=0.1), (layer, norm)
    ends = {("none", 1e-6): 1661, ("batch", 1e-6): 479, ("l1", 1e-6): 97, ("l2", 1e-6): 481, ("linf", 1e-6): 986,
            ("none", 1e-7): 3970, ("batch", 1e-7): 710}  # fmt: skip
    last = {(run.norm, run.lr): run.training["final_loss"] for run in published("dln") if "train" in run.kinds}
    for run, loss in ends.items():
        assert last[run] == pytest.approx(loss, abs=0.5), run
    best = {(run.norm, run.lr): run.training["best_test_accuracy"] for run in published("vgg")}
    assert best[("none", 0.5)] == 0.1
    assert best[("batch", 0.1)] >= 0.8287


def test_the_terminal_and_the_report_show_the_papers_statistic(cli, tmp_path):
    world(tmp_path / "study/runs", "dln", RIGHT, seeds=2, norms=("none", "batch"), kinds=("smoothness",))
    Study(tmp_path / "study").record(Grid(("none", "batch"), seeds=(0, 1), settings={"problem": "dln", "steps": STEPS}))
    folders = " ".join(map(str, sorted((tmp_path / "study/runs").iterdir())))
    code, out, err = cli(f"compare {folders} -o study/compare.parquet")
    assert (code, err) == (0, "")
    shown = verdicts.shown(CLAIMS[6].parts[0], "dln", 1e-6)
    line = next(line for line in out.splitlines() if "effective beta where neither probe is saturated, batch" in line)
    assert line.split()[-2] == f"{shown:.2g}"
    assert cli("report study --format md -o report.md")[0] == 0
    row = next(
        line
        for line in (tmp_path / "report.md").read_text().splitlines()
        if "neither probe is saturated, batch" in line
    )
    assert f"{shown:.3g}" in row
