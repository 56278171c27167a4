"""The claims' verdicts on runs whose tables have a known truth."""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from judged_runs import (
    KINDS,
    NOISY,
    PLAIN,
    RIGHT,
    SMOOTH,
    STEPS,
    WRONG,
    grid,
    judge,
    of,
    part_of,
    parts_of,
    record,
    trained,
    verdicts_of,
    world,
    write_run,
)
from scipy import stats

from bnsmooth_cli.storage.runs import Run
from bnsmooth_cli.studies import verdicts
from bnsmooth_cli.studies.claims import CLAIMS, EVERY, EXISTS, IDENTITY, Claim, Part, trains
from bnsmooth_cli.studies.evidence import Case, Record
from bnsmooth_cli.studies.metrics import non_gaussian
from bnsmooth_cli.studies.outcome import conclude
from bnsmooth_cli.studies.planning import plan
from bnsmooth_cli.studies.statistics import (
    LEVEL,
    median,
    seeds_for,
)
from bnsmooth_cli.studies.verdicts import (
    INCONCLUSIVE,
    NOT_APPLICABLE,
    NOT_MEASURED,
    NOT_REPRODUCED,
    REPORTED,
    REPRODUCED,
    VERIFIED,
    VIOLATED,
    headline,
)

# Verdicts on whole worlds.


@pytest.mark.parametrize("problem", ["vgg", "dln"])
@pytest.mark.fast(1)
def test_where_the_paper_is_right_every_claim_is_reproduced_or_its_identity_verified(problem):
    far = {"vgg": 0.5, "dln": 1e-5}[problem]
    runs = grid(problem, RIGHT, seeds=6)
    runs += grid(problem, RIGHT, 6, ("none",), (far,), kinds=(), diverged=10)
    runs += grid(problem, RIGHT, 6, ("batch",), (far,), kinds=())
    found = verdicts_of(judge(runs))
    expected = dict.fromkeys(range(1, 16), REPRODUCED) | dict.fromkeys((12, 13, 14), VERIFIED)
    elsewhere = (3, 9, 16) if problem == "dln" else (16,)  # about VGG, and about the linear network at 1e-7
    assert found == expected | dict.fromkeys(elsewhere, NOT_APPLICABLE)


@pytest.mark.parametrize("problem", ["vgg", "dln"])
@pytest.mark.fast(1)
def test_where_the_paper_is_wrong_every_claim_is_refuted(problem):
    runs = grid(problem, WRONG, seeds=8)
    if problem == "vgg":
        runs += grid(problem, WRONG, 8, ("none", "batch"), (0.5,), kinds=())
    found = verdicts_of(judge(runs))
    expected = dict.fromkeys(found, NOT_REPRODUCED) | dict.fromkeys(range(10, 15), VIOLATED)
    if problem == "dln":  # the paper shows no learning rate at which none fails; claims 3 and 9 are about VGG
        expected |= {2: NOT_MEASURED, 3: NOT_APPLICABLE, 9: NOT_APPLICABLE}
    assert found == expected | {16: NOT_APPLICABLE}


@pytest.mark.parametrize("seeds", [1, 2, 4])
def test_few_seeds_verify_identities_and_make_no_other_verdict(seeds):
    found = verdicts_of(judge(grid("vgg", RIGHT, seeds)))
    expected = dict.fromkeys(range(1, 16), INCONCLUSIVE) | dict.fromkeys((12, 13, 14), VERIFIED)
    assert found == expected | {2: NOT_MEASURED, 16: NOT_APPLICABLE}


@pytest.mark.slow
def test_the_tables_of_run_folders_get_the_same_verdicts(tmp_path):
    runs = world(tmp_path, "vgg", RIGHT, norms=("none", "batch"))
    runs += world(tmp_path, "dln", WRONG, norms=("none", "batch"), kinds=())
    outcome = conclude(runs)
    for problem, which, kinds in (("vgg", RIGHT, KINDS), ("dln", WRONG, ())):
        expected = judge(grid(problem, which, norms=("none", "batch"), kinds=kinds))
        rows = outcome.claims[outcome.claims["problem"] == problem]
        assert rows["part_verdict"].tolist() == expected["part_verdict"].tolist()
        np.testing.assert_allclose(rows["median"], expected["median"], rtol=1e-9)


def test_seeds_that_disagree_are_inconclusive():
    runs = [*grid("vgg", RIGHT, 4, ("none", "batch")), record("vgg", "none", 0.1, 4, RIGHT)]
    runs.append(record("vgg", "batch", 0.1, 4, {"batch": RIGHT["batch"] | {"rough": 1e6, "accuracy": 0.2}}))
    found = verdicts_of(judge(runs))
    assert [found[number] for number in (1, 5, 6, 7)] == [INCONCLUSIVE] * 4


# Claims 3 and 8: an advantage that is absent cannot be shared.


def test_where_batchnorm_is_no_better_than_none_and_noisy_batchnorm_at_chance_claim_3_is_not_reproduced():
    same = RIGHT | {"batch": RIGHT["none"], "noisy-batch": PLAIN | {"accuracy": 0.1, "moves": 0.3}}
    for seeds, verdict in ((8, NOT_REPRODUCED), (5, INCONCLUSIVE)):  # five seeds are too few for eight tests
        assert verdicts_of(judge(grid("vgg", same, seeds, NOISY, kinds=("activations",)), 3))[3] == verdict


def test_where_batchnorm_is_no_better_than_none_being_as_good_as_it_is_no_success():
    same = RIGHT | {norm: RIGHT[norm] | {"accuracy": 0.9, "loss": 2.0} for norm in ("none", "batch", "noisy-batch")}
    rows = judge(grid("vgg", same, 8, kinds=("smoothness", "activations")), 3, 8)
    assert part_of(rows, 3, "noisy-batch less batch")["part_verdict"] == REPRODUCED
    assert part_of(rows, 3, "the run, batch less none")["part_verdict"] == NOT_REPRODUCED
    assert verdicts_of(rows)[3] == verdicts_of(rows)[8] == NOT_REPRODUCED


def test_where_batchnorm_is_50_times_rougher_than_none_and_l_p_500_times_claim_8_is_not_reproduced():
    rough = {norm: PLAIN | {"rough": {"none": 1.0, "batch": 50.0}.get(norm, 500.0)} for norm in SMOOTH}
    rows = judge(grid("vgg", rough, 8, SMOOTH, kinds=("smoothness",)), 8)
    assert verdicts_of(rows)[8] == NOT_REPRODUCED
    assert part_of(rows, 8, "line, batch / none")["median"] == pytest.approx(50)
    assert part_of(rows, 8, "line, l1 / batch")["median"] == pytest.approx(10)


def test_a_norm_at_62_percent_beside_batchnorms_80_does_not_train_as_well():
    behind = RIGHT | {"none": PLAIN | {"accuracy": 0.5}, "batch": RIGHT["batch"] | {"accuracy": 0.8},
                      "l1": RIGHT["l1"] | {"accuracy": 0.62}}  # fmt: skip
    rows = judge(grid("vgg", behind, 8, SMOOTH, kinds=("smoothness",)), 8)
    assert part_of(rows, 8, "l1 less batch")["part_verdict"] == NOT_REPRODUCED
    assert verdicts_of(rows)[8] == NOT_REPRODUCED


def test_a_diverged_plain_run_has_the_accuracy_of_chance_and_not_zero():
    runs = grid("vgg", RIGHT, 5, ("batch",), kinds=()) + grid("vgg", RIGHT, 5, ("none",), kinds=(), diverged=0)
    rows = judge(runs)
    batch = RIGHT["batch"]["accuracy"]
    mean = np.mean((batch - 0.1) * (1 - np.exp(-5 * np.linspace(0, 1, STEPS + 1))))
    assert part_of(rows, 1, "accuracy")["median"] == pytest.approx(mean - 0.002, abs=1e-3)


def test_a_norm_that_diverges_does_not_train_as_well_as_batchnorm():
    for problem, words in (("vgg", "l1 less batch"), ("dln", "run, l1 / batch")):
        runs = grid(problem, RIGHT, 8, ("none", "batch", "l2", "linf"), kinds=("smoothness",))
        rows = judge(runs + grid(problem, RIGHT, 8, ("l1",), diverged=30, kinds=("smoothness",)), 8)
        assert set(parts_of(rows, 8, words)["part_verdict"]) == {NOT_REPRODUCED}
        assert verdicts_of(rows)[8] == NOT_REPRODUCED


def test_noise_that_does_not_keep_none_from_training_refutes_claim_3():
    trained = RIGHT | {"noisy-none": PLAIN}
    rows = judge(grid("vgg", trained, 8, NOISY, kinds=("activations",)), 3)
    assert part_of(rows, 3, "noisy-none")["part_verdict"] == NOT_REPRODUCED
    assert verdicts_of(rows)[3] == NOT_REPRODUCED


# What trains.


@pytest.mark.parametrize("first", [math.log(10), 2.75, 4.29])
def test_a_network_at_chance_does_not_train_however_far_its_loss_fell(first):
    """A penalty of the weights decays, so that the loss falls to ln 10 without any learning."""
    about = PLAIN | {"accuracy": 0.1, "loss": lambda step: math.log(10) + (first - math.log(10)) * 0.99**step}
    case = Case({"none": record("vgg", "none", 0.1, 0, {"none": about}, kinds=())})
    assert trains(case, "none") is False


def test_a_network_trains_if_it_is_ten_points_above_chance():
    for accuracy, expected in ((0.19, False), (0.21, True)):
        about = PLAIN | {"accuracy": functools.partial(of, accuracy)}
        case = Case({"none": record("vgg", "none", 0.1, 0, {"none": about}, kinds=())})
        assert trains(case, "none") is expected


@pytest.mark.parametrize(("last", "expected"), [(95.0, False), (89.0, True)])
def test_a_linear_network_trains_if_it_beats_the_best_constant_map(last, expected):
    """Its first loss is far above that map's, so that falling from it says nothing."""
    about = PLAIN | {"first_loss": 1e6, "loss": last}
    case = Case({"none": record("dln", "none", 1e-6, 0, {"none": about}, kinds=())})
    assert trains(case, "none") is expected


def test_where_the_level_of_chance_is_unknown_nobody_knows_whether_a_network_trains():
    runs = grid("vgg", RIGHT, 8, ("none", "batch"), (0.1, 0.5), kinds=(), baseline=False)
    assert trains(Case({"none": runs[0]}), "none") is None
    rows = judge(runs)
    assert verdicts_of(rows)[2] == INCONCLUSIVE
    assert (parts_of(rows, 2)["undefined"] == 8).all()
    assert trains(Case({}), "none") is None


def test_a_learning_rate_at_which_neither_trains_is_not_applicable():
    runs = grid("vgg", RIGHT, 5, ("none", "batch"), kinds=())
    assert verdicts_of(judge(runs))[1] == REPRODUCED
    runs += grid("vgg", RIGHT, 5, ("none", "batch"), (10.0,), kinds=(), diverged=0)
    rows = judge(runs)
    assert parts_of(rows, 1).set_index("lr")["part_verdict"].to_dict() == {0.1: REPRODUCED, 10.0: NOT_APPLICABLE}
    assert verdicts_of(rows)[1] == REPRODUCED
    assert verdicts_of(judge(runs[-10:]))[1] == NOT_APPLICABLE


# Claim 2: existence.


STALLS = RIGHT | {"none": PLAIN | {"accuracy": 0.1}}


def test_a_learning_rate_at_which_none_stays_at_chance_and_batchnorm_trains_shows_claim_2():
    assert verdicts_of(judge(grid("vgg", STALLS, 5, ("none", "batch"), (0.5,), kinds=())))[2] == REPRODUCED


def test_an_absurd_learning_rate_does_not_refute_claim_2():
    both = RIGHT | {"batch": PLAIN | {"accuracy": 0.1}, "none": PLAIN | {"accuracy": 0.1}}
    runs = grid("vgg", both, 8, ("none", "batch"), (1e3,), kinds=())
    rows = judge(runs)
    assert verdicts_of(rows)[2] == NOT_MEASURED
    assert parts_of(rows, 2)["command"].dropna().tolist() == [{"norms": ["none", "batch"], "lrs": [0.5]}]
    runs += grid("vgg", STALLS, 8, ("none", "batch"), (0.5,), kinds=())
    assert verdicts_of(judge(runs))[2] == REPRODUCED


@pytest.mark.parametrize("seeds", [4, 5])
def test_only_the_papers_learning_rate_refutes_claim_2_and_takes_five_seeds(seeds):
    rows = judge(grid("vgg", RIGHT, seeds, ("none", "batch"), (0.1, 0.5), kinds=()))  # none trains at both
    assert verdicts_of(rows)[2] == (NOT_REPRODUCED if seeds == 5 else INCONCLUSIVE)
    assert parts_of(rows, 2, lr=0.1)["decides"].tolist() == [False]
    assert part_of(rows, 2, "", 0.5)["p_against"] == 2.0**-seeds


@pytest.mark.parametrize(("seeds", "verdict"), [(5, INCONCLUSIVE), (6, REPRODUCED)])
def test_claim_2_is_corrected_for_the_number_of_learning_rates(seeds, verdict):
    runs = grid("vgg", RIGHT, seeds, ("none", "batch"), kinds=())
    runs += grid("vgg", STALLS, seeds, ("none", "batch"), (0.5,), kinds=())
    rows = judge(runs)
    assert part_of(rows, 2, "", 0.5)["p_value"] == 2 * 2.0**-seeds
    assert verdicts_of(rows)[2] == verdict
    at_least = stats.norm.cdf(1.0) ** 6
    assert parts_of(rows, 2)["power"].tolist() == pytest.approx([0.0 if seeds == 5 else at_least] * 2)
    planned = plan("vgg", [0.1, 0.5], rows).set_index("claim").loc[2]
    assert planned["seeds"] == 6  # all seeds are far beyond the rule, and five cannot decide


def test_if_none_fails_at_one_learning_rate_and_batchnorm_trains_at_another_claim_2_is_not_shown():
    runs = grid("vgg", STALLS, 8, ("none",), (0.5,), kinds=()) + grid("vgg", RIGHT, 8, ("none",), kinds=())
    runs += grid("vgg", RIGHT, 8, ("batch",), kinds=())
    runs += grid("vgg", {"batch": PLAIN | {"accuracy": 0.1}}, 8, ("batch",), (0.5,), kinds=())
    assert verdicts_of(judge(runs))[2] == NOT_REPRODUCED


# Claims 10 to 14: identities, an inequality, and its reading.


def of_theory(seeds=5, **truth):
    return judge(grid("dln", {"none": PLAIN | truth}, seeds, ("none",), kinds=("theory",)))


def test_identities_are_verified_and_not_reproduced():
    found = verdicts_of(of_theory(seeds=1))
    assert [found[number] for number in (12, 13, 14)] == [VERIFIED] * 3
    assert found[10] == found[11] == INCONCLUSIVE  # their readings are about networks, and one seed decides nothing


def test_one_case_that_breaks_an_identity_violates_it():
    runs = grid("dln", RIGHT, 7, ("none",), kinds=("theory",))
    runs += [record("dln", "none", 1e-6, 7, {"none": PLAIN | {"holds": False}}, ("theory",))]
    found = verdicts_of(judge(runs))
    assert {found[number] for number in range(10, 15)} == {VIOLATED}
    run = record("dln", "none", 1e-6, 7, RIGHT, ("theory",))
    run.rows("theory").loc[run.rows("theory")["statement"] == "4.4", "holds"] = [True, True, True, False]
    found = verdicts_of(judge([*runs[:7], run]))
    assert [number for number, verdict in found.items() if verdict == VIOLATED] == [13]


def test_random_hessians_that_satisfy_the_identities_do_not_make_the_gradients_predictive():
    """The identities hold of any H; whether the gradient's own quadratic form is reduced does not follow from them."""
    rows = of_theory(reduced=2.0)
    assert verdicts_of(rows)[11] == verdicts_of(rows)[10] == NOT_REPRODUCED
    assert set(rows[rows["rule"] == IDENTITY]["part_verdict"]) == {VERIFIED}


def test_the_inequality_of_4_2_is_judged_only_where_its_condition_holds():
    about = {"condition": lambda unit: unit < 1, "inequality": True}
    rows = of_theory(**about)
    assert part_of(rows, 11, "share of units where 4.2's conditions hold")["median"] == 0.25
    assert verdicts_of(rows)[11] == REPRODUCED
    for met, verdict in ((False, REPRODUCED), (True, NOT_REPRODUCED)):
        runs = grid("dln", {"none": PLAIN | about}, 5, ("none",), kinds=("theory",))
        table = runs[0].rows("theory")
        table.loc[(table["statement"] == "4.2b") & table["condition"].eq(met), "holds"] = False  # one counterexample
        assert verdicts_of(judge(runs))[11] == verdict


def test_where_no_unit_meets_the_condition_the_inequality_is_not_applicable_and_decides_nothing():
    rows = of_theory(condition=False, inequality=False)
    assert part_of(rows, 11, "second inequality")["part_verdict"] == NOT_APPLICABLE
    assert verdicts_of(rows)[11] == INCONCLUSIVE


def test_lemma_4_5_without_its_condition_is_not_refuted():
    runs = grid("dln", {"none": PLAIN | {"condition": False}}, 5, ("none",), kinds=("theory",))
    for run in runs:
        run.rows("theory").loc[run.rows("theory")["statement"] == "4.5", "holds"] = pd.NA
    rows = judge(runs)
    assert verdicts_of(rows)[14] == NOT_APPLICABLE
    assert part_of(rows, 14, "share of units where its condition")["median"] == 0.0


# Claim 7, and smallest effects.


def test_where_all_probes_are_saturated_beta_says_nothing_of_the_network():
    probed = {norm: RIGHT[norm] | {"saturated": True} for norm in ("none", "batch")}
    rows = judge(grid("vgg", probed, 8, ("none", "batch"), kinds=("smoothness",)))
    assert verdicts_of(rows)[7] == INCONCLUSIVE
    assert part_of(rows, 7, "share of the common steps")["median"] == 0.0
    assert part_of(rows, 7, "neither probe is saturated, batch")["undefined"] == 8
    assert part_of(rows, 7, "at all steps")["part_verdict"] == REPORTED


def test_saturated_probes_of_one_network_are_compared_nowhere():
    """The plain network's beta is judged only where BatchNorm's is not set by the probe either."""
    probed = {"none": PLAIN, "batch": RIGHT["batch"] | {"saturated": lambda step: step < 2000}}
    rows = judge(grid("vgg", probed, 5, ("none", "batch"), kinds=("smoothness",)))
    assert part_of(rows, 7, "share of the common steps")["median"] == pytest.approx(11 / 31)
    assert verdicts_of(rows)[7] == REPRODUCED


@pytest.mark.parametrize(("ratio", "verdict"), [(0.97, NOT_REPRODUCED), (0.9, REPRODUCED)])
def test_a_consistent_difference_too_small_to_be_seen_is_no_difference(ratio, verdict):
    close = {"none": PLAIN | {"rough": 1.0}, "batch": RIGHT["batch"] | {"rough": ratio}}
    kinds = "smoothness", "landscape-random"
    found = verdicts_of(judge(grid("vgg", close, 8, ("none", "batch"), kinds=kinds), 5, 6, 7, 15))
    assert {found[number] for number in (5, 6, 7, 15)} == {verdict}


def test_every_rule_of_a_difference_has_a_smallest_effect():
    for claim in CLAIMS:
        for part in claim.parts:
            if part.rule is not None and part.judged not in (EVERY, IDENTITY, EXISTS):
                assert part.rule[1] not in (0.0, 1.0), part.text


# Claims 3 and 9: movement and kurtosis.


def test_movement_is_judged_by_the_papers_moments_and_reported_beside_the_probe_and_the_frozen_weights():
    rows = judge(grid("vgg", RIGHT, 5, ("none", "batch", "noisy-batch", "l1"), kinds=("activations",)))
    moves = parts_of(rows, 3, "mean between measured steps, noisy-batch / ")
    assert moves["median"].tolist() == pytest.approx([3.0, 30.0])
    assert set(moves["part_verdict"]) == {REPRODUCED}
    assert part_of(rows, 3, "on the probe batch")["part_verdict"] == REPORTED
    assert part_of(rows, 3, "on the probe batch")["median"] == pytest.approx(3.0)
    assert part_of(rows, 3, "share that remains with frozen weights")["median"] == pytest.approx(0.5)
    assert part_of(rows, 9, "mean between measured steps, l1 / none")["median"] == pytest.approx(2.0)


def test_wasserstein_distances_that_are_sampling_alone_decide_nothing():
    expected, changed = (grid("vgg", RIGHT, 2, NOISY, kinds=("activations",)) for _ in range(2))
    for run in changed:
        run.rows("activations")["movement"] *= np.random.default_rng(run.seed).uniform(0.01, 100)
    pd.testing.assert_frame_equal(judge(changed, 3, 9), judge(expected, 3, 9))


@pytest.mark.parametrize(("values", "share"), [(128, 0.0), (131072, 1.0)])
def test_a_kurtosis_of_0_6_is_heavy_only_if_the_batch_is_large(values, share):
    """Of 128 Gaussian values, it is one in ten."""
    about = {norm: RIGHT[norm] | {"kurtosis": 0.6, "values": values} for norm in RIGHT}
    rows = judge(grid("vgg", about, 8, ("none", "batch", "l1", "l2", "linf"), kinds=("activations",)), 9)
    assert parts_of(rows, 9, "not Gaussian")["median"].tolist() == [share] * 4
    heavy = part_of(rows, 9, "not Gaussian, l1")["part_verdict"]
    assert heavy == (REPRODUCED if share else NOT_REPRODUCED)
    assert part_of(rows, 9, "not Gaussian, batch")["part_verdict"] == REPORTED


@pytest.mark.parametrize("m", [16, 128, 1024])
def test_few_gaussian_samples_are_called_heavy(m):
    samples = np.random.default_rng(m).normal(size=(4000, m))
    assert non_gaussian(stats.kurtosis(samples, axis=1), np.full(4000, float(m))).mean() < 0.02


def test_the_gaussian_null_has_the_moments_of_gaussian_samples():
    m = 50
    kurtoses = stats.kurtosis(np.random.default_rng(0).normal(size=(200_000, m)), axis=1)
    mean, deviation = -6 / (m + 1), math.sqrt(24 * m * (m - 2) * (m - 3) / ((m + 1) ** 2 * (m + 3) * (m + 5)))
    assert kurtoses.mean() == pytest.approx(mean, abs=0.01)
    assert kurtoses.std() == pytest.approx(deviation, rel=0.02)


# The linear network.


def crawl(last):
    """A plain network that stays at a saddle and falls slowly at the end, by any amount."""
    return PLAIN | {"loss": lambda step: np.where(step < 2900, 50.0, 50.0 * last ** ((step - 2900) / 100))}


@pytest.mark.parametrize("last", [1.0, 0.999, 0.99, 0.95])
def test_a_crawl_at_a_saddle_does_not_make_the_verdict_on_claim_1(last):
    """Counting steps to the last loss of a plain run changes twentyfold as that loss moves by 5%."""
    faster = {"none": crawl(last), "batch": PLAIN | {"loss": 40.0}}
    row = part_of(judge(grid("dln", faster, 5, ("none", "batch"), kinds=())), 1, "loss")
    reference = part_of(judge(grid("dln", faster | {"none": crawl(1.0)}, 5, ("none", "batch"), kinds=())), 1, "loss")
    assert row["verdict"] == reference["verdict"]
    assert row["median"] == pytest.approx(reference["median"], rel=2e-3)


def test_a_difference_in_the_sixth_digit_is_not_a_better_loss():
    close = RIGHT | {"l1": RIGHT["l1"] | {"loss": 2.0 * (1 - 1e-6)}}
    rows = judge(grid("dln", close, 8, SMOOTH, kinds=("smoothness",)), 8)
    as_well, better = parts_of(rows, 8, "run, l1 / batch").sort_values("rule", ascending=False).itertuples()
    assert (as_well.rule, as_well.part_verdict) == ("< 1.8", REPRODUCED)
    assert (better.rule, better.part_verdict) == ("< 0.95", NOT_REPRODUCED)
    assert better.verdict == NOT_REPRODUCED


def test_layers_are_paired_before_anything_is_pooled():
    """The two layers of each kind of network differ a thousandfold; at each one, the norms are nearly the same."""
    two = lambda of_even, of_odd: lambda step, layer: np.where(layer % 2 == 0, of_even, of_odd)  # noqa: E731
    layers = {"none": PLAIN | {"ics": two(1.0, 1000.0), "cosine": two(0.9, -0.9)},
              "batch": PLAIN | {"ics": two(7.0, 7000.0), "cosine": two(0.897, -0.903)}}  # fmt: skip
    rows = judge(grid("vgg", layers, 5, ("none", "batch"), kinds=("ics",)))
    assert part_of(rows, 4, "distance of the layers' gradients, batch")["median"] == pytest.approx(7.0)
    assert part_of(rows, 4, "cosine")["median"] == pytest.approx(-0.003)


def test_layers_of_opposite_cosines_are_not_uncorrelated():
    opposite = {"none": PLAIN | {"cosine": 1.0},
                "batch": PLAIN | {"cosine": lambda step, layer: np.where(layer % 2 == 0, 0.95, -0.95)}}  # fmt: skip
    rows = judge(grid("dln", opposite, 5, ("none", "batch"), (1e-7,), kinds=("ics",)))
    assert part_of(rows, 16, "size of the cosine", 1e-7)["part_verdict"] == NOT_REPRODUCED


# Windows.


def test_a_plain_run_that_ends_half_way_is_compared_over_the_common_steps():
    half = {"none": PLAIN | {"rough": lambda step: np.where(step < 1650, 10.0, 1.0)},
            "batch": PLAIN | {"rough": lambda step: np.where(step < 1650, 1.0, 1e-6)}}  # fmt: skip
    runs = grid("vgg", half, 5, ("batch",), kinds=("smoothness",))
    runs += grid("vgg", half, 5, ("none",), kinds=("smoothness",), diverged=1600)
    row = part_of(judge(runs), 5, "range of the loss on the line, batch")
    assert (row["median"], row["part_verdict"]) == (pytest.approx(0.1), REPRODUCED)


def test_a_plain_run_that_ends_at_5_percent_is_not_compared():
    runs = grid("vgg", RIGHT, 8, ("batch",)) + grid("vgg", RIGHT, 8, ("none",), diverged=150)
    rows = judge(runs)
    for number in (4, 5, 6, 7, 15):
        assert verdicts_of(rows)[number] == INCONCLUSIVE, number
        deciding = parts_of(rows, number)[parts_of(rows, number)["decides"].eq(True)]
        assert (deciding["undefined"] == 8).all()
        assert deciding["median"].isna().all()


@pytest.mark.parametrize(("problem", "early"), [("vgg", 1500), ("dln", 1000)])
@pytest.mark.parametrize("steps", [3000, 6000])
def test_early_is_in_steps_however_long_the_run_is(problem, early, steps):
    smoother = lambda step: np.where((step > 0.4 * early) & (step <= early), 0.001, 10.0)  # noqa: E731
    about = {"none": PLAIN | {"rough": 1.0}, "batch": PLAIN | {"rough": smoother}}
    rows = judge(grid(problem, about, 2, ("none", "batch"), kinds=("smoothness",), steps=steps))
    assert part_of(rows, 5, "on the line early")["median"] == pytest.approx(0.001)
    assert part_of(rows, 5, "early over later")["median"] == pytest.approx(0.0001)


def test_a_run_without_late_steps_says_nothing_of_early_and_late():
    rows = judge(grid("dln", RIGHT, 5, ("none", "batch"), kinds=("smoothness",), steps=800))
    assert part_of(rows, 5, "early over later")["undefined"] == 5
    assert verdicts_of(rows)[5] == INCONCLUSIVE


def test_the_last_accuracy_is_the_mean_of_the_last_five_evaluations_in_the_last_third():
    noisy = {
        "none": PLAIN
        | {"accuracy": lambda step: np.select([step >= 2800, step >= 2000], [0.5 + 0.1 * (step // 50 % 2), 0.9], 0.2)}
    }
    run = record("vgg", "none", 0.1, 0, noisy, kinds=())
    assert run.training["final_test_accuracy"] == pytest.approx(np.mean([0.5, 0.6, 0.5, 0.6, 0.5]))
    rows = run.rows("train")
    rows.loc[~rows["step"].isin([0, 1000, 1900, 2500, 3000]), "test_accuracy"] = np.nan
    rare = dataclasses.replace(run, read=lambda kind, columns=None: rows, _rows={})
    assert rare.training["final_test_accuracy"] == pytest.approx((0.9 + 0.5) / 2)


# Undefined values.


def test_undefined_seeds_are_counted_and_widen_the_interval():
    runs = grid("vgg", RIGHT, 8, ("batch",), kinds=("smoothness",))
    runs += grid("vgg", RIGHT, 6, ("none",), kinds=("smoothness",))
    runs += [record("vgg", "none", 0.1, seed, RIGHT, ("smoothness",), diverged=100) for seed in (6, 7)]
    row = part_of(judge(runs), 7, "neither probe is saturated, batch")
    assert (row["seeds"], row["undefined"], row["part_verdict"]) == (8, 2, INCONCLUSIVE)
    assert (row["low"], row["high"]) == (-math.inf, math.inf)
    assert len(row["values"]) == 8
    assert np.isnan(row["values"]).sum() == 2
    assert row["p_value"] == stats.binomtest(6, 8, alternative="greater").pvalue


@pytest.mark.parametrize("missing", ["none", "batch", "l1"])
def test_a_part_leaves_out_seeds_that_lack_one_of_its_norms(missing):
    runs = grid("vgg", RIGHT, 6, ("none", "batch", "l1"), kinds=())
    rows = judge([run for run in runs if (run.norm, run.seed) != (missing, 2)])
    assert part_of(rows, 1, "accuracy")["seeds"] == (6 if missing == "l1" else 5)
    assert part_of(rows, 8, "l1 less batch")["seeds"] == (6 if missing == "none" else 5)


# Several problems, and runs that are told apart by nothing.


def test_a_part_that_is_refuted_outweighs_those_not_measured():
    runs = grid("vgg", WRONG, 8, ("none", "batch", "l1"), kinds=("smoothness",))
    assert verdicts_of(judge(runs, 8))[8] == NOT_REPRODUCED


def test_each_problem_has_its_own_verdicts(tmp_path):
    both = "none", "batch"
    runs = world(tmp_path, "vgg", RIGHT, 5, both, kinds=()) + world(tmp_path, "dln", WRONG, 5, both, kinds=())
    outcome = conclude(runs)
    first = outcome.claims[outcome.claims["claim"] == 1].set_index("problem")["verdict"]
    assert first.to_dict() == {"vgg": REPRODUCED, "dln": NOT_REPRODUCED}


def test_runs_of_one_norm_lr_and_seed_have_no_statistics(tmp_path):
    runs = [write_run(tmp_path / str(i), "vgg", "none", 0.1, 0, RIGHT, kinds=()) for i in range(2)]
    other = Run(runs[1].path.rename(tmp_path / "other"), runs[1].config)
    outcome = conclude([runs[0], other])
    assert len(outcome.comparison) == 2
    assert outcome.summary.empty
    assert outcome.claims.empty


# What cannot change a verdict, and what must.


def judged(values, rules=((">", 0.0),), kind="median"):
    """The verdict on a claim whose parts have the given rules, and values for each seed."""
    parts = tuple(
        Part(str(i), lambda case, i=i: values[i][case["none"].seed], ("none",), rule=rule, judged=kind)
        for i, rule in enumerate(rules)
    )
    claim = Claim(99, "", "", parts)
    cases = [Case({"none": Record("run", "vgg", "none", 0.2, seed, 1, None, {}, trained, frozenset())})
             for seed in range(len(values[0]))]  # fmt: skip
    rows = verdicts._judge(claim, parts, {0.2: cases}, "vgg")
    assert len({row["verdict"] for row in rows}) == 1
    return rows[0]["verdict"]


NUMBERS = st.sampled_from([-2.0, -1.0, 0.0, 1.0, 2.0, math.nan, math.inf])
SEEDS_OF_VALUES = st.integers(1, 9).flatmap(
    lambda n: st.lists(st.lists(NUMBERS, min_size=n, max_size=n), min_size=1, max_size=3)
)


@given(SEEDS_OF_VALUES, st.randoms())
@settings(max_examples=100, deadline=None)
def test_the_order_of_the_seeds_does_not_matter(values, random):
    order = list(range(len(values[0])))
    random.shuffle(order)
    rules = [(">", 0.0)] * len(values)
    assert judged([[of_part[i] for i in order] for of_part in values], rules) == judged(values, rules)


@given(SEEDS_OF_VALUES)
@example([[-2.0] + [1.0] * 7] * 2)
@settings(max_examples=100, deadline=None)
def test_values_on_the_other_side_of_the_bound_turn_the_verdict_round(values):
    found = judged(values, [(">", 0.0)] * len(values))
    mirrored = [[-value for value in of_part] for of_part in values]
    assert judged(mirrored, [("<", 0.0)] * len(values)) == found
    if found == REPRODUCED:
        turned = judged(mirrored, [(">", 0.0)] * len(values))
        n = len(values[0])
        against = [sum(value < 0 for value in of_part) for of_part in values]
        least = min(sum(math.comb(n, i) for i in range(number + 1)) / 2**n for number in against)
        enough = least * len(values) <= LEVEL  # one part decides, and each could have
        assert turned == NOT_REPRODUCED or not enough or any(0.0 in of_part for of_part in values)


@given(SEEDS_OF_VALUES)
@settings(max_examples=100, deadline=None)
def test_an_undefined_seed_makes_no_verdict(values):
    rules = [(">", 0.0)] * len(values)
    before, after = judged(values, rules), judged([[*of_part, math.nan] for of_part in values], rules)
    assert after in (before, INCONCLUSIVE)


@given(SEEDS_OF_VALUES)
@settings(max_examples=50, deadline=None)
def test_another_part_makes_no_claim_reproduced_that_was_not(values):
    rules = [(">", 0.0)] * len(values)
    more = judged([*values, [1.0] * len(values[0])], [*rules, (">", 0.0)])
    before = judged(values, rules)
    assert more != REPRODUCED or before == REPRODUCED
    assert more != NOT_REPRODUCED or before == NOT_REPRODUCED


# Found by trying to deceive the engine.


def test_a_claim_is_not_put_together_of_several_learning_rates():
    """At 0.5, BatchNorm beats none; at 0.1, l_p norms match a BatchNorm of which nobody knows whether it beats none."""
    kinds = ("smoothness",)
    runs = grid("vgg", RIGHT, 6, ("none", "batch"), (0.5,), kinds=kinds)
    runs += grid("vgg", RIGHT, 6, ("batch", "l1", "l2", "linf"), (0.1,), kinds=kinds)
    rows = judge(runs, 8)
    assert verdicts_of(rows)[8] == NOT_MEASURED
    lacking = rows[rows["part_verdict"] == NOT_MEASURED]
    assert set(lacking["lr"]) == {0.1}
    assert all("none" in command["norms"] for command in lacking["command"])
    rows = judge(runs + grid("vgg", RIGHT, 6, ("none",), (0.1,), kinds=kinds), 8)
    assert verdicts_of(rows)[8] == REPRODUCED  # norms that were not run at 0.5 are not asked for


def test_a_learning_rate_at_which_nothing_trains_needs_no_measurements():
    runs = grid("vgg", RIGHT, 5, ("none", "batch"), kinds=("smoothness",))
    runs += grid("vgg", RIGHT, 5, ("none", "batch"), (10.0,), kinds=(), diverged=0)
    assert [verdicts_of(judge(runs, number))[number] for number in (5, 6, 7)] == [REPRODUCED] * 3
    unmeasured = grid("vgg", RIGHT, 5, ("none", "batch"), (0.2,), kinds=())
    rows = judge(runs + unmeasured, 7)
    assert verdicts_of(rows)[7] == NOT_MEASURED
    assert parts_of(rows, 7, "neither probe is saturated, batch", 0.2)["command"].iloc[0]["measure"] == ["smoothness"]


def test_the_flat_loss_of_a_network_that_has_stopped_learning_is_not_smoothness():
    dead = STALLS | {"none": STALLS["none"] | {"rough": 1e-9, "ics": 1e-9}}
    runs = grid("vgg", dead, 8, ("none", "batch"), (0.5,), kinds=("smoothness", "landscape-random", "ics"))
    found = verdicts_of(judge(runs))
    assert [found[number] for number in (4, 5, 6, 7, 15)] == [NOT_APPLICABLE] * 5
    assert found[1] == REPRODUCED


def test_steps_without_a_value_do_not_lend_their_weight_to_others():
    """Beta is free at a few early steps, where BatchNorm's is lower, and at one late step, where it is not."""
    free = lambda step: (step > 200) & (step < STEPS)  # noqa: E731
    probed = {"none": PLAIN | {"rough": 1.0, "saturated": free},
              "batch": PLAIN | {"rough": lambda step: np.where(step < STEPS, 0.5, 2.0)}}  # fmt: skip
    row = part_of(
        judge(grid("vgg", probed, 5, ("none", "batch"), kinds=("smoothness",)), 7), 7, "saturated, batch / none"
    )
    assert row["median"] == 0.5


def test_a_run_that_diverged_is_not_compared_only_over_the_steps_before():
    """Tables of older versions do not say what chance is."""
    runs = grid("vgg", RIGHT, 5, ("none", "batch", "noisy-batch", "noisy-none"), kinds=(), baseline=False)
    late = [record("vgg", "noisy-batch", 0.1, seed, RIGHT, (), 2000, baseline=False) for seed in range(5)]
    runs = [run for run in runs if run.norm != "noisy-batch"] + late
    row = part_of(judge(runs, 3), 3, "noisy-batch less batch")
    assert (row["undefined"], row["part_verdict"]) == (5, INCONCLUSIVE)


def test_losses_below_zero_have_no_ratio():
    falls = lambda by: lambda step: 1.0 - by * step / STEPS  # noqa: E731
    about = {"none": PLAIN | {"loss": falls(1.5)}, "batch": PLAIN | {"loss": falls(3.0)}}
    row = part_of(judge(grid("dln", about, 5, ("none", "batch"), kinds=()), 1), 1, "loss")
    assert (row["undefined"], row["part_verdict"]) == (5, INCONCLUSIVE)
    assert math.isnan(record("dln", "none", 1e-6, 0, about, ()).training["mean_log_loss"])


def test_tables_of_theory_from_before_4_2b_are_not_paired_with_those_of_another_norm():
    runs = grid("dln", {"none": PLAIN, "batch": PLAIN | {"reduced": 2.0}}, 5, ("none", "batch"), kinds=("theory",))
    for run in runs:
        if run.norm == "none":
            table = run.rows("theory")
            run._rows["theory"] = table[table["statement"] != "4.2b"]
    row = part_of(judge(runs, 11), 11, "quadratic form")
    assert row["median"] == 2.0


def test_a_plan_for_existence_takes_one_learning_rate_and_is_corrected_for_all():
    table = plan("vgg", [0.1, 0.5]).set_index("claim").loc[2]
    assert table["seeds_1"] == seeds_for([1.0], 2)
    assert table["refuted_1"] == seeds_for([1.0])
    assert math.isnan(plan("dln", [1e-6]).set_index("claim").loc[2, "refuted_1"])


def test_runs_of_different_lengths_do_not_show_that_one_of_them_fails():
    """A plain run of 50 steps has not had the time to train."""
    short = {"none": PLAIN | {"accuracy": 0.1}, "noisy-none": PLAIN | {"accuracy": 0.1}}
    runs = grid("vgg", RIGHT, 8, ("none", "batch"), (0.1,), kinds=())
    runs += grid("vgg", RIGHT, 8, ("batch",), (0.5,), kinds=())
    rows = judge(runs + grid("vgg", short, 8, ("none",), (0.5,), kinds=(), steps=50), 2)
    assert part_of(rows, 2, "", 0.5)["undefined"] == 8
    assert verdicts_of(rows)[2] == INCONCLUSIVE
    rows = judge(runs[:16] + grid("vgg", short, 8, ("noisy-none",), kinds=(), steps=50), 3)
    assert part_of(rows, 3, "noisy-none")["undefined"] == 8


def test_noise_is_not_to_blame_where_none_does_not_train_without_it():
    rows = judge(grid("vgg", STALLS, 8, NOISY, kinds=("activations",)), 3)
    assert part_of(rows, 3, "noisy-none")["undefined"] == 8
    assert verdicts_of(rows)[3] == INCONCLUSIVE


def test_gradients_that_are_aligned_in_most_layers_are_not_aligned_for_the_whole_run():
    half = {"none": PLAIN | {"cosine": lambda step, layer: np.where((layer == 2) | (step < 300), 1.0, 0.0)}}
    rows = judge(grid("dln", half | {"batch": PLAIN}, 8, ("none", "batch"), (1e-7,), kinds=("ics",)), 4, 16)
    assert part_of(rows, 16, "averaged over the run, none")["part_verdict"] == verdicts_of(rows)[16] == NOT_REPRODUCED
    assert verdicts_of(rows)[4] != NOT_REPRODUCED  # its sentence compares two networks, and says nothing of one


def test_a_claim_about_one_learning_rate_says_whether_it_is_measured_there():
    assert verdicts_of(judge(grid("dln", RIGHT, 5, ("none", "batch"), (1e-7,), kinds=("ics",)), 16))[16] == REPRODUCED
    assert verdicts_of(judge(grid("dln", RIGHT, 5, ("batch",), (1e-7,), kinds=("ics",)), 16))[16] == NOT_MEASURED
    assert (
        verdicts_of(judge(grid("dln", RIGHT, 5, ("none", "batch"), (1e-6,), kinds=("ics",)), 16))[16] == NOT_APPLICABLE
    )


def test_a_part_that_does_not_decide_is_not_needed():
    rows = judge(grid("dln", RIGHT, 8, ("none",), (1e-7,), kinds=("ics",)), 16)  # BatchNorm's part is without a run
    assert verdicts_of(rows)[16] == REPRODUCED
    part = part_of(rows, 16, "size of the cosine")
    assert (part["part_verdict"], part["decides"]) == (NOT_MEASURED, False)


def test_a_headline_says_what_the_parts_say():
    rows = judge(grid("vgg", WRONG, 8, ("none", "batch"), kinds=("ics",)), 1, 2, 4)
    said = {number: headline(rows[rows["claim"] == number]) for number in (1, 2, 4)}
    assert said == {1: "not reproduced", 2: "not measured", 4: "not reproduced: both parts"}
    half = {"none": PLAIN, "batch": PLAIN | {"ics": 2.0, "cosine": 0.9}}
    assert headline(judge(grid("vgg", half, 8, ("none", "batch"), kinds=("ics",)), 4)) == (
        "not reproduced: 1 of 2 parts reproduced, 1 not reproduced"
    )


def test_an_identity_without_a_single_case_is_not_verified_by_others():
    runs = grid("dln", {"none": PLAIN}, 5, ("none",), kinds=("theory",))
    for run in runs:
        run.rows("theory").loc[run.rows("theory")["statement"] == "4.1", "holds"] = pd.NA
    assert part_of(judge(runs, 10), 10, "both sides agree")["part_verdict"] == NOT_APPLICABLE
    runs[0].rows("theory").loc[run.rows("theory")["statement"] == "fact C.1", "holds"] = False
    del runs[0].__dict__["statements"]  # it is computed once
    assert part_of(judge(runs, 10), 10, "both sides agree")["part_verdict"] == VIOLATED


@pytest.mark.filterwarnings("error")
def test_extreme_values_give_verdicts_without_warnings():
    far = {"none": PLAIN | {"loss": 1e300}, "batch": PLAIN | {"loss": 1e-300}}
    row = part_of(judge(grid("dln", far, 5, ("none", "batch"), kinds=()), 1), 1, "loss")
    assert (row["median"], row["verdict"]) == (pytest.approx(0.0, abs=1e-290), REPRODUCED)
    back = {"none": far["batch"] | {"first_loss": 1e-300}, "batch": far["none"] | {"first_loss": 1e300}}
    runs = grid("dln", back, 5, ("none", "batch"), kinds=(), spread=0.0)
    assert part_of(judge(runs, 1), 1, "loss")["verdict"] == NOT_REPRODUCED
    assert math.isnan(median(np.array([-math.inf, math.inf])))
