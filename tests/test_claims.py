"""The claims' verdicts and the statistics under them, on runs whose tables are written to be right or wrong."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import SCHEMAS

from bnsmooth_cli import paper
from bnsmooth_cli.config import resolve
from bnsmooth_cli.storage import tables
from bnsmooth_cli.storage.runs import Run, write_config
from bnsmooth_cli.studies import claims
from bnsmooth_cli.studies.comparison import published
from bnsmooth_cli.studies.folder import Study
from bnsmooth_cli.studies.grid import Grid
from bnsmooth_cli.studies.metrics import of_measurements
from bnsmooth_cli.studies.outcome import conclude
from bnsmooth_cli.studies.statistics import interval, over_steps, share_over_steps
from reproduction.scales import NORMS

ROOT = Path(__file__).parents[1]
STEPS = 100
#: What each norm's runs are like where the paper is right: the last loss and accuracy, and what is measured on them.
RIGHT = {
    "none": {"loss": 1.0, "accuracy": 0.6, "rough": 100.0, "moves": 0.1, "cosine": 0.95},
    "batch": {"loss": 0.1, "accuracy": 0.8, "rough": 1.0, "moves": 0.1, "cosine": 0.05},
    "l1": {"loss": 0.09, "accuracy": 0.8, "rough": 1.2, "moves": 0.2, "cosine": 0.05},
    "l2": {"loss": 0.1, "accuracy": 0.79, "rough": 1.2, "moves": 0.2, "cosine": 0.05},
    "linf": {"loss": 0.1, "accuracy": 0.79, "rough": 1.2, "moves": 0.2, "cosine": 0.05},
    "noisy-batch": {"loss": 0.11, "accuracy": 0.79, "rough": 1.0, "moves": 0.3, "cosine": 0.05},
    "noisy-none": {"loss": 2.0, "accuracy": 0.1, "rough": 100.0, "moves": 0.3, "cosine": 0.5},
}
#: And where nothing that it says is so.
WRONG = {
    "none": {"loss": 0.5, "accuracy": 0.8, "rough": 1.0, "moves": 0.3, "cosine": 0.5},
    "batch": {"loss": 1.0, "accuracy": 0.81, "rough": 100.0, "moves": 0.4, "cosine": 0.9},
    "l1": {"loss": 1.5, "accuracy": 0.6, "rough": 200.0, "moves": 0.1, "cosine": 0.9},
    "l2": {"loss": 1.5, "accuracy": 0.6, "rough": 200.0, "moves": 0.1, "cosine": 0.9},
    "linf": {"loss": 1.5, "accuracy": 0.6, "rough": 200.0, "moves": 0.1, "cosine": 0.9},
    "noisy-batch": {"loss": 1.5, "accuracy": 0.6, "rough": 200.0, "moves": 0.1, "cosine": 0.9},
    "noisy-none": {"loss": 0.1, "accuracy": 0.8, "rough": 1.0, "moves": 0.1, "cosine": 0.5},
}


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


def test_a_metric_of_evenly_spaced_steps_is_the_plain_median_infinities_included():
    steps, values = pd.Series([0, 50, 100, 150]), pd.Series([3.0, np.inf, 1.0, np.inf])
    assert over_steps(steps, values) == np.inf
    assert over_steps(steps[:3], values[:3]) == 3.0
    assert over_steps(steps[:2], values[:2].replace(np.inf, 5.0)) == 4.0
    assert np.isnan(over_steps(steps[:0], values[:0]))


def write_run(
    folder,
    problem,
    norm,
    lr,
    seed,
    world,
    kinds=("smoothness", "smoothness-random", "ics", "activations", "theory"),
    diverged=None,
):
    """A run folder with tables that say what the world says of the norm, a little different for each seed."""
    about, right = dict(world[norm]), world is RIGHT
    config = resolve(problem, norm=norm, lr=lr, seed=seed, steps=STEPS)
    run = Run(folder / config.name, config)
    run.path.mkdir(parents=True)
    write_config(run)
    jitter = 1 + 0.01 * seed
    lead = {"run": run.name, "problem": problem, "norm": norm, "lr": lr, "seed": seed}
    step = np.arange(STEPS + 1)
    loss = 2.0 * (about["loss"] * jitter / 2.0) ** (step / STEPS)
    accuracy = np.where(step % 10 == 0, about["accuracy"] * jitter * step / STEPS, np.nan)
    train = pd.DataFrame({**lead, "step": step, "loss": loss, "accuracy": np.nan, "grad_norm": 1.0})
    train = train.assign(test_loss=np.nan, test_accuracy=accuracy if problem == "vgg" else np.nan)
    end = {"last_step": STEPS} if diverged is None else {"diverged_at": diverged}
    rows = train if diverged is None else train[: diverged + 1]
    said = {"version": "0", "runs": {run.name: config.as_dict()}}
    tables.write_table(run.train_path, "train", [rows], said | end)
    measured = np.arange(0, STEPS + 1, 5)
    early = 1.0 if norm != "none" else 10.0 if right else 0.1
    rough = about["rough"] * jitter * np.where(measured <= 10, early, 1.0)
    turn = 1.0 if norm != "none" else 0.5 if right else 2.0
    line = pd.DataFrame(
        {
            **lead,
            "step": measured,
            "loss_min": 0.0,
            "loss_max": rough,
            "beta": rough,
            "predictiveness_max": rough,
            "saturated": False,
        }
    )
    moved = [np.nan, about["moves"] * jitter]
    frames = {
        "smoothness": line,
        "smoothness-random": line,
        "ics": pd.DataFrame({**lead, "step": 0, "layer": [1, 2], "ics": [0, turn],
                             "cosine": [1.0, about["cosine"]]}),
        "activations": pd.DataFrame({**lead, "step": [0, 5], "layer": 1, "unit": 0, "std": 2.0,
                                     "wasserstein": [np.nan, 2.0 * about["moves"] * jitter],
                                     "mean_change": moved, "var_change": moved,
                                     "kurtosis": 1.0 if right else 0.1, "quantiles": [[0.0]] * 2}),
        "theory": pd.DataFrame({**lead, "step": 0, "statement": ["4.1", "4.2", "4.3", "4.4", "4.5"], "holds": right,
                                "condition": [None, True, None, None, True], "mean_fraction": 0.1,
                                "output_fraction": 0.2}),
    }  # fmt: skip
    for kind in kinds:
        frame = frames[kind].reindex(columns=list(SCHEMAS[kind]))
        for column, type_ in SCHEMAS[kind].items():
            if type_ == "string":
                frame[column] = frame[column].astype(object).fillna("x")
            elif type_ == "int64":
                frame[column] = frame[column].fillna(0).astype("int64")
        tables.write_table(run.path / f"{kind}.parquet", kind, [frame], said)
    return run


def world(folder, problem, which, seeds=5, norms=NORMS, lrs=None, **more):
    lr = resolve(problem).lr
    return [
        write_run(folder, problem, norm, lr, seed, which, **more)
        for norm, lr, seed in itertools.product(norms, lrs or (lr,), range(seeds))
    ]


def verdicts(outcome):
    return dict(outcome.claims[["claim", "verdict"]].drop_duplicates().itertuples(index=False))


@pytest.mark.parametrize("problem", ["vgg", "dln"])
def test_where_the_paper_is_right_every_claim_is_reproduced(tmp_path, problem):
    lr = resolve(problem).lr
    runs = world(tmp_path, problem, RIGHT)
    runs += [write_run(tmp_path, problem, "none", 10 * lr, seed, RIGHT, diverged=30) for seed in range(5)]
    runs += [write_run(tmp_path, problem, "batch", 10 * lr, seed, RIGHT) for seed in range(5)]
    found = verdicts(conclude(runs))
    assert found == dict.fromkeys(range(1, 16), claims.REPRODUCED)


@pytest.mark.parametrize("problem", ["vgg", "dln"])
def test_where_the_paper_is_wrong_no_claim_is_reproduced(tmp_path, problem):
    lr = resolve(problem).lr
    runs = world(tmp_path, problem, WRONG)
    for norm, seed in itertools.product(("none", "batch"), range(5)):
        runs.append(write_run(tmp_path, problem, norm, 10 * lr, seed, WRONG, diverged=30))
    found = verdicts(conclude(runs))
    assert found == dict.fromkeys(range(1, 16), claims.NOT_REPRODUCED)


@pytest.mark.parametrize("seeds", [1, 2, 4])
def test_few_seeds_never_make_a_verdict(tmp_path, seeds):
    found = conclude(world(tmp_path, "vgg", RIGHT, seeds=seeds)).claims
    assert set(found["verdict"]) == {claims.INCONCLUSIVE, claims.NOT_MEASURED}
    assert set(found.loc[found["verdict"] == claims.NOT_MEASURED, "claim"]) == {2}  # no lr at which none fails


def test_seeds_that_disagree_are_inconclusive(tmp_path):
    runs = world(tmp_path / "a", "vgg", RIGHT, seeds=5, norms=("none",))
    runs += world(tmp_path / "b", "vgg", RIGHT, seeds=4, norms=("batch",))
    rough = {"batch": {**RIGHT["batch"], "rough": 1e4, "loss": 3.0}}
    runs.append(write_run(tmp_path / "c", "vgg", "batch", 0.1, 4, rough))
    found = verdicts(conclude(runs))
    assert [found[number] for number in (1, 5, 6, 7)] == [claims.INCONCLUSIVE] * 4


def test_what_is_not_measured_names_the_command_that_measures_it(tmp_path):
    outcome = conclude(world(tmp_path, "dln", RIGHT, norms=("none", "batch", "l1"), kinds=("smoothness",)))
    found = verdicts(outcome)
    assert found[1] == found[5] == found[6] == found[7] == claims.REPRODUCED
    assert {found[number] for number in (2, 3, 4, 8, 9, *range(10, 16))} == {claims.NOT_MEASURED}
    lines = outcome.claims.set_index("claim")["command"]
    assert "--norms none,batch " in lines[4].iloc[0]
    assert "--measure ics" in lines[4].iloc[0]
    assert "--measure theory" in lines[12]
    assert "--lrs 1e-05" in lines[2]
    merged, further = outcome.next
    assert "--norms none,batch,noisy-batch,noisy-none,l2,linf" in merged
    assert "--measure " in merged
    assert further == lines[2]


def test_the_commands_have_every_seed_and_lr_of_the_study_and_the_steps_last_measured(tmp_path):
    study = Study(tmp_path)
    shared = {"norms": ("none",), "settings": {"problem": "dln", "steps": STEPS}}
    study.record(Grid(**shared, seeds=(0, 1), lrs=(1e-6,), measure=("smoothness",), every=5))
    runs = world(tmp_path / "runs", "dln", RIGHT, norms=("none", "batch"), kinds=("smoothness",), lrs=(1e-6, 2e-6))
    study.record(Grid(**shared, seeds=(2, 3, 4), lrs=(2e-6,)))
    merged, _ = conclude(runs, study).next
    for words in ("--lrs 1e-06,2e-06", "--seeds 0-4", "--every 5", f"--steps {STEPS}", f"-o {tmp_path}"):
        assert f"{words} " in f"{merged} "


def test_the_commands_for_runs_of_two_problems_have_the_settings_of_each(tmp_path):
    outcome = conclude(
        world(tmp_path, "vgg", RIGHT, norms=("none",), kinds=())
        + world(tmp_path, "dln", RIGHT, norms=("l1",), kinds=())
    )
    lines = sorted(line for line in outcome.next if "--lrs" not in line)
    for problem, line in zip(("dln", "vgg"), lines, strict=True):
        assert f"--problem {problem} --steps {STEPS} " in line
        assert line.endswith(f"-o study-{problem}")  # a study is of one problem


def test_a_part_that_is_refuted_outweighs_those_not_measured(tmp_path):
    found = verdicts(conclude(world(tmp_path, "vgg", WRONG, norms=("none", "batch", "l1"), kinds=("smoothness",))))
    assert found[8] == claims.NOT_REPRODUCED


def test_a_learning_rate_at_which_both_diverge_decides_nothing(tmp_path):
    runs = world(tmp_path, "vgg", RIGHT, norms=("none", "batch"), kinds=())
    assert verdicts(conclude(runs))[1] == claims.REPRODUCED
    runs += world(tmp_path, "vgg", RIGHT, norms=("none", "batch"), kinds=(), lrs=(10.0,), diverged=0)
    outcome = conclude(runs)
    parts = outcome.claims[outcome.claims["claim"] == 1].set_index("lr")["part_verdict"]
    assert parts.to_dict() == {0.1: claims.REPRODUCED, 10.0: claims.UNDEFINED}
    assert verdicts(outcome)[1] == claims.REPRODUCED


def test_a_norm_that_diverges_has_no_share_of_batchnorms_advantage(tmp_path):
    runs = world(tmp_path, "dln", RIGHT, norms=("none", "batch", "l2", "linf"), kinds=())
    runs += world(tmp_path, "dln", RIGHT, norms=("l1",), kinds=(), diverged=5)
    part = conclude(runs).claims.set_index("part").filter(like="l1: share", axis=0).iloc[0]
    assert (part["median"], part["low"], part["high"]) == (-np.inf,) * 3
    assert part["part_verdict"] == claims.NOT_REPRODUCED


@pytest.mark.parametrize(("diverged", "share"), [(None, 1.0), (5, 0.0)])
def test_if_only_none_diverges_another_norm_has_the_whole_advantage(tmp_path, diverged, share):
    runs = world(tmp_path, "dln", RIGHT, norms=("none",), kinds=(), diverged=5)
    runs += world(tmp_path, "dln", RIGHT, norms=("batch", "l2", "linf"), kinds=())
    runs += world(tmp_path, "dln", RIGHT, norms=("l1",), kinds=(), diverged=diverged)
    part = conclude(runs).claims.set_index("part").filter(like="l1: share", axis=0).iloc[0]
    assert (part["median"], part["low"], part["high"]) == (share,) * 3


@pytest.mark.parametrize("problem", [pytest.param("vgg", marks=pytest.mark.slow), "dln"])
@pytest.mark.parametrize("missing", NORMS)
def test_a_part_leaves_out_seeds_that_lack_one_of_its_norms(tmp_path, problem, missing):
    runs = world(tmp_path, problem, RIGHT)
    outcome = conclude([run for run in runs if (run.config.norm, run.config.seed) != (missing, 2)])
    parts = outcome.claims[outcome.claims["claim"] == 1]
    assert (parts["seeds"] == (4 if missing in ("none", "batch") else 5)).all()
    lr = 10 * resolve(problem).lr
    more = world(tmp_path, problem, RIGHT, norms=("none",), lrs=(lr,), diverged=20)
    more += world(tmp_path, problem, RIGHT, norms=("batch",), lrs=(lr,))
    found = conclude(runs + [run for run in more if (run.config.norm, run.config.seed) != (missing, 2)]).claims
    assert (found[found["claim"] == 2]["seeds"] == (4 if missing in ("none", "batch") else 5)).all()


def test_where_none_stalls_and_batchnorm_trains_it_trains_faster(tmp_path):
    stalled = {**RIGHT, "none": {**RIGHT["none"], "loss": 2.0}}
    runs = [write_run(tmp_path, "vgg", norm, 0.1, seed, stalled, ()) for norm in ("none", "batch") for seed in range(5)]
    parts = conclude(runs).claims.set_index("claim")
    assert (parts.loc[1, "median"], parts.loc[1, "verdict"]) == (0.0, claims.REPRODUCED)


def test_a_learning_rate_at_which_all_diverge_does_not_refute_that_batchnorm_survives_more(tmp_path):
    pair = ("none", "batch")
    runs = world(tmp_path, "vgg", RIGHT, norms=pair, kinds=()) + world(
        tmp_path, "vgg", RIGHT, norms=("none",), kinds=(), lrs=(1.0,), diverged=9
    )
    runs += world(tmp_path, "vgg", RIGHT, norms=("batch",), kinds=(), lrs=(1.0,))
    assert verdicts(conclude(runs))[2] == claims.REPRODUCED
    runs += world(tmp_path, "vgg", RIGHT, norms=pair, kinds=(), lrs=(5.0,), diverged=9)
    assert verdicts(conclude(runs))[2] == claims.REPRODUCED


def test_a_statement_that_fails_for_one_seed_of_many_is_refuted(tmp_path):
    runs = world(tmp_path, "dln", RIGHT, seeds=7, norms=("none",), kinds=("theory",))
    assert verdicts(conclude(runs))[10] == claims.REPRODUCED
    runs.append(write_run(tmp_path, "dln", "none", resolve("dln").lr, 7, WRONG, ("theory",)))
    found = verdicts(conclude(runs))
    assert {found[number] for number in range(10, 15)} == {claims.NOT_REPRODUCED}


def test_a_claim_needs_measurements_at_every_learning_rate_and_early(tmp_path):
    runs = world(tmp_path, "vgg", RIGHT, norms=("none", "batch"), kinds=("smoothness",))
    runs += world(tmp_path, "vgg", RIGHT, norms=("none", "batch"), kinds=(), lrs=(0.5,))
    outcome = conclude(runs)
    assert verdicts(outcome)[7] == claims.NOT_MEASURED
    assert any("--lrs 0.5" in line and "--measure smoothness" in line for line in outcome.claims["command"])
    late = world(tmp_path / "late", "vgg", RIGHT, norms=("none", "batch"), kinds=("smoothness",))
    for run in late:
        table = run.path / "smoothness.parquet"
        rows = tables.read_table(table, "smoothness")
        tables.write_table(table, "smoothness", [rows[rows["step"] > 50]], tables.read_provenance(table))
    found = verdicts(conclude(late))
    assert (found[5], found[6], found[7]) == (claims.NOT_MEASURED, claims.NOT_MEASURED, claims.REPRODUCED)


def of_line(**columns):
    """The metrics of a run whose only table is one of smoothness, with nulls in its other columns."""
    line = pd.DataFrame(columns).reindex(columns=list(SCHEMAS["smoothness"]))
    empty = pd.DataFrame(dtype="float64")
    return of_measurements(lambda kind, _: line if kind == "smoothness" else empty.reindex(columns=[*SCHEMAS[kind]]))


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
    assert np.isnan([old["beta_unsaturated"], old["saturated"]]).all()


def test_where_every_point_is_saturated_beta_elsewhere_is_undefined(tmp_path):
    runs = world(tmp_path, "vgg", RIGHT, norms=("none", "batch"), kinds=("smoothness",))
    for run in runs:
        if run.config.norm == "batch":
            table = run.path / "smoothness.parquet"
            rows = tables.read_table(table, "smoothness").assign(saturated=True)
            tables.write_table(table, "smoothness", [rows], tables.read_provenance(table))
    outcome = conclude(runs)
    parts = outcome.claims[outcome.claims["claim"] == 7]["part_verdict"]
    assert parts.tolist() == [claims.REPRODUCED, claims.UNDEFINED]
    assert verdicts(outcome)[7] == claims.REPRODUCED


def test_the_papers_own_figures_stand_beside_the_answers(tmp_path):
    found = conclude(world(tmp_path, "vgg", RIGHT)).claims.set_index(["claim", "part"])["paper"]
    shown = published("vgg", (0.1,)).set_index("norm")
    assert found[(7, "effective beta, batch / none")] == pytest.approx(0.997, abs=1e-3)
    assert (
        found[(6, "largest change of the gradient on the line, batch / none")]
        == shown.loc["batch", "ratio_predictiveness"]
    )
    assert found[3].filter(like="noisy-batch / none").dropna().tolist() == pytest.approx([10.29, 15.31], abs=0.01)
    assert found[3].filter(like="trains").isna().all()  # no figure has noise without BatchNorm
    assert found[15].isna().all()
    assert found[10].isna().all()


def test_no_figure_of_the_paper_shows_another_learning_rate(tmp_path):
    found = conclude(world(tmp_path, "dln", RIGHT, lrs=(1e-6, 3e-6), norms=("none", "batch"))).claims
    beside = found[(found["claim"] == 1)].set_index("lr")["paper"]
    assert beside[1e-6] == pytest.approx(750 / 9650)  # each curve has a vertex every 50 steps
    assert np.isnan(beside[3e-6])
    assert published("vgg", (0.05,)).empty
    assert published("my:problem", (0.1,)).empty


def test_the_statistics_of_the_papers_curves_are_those_that_it_was_read_to_have():
    """The expected numbers were read from the curves by other code."""
    upper = {norm: paper.rows("smoothness", "vgg", norm, 0.1) for norm in ("none", "batch")}
    for first, last, expected in ((0, 999, (52.6, 29.1)), (1_000, 5_000, (72.6, 25.1)), (5_001, 15_000, (32.3, 17.3))):
        for norm, median in zip(("none", "batch"), expected, strict=True):
            rows = upper[norm][upper[norm]["step"].between(first, last)]
            assert over_steps(rows["step"], rows["predictiveness_max"]) == pytest.approx(median, abs=0.06)
    for norm, share in (("batch", 0.91), ("none", 0.69)):
        late = upper[norm][upper[norm]["step"] > 5_000]
        near = (late["beta"] - 20).abs() <= 0.02 * 20
        assert share_over_steps(late["step"], near) == pytest.approx(share, abs=0.01)
    moments = {
        2: {"none": 0.032, "batch": 0.0017, "noisy-batch": 0.27},
        9: {"none": 0.065, "batch": 0.0005, "noisy-batch": 0.27},
        13: {"none": 0.013, "batch": 0.00003, "noisy-batch": 0.35},
    }
    for layer, norms in moments.items():
        for norm, median in norms.items():
            rows = paper.rows("activations", "vgg", norm, 0.1)
            rows = rows[rows["layer"] == layer]
            assert over_steps(rows["step"], rows["mean_change"]) == pytest.approx(median, rel=0.1), (layer, norm)
    ends = {("none", 1e-6): 1661, ("batch", 1e-6): 479, ("l1", 1e-6): 97, ("l2", 1e-6): 481, ("linf", 1e-6): 986,
            ("none", 1e-7): 3970, ("batch", 1e-7): 710}  # fmt: skip
    found = published("dln", (1e-6, 1e-7)).set_index(["norm", "lr"])["final_loss"]
    for run, loss in ends.items():
        assert found[run] == pytest.approx(loss, abs=0.5), run
    assert published("vgg", (0.1, 0.5)).set_index(["norm", "lr"])["final_test_accuracy"].dropna().to_dict() == {
        ("none", 0.1): 0.8001, ("batch", 0.1): 0.8287, ("none", 0.5): 0.1, ("batch", 0.5): 0.8017,
    }  # fmt: skip


def test_the_terminal_and_the_report_show_the_papers_statistic(cli, tmp_path):
    world(tmp_path / "study/runs", "dln", RIGHT, seeds=2, norms=("none", "batch"), kinds=("smoothness",))
    Study(tmp_path / "study").record(Grid(("none", "batch"), seeds=(0, 1), settings={"problem": "dln", "steps": STEPS}))
    code, out, err = cli(
        f"compare {' '.join(map(str, sorted((tmp_path / 'study/runs').iterdir())))} -o study/compare.parquet"
    )
    assert (code, err) == (0, "")
    words = next(line for line in out.splitlines() if line.startswith("7 ")).split()
    assert words[-1] == "0.55"
    assert max(len(line) for line in out.splitlines() if line.split()[0] in ("#", *map(str, range(16)))) <= 80
    assert cli("report study --format md -o report.md")[0] == 0
    row = next(line for line in (tmp_path / "report.md").read_text().splitlines() if "| effective beta, batch" in line)
    assert row.endswith("| 0.549 |")


def test_each_problem_has_its_own_verdicts(tmp_path):
    outcome = conclude(world(tmp_path, "vgg", RIGHT, kinds=()) + world(tmp_path, "dln", WRONG, kinds=()))
    first = outcome.claims[outcome.claims["claim"] == 1].set_index("problem")["verdict"]
    assert first.to_dict() == {"vgg": claims.REPRODUCED, "dln": claims.NOT_REPRODUCED}


def test_runs_of_one_norm_lr_and_seed_have_no_statistics(tmp_path):
    runs = [write_run(tmp_path / str(i), "vgg", "none", 0.1, 0, RIGHT, kinds=()) for i in range(2)]
    other = Run(runs[1].path.rename(tmp_path / "other"), runs[1].config)
    outcome = conclude([runs[0], other])
    assert len(outcome.comparison) == 2
    assert outcome.summary.empty
    assert outcome.claims.empty


def test_the_page_of_the_rules_is_what_the_code_says():
    assert (ROOT / "docs/claims.md").read_text() == claims.page()


def test_the_summary_has_medians_and_ratios_paired_by_seed(tmp_path):
    outcome = conclude(world(tmp_path, "vgg", RIGHT, kinds=("smoothness",)))
    rows = outcome.summary.set_index(["norm", "figure"])
    beta = outcome.comparison[outcome.comparison["norm"] == "l1"].sort_values("seed")["beta"].to_numpy()
    plain = outcome.comparison[outcome.comparison["norm"] == "none"].sort_values("seed")["beta"].to_numpy()
    row = rows.loc["l1", "beta"]
    assert (row["seeds"], row["median"]) == (5, np.median(beta))
    assert (row["low"], row["high"]) == pytest.approx((beta.min(), beta.max()))  # of five values
    assert row["ratio"] == np.median(beta / plain)
    assert rows.loc["none", "final_loss"]["ratio"] == 1.0


def test_a_median_counts_diverged_runs(tmp_path):
    runs = world(tmp_path, "vgg", RIGHT, seeds=2, norms=("none",), kinds=())
    runs += [write_run(tmp_path, "vgg", "none", 0.1, seed, RIGHT, kinds=(), diverged=20) for seed in (2, 3, 4)]
    row = conclude(runs).summary.set_index("figure")
    assert row.loc["final_loss", "median"] == np.inf
    assert row.loc["final_test_accuracy", "median"] == 0
    assert row.loc["final_loss", "diverged"] == 3


def test_a_diverged_run_has_no_accuracy_where_its_problem_has_none(tmp_path):
    runs = world(tmp_path, "vgg", RIGHT, seeds=1, norms=("none",), kinds=())
    runs += world(tmp_path, "dln", RIGHT, norms=("none",), kinds=(), diverged=20)
    outcome = conclude(runs)
    figures = outcome.summary.groupby("problem")["figure"].agg(set)
    assert "final_test_accuracy" in figures["vgg"]
    assert "final_test_accuracy" not in figures["dln"]
    targets = outcome.comparison.set_index("problem")["target_loss"]
    assert targets["dln"].isna().all()  # what has diverged ends nowhere
    assert np.isfinite(targets["vgg"])


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_the_interval_is_that_of_every_possible_resample(size):
    """Brute force: all size^size resamples, instead of SciPy's random ones."""
    values = np.random.default_rng(size).lognormal(size=size)
    medians = [np.median(chosen) for chosen in itertools.product(values, repeat=size)]
    exact = np.quantile(medians, [0.025, 0.975], method="inverted_cdf")
    np.testing.assert_allclose(interval(values), exact, rtol=1e-12)


def test_intervals_with_infinite_values_end_at_infinity():
    assert interval(np.array([1.0, np.inf, np.inf, np.inf, 2.0])) == (1.0, np.inf)
    assert interval(np.array([np.inf] * 5)) == (np.inf, np.inf)
    assert interval(np.array([-np.inf, 1.0, 2.0, -np.inf, -np.inf])) == (-np.inf, 2.0)
    assert interval(np.array([-np.inf, np.inf, np.inf, -np.inf, np.inf])) == (-np.inf, np.inf)
    assert interval(np.array([1e17, np.inf, np.inf, np.inf, np.inf])) == (1e17, np.inf)
    assert np.isnan(interval(np.array([1.0]))).all()


def test_an_interval_that_reaches_the_least_value_by_rounding_ends_there():
    assert interval(np.array([12.957530288773183, 14.550421081229619, 16.70824302367786]))[0] == 12.957530288773183
