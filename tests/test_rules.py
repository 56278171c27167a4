"""The rules' page, how often the rules are wrong, and how many seeds they take."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from judged_runs import (
    PLAIN,
    RIGHT,
    SMOOTH,
    grid,
    judge,
    record,
    trained,
    world,
    write_run,
)

from bnsmooth_cli.studies import error_rates, rules, verdicts
from bnsmooth_cli.studies.claims import CLAIMS, EVERY, IDENTITY
from bnsmooth_cli.studies.evidence import Case, Record
from bnsmooth_cli.studies.planning import effect, plan
from bnsmooth_cli.studies.statistics import (
    LEVEL,
    at_least,
    seeds_for,
)
from bnsmooth_cli.studies.verdicts import (
    NOT_REPRODUCED,
    REPRODUCED,
)

ROOT = Path(__file__).parents[1]


# The page of the rules.


def test_the_page_of_the_rules_is_what_the_code_says():
    assert (ROOT / "docs/claims.md").read_text() == rules.page()


def test_whoever_changes_a_rule_adds_to_the_history():
    """Add an `Edition` with this digest, today's date, the reason, and what was known of results by then."""
    assert rules.digest(rules.rules()) == rules.HISTORY[-1].digest
    dates = [edition.date for edition in rules.HISTORY]
    assert dates == sorted(dates)


def test_the_digest_changes_with_every_rule(monkeypatch):
    monkeypatch.setattr(rules, "_of_paper", lambda part: "")  # it takes long, and shows the rules' bounds nowhere
    before = rules.digest(rules.rules())
    for i, claim in enumerate(CLAIMS):
        for j, part in enumerate(claim.parts):
            if part.rule is None or part.judged in (EVERY, IDENTITY):
                continue
            stricter = dataclasses.replace(part, rule=(part.rule[0], part.rule[1] + 0.1))
            parts = (*claim.parts[:j], stricter, *claim.parts[j + 1 :])
            changed = (*CLAIMS[:i], dataclasses.replace(claim, parts=parts), *CLAIMS[i + 1 :])
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(rules, "CLAIMS", changed)
                assert rules.digest(rules.rules()) != before, part.text


# Planning.


def test_a_plan_counts_the_tests_of_each_claim_and_the_seeds_that_they_take():
    table = plan("vgg", [0.1]).set_index("claim")
    assert table.loc[1, ["tests", "seeds_0.5", "seeds_1", "seeds_2"]].tolist() == [
        1,
        seeds_for([0.5]),
        13,
        seeds_for([2.0]),
    ]
    assert table.loc[3, "tests"] == 8
    assert table.loc[3, "seeds_1"] == seeds_for([1.0] * 8)
    assert table.loc[3, "refuted_1"] == seeds_for([1.0], 8)
    assert not set(table.index) & {12, 13, 14}  # identities take no seeds
    assert plan("vgg", [0.1, 0.5]).set_index("claim").loc[3, "tests"] == 16


@pytest.mark.parametrize("problem", ["vgg", "dln"])
def test_a_plan_counts_the_tests_that_verdicts_are_made_of(problem):
    lrs = {"vgg": (0.01, 0.1), "dln": (1e-7, 1e-6)}[problem]
    rows = judge(grid(problem, RIGHT, 1, (*SMOOTH, "noisy-batch", "noisy-none"), lrs))
    counted = rows[rows["decides"].eq(True) & rows["p_value"].notna()].groupby("claim").size()
    planned = plan(problem, lrs).set_index("claim")["tests"]
    assert planned.drop(2).to_dict() == counted.drop(2, errors="ignore").to_dict()


def test_a_plan_from_runs_has_their_effects():
    assert effect(np.array([0.5, 0.5, 0.5]), "< 0.95") == math.inf
    assert effect(np.array([2.0, 2.0, 2.0]), "< 0.95") == -math.inf
    assert math.isnan(effect(np.array([0.5, np.nan, 0.5, 0.4]), "< 0.95"))
    values = np.array([0.2, 0.4, 0.8])
    logarithms = np.log(values / 0.95)
    assert effect(values, "< 0.95") == pytest.approx(-logarithms.mean() / logarithms.std(ddof=1))
    assert effect(np.array([-0.1, 0.0, 0.1]), "> -0.03") == pytest.approx(0.3)


def test_a_plan_from_runs_takes_the_weakest_effect_of_all_learning_rates():
    runs = grid("vgg", RIGHT, 5, ("none", "batch"), kinds=(), spread=0.1)
    near = {"none": PLAIN, "batch": PLAIN | {"accuracy": 0.73}}
    runs += [record("vgg", norm, lr, seed, near, (), spread=0.1 + 0.1 * (norm == "batch")) for lr in (0.05,)
             for norm in near for seed in range(5)]  # fmt: skip
    found = plan("vgg", [0.05, 0.1], judge(runs)).set_index("claim").loc[1]
    alone = plan("vgg", [0.05], judge(runs[-10:])).set_index("claim").loc[1]
    assert found["weakest"] == alone["weakest"]


def test_the_command_line_prints_the_plan(cli):
    code, out, err = cli("compare --plan --problem dln --lrs 1e-6,1e-7")
    assert (code, err) == (0, "")
    planned = plan("dln", [1e-6, 1e-7])
    for row in planned.itertuples():
        words = next(line for line in out.splitlines() if line.startswith(f"{row.claim} ")).split()
        numbers = [str(int(value)) if value == value else "-" for value in (row.tests, *row[4:8])]
        assert words[-5:] == numbers, row
    assert "--plan" in cli("compare --help")[1]
    assert cli("compare --plan --problem dln --lrs 1e-6,1e-7,1e-6")[1] == out
    assert cli("compare --plan --lrs ,") == cli("compare --plan")
    of_custom = cli("compare --plan --problem absent:build")[1].splitlines()  # no code of the user's is run
    assert of_custom[0].startswith("absent:build")
    tests = {line.split()[0]: line.split()[-5] for line in of_custom[2:-1]}
    assert tests == {str(row.claim): str(row.tests) for row in plan("absent:build", [0.1]).itertuples()}


def test_the_command_line_plans_from_runs(cli, tmp_path):
    runs = world(tmp_path, "dln", RIGHT, 5, ("none", "batch"), kinds=("smoothness",), spread=0.1)
    code, out, err = cli(f"compare --plan {' '.join(str(run.path) for run in runs)}")
    assert (code, err) == (0, "")
    line = next(line for line in out.splitlines() if line.startswith("1 "))
    planned = plan("dln", [1e-6], verdicts.claims([Record.of_run(run) for run in runs])).set_index("claim").loc[1]
    assert line.split()[-1] == f"{planned['seeds']:.0f}"
    assert f"{planned['weakest']:.2g} sd" in line
    assert not list(tmp_path.glob("*.parquet"))  # a plan writes nothing


def test_a_plan_from_runs_mixes_no_settings_and_counts_no_seed_twice(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for samples in (20, 30):
        assert cli(f"train --problem dln --norm none --samples {samples} --steps 4")[0] == 0
    paths = " ".join(sorted(str(path) for path in Path("runs").iterdir()))
    code, out, _ = cli(f"compare --plan {paths}")
    titles = [line for line in out.splitlines() if line.endswith(": seeds that each claim takes")]
    assert code == 0
    assert [title.split(":")[1].strip() for title in titles] == ["20 samples", "30 samples"]
    shutil.copytree(paths.split()[0], "again")
    code, _, err = cli(f"compare --plan {paths} again")
    assert code == 2
    assert "share norm, learning rate and seed" in err


@pytest.mark.parametrize(
    ("line", "option"),
    [("--plan --lrs x", "--lrs"), ("--plan --lrs nan", "--lr"),
     ("--plan --norms none", "--norms"), ("--plan --seeds 0-4", "--seeds"), ("--plan --steps 5", "--steps"),
     ("--plan --jobs 2", "--jobs"), ("--plan --dry-run", "--dry-run"), ("--plan --study study.toml", "--study"),
     ("--plan RUN --lrs 0.1", "--lrs"), ("--plan --problem dnl", "dnl"), ("--plan absent", "absent"),
     ("--plan -o here", "--output"), ("--plan --target-loss 1", "--target-loss")],
)  # fmt: skip
def test_an_option_that_makes_no_difference_to_a_plan_is_refused(cli, tmp_path, line, option):
    run = write_run(tmp_path, "vgg", "none", 0.1, 0, RIGHT, kinds=())
    code, _, err = cli(f"compare {line.replace('RUN', str(run.path))}")
    assert code == 2
    assert option in err
    assert len(err.strip().splitlines()) == 1


# How often the rules are wrong.


def simulated(claim, problem, seeds, effects, draws=2000):
    """The shares of the verdicts on a claim whose decided parts are so many standard deviations on the right side.

    Verdicts are judged by the same code as those on runs. They depend only on how many seeds lie on either side.
    """
    lr = 0.5 if (claim.number, problem) == (2, "vgg") else error_rates.LRS[problem]
    cases = [Case({"none": Record("run", problem, "none", lr, seed, 1, None, {}, trained, frozenset())})
             for seed in range(seeds)]  # fmt: skip
    decided, drawn = error_rates.decided(claim, problem), {}
    parts = tuple(
        dataclasses.replace(part, value=lambda case, i=i: drawn[i][case["none"].seed], needs=("none",), tables=())
        for i, part in enumerate(claim.parts)
        if part.rule is not None and part.applies(problem, problem == "vgg") and part.at(lr)
    )
    places = [claim.parts.index(part) for part in decided]
    random, found, judged = np.random.default_rng(0), dict.fromkeys((REPRODUCED, NOT_REPRODUCED), 0), {}
    effects = np.resize(effects, len(decided))
    for _ in range(draws):
        values = effects[:, None] + random.normal(size=(len(decided), seeds))
        counts = tuple(sorted((values > 0).sum(axis=1)))
        if counts not in judged:
            drawn.update(dict.fromkeys(range(len(claim.parts)), np.ones(seeds)))  # every case holds
            for place, part, row in zip(places, decided, values, strict=True):
                drawn[place] = part.rule[1] + (row if part.rule[0] == ">" else -row)
            rows = verdicts._judge(dataclasses.replace(claim, parts=parts), parts, {lr: cases}, problem)
            judged[counts] = rows[0]["verdict"]
        found[judged[counts]] = found.get(judged[counts], 0) + 1
    return found[REPRODUCED] / draws, found[NOT_REPRODUCED] / draws


FAR = 9.0


@pytest.mark.parametrize("seeds", [5, 8])
@pytest.mark.parametrize(
    ("number", "problem"),
    [
        (1, "vgg"),
        (2, "vgg"),
        (2, "dln"),
        (4, "dln"),
        (5, "dln"),
        (7, "vgg"),
        (8, "vgg"),
        (8, "dln"),
        (9, "vgg"),
        (11, "dln"),
    ],
)
@pytest.mark.fast(7)
def test_the_error_rates_are_those_of_simulated_values(number, problem, seeds):
    claim = CLAIMS[number - 1]
    m = len(error_rates.decided(claim, problem))
    rates = error_rates.rates(claim, problem, seeds)
    one = np.array([1.0] + [0.0] * (m - 1))
    found = {
        "false_reproduced": simulated(claim, problem, seeds, FAR * (1 - one))[0],
        "false_refuted": simulated(claim, problem, seeds, [0.0])[1],
        "reproduced": simulated(claim, problem, seeds, [1.0])[0],
        "refuted": simulated(claim, problem, seeds, 1.0 - 2 * one)[1],
    }
    for name, share in found.items():
        expected = getattr(rates, name)
        assert share == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / 2000) + 1e-9), name


def test_the_page_states_the_rates_of_every_claim_that_seeds_decide():
    section = error_rates.section()
    assert section in rules.page()
    for claim in CLAIMS:
        for problem in ("vgg", "dln"):
            parts = error_rates.decided(claim, problem)
            rows = [line for line in section.splitlines() if line.startswith(f"| {claim.number} | {problem} | ")]
            assert len(rows) == bool(parts)
            for seeds in (5, 8, 20) if parts else ():
                rates = error_rates.rates(claim, problem, seeds)
                assert max(rates.false_reproduced, rates.false_refuted) <= LEVEL
    assert error_rates.rates(CLAIMS[0], "vgg", 8).false_reproduced == 9 / 256  # 7 or 8 of 8 coins
    assert error_rates.rates(CLAIMS[7], "vgg", 5).refuted == 0.0  # 1/32 is not significant among 8 parts


def test_whoever_looks_after_each_seed_is_wrong_as_often_as_the_page_says():
    coins = np.random.default_rng(3).random((4000, 20)) < 0.5
    agreeing = coins.cumsum(axis=1)
    found = np.zeros(len(coins), bool)
    for seeds in range(5, 21):
        p_values = {k: at_least(seeds, k) for k in range(seeds + 1)}
        found |= np.array([p_values[k] <= LEVEL for k in agreeing[:, seeds - 1]])
    assert error_rates.looking(20) == pytest.approx(found.mean(), abs=0.02)
    assert error_rates.looking(5) == 1 / 32
